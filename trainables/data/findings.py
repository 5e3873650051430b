"""What a table's rows say about themselves before anything is trained: mistakes, and what should be known."""

import re
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element
from pymatgen.optimization.neighbors import find_points_in_spheres

from trainables.crystals import SYMBOLS, Crystal, Trait
from trainables.data.bad_structures import VACUUM_ANGSTROM, vacuum_widths
from trainables.data.dataset import Dataset
from trainables.data.grouping import crystal_keys, enough
from trainables.data.tasks import N_FOLDS

_GROWS = 0.5  # correlation of targets with the number of atoms from which on they are taken for sums over atoms
_FEWEST = 20  # rows, of which chance gives such a correlation to one table in forty
_TOTAL_EV_PER_ATOM = 3.0  # formation energies are smaller
_MOST_EV_PER_ATOM = 100.0  # no energy per atom of a pseudopotential code is that large
_FEW_ROWS = 100
_OUTLIER = 10.0  # robust standard deviations from the median
_UNIT = re.compile(r"[(\[]([^)\]]+)[)\]]\s*$")  # at the end of a column's name
_CLOSE = 0.5  # of the sum of two atomic radii
_LARGE_CELL = 200  # atoms
_GB_AN_ATOM = (1e-3, 5e-3)  # of a forward and backward pass: shaken NaCl, shaken MgO (512 atoms each, float32)
# Noble gases and radioactive elements of which MPtrj has next to nothing (Deng et al., Nat. Mach. Intell. 5, 1031
# (2023): 89 elements; no Po, At, Rn, Fr, Ra).
_UNSEEN = frozenset(("Po", "At", "Rn", "Fr", "Ra"))

Level = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """Something that the rows say.

    Attributes:
        ids: of the rows that it is about, if it is not about all.
        cure: what to do, if anything.
    """

    level: Level
    text: str
    ids: tuple[str, ...] = ()
    cure: str = ""


def findings(dataset: Dataset, *, chosen_folds: bool = False) -> list[Finding]:
    """Look at checked rows: errors first, then warnings, then notes.

    Args:
        chosen_folds: whoever asks has said how folds are made.
    """
    looks: tuple[Callable[[Dataset], Iterator[Finding]], ...] = (
        _energies, _targets, _marks, _outliers, _labels, _elements, _distances, _vacuum, _left_out, _size, _folds,
    )  # fmt: skip
    return _in_order(finding for look in looks if not (chosen_folds and look is _folds) for finding in look(dataset))


def findings_of_crystals(dataset: Dataset) -> list[Finding]:
    """Look at crystals alone, whose targets are not known."""
    looks = (_elements, _distances, _left_out)
    return _in_order(finding for look in looks for finding in look(dataset))


def _in_order(found: Iterable[Finding]) -> list[Finding]:
    order: Sequence[Level] = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.level))


def too_few(dataset: Dataset) -> Iterator[Finding]:
    """Say that rows cannot be split into folds; whoever splits them refuses it."""
    if len(dataset) < 2 * N_FOLDS:
        yield Finding("error", f"{len(dataset)} rows are too few: five folds need at least {2 * N_FOLDS}")


def growth(dataset: Dataset) -> float:
    """Return the correlation of targets with the number of atoms, where dividing by it takes that away; else 0.

    Energies per atom behave the other way round: they hardly grow, and their quotients fall with the number of atoms.
    """
    atoms, targets = dataset.structures.n_atoms.astype(np.float64), dataset.targets
    if len(dataset) < _FEWEST or np.ptp(atoms) == 0 or np.ptp(targets) == 0 or np.ptp(targets / atoms) == 0:
        return 0.0
    grows, divided = (float(np.corrcoef(atoms, values)[0, 1]) for values in (targets, targets / atoms))
    return grows if abs(grows) > _GROWS and abs(divided) < abs(grows) / 2 else 0.0


def _energies(dataset: Dataset) -> Iterator[Finding]:
    if dataset.task.is_matbench:
        return
    r, target, middle = growth(dataset), dataset.task.target, float(np.median(np.abs(dataset.targets)))
    if not dataset.task.is_energy:
        if r and not dataset.task.is_sum:
            yield Finding(
                "warning",
                f"'{target}' grows with the number of atoms (r = {r:.2f}): an extensive property",
                cure="use `total_energy=True`, if it is the energy of the whole cell in eV"
                if "energy" in target.lower() or target.lower() in ("e", "toten")
                else "use `per_cell=True`, as the model averages over atoms otherwise",
            )
        return
    cure = "use `total_energy=True`, which divides them by the number of atoms, or divide them yourself"
    # Whoever has written the unit out means it.
    level: Level = "warning" if dataset.task.unit == "eV/atom" and middle <= _MOST_EV_PER_ATOM else "error"
    if r:
        said = f"'{target}' grows with the number of atoms (r = {r:.2f}), as energies of whole cells do"
        yield Finding(level, f"{said}; eV/atom is wanted", cure=cure)
    elif middle > _MOST_EV_PER_ATOM:
        said = f"'{target}' has a median size of {middle:,.0f} eV/atom, which no energy per atom has"
        yield Finding(level, said, cure=cure)
    elif middle > _TOTAL_EV_PER_ATOM:
        yield Finding(
            "note",
            f"'{target}' has a median size of {middle:.2f} eV/atom: total energies of DFT, not formation energies",
            cure="nothing has to be done: a reference of each element is fitted to them",
        )


