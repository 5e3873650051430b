"""Which rows have to fall on the same side of a split: those of one formula, chemical system, or whatever is chosen."""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from trainables.crystals import SYMBOLS, Crystal, CrystalTable
from trainables.data.same_crystal import same_crystals
from trainables.data.tasks import N_FOLDS
from trainables.errors import UserError

if TYPE_CHECKING:
    from trainables.data.dataset import Dataset

Grouping = Literal["formula", "chemical-system", "composition", "random"]
GROUPINGS: tuple[Grouping, ...] = get_args(Grouping)
_LARGEST = 0.4  # share of the rows that one group may have: twice a fold


def grouped(dataset: "Dataset", by: str | None = None) -> tuple["Dataset", str]:
    """Choose what keeps rows together, for a table of one's own.

    By default rows of one reduced formula share a fold; where there are fewer formulas than folds, or one has most of
    the rows, every crystal stands for itself.

    Args:
        by: one of GROUPINGS; None for the default.

    Returns:
        The dataset, and what has to be said of its folds, if anything.
    """
    if dataset.official_row is not None or dataset.groups is not None or dataset.outer is not None:
        return dataset, ""
    formulas = dataset.structures.reduced_formulas
    if by == "formula" or (by is None and enough(formulas)):
        return dataset, ""
    names = group_names(dataset.structures, "random" if by is None else by)
    told = ""
    if by is None:
        n = len(set(formulas))
        told = (
            f"{n} formula{'s are' if n != 1 else ' is'} too few for {N_FOLDS} folds, so rows are split by crystal: "
            "test rows have siblings of their own formula in training, and scores say nothing of new compounds"
        )
    return replace(dataset, groups=names), told


def enough(names: list[str]) -> bool:
    """Return whether groups are many and small enough for five folds."""
    counts = Counter(names)
    return len(counts) >= N_FOLDS and max(counts.values()) <= _LARGEST * len(names)


def group_names(structures: CrystalTable, by: str) -> tuple[str, ...]:
    """Return the group of every crystal.

    Raises:
        UserError: there is no such grouping.
    """
    if by == "formula":
        return tuple(structures.reduced_formulas)
    if by == "chemical-system":
        return tuple(_system(row) for row in structures.element_counts)
    if by == "composition":  # to a tenth: members of a solid solution that hardly differ stay together
        return tuple(
            " ".join(f"{SYMBOLS[z]}{row[z]:.1f}" for z in np.flatnonzero(row >= 0.05)) for row in structures.composition
        )
    if by == "random":  # the same crystal twice stays together
        return crystal_keys(structures)
    raise UserError(f"`folds_by={by}`: one of {', '.join(GROUPINGS)}, or a column of the table, was expected")


def crystal_keys(structures: CrystalTable) -> tuple[str, ...]:
    """Return what is the same for the same crystal (same_crystal), and does not depend on the order of the rows."""
    names, first = list(map(_key, structures)), same_crystals(structures)
    least: dict[int, str] = {}
    for place, name in zip(first.tolist(), names, strict=True):
        least[place] = min(name, least.get(place, name))
    return tuple(least[place] for place in first.tolist())


def _key(crystal: Crystal) -> str:
    """Return what is the same for a crystal in one cell, whatever the order of its atoms."""
    frac = np.round(np.round(crystal.frac % 1.0, 6) % 1.0, 6) + 0.0  # no -0.0, whose bytes are others
    order = np.lexsort((*frac.T, crystal.numbers))
    parts = (np.round(crystal.lattice, 6) + 0.0, crystal.numbers[order], frac[order])
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()[:16]


def _system(counts: "np.ndarray") -> str:
    return "-".join(sorted(SYMBOLS[z] for z in np.flatnonzero(counts)))
