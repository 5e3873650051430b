"""Properties of the elements, as numbers, from pymatgen's own table."""

import math
import warnings
from functools import cache

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element

from trainables.model.modules import N_ELEMENTS

_NUMBERS = (
    "X", "atomic_mass", "atomic_radius", "atomic_radius_calculated", "average_ionic_radius", "boiling_point",
    "bulk_modulus", "density_of_solid", "electron_affinity", "group", "ionization_energy", "melting_point",
    "mendeleev_no", "molar_volume", "row", "thermal_conductivity", "van_der_waals_radius", "youngs_modulus",
)  # fmt: skip
_BLOCKS = "spdf"
ELEMENT_NAMES = ("Z", *_NUMBERS, *(f"{block}_valence" for block in _BLOCKS), "valence")


@cache
def element_table() -> NDArray[np.float64]:
    """Return the properties of hydrogen to plutonium, (N_ELEMENTS, len(ELEMENT_NAMES)), each of mean 0 and SD 1.

    What is not known of an element is the mean of its property.
    """
    with warnings.catch_warnings():  # of what is not known
        warnings.simplefilter("ignore")
        table = np.array([_properties(z) for z in range(1, N_ELEMENTS + 1)])
    table = np.where(np.isnan(table), np.nanmean(table, axis=0), table)
    return np.asarray((table - table.mean(axis=0)) / table.std(axis=0))


def _properties(z: int) -> list[float]:
    element = Element.from_Z(z)
    numbers = [_number(getattr(element, name)) for name in _NUMBERS]
    valence = _valence(element)
    return [float(z), *numbers, *valence, sum(valence)]


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]  # a number, or None
    except (TypeError, ValueError):
        return math.nan


def _valence(element: Element) -> list[float]:
    """Return the electrons outside the noble gas's core, by block."""
    core = max((z for z in (2, 10, 18, 36, 54, 86) if z < element.Z), default=0)
    inner = {(n, block) for n, block, _ in Element.from_Z(core).full_electronic_structure} if core else set()
    outer = [(block, count) for n, block, count in element.full_electronic_structure if (n, block) not in inner]
    return [float(sum(count for each, count in outer if each == block)) for block in _BLOCKS]