def _targets(dataset: Dataset) -> Iterator[Finding]:
    values = np.unique(dataset.targets)
    if len(values) == 1:
        yield Finding("error", f"all targets are {values[0]:g}: there is nothing to learn")
    elif set(values.tolist()) <= {0.0, 1.0}:
        yield Finding(
            "warning",
            "targets are 0 and 1, a classification: they are fitted as numbers, and the MAE is no accuracy",
            cure="round predictions yourself, or predict what the classes were made from",
        )


def _marks(dataset: Dataset) -> Iterator[Finding]:
    """Say which targets look like marks of what is missing: a number such as -999, far from all others."""
    values = np.unique(dataset.targets)
    marks = [value for value in values if _is_mark(float(value))]
    others = dataset.targets[~np.isin(dataset.targets, marks)]
    if not marks or not len(others):
        return
    middle, reach = np.median(others), 5 * max(float(np.ptp(others)), float(np.abs(others).max()), 1e-12)
    far = [value for value in marks if abs(value - middle) > reach]
    ids = tuple(dataset.ids[row] for row in np.flatnonzero(np.isin(dataset.targets, far)))
    if ids:
        shown = ", ".join(f"{value:g}" for value in far)
        yield Finding(
            "warning", f"{_targets_are(len(ids))} {shown}, which looks like a mark of missing values", ids,
            "empty these cells and use `drop_missing=True`, or leave the rows out",
        )  # fmt: skip


def _targets_are(n: int) -> str:
    return "1 target is" if n == 1 else f"{n:,} targets are"


def _is_mark(value: float) -> bool:
    """Return whether a number is nines or ones and zeros alone: 999, -9999, 99999.0, 1e10, -1e30."""
    digits = f"{abs(value):.10g}"
    return bool(re.fullmatch(r"9{2,}(\.9+)?|10{3,}", digits)) or (abs(value) >= 1e10 and digits.startswith("1e"))


def _outliers(dataset: Dataset) -> Iterator[Finding]:
    """By the median absolute deviation, which outliers hardly move (Iglewicz and Hoaglin, 1993)."""
    middle = np.median(dataset.targets)
    spread = 1.4826 * np.median(np.abs(dataset.targets - middle))
    far = np.flatnonzero(np.abs(dataset.targets - middle) > _OUTLIER * spread) if spread else np.empty(0, np.int64)
    if len(far) and len(far) < 0.02 * len(dataset) + 1:
        worst = far[np.argsort(-np.abs(dataset.targets[far] - middle))]
        yield Finding(
            "warning",
            f"{_targets_are(len(far))} more than {_OUTLIER:g} robust standard deviations from the median "
            f"({middle:.4g}), such as {dataset.targets[worst[0]]:.4g}",
            tuple(dataset.ids[row] for row in worst),
            "look at them: one wrong number can rule the loss",
        )


