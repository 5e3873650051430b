"""Files of crystals, in any format that pymatgen or ASE reads: one crystal, or one after another."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainables.crystals import Crystal
from trainables.data.bad_structures import BadStructure
from trainables.data.formats import (
    OUTCAR,
    POSCAR_NAME,
    PYMATGEN,
    SEVERAL,
    TEXT,
    VASP_RUN,
    id_of,
    is_structure_file,
    plain_name,
)
from trainables.data.structure_dicts import crystal_of_dict, is_structure_dict
from trainables.data.structure_text import crystal_of_atoms, crystal_of_structure, crystal_of_text
from trainables.data.table_files import decoded, open_bytes

_IDS = ("id", "material_id", "mp_id", "jid", "name", "structure_id", "uid")


@dataclass(frozen=True)
class Found:
    """A crystal of a file.

    Attributes:
        id: the file's name without its ending, and a number where there are several.
        crystal: or why it cannot be used.
        properties: what the file says of it: energies, and words of its comment line.
    """

    id: str
    crystal: Crystal | BadStructure
    properties: dict[str, Any] = field(default_factory=dict)


def read_structure_file(path: Path) -> Crystal:
    """Read the one crystal of a file.

    Raises:
        BadStructure: it cannot be read, or holds several.
    """
    found = []
    for each in structures_in(path):
        found.append(each)
        if len(found) > 1:
            raise BadStructure("a file with several structures, where one was expected")
    if not found:
        raise BadStructure("a file without structures")
    if isinstance(found[0].crystal, BadStructure):
        raise found[0].crystal
    return found[0].crystal


def structures_in(path: Path) -> Iterator[Found]:
    """Yield the crystals of a file, in its order; one that cannot be used with the reason.

    Raises:
        BadStructure: nothing in the file can be read.
    """
    name, own = plain_name(path), id_of(path)
    try:
        if name.endswith(TEXT) or POSCAR_NAME.match(name):
            yield Found(own, _or_problem(decoded(open_bytes(path)), name))
        elif (text := _crystal_text(path)) is not None:  # a name that says nothing, of a CIF or a POSCAR
            yield Found(own, text)
        elif name.endswith(".json"):
            yield Found(own, _of_json(path))
        elif name.endswith(PYMATGEN):
            from pymatgen.core import Structure

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield Found(own, crystal_of_structure(Structure.from_file(str(path))))
        elif name.endswith(".db"):
            yield from _of_database(path, own)
        else:
            yield from _with_ase(path, own)
    except BadStructure as problem:
        yield Found(own, problem)
    except (OSError, EOFError) as error:
        yield Found(
            own, BadStructure(f"a file that cannot be read ({error.strerror if isinstance(error, OSError) else error})")
        )


def _crystal_text(path: Path) -> Crystal | None:
    """Return the crystal of a file without a known ending whose text is one, or None."""
    if is_structure_file(path) or plain_name(path).endswith((".json", *PYMATGEN)):
        return None
    found = _or_problem(decoded(open_bytes(path)), "")
    return None if isinstance(found, BadStructure) else found


def _or_problem(text: str, name: str) -> Crystal | BadStructure:
    try:
        if not text.strip():
            return BadStructure("an empty file")
        return crystal_of_text(text if name.endswith(".cif") else text.lstrip("\ufeff"))
    except BadStructure as problem:
        return problem


def _of_json(path: Path) -> Crystal:
    import json

    try:
        content = json.loads(decoded(open_bytes(path)))
    except json.JSONDecodeError:
        raise BadStructure("a file that is not JSON") from None
    if isinstance(content, dict) and not is_structure_dict(content) and "ids" in content and "1" in content:
        content = content["1"]  # ASE's database of one row
    if not isinstance(content, dict):
        raise BadStructure("a JSON file that holds no crystal")
    return crystal_of_dict(content)


def _with_ase(path: Path, own: str) -> Iterator[Found]:
    from ase.io import iread

    name = plain_name(path)
    last = bool(VASP_RUN.fullmatch(name) or OUTCAR.match(name) or name.endswith((".castep", ".pwo")))
    options: dict[str, Any] = {"format": "extxyz"} if name.endswith((".xyz", ".extxyz")) else {}
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            frames = list(iread(str(path), index=-1 if last else slice(None), **options))
        except Exception as error:  # a reader raises what it happens to meet
            reason = " ".join(str(error).split())[:80] or type(error).__name__
            raise BadStructure(f"a file that ASE cannot read ({reason})") from None
    if not frames:
        raise BadStructure("a file in which ASE finds no structure (cut off, most likely)")
    for count, atoms in enumerate(frames):
        told = _properties(atoms)
        number = own if len(frames) == 1 else f"{own}-{count}"
        named = next((str(told[key]) for key in _IDS if key in told), number) if name.endswith(SEVERAL) else number
        yield _found(atoms, named, told)


def _found(atoms: Any, named: str, properties: dict[str, Any]) -> Found:
    try:
        return Found(named, crystal_of_atoms(atoms), properties)
    except BadStructure as problem:
        return Found(named, problem, properties)


def _properties(atoms: Any) -> dict[str, Any]:
    """Return the single values that a frame carries: its comment's and its calculator's (a total energy, in eV)."""
    told = {name: value for name, value in atoms.info.items() if name != "occupancy"}
    if atoms.calc is not None:
        told |= {name: value for name, value in atoms.calc.results.items() if name not in told}
    return {str(name): value for name, value in told.items() if np.ndim(value) == 0 and value is not None}


def _of_database(path: Path, own: str) -> Iterator[Found]:
    from ase.db import connect

    try:
        rows = list(connect(str(path)).select())
    except Exception as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        raise BadStructure(f"a database that ASE cannot read ({reason})") from None
    if not rows:
        raise BadStructure("a database without rows")
    for row in rows:
        told = dict(row.key_value_pairs)
        told |= {name: row[name] for name in ("energy", "free_energy", "magmom") if name in row}
        named = next((str(told[key]) for key in _IDS if key in told), f"{own}-{row.id}")
        yield _found(row.toatoms(), named, told)
