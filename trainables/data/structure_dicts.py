"""Dictionaries of crystals: pymatgen's, ASE's, JARVIS' and OPTIMADE's."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element

from trainables.crystals import Crystal, Trait
from trainables.data.bad_structures import BadStructure, not_periodic_enough

_WRONG_SHAPES = "wrong shapes (expected a 3 x 3 lattice and 3 coordinates per atom)"
_WRAPPERS = ("structure", "final_structure", "initial_structure", "atoms", "attributes")  # of what holds a structure


def is_structure_dict(value: Any) -> bool:
    """Return whether a value is a crystal as a dictionary."""
    if not isinstance(value, Mapping):
        return False
    keys = value.keys()
    return (
        {"lattice", "sites"} <= keys
        or {"lattice_mat", "coords", "elements"} <= keys
        or ({"cell", "positions"} <= keys and bool({"numbers", "symbols"} & keys))
        or {"lattice_vectors", "cartesian_site_positions", "species_at_sites"} <= keys
    )


def crystal_of_dict(content: Mapping[str, Any]) -> Crystal:
    """Read a dictionary.

    Raises:
        BadStructure: it is none of a crystal, or of one that cannot be used.
    """
    keys = content.keys()
    try:
        if {"lattice", "sites"} <= keys:
            return _of_pymatgen(content)
        if {"lattice_mat", "coords", "elements"} <= keys:
            return _of_jarvis(content)
        if {"cell", "positions"} <= keys:
            return _of_ase(content)
        if {"lattice_vectors", "cartesian_site_positions", "species_at_sites"} <= keys:
            return _of_optimade(content)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, np.linalg.LinAlgError) as error:
        if isinstance(error, BadStructure):
            raise
        raise BadStructure(_WRONG_SHAPES) from None
    if isinstance(content.get("atoms_json"), str):  # pymatgen's MSONAtoms
        return crystal_of_dict(json.loads(content["atoms_json"]))
    inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
    if inner is not None:
        return crystal_of_dict(inner)
    if "sites" in keys:
        raise BadStructure("a molecule (no lattice): CHGNet needs a periodic crystal")
    raise BadStructure(f"a dictionary of {', '.join(map(str, list(keys)[:4])) or 'nothing'}, which is no crystal's")


def atomic_number(symbol: str) -> int:
    """Return an element's number; labels such as Fe3+ or Na1 have none.

    Raises:
        BadStructure: there is no such element.
    """
    try:
        return int(Element(symbol).Z)
    except ValueError:
        raise BadStructure("elements CHGNet does not know (no such element)") from None


def crystal_of(lattice: Any, numbers: Sequence[int], coords: Any, *, cartesian: bool, pbc: Any = True) -> Crystal:
    """Put a crystal together and check what is periodic.

    Raises:
        BadStructure: as not_periodic_enough.
    """
    # Parquet hands lists over as arrays of arrays.
    matrix: NDArray[np.float64] = np.array([np.array(row, dtype=np.float64) for row in lattice])
    if matrix.shape == (3,):
        matrix = np.diag(matrix)
    if matrix.shape != (3, 3):
        raise BadStructure(_WRONG_SHAPES)
    if not matrix.any():
        raise BadStructure("a molecule (no lattice): CHGNet needs a periodic crystal")
    frac = np.array([np.array(row, dtype=np.float64) for row in coords]).reshape(-1, 3)
    if cartesian:
        frac = np.asarray(np.linalg.solve(matrix.T, frac.T).T, dtype=np.float64)
    crystal = Crystal(matrix, np.array(numbers, dtype=np.uint8), np.ascontiguousarray(frac))
    not_periodic_enough(crystal, pbc)
    return crystal


def _of_pymatgen(content: Mapping[str, Any]) -> Crystal:
    """Read pymatgen's without building its objects (forty times faster)."""
    lattice, sites = content["lattice"], content["sites"]
    if not isinstance(lattice, Mapping) or "matrix" not in lattice or not isinstance(sites, list | tuple | np.ndarray):
        raise BadStructure("not a pymatgen structure dictionary (lattice.matrix and sites are required)")
    numbers, frac, left_out = [], [], set[Trait]()
    if content.get("charge"):
        left_out.add("charges")
    for site in sites:
        try:
            species = site.get("species", ())
            if len(species) != 1 or abs(species[0].get("occu", 1) - 1) > 1e-6:
                raise BadStructure("partial occupancy")
            numbers.append(atomic_number(str(species[0].get("element", ""))))
            frac.append(site["abc"])
            left_out.update(_beside(site, species[0]))
        except (AttributeError, TypeError, KeyError):
            raise BadStructure("not a pymatgen structure dictionary (a site without species and abc)") from None
    crystal = crystal_of(lattice["matrix"], numbers, frac, cartesian=False, pbc=lattice.get("pbc", True))
    return crystal._replace(left_out=frozenset(left_out))