def _labels(dataset: Dataset) -> Iterator[Finding]:
    """Say which crystals are there several times, and the error that no model can go below."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(crystal_keys(dataset.structures)):
        rows[name].append(row)
    several = [each for each in rows.values() if len(each) > 1]
    if not several:
        return
    floor = sum(float(np.abs(dataset.targets[each] - np.median(dataset.targets[each])).sum()) for each in several)
    ids = tuple(dataset.ids[row] for each in several for row in each)
    if floor > 0:
        least = f"no model can have an MAE below {floor / len(dataset):.4g} on all rows"
        yield Finding(
            "warning",
            f"{len(several):,} crystal{'s have' if len(several) != 1 else ' has'} several labels: {least}",
            ids,
            "keep one label of each, or average them",
        )
    else:
        yield Finding("note", f"{len(several):,} crystals are there several times, with the same label", ids)


def _elements(dataset: Dataset) -> Iterator[Finding]:
    there = [SYMBOLS[z] for z in np.flatnonzero(dataset.structures.element_counts.any(axis=0))]
    unseen = [name for name in there if name in _UNSEEN]
    if unseen:
        counts = dataset.structures.element_counts
        columns = [SYMBOLS.index(name) for name in unseen]
        ids = tuple(dataset.ids[row] for row in np.flatnonzero(counts[:, columns].any(axis=1)))
        text = f"{', '.join(unseen)}: CHGNet's pretraining has next to nothing of these elements"
        yield Finding("warning", text, ids, "trust predictions of them only as far as your own rows go")


def _distances(dataset: Dataset) -> Iterator[Finding]:
    close = tuple(
        row_id for row_id, crystal in zip(dataset.ids, dataset.structures, strict=True) if _too_close(crystal)
    )
    if close:
        yield Finding(
            "warning",
            f"{len(close):,} crystals have atoms closer than half the sum of their atomic radii",
            close,
            "check the units of their lattices (Angstrom) and their coordinates",
        )


def _atomic_radii() -> NDArray[np.float64]:
    with warnings.catch_warnings():  # of elements without one
        warnings.simplefilter("ignore")
        return np.array([0.5] + [float(Element.from_Z(z).atomic_radius or 1.5) for z in range(1, 119)])


_RADII = _atomic_radii()


def _too_close(crystal: Crystal) -> bool:
    lattice, numbers, frac = crystal.lattice, crystal.numbers, crystal.frac
    coords = frac @ lattice
    longest = float(2 * _CLOSE * _RADII[numbers].max())
    first, second, _, distance = find_points_in_spheres(
        coords, coords, r=longest, pbc=np.ones(3, dtype=np.int64), lattice=np.ascontiguousarray(lattice), tol=1e-8
    )
    apart = distance > 1e-8
    limit = _CLOSE * (_RADII[numbers[first]] + _RADII[numbers[second]])
    return bool((distance[apart] < limit[apart]).any())


def _vacuum(dataset: Dataset) -> Iterator[Finding]:
    layers = tuple(
        row_id
        for row_id, crystal in zip(dataset.ids, dataset.structures, strict=True)
        if vacuum_widths(crystal).max() > VACUUM_ANGSTROM + 2
    )
    if layers:
        yield Finding(
            "note",
            f"{len(layers):,} crystals are layers, wires or molecules in vacuum: graphs are those of the periodic "
            f"cell, and images more than {VACUUM_ANGSTROM:g} A apart do not see each other",
            layers,
        )


_DONE: dict[Trait, str] = {
    "charges": "oxidation states and charges are left out: CHGNet learns from elements and places alone",
    "magnetic moments": "magnetic moments are left out: crystals that differ in them alone are one to the model",
    "isotopes": "deuterium and tritium are read as hydrogen",
}


def _left_out(dataset: Dataset) -> Iterator[Finding]:
    for trait, ids in dataset.left_out.items():
        if trait == "not periodic":
            text = "crystals are said to be periodic in no direction, but fill their cells: they are read as periodic"
            yield Finding("warning", f"{len(ids):,} {text}", ids, "set pbc where they are, leave them out where not")
        else:
            yield Finding("note", _DONE[trait], ids)


def _size(dataset: Dataset) -> Iterator[Finding]:
    large = np.flatnonzero(dataset.structures.n_atoms > _LARGE_CELL)
    if len(large):
        most = int(dataset.structures.n_atoms.max())
        yield Finding(
            "note",
            f"{len(large):,} cells have more than {_LARGE_CELL} atoms, the largest {most:,}: training on it "
            f"takes about {_GB_AN_ATOM[0] * most:.1f} to {_GB_AN_ATOM[1] * most:.1f} GB, more the denser it is",
            tuple(dataset.ids[row] for row in large),
        )
    if 2 * N_FOLDS <= len(dataset) < _FEW_ROWS:
        yield Finding("warning", f"{len(dataset)} rows decide little: scores vary by chance more than by settings")
    stated = _UNIT.search(dataset.task.target)
    if stated and dataset.task.unit and stated[1].strip() != dataset.task.unit:
        text = f"the column is '{dataset.task.target}', but the unit is given as {dataset.task.unit}"
        yield Finding("warning", text, cure="give the unit that the numbers are in; nothing is converted")


def _folds(dataset: Dataset) -> Iterator[Finding]:
    formulas = dataset.structures.reduced_formulas
    if dataset.official_row is dataset.groups is dataset.outer is None and not enough(formulas):
        n = len(set(formulas))
        yield Finding(
            "warning",
            f"{n} formula{'s' * (n != 1)}, or most rows of one: rows are split by crystal, so that test rows have "
            "siblings of their own formula in training",
            cure="choose `folds_by` or `fold_column` if you know what belongs together",
        )
