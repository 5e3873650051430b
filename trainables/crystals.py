"""Crystals as flat arrays: a hundred times smaller than pymatgen objects, and hashable as bytes."""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element, Lattice, Structure

MAX_ATOMIC_NUMBER = 94  # CHGNet's embedding ends at plutonium
SYMBOLS = ("", *tuple(Element.from_Z(z).symbol for z in range(1, 119)))
_SYMBOL = re.compile(r"[A-Z][a-z]?")
_AMOUNTS = re.compile(r"[\d.\s()]")


Trait = Literal["charges", "magnetic moments", "isotopes", "not periodic"]


class Crystal(NamedTuple):
    """One ordered crystal."""

    lattice: NDArray[np.float64]  # (3, 3) rows are lattice vectors, A
    numbers: NDArray[np.uint8]  # (n_atoms,) atomic numbers
    frac: NDArray[np.float64]  # (n_atoms, 3) fractional coordinates
    left_out: frozenset[Trait] = frozenset()  # what its source says beside these

    @classmethod
    def from_structure(cls, structure: Structure) -> "Crystal":
        """Take an ordered pymatgen structure over.

        Raises:
            AttributeError: a site holds more than one species.
        """
        return cls(
            np.array(structure.lattice.matrix, dtype=np.float64, order="C"),
            np.array([site.specie.Z for site in structure], dtype=np.uint8),
            np.array(structure.frac_coords, dtype=np.float64, order="C").reshape(-1, 3),
        )

    def to_structure(self) -> Structure:
        """Return pymatgen's Structure of the crystal."""
        return Structure(Lattice(self.lattice), [SYMBOLS[z] for z in self.numbers], self.frac)

    def cartesian(self) -> NDArray[np.float64]:
        """Cartesian coordinates in A, (n_atoms, 3), to the last bit those of pymatgen's sites.

        One small product a site, as pymatgen does: a matrix product rounds differently, which can change
        the order in which the neighbour search lists atoms that sit on its cell borders.
        """
        return np.array([np.dot(row, self.lattice) for row in self.frac]).reshape(-1, 3)


@dataclass(frozen=True, eq=False)
class CrystalTable(Sequence[Crystal]):
    """Many crystals, packed."""

    lattices: NDArray[np.float64]  # (n, 3, 3) A
    numbers: NDArray[np.uint8]  # (sum of n_atoms,)
    frac: NDArray[np.float64]  # (sum of n_atoms, 3)
    offsets: NDArray[np.int64]  # (n + 1,) first atom of each crystal

    @classmethod
    def pack(cls, crystals: Iterable[Crystal]) -> "CrystalTable":
        """Pack crystals into one table."""
        rows = list(crystals)
        counts = [len(row.numbers) for row in rows]
        return cls(
            np.stack([row.lattice for row in rows]) if rows else np.empty((0, 3, 3)),
            np.concatenate([row.numbers for row in rows]) if rows else np.empty(0, np.uint8),
            np.concatenate([row.frac for row in rows]) if rows else np.empty((0, 3)),
            np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> Crystal: ...
    @overload
    def __getitem__(self, index: slice) -> "CrystalTable": ...
    def __getitem__(self, index: int | slice) -> "Crystal | CrystalTable":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        atoms = slice(self.offsets[index], self.offsets[index + 1])
        return Crystal(self.lattices[index], self.numbers[atoms], self.frac[atoms])

    def take(self, rows: NDArray[np.int64]) -> "CrystalTable":
        """Return these rows, in this order."""
        return CrystalTable.pack(self[int(row)] for row in rows)

    @property
    def n_atoms(self) -> NDArray[np.int64]:
        """Atoms of each crystal, (n,)."""
        return np.diff(self.offsets)

    @cached_property
    def element_counts(self) -> NDArray[np.float64]:
        """Atoms of each element in each crystal, (n, 119); column z is atomic number z."""
        counts = np.zeros((len(self), 119))
        owner = np.repeat(np.arange(len(self)), self.n_atoms)
        np.add.at(counts, (owner, self.numbers), 1.0)
        return counts

    @property
    def composition(self) -> NDArray[np.float64]:
        """Atomic fractions, (n, 119)."""
        return self.element_counts / self.n_atoms[:, None]

    @cached_property
    def reduced_formulas(self) -> list[str]:
        """Reduced formula of each crystal, elements in alphabetical order ("Al2O3"): the grouping key."""
        return [_reduced_formula(row) for row in self.element_counts.astype(int)]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every lattice, atomic number and coordinate."""
        sha = hashlib.sha256()
        for array in (self.lattices, self.numbers, self.frac, self.offsets):
            sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def _reduced_formula(counts: NDArray[np.int64]) -> str:
    present = np.flatnonzero(counts)
    divisor = math.gcd(*(int(counts[z]) for z in present)) if len(present) else 1
    parts = sorted((SYMBOLS[z], int(counts[z]) // divisor) for z in present)
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in parts)


def chemical_system(formula: str) -> str:
    """Element symbols in alphabetical order: "Al-O" for "Al2O3", "K-Mn-O" for "K4 Mn4 O8".

    Raises:
        ValueError: not a formula, or an element that there is not.
    """
    elements = sorted(set(_SYMBOL.findall(formula)))
    if not elements or _AMOUNTS.sub("", _SYMBOL.sub("", formula)) or not set(elements) <= set(SYMBOLS):
        raise ValueError(f"{formula!r} is not a chemical formula such as Al2O3 or K4 Mn4 O8")
    return "-".join(elements)