def _beside(site: Mapping[str, Any], kind: Mapping[str, Any]) -> Iterator[Trait]:
    """Tell what a site of pymatgen's dictionary has beside element and place."""
    if kind.get("oxidation_state"):
        yield "charges"
    moment = (site.get("properties") or {}).get("magmom")
    if kind.get("spin") or (moment is not None and _size(moment) > 0):
        yield "magnetic moments"
    if kind.get("element") in ("D", "T"):
        yield "isotopes"


def _size(moment: Any) -> float:
    """Return the size of a moment: a number, a vector, or pymatgen's dictionary of one."""
    moment = moment.get("moment", 0.0) if isinstance(moment, Mapping) else moment
    return float(np.linalg.norm(np.asarray(moment, dtype=np.float64)))


def _of_jarvis(content: Mapping[str, Any]) -> Crystal:
    numbers = [atomic_number(str(symbol)) for symbol in content["elements"]]
    cartesian = str(content.get("cartesian", False)).lower() == "true"
    return crystal_of(content["lattice_mat"], numbers, content["coords"], cartesian=cartesian)


def _of_ase(content: Mapping[str, Any]) -> Crystal:
    cell = content["cell"]
    if isinstance(cell, Mapping):  # ASE's own JSON
        cell = cell.get("array", cell.get("__ndarray__", [None, None, []])[2])
    numbers = content["numbers"] if "numbers" in content else [atomic_number(str(s)) for s in content["symbols"]]
    positions = _array(content["positions"])
    return crystal_of(
        _array(cell),
        [int(z) for z in _array(numbers).ravel()],
        positions,
        cartesian=True,
        pbc=_array(content.get("pbc", True)),
    )


def _array(value: Any) -> np.ndarray[Any, Any]:
    """Return an array of a list, or of ASE's JSON for one: {"__ndarray__": [shape, type, numbers]}."""
    if isinstance(value, Mapping) and "__ndarray__" in value:
        shape, kind, numbers = value["__ndarray__"]
        return np.array(numbers, dtype=kind).reshape(shape)
    return np.array(value)


def _of_optimade(content: Mapping[str, Any]) -> Crystal:
    kinds = {kind["name"]: kind for kind in content.get("species") or []}
    numbers = []
    for name in content["species_at_sites"]:
        kind = kinds.get(name, {"chemical_symbols": [name], "concentration": [1.0]})
        if len(kind["chemical_symbols"]) != 1 or abs(kind.get("concentration", [1.0])[0] - 1) > 1e-6:
            raise BadStructure("partial occupancy")
        numbers.append(atomic_number(str(kind["chemical_symbols"][0])))
    pbc = [bool(each) for each in content.get("dimension_types") or (1, 1, 1)]
    return crystal_of(content["lattice_vectors"], numbers, content["cartesian_site_positions"], cartesian=True, pbc=pbc)
