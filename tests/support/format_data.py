"""Six crystals in every form that people have them, for tests of reading."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Structure
from pymatgen.io.vasp import Poscar
from small_data import rocksalts

from trainables.crystals import Crystal
from trainables.data.own_table import read_table

CELLS = rocksalts(6)
GAPS = [0.5, 1.25, 2.0, 3.5, 4.0, 7.75]
IDS = ("007", "NaN", "1e5", "NA", "None", "a b")  # words that readers of tables like to take for something else


def atoms_of(cell: Structure) -> Atoms:
    symbols = [site.specie.symbol for site in cell]
    return Atoms(symbols, scaled_positions=cell.frac_coords, cell=cell.lattice.matrix, pbc=True)


def poscar(cell: Structure) -> str:
    return str(Poscar(cell).get_str(significant_figures=16))


def plain_dict(cell: Structure) -> dict[str, Any]:
    """Without empty dictionaries, which Parquet cannot hold."""
    return json.loads(json.dumps(cell.as_dict()).replace(', "properties": {}', "").replace('"properties": {}, ', ""))


def jarvis(cell: Structure) -> dict[str, Any]:
    symbols = [site.specie.symbol for site in cell]
    return {
        "lattice_mat": cell.lattice.matrix.tolist(),
        "coords": cell.frac_coords.tolist(),
        "elements": symbols,
        "cartesian": False,
        "props": [""] * len(cell),
    }


def ase_dict(cell: Structure) -> dict[str, Any]:
    atoms = atoms_of(cell)
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": [True, True, True],
    }


def optimade(cell: Structure) -> dict[str, Any]:
    symbols = [site.specie.symbol for site in cell]
    kinds = [{"name": name, "chemical_symbols": [name], "concentration": [1.0]} for name in set(symbols)]
    return {
        "lattice_vectors": cell.lattice.matrix.tolist(),
        "cartesian_site_positions": cell.cart_coords.tolist(),
        "species_at_sites": symbols,
        "species": kinds,
        "dimension_types": [1, 1, 1],
    }


def rows(structure: Callable[[Structure], Any] = Structure.as_dict) -> list[dict[str, Any]]:
    return [
        {"id": row_id, "structure": structure(cell), "gap": gap}
        for row_id, cell, gap in zip(IDS, CELLS, GAPS, strict=True)
    ]


def require_cells(
    path: Path, *, ids: tuple[str, ...] | None = IDS, target: str = "gap", tolerance: float = 1e-6
) -> None:
    """All six crystals with their ids and targets, in their order."""
    dataset = read_table(path, "mine", target)
    assert ids is None or dataset.ids == ids
    assert dataset.targets.tolist() == GAPS
    for crystal, cell in zip(dataset.structures, CELLS, strict=True):
        require_same(crystal, cell, tolerance)


def require_same(crystal: Crystal, cell: Structure, tolerance: float = 1e-6) -> None:
    """The same crystal, whatever the order of its atoms and, beyond a tolerance of 1e-6, of its cell's axes."""
    expected = Crystal.from_structure(cell)
    if tolerance > 1e-6:
        assert crystal.to_structure().matches(cell)
        assert abs(np.linalg.det(crystal.lattice)) == pytest.approx(cell.volume, rel=1e-5)
        return
    np.testing.assert_allclose(crystal.lattice, expected.lattice, atol=tolerance)
    order, other = np.argsort(crystal.numbers), np.argsort(expected.numbers)
    assert crystal.numbers[order].tolist() == expected.numbers[other].tolist()
    apart = crystal.frac[order] - expected.frac[other]
    np.testing.assert_allclose(apart - np.round(apart), 0, atol=tolerance)
