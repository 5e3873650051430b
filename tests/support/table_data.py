"""Tables of a few crystals, good and bad, for tests of reading them."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from trainables.crystals import Crystal
from trainables.data.dataset import Dataset
from trainables.data.tasks import TASKS, custom_task
from trainables.errors import UserError

JDFT2D = TASKS["matbench_jdft2d"]
OWN = custom_task("mine", "y", "", "property")


def changed(structure: Structure, **sites: Any) -> dict[str, Any]:
    """pymatgen's dictionary of the structure with its first site changed."""
    content = structure.as_dict()
    content["sites"][0] |= sites
    return content


CUBE = Structure(Lattice.cubic(4.0), ["Po"], [[0, 0, 0]])
BAD_STRUCTURES: dict[str, tuple[Any, str]] = {
    "partial occupancy": (
        changed(CUBE, species=[{"element": "Cu", "occu": 0.5}, {"element": "Au", "occu": 0.5}]),
        "partial occupancy",
    ),
    "vacancies": (changed(CUBE, species=[{"element": "Cu", "occu": 0.9}]), "partial occupancy"),
    "too heavy": (changed(CUBE, species=[{"element": "Am", "occu": 1}]), "elements CHGNet does not know"),
    "no element": (changed(CUBE, species=[{"element": "Qq", "occu": 1}]), "elements CHGNet does not know"),
    "overlap": (Structure(Lattice.cubic(4.0), ["H", "H"], [[0, 0, 0], [0.05, 0, 0]]).as_dict(), "overlapping atoms"),
    "overlap across the border": (
        Structure(Lattice.cubic(4.0), ["H", "H"], [[0.01, 0, 0], [0.96, 0, 0]]).as_dict(),
        "overlapping atoms",
    ),
    "overlap with its own image": (Structure(np.diag([0.4, 9, 9]), ["H"], [[0, 0, 0]]).as_dict(), "overlapping atoms"),
    "two coordinates": (changed(CUBE, abc=[0.1, 0.2]), "wrong shapes"),
    "no coordinates": (changed(CUBE, abc=None), "wrong shapes"),
    "words for coordinates": (changed(CUBE, abc=["a", "b", "c"]), "wrong shapes"),
    "lattice of 2 x 3": (CUBE.as_dict() | {"lattice": {"matrix": [[4, 0, 0], [0, 4, 0]]}}, "wrong shapes"),
    "no atoms": (CUBE.as_dict() | {"sites": []}, "no atoms"),
    "NaN coordinate": (changed(CUBE, abc=[0.1, float("nan"), 0]), "non-finite lattice or coordinates"),
    "infinite lattice": (
        CUBE.as_dict() | {"lattice": {"matrix": [[float("inf"), 0, 0], [0, 4, 0], [0, 0, 4]]}},
        "non-finite lattice or coordinates",
    ),
    "flat lattice": (
        CUBE.as_dict() | {"lattice": {"matrix": [[4, 0, 0], [0, 4, 0], [4, 4, 0]]}},
        "a lattice without volume",
    ),
    "a slab": (
        CUBE.as_dict() | {"lattice": {"matrix": (4 * np.eye(3)).tolist(), "pbc": [True, True, False]}},
        "not periodic",
    ),
    "another dictionary": ({"a": 1}, "a dictionary of a, which is no crystal's"),
    "a site that is text": (CUBE.as_dict() | {"sites": ["Po"]}, "not a pymatgen structure dictionary"),
    "an occupancy that is text": (
        changed(CUBE, species=[{"element": "Cu", "occu": "all"}]),
        "not a pymatgen structure dictionary",
    ),
    "species as a dictionary": (changed(CUBE, species={"Cu": 1}), "not a pymatgen structure dictionary"),
    "nothing": (None, "no structure"),
    "empty text": ("  ", "no structure"),
    "a number": (5, "int instead of a pymatgen Structure, its dictionary or CIF text"),
    "no CIF": ("data_x\n_cell_length_a nonsense\n", "a CIF pymatgen cannot read"),
    "a disordered CIF": (
        Structure(Lattice.cubic(4.0), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]]).to(fmt="cif"),
        "partial occupancy",
    ),
    "a CIF with a site of no element": (
        Structure(Lattice.cubic(4.2), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        .to(fmt="cif")
        .replace("Cl  Cl1", "?  X1"),
        "a CIF with sites pymatgen leaves out",
    ),
    "a heavy CIF": (Structure(Lattice.cubic(4.0), ["Cm"], [[0, 0, 0]]).to(fmt="cif"), "elements CHGNet does not know"),
    "broken JSON": ('{"lattice": ', "neither JSON nor Python"),
    "an absent file": ("absent.cif", "a structure file that does not exist"),
    "an absent file named like CIF text": ("data_1.cif", "a structure file that does not exist"),
    "a folder": (".", "a folder, where a structure file was expected"),
    "a line too long for a name": ("x" * 5000, "neither a structure's text nor the path"),
}


def records(cells: list[Structure], **columns: Any) -> list[dict[str, Any]]:
    """Rows of a table: an id, pymatgen's dictionary, a target."""
    rows: list[dict[str, Any]] = [
        {"id": f"row-{place}", "structure": cell.as_dict(), "y": place / 4} for place, cell in enumerate(cells)
    ]
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return rows


def saved(path: Path, rows: Any) -> Path:
    text = json.dumps(rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_holds(dataset: Dataset, cells: list[Structure], tolerance: float = 0.0) -> None:
    assert len(dataset) == len(cells)
    for crystal, cell in zip(dataset.structures, cells, strict=True):
        expected = Crystal.from_structure(cell)
        np.testing.assert_array_equal(crystal.numbers, expected.numbers)
        np.testing.assert_allclose(crystal.lattice, expected.lattice, atol=tolerance, rtol=0)
        apart = crystal.frac - expected.frac
        np.testing.assert_allclose(apart - np.round(apart) * (tolerance > 0), 0, atol=tolerance)


def table_of(cells: list[Structure], **changes: Any) -> dict[str, Any]:
    content = {
        "index": [4, 0, 635, 7, 100][: len(cells)],
        "columns": ["structure", "exfoliation_en"],
        "data": [[cell.as_dict(), place * 10.5] for place, cell in enumerate(cells)],
    }
    return content | changes
