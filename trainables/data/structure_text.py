"""Text of one crystal: CIF, POSCAR, extended XYZ, a dictionary as JSON or as Python prints it."""

import ast
import io
import json
import re
import warnings
from collections.abc import Callable
from typing import Any

from pymatgen.core import Composition, DummySpecies, Structure

from trainables.crystals import Crystal
from trainables.data.bad_structures import BadStructure, not_periodic_enough
from trainables.data.structure_dicts import crystal_of, crystal_of_dict

_CIF_BLOCK = re.compile(r"^data_", re.MULTILINE | re.IGNORECASE)
_CIF_CELL = re.compile(r"^_cell[_.]length_a\b", re.MULTILINE | re.IGNORECASE)
_CIF_FORMULA = re.compile(r"^_chemical_formula_sum\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+)|\n;?([^\n;]+))", re.MULTILINE)
_PRINTED = ("Full Formula (", "Structure Summary", "Lattice\n", "PeriodicSite", "Atoms(", "<", "Structure(", "Crystal(")
_EXPORT = "export dictionaries (structure.as_dict()) or CIF (structure.to(fmt='cif'))"


def looks_like_text(cell: str) -> bool:
    """Return whether a cell holds a crystal's text, not the name of a file."""
    return "\n" in cell or "\\n" in cell or "\r" in cell or cell.startswith(("{", *_PRINTED))


def crystal_of_text(text: str) -> Crystal:
    """Read text.

    Raises:
        BadStructure: with what it is.
    """
    text = text.strip("\ufeff \t")
    if "\n" not in text and "\\n" in text and not text.startswith("{"):  # line ends written as two characters
        text = text.replace("\\r", "").replace("\\n", "\n")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.startswith("{"):
        return crystal_of_dict(_mapping(text))
    if text.startswith(_PRINTED):
        raise BadStructure(f"printed structures, which lack digits and cannot be read back: {_EXPORT}")
    if _CIF_CELL.search(text) or _CIF_BLOCK.search(text):
        return crystal_of_cif(text)
    first, second = [*text.split("\n", 2), "", ""][:2]
    if first.strip().isdigit():
        if "Lattice=" not in second:
            raise BadStructure("a molecule (XYZ without a lattice): CHGNet needs a periodic crystal")
        return _with_ase("extxyz", text, "extended XYZ text that ASE cannot read")
    try:
        float(second.split()[0])
    except (IndexError, ValueError):
        raise BadStructure("text that is neither CIF, POSCAR, extended XYZ nor a dictionary") from None
    return _with_ase("vasp", text, "a POSCAR that ASE cannot read (elements in its first or sixth line, then counts)")


def _mapping(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError:
        try:
            content = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise BadStructure(f"a dictionary as text that is neither JSON nor Python: {_EXPORT}") from None
    if not isinstance(content, dict):
        raise BadStructure(f"text of a {type(content).__name__}, which is no crystal")
    return content


def _with_ase(kind: str, text: str, problem: str) -> Crystal:
    from ase.io import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            atoms = read(io.StringIO(text), format=kind)
        except Exception:  # a reader raises what it happens to meet
            raise BadStructure(problem) from None
    return crystal_of_atoms(atoms)


def crystal_of_atoms(atoms: Any) -> Crystal:
    """Read ASE's Atoms.

    Raises:
        BadStructure: no lattice, or vacuum that is too narrow where it is not periodic.
    """
    pbc = atoms.pbc if atoms.pbc.any() else True  # most formats say nothing of it, and a cell is there
    occupancies = atoms.info.get("occupancy") or {}
    if any(abs(share - 1) > 1e-6 for site in occupancies.values() for share in site.values()):
        raise BadStructure("partial occupancy")
    return crystal_of(atoms.cell.array, atoms.numbers.tolist(), atoms.positions, cartesian=True, pbc=pbc)


def crystal_of_structure(structure: Any) -> Crystal:
    """Read pymatgen's Structure.

    Raises:
        BadStructure: disorder, no such element, or vacuum that is too narrow where it is not periodic.
    """
    if not structure.is_ordered:
        raise BadStructure("partial occupancy")
    if any(isinstance(site.specie, DummySpecies) for site in structure):
        raise BadStructure("elements CHGNet does not know (no such element)")
    crystal = Crystal.from_structure(structure)
    not_periodic_enough(crystal, structure.lattice.pbc)
    return crystal


def crystal_of_cif(text: str) -> Crystal:
    """Read CIF text.

    Raises:
        BadStructure: pymatgen cannot read it, or would read another crystal than it says.
    """
    if len(_CIF_CELL.findall(text)) > 1:
        raise BadStructure("a CIF with several structures (keep one data block in each)")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            structure = Structure.from_str(text, fmt="cif")
        except Exception:  # pymatgen's CIF reader raises what its parser happens to meet
            raise BadStructure("a CIF pymatgen cannot read") from None
    # Most warnings are of rounded coordinates; these two mean that atoms were left out or occupancies rescaled.
    said: Callable[[str], bool] = lambda words: any(words in str(warning.message).lower() for warning in told)  # noqa: E731
    if said("missing elements") or said("occupanc"):
        raise BadStructure("a CIF with sites pymatgen leaves out or rescales")
    crystal = crystal_of_structure(structure)
    _require_stated_formula(text, structure)
    return crystal


def _require_stated_formula(text: str, structure: Structure) -> None:
    """Compare a CIF's own formula with its sites: hydrogens without sites, or a wrong number of atoms."""
    found = _CIF_FORMULA.search(text)
    formula = next((part for part in (found.groups() if found else ()) if part), "").strip()
    if not formula or "?" in formula:
        return
    try:
        stated = Composition(formula)
    except Exception:  # formulas such as "C12 H10, x(H2 O)" mean nothing here
        return
    if stated.reduced_formula != structure.composition.element_composition.reduced_formula:
        raise BadStructure("a CIF whose formula is not that of its sites (atoms are missing, or the formula is wrong)")
