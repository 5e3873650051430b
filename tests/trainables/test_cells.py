"""One crystal from a cell: objects, dictionaries and text of any kind; what is none is called by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_data import CELLS, ase_dict, atoms_of, jarvis, optimade, poscar, require_same
from pymatgen.core import Lattice, Structure
from table_data import CUBE

from trainables.data.structures import BadStructure, read_crystal


@pytest.mark.parametrize(
    "form",
    [
        lambda cell: cell,
        Structure.as_dict,
        lambda cell: {"structure": cell.as_dict(), "energy": 1.0, "@class": "ComputedStructureEntry"},
        lambda cell: json.dumps(cell.as_dict()),
        lambda cell: str(cell.as_dict()),
        atoms_of,
        ase_dict,
        lambda cell: str(ase_dict(cell)),
        jarvis,
        lambda cell: str(jarvis(cell)),
        optimade,
        lambda cell: {"attributes": optimade(cell)},
        lambda cell: poscar(cell),
        lambda cell: "\ufeff" + poscar(cell).replace("\n", "\r\n"),
    ],
    ids=lambda form: getattr(form, "__name__", ""),
)
def test_a_cell_may_hold_a_crystal_in_any_form(form: Callable[[Structure], Any]) -> None:
    for cell in CELLS:
        require_same(read_crystal(form(cell), Path()), cell)


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
def test_cif_text_may_have_any_line_ends_even_as_two_characters() -> None:
    text = CUBE.to(fmt="cif")
    for changed in (text, text.replace("\n", "\r\n"), text.replace("\n", "\r"), text.replace("\n", "\\n")):
        require_same(read_crystal(changed, Path()), CUBE, 1e-5)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        (str(CUBE), "printed structures"),
        (repr(CUBE), "printed structures"),
        (str(atoms_of(CUBE)), "printed structures"),
        ("2\n\nH 0 0 0\nH 0 0 0.7\n", "a molecule"),
        ({"species": ["H"], "sites": []}, "a molecule"),
        ({"numbers": [1], "positions": [[0, 0, 0]], "cell": [[0, 0, 0]] * 3}, "a molecule"),
        (CUBE.to(fmt="cif") + CUBE.to(fmt="cif").replace("data_Po", "data_two"), "several structures"),
        ("some words\nand more", "neither CIF, POSCAR"),
        ("a word", "neither a structure's text nor the path of a file"),
        ("missing.cif", "a structure file that does not exist"),
        ({"a": 1}, "which is no crystal's"),
        ([1, 2], "list instead of a pymatgen Structure"),
    ],
)
def test_what_is_no_crystal_is_called_by_its_name(cell: Any, told: str) -> None:
    with pytest.raises(BadStructure, match=told):
        read_crystal(cell, Path())


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
def test_a_cif_that_says_another_formula_than_its_sites_is_refused() -> None:
    cell = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    text = cell.to(fmt="cif")
    require_same(read_crystal(text, Path()), cell, 1e-5)
    wrong = text.replace("_chemical_formula_sum   'Na1 Cl1'", "_chemical_formula_sum   'Na2 Cl1'")
    assert wrong != text
    with pytest.raises(BadStructure, match="whose formula is not that of its sites"):
        read_crystal(wrong, Path())


@pytest.mark.parametrize(("height", "fits"), [(20.0, True), (6.1, True), (5.9, False)])
def test_a_layer_is_taken_where_its_images_do_not_see_each_other(height: float, fits: bool) -> None:
    layer = Structure(Lattice(np.diag([3.0, 3.0, height]), pbc=(True, True, False)), ["C"], [[0, 0, 0.5]])
    for form in (layer, layer.as_dict()):
        if fits:
            assert len(read_crystal(form, Path()).numbers) == 1
        else:
            with pytest.raises(BadStructure, match="less than 6 A of vacuum"):
                read_crystal(form, Path())
