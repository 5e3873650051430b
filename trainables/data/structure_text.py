"""Text of one crystal: CIF, POSCAR, extended XYZ, a dictionary as JSON or as Python prints it."""

import ast
import io
import json
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from pymatgen.core import Composition, DummySpecies, Structure

from trainables.crystals import SYMBOLS, Crystal, Trait
from trainables.data.bad_structures import VACUUM_ANGSTROM, BadStructure, not_periodic_enough, vacuum_widths
from trainables.data.structure_dicts import crystal_of, crystal_of_dict

_CIF_BLOCK = re.compile(r"^data_", re.MULTILINE | re.IGNORECASE)
_CIF_CELL = re.compile(r"^_cell[_.]length_a\b", re.MULTILINE | re.IGNORECASE)
_CIF_FORMULA = re.compile(r"^_chemical_formula_sum\s+(?:'([^']*)'|\"([^\"]*)\"|(\S+)|\n;?([^\n;]+))", re.MULTILINE)
_PRINTED = re.compile(r"Full Formula \(|Structure Summary|Lattice\n|PeriodicSite|\w*Atoms\(|<|I?Structure\(|Crystal\(")
_FORMULA = re.compile(r"([A-Z][a-z]?\d*)+")
_GROUP = re.compile(
    r"^_(?:symmetry_Int_Tables_number|space_group_IT_number|symmetry_space_group_name_H-M|space_group_name_H-M_alt)\s+"
    r"['\"]?([^'\"\n]+)", re.MULTILINE
)  # fmt: skip
_D_OR_T = re.compile(r"\b[DT]\b")
_HEAVY_HYDROGEN = 1.5  # u; below it is protium
_EXPORT = "export dictionaries (structure.as_dict()) or CIF (structure.to(fmt='cif'))"


def looks_like_text(cell: str) -> bool:
    """Return whether a cell holds a crystal's text, not the name of a file."""
    return (
        "\n" in cell or "\\n" in cell or "\r" in cell or cell.startswith("{") or bool(_PRINTED.match(cell))
        or "_cell_length_a" in cell
    )  # fmt: skip


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
    if _PRINTED.match(text):
        raise BadStructure(f"printed structures, which lack digits and cannot be read back: {_EXPORT}")
    if "\n" not in text and "_cell_length_a" in text:
        raise BadStructure("a CIF whose line ends were lost: keep them, or write each as \\n")
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
    return _of_poscar(text)


def _of_poscar(text: str) -> Crystal:
    """Read a POSCAR; deuterium and tritium, which ASE does not know, are hydrogen."""
    problem = "a POSCAR that ASE cannot read (elements in its first or sixth line, then counts)"
    lines = text.split("\n")
    counts = lines[5].split() if len(lines) > 5 else []
    if counts and all(count.isdigit() for count in counts):  # VASP 4
        lines = [*lines[:5], " ".join(_elements_of_title(lines[0], len(counts))), *lines[5:]]
    plain = [_D_OR_T.sub("H", line) if place in (0, 5) else line for place, line in enumerate(lines)]
    if len(lines) < 6 or plain[5] == lines[5]:
        return _with_ase("vasp", "\n".join(lines), problem)
    crystal = _with_ase("vasp", "\n".join(plain), problem)
    return crystal._replace(left_out=crystal.left_out | {"isotopes"})


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


def _elements_of_title(title: str, n: int) -> list[str]:
    """Return the elements that a title of VASP 4 names: all of it symbols, or one formula, as many as are counted.

    Raises:
        BadStructure: any other title, of which readers make up elements.
    """
    words = title.split()
    if len(words) == 1 and _FORMULA.fullmatch(words[0]):
        words = re.findall(r"[A-Z][a-z]?", words[0])
    if len(words) != n or len(set(words)) != n or not set(words) <= {*SYMBOLS[1:], "D", "T"}:
        raise BadStructure(
            "a POSCAR without a line of elements (VASP 4), whose first line does not name them: write them above the "
            "counts"
        )
    return words


def _with_ase(kind: str, text: str, problem: str) -> Crystal:
    from ase.io import read

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = read(io.StringIO(text), index=":", format=kind)
        except Exception:  # a reader raises what it happens to meet
            raise BadStructure(problem) from None
    if len(found) != 1:
        raise BadStructure("text of several structures, where one was expected")
    return crystal_of_atoms(found[0])


def crystal_of_atoms(atoms: Any) -> Crystal:
    """Read ASE's Atoms. One that is periodic in no direction but has a cell is read as periodic, which it tells.

    Raises:
        BadStructure: no lattice, or vacuum that is too narrow where it is not periodic.
    """
    pbc = atoms.pbc if atoms.pbc.any() else True  # most formats say nothing of it, and a cell is there
    occupancies = atoms.info.get("occupancy") or {}
    if any(abs(share - 1) > 1e-6 for site in occupancies.values() for share in site.values()):
        raise BadStructure("partial occupancy")
    crystal = crystal_of(atoms.cell.array, atoms.numbers.tolist(), atoms.positions, cartesian=True, pbc=pbc)
    return crystal._replace(left_out=frozenset(_left_out(atoms, crystal)))


def _left_out(atoms: Any, crystal: Crystal) -> Iterator[Trait]:
    """Tell what ASE's Atoms have beside the crystal."""
    if atoms.has("initial_charges") and np.any(atoms.get_initial_charges()):
        yield "charges"
    told = atoms.calc.results.get("magmom") if atoms.calc is not None else None
    if told or (atoms.has("initial_magmoms") and np.any(atoms.get_initial_magnetic_moments())):
        yield "magnetic moments"
    if atoms.has("masses") and np.any(atoms.get_masses()[atoms.numbers == 1] > _HEAVY_HYDROGEN):
        yield "isotopes"
    if not atoms.pbc.any() and len(atoms) and vacuum_widths(crystal).max() < VACUUM_ANGSTROM:
        yield "not periodic"


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
    return crystal._replace(left_out=frozenset(_beside(structure)))


def _beside(structure: Any) -> Iterator[Trait]:
    """Tell what pymatgen's Structure has beside the crystal."""
    species = {site.specie for site in structure}
    if any(getattr(each, "oxi_state", None) for each in species) or getattr(structure, "_charge", None):
        yield "charges"
    spins = (getattr(each, "spin", None) for each in species)
    if any(spins) or np.any([_size(moment) for moment in structure.site_properties.get("magmom", ())]):
        yield "magnetic moments"
    if any(each.Z == 1 and float(each.atomic_mass) > _HEAVY_HYDROGEN for each in species):
        yield "isotopes"


def _size(moment: Any) -> float:
    """Return the size of a moment: a number, a vector, pymatgen's Magmom, or None."""
    return 0.0 if moment is None else float(np.linalg.norm(np.asarray(getattr(moment, "moment", moment), dtype=float)))


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
    group = [name for each in _GROUP.findall(text) if (name := each.strip().replace(" ", "")) not in ("?", ".", "")]
    if said("defaulting to p1") and any(name not in ("1", "P1") for name in group):
        raise BadStructure("a CIF of a space group that pymatgen does not know, without its operations")
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
