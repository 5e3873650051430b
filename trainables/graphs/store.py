"""The packed graph store: flat arrays and offsets in one folder, memory-mapped and shared by every process.

A store's folder is named by a hash of the crystals, the cutoffs and the converter's version, so the same data
is converted once on a machine, and a changed converter never meets old arrays.
"""

import contextlib
import copy
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from trainables.crystals import Crystal, CrystalTable
from trainables.errors import UserError
from trainables.files import read_json, write_json
from trainables.graphs.convert import ConversionError, Cutoffs, Graph, convert, ragged_ranges
from trainables.graphs.quotient import GAP, PAYS_BELOW, WIDEST_CLASS, fold
from trainables.graphs.symmetry import SYMPREC, SiteSymmetry, probes, site_symmetry
from trainables.processes import n_cores, spawned_pool
from trainables.progress import Progress, silent
from trainables.versions import CONVERTER_VERSION

# name: (dtype, trailing shape, which count a crystal contributes)
_ARRAYS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "lattice": ("<f8", (3, 3), "crystal"),  # A
    "numbers": ("|u1", (), "atom"),
    "frac": ("<f8", (3,), "atom"),
    "bond_atoms": ("<i2", (2,), "bond"),  # place within the crystal
    "bond_image": ("|i1", (3,), "bond"),
    "short_bond": ("<i4", (), "short"),  # place within the crystal's bonds
    "angle_halves": ("<i4", (2,), "angle"),  # 2 * place within the crystal's short bonds + end
    # The folded graph (graphs.quotient): what every clean view is computed on.
    "fold_atom": ("<i2", (), "fold_atom"),  # a representative's place within the crystal
    "fold_atom_count": ("<i4", (), "fold_atom"),
    "fold_bond": ("<i4", (), "fold_bond"),  # a representative's place within the crystal's bonds
    "fold_length": ("<f8", (), "fold_bond"),  # A
    "fold_edge": ("<i4", (3,), "fold_edge"),  # receiving atom class, sending atom class, bond class
    "fold_edge_count": ("<i4", (), "fold_edge"),
    "fold_short": ("<i4", (), "fold_short"),  # bond class
    "fold_angle": ("<i4", (3,), "fold_angle"),  # left short class, right short class, atom class
    "fold_angle_count": ("<i4", (), "fold_angle"),
    "fold_halves": ("<i4", (2,), "fold_angle"),  # a representative's half-bonds
    "fold_cosine": ("<f8", (), "fold_angle"),
    # Of a store with a skin, whose folds hold for every change that keeps the symmetry (graphs.symmetry).
    "site": ("<i2", (), "atom"),  # the atom whose displacement decides this one's
    "motion": ("<f8", (3, 3), "atom"),
    "strain_projector": ("<f8", (6, 6), "crystal"),
    "counts": ("<i4", (9,), "crystal"),  # of COUNTED, in that order
    "flags": ("<i4", (2,), "crystal"),  # isolated atoms; 1 where the conversion failed
}
COUNTED = ("atom", "bond", "short", "angle", "fold_atom", "fold_bond", "fold_edge", "fold_short", "fold_angle")
_CHUNK = 64
_PARALLEL_FROM = 1500  # crystals; below, starting workers costs more than it saves
FOLD_BOUND = 3e-5  # eV/atom, what float32 is good for
ANGLE_COST = 1.3  # time of an angle in units of a directed bond's


class GraphStore:
    """A built store, opened read-only.

    Attributes:
        counts: (n, 9) rows of each crystal, in the order of COUNTED.
        n_isolated: (n,) atoms without a neighbour within the cutoff.
        failed: (n,) True where no graph could be built.
        cost: (n,) edges + 1.3 x angles of the folded graph: what a crystal costs, relative to others.
        full_cost: (n,) the same of the full graph.
        has_symmetry: True where the folds hold for crystals that are changed without losing symmetry.
        device: where `tensor` puts arrays.
        trunk: (folded atoms, D) what a frozen trunk makes of them, on the device; None where nothing is known.
        readouts: (n, R) float32 what is known of each crystal beside its graph, on the device; None where nothing is.
    """

    def __init__(self, folder: Path) -> None:
        meta = read_json(folder / "meta.json")
        self.folder = folder
        self.cutoffs = Cutoffs(**meta["cutoffs"])
        self.arrays: dict[str, NDArray[Any]] = {
            name: _map(folder / f"{name}.bin", name, meta["rows"][name]) for name in _ARRAYS
        }
        self.counts: NDArray[np.int64] = self.arrays["counts"].astype(np.int64)
        zero = np.zeros((1, len(COUNTED)), dtype=np.int64)
        self.offsets = np.concatenate([zero, np.cumsum(self.counts, axis=0)])  # (n + 1, 9)
        self.n_isolated = self.arrays["flags"][:, 0]
        self.failed = self.arrays["flags"][:, 1] > 0
        self.cost = 1.0 + self.counts[:, 6] + ANGLE_COST * self.counts[:, 8]
        self.full_cost = 1.0 + 2 * self.counts[:, 1] + ANGLE_COST * self.counts[:, 3]
        self.has_symmetry = len(self.arrays["strain_projector"]) == len(self) > 0
        self.device = torch.device("cpu")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            self._tensors = {name: torch.from_numpy(array) for name, array in self.arrays.items()}
        self._near: dict[torch.device, GraphStore] = {self.device: self}
        self.trunk: Tensor | None = None
        self.readouts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def n_bytes(self) -> int:
        """Return the size of the arrays in bytes."""
        return sum(array.nbytes for array in self.arrays.values())

    def tensor(self, name: str) -> Tensor:
        """One array as a tensor on the store's device: the file's own pages on a CPU."""
        return self._tensors[name]

    def near(self, device: torch.device) -> "GraphStore":
        """Return this store with its arrays in the memory of `device`, where they fit into half of what is free."""
        if device not in self._near and device.type == "cuda" and self.n_bytes <= _share_of_free_memory(device):
            resident = copy.copy(self)
            resident.device = device
            resident._tensors = {name: tensor.to(device) for name, tensor in self._tensors.items()}
            resident.readouts = None if self.readouts is None else self.readouts.to(device)
            self._near[device] = resident
        return self._near.get(device, self._near[torch.device("cpu")])

    def with_trunk(self, trunk: Tensor, device: torch.device) -> "GraphStore":
        """Return this store, for a model on `device` whose frozen trunk makes `trunk` of the folded atoms."""
        known = copy.copy(self)
        known.trunk, known._near = trunk, {}
        known._near = {torch.device("cpu"): known, device: known}
        return known

    def with_readouts(self, readouts: Tensor) -> "GraphStore":
        """Return this store with (n, R) numbers of its crystals, which come with every batch."""
        near: dict[torch.device, GraphStore] = {}
        for device, resident in self._near.items():  # what is on a GPU already is not copied there again
            near[device] = copy.copy(resident)
            near[device].readouts, near[device]._near = readouts.to(resident.device), near
        return near[self.device]

    def composition(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """Atomic fractions of the crystals `rows`, (len(rows), 119)."""
        n_atoms = self.counts[rows, 0]
        fractions = np.zeros((len(rows), 119))
        atoms = ragged_ranges(self.offsets[rows, 0], n_atoms)
        owner = np.repeat(np.arange(len(rows)), n_atoms)
        np.add.at(fractions, (owner, self.arrays["numbers"][atoms]), 1.0)
        return fractions / n_atoms[:, None]


def _share_of_free_memory(device: torch.device) -> int:
    """Half of a GPU's free bytes: the rest is for activations."""
    return int(torch.cuda.mem_get_info(device)[0]) // 2


Check = Callable[[GraphStore], float]


def store_address(crystals: CrystalTable, cutoffs: Cutoffs) -> str:
    """Return the folder name of these crystals' store."""
    content = {"crystals": crystals.digest, "cutoffs": asdict(cutoffs), "converter": CONVERTER_VERSION}
    content["folding"] = [GAP, WIDEST_CLASS, PAYS_BELOW, SYMPREC]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def open_or_build(
    crystals: CrystalTable,
    cutoffs: Cutoffs,
    root: Path,
    *,
    workers: int | None = None,
    check: Check | None = None,
    progress: Progress = silent,
) -> GraphStore:
    """Open the crystals' store under `root`, building it first where it is missing or damaged.

    Processes that ask for the same store at once wait for the one that builds it.

    Args:
        workers: converting processes; by default one a core.
        check: of a new store, the largest energy difference between folded and full graphs of a sample, eV/atom. Above
            FOLD_BOUND the store is built again with smaller gaps, at last without folding.
    """
    address = store_address(crystals, cutoffs)
    folder = root / address
    if is_whole(folder):  # no lock, so that a cache somebody else keeps can be read-only
        return GraphStore(folder)
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{address}.lock"):
        if folder.exists() and not is_whole(folder):
            shutil.rmtree(folder)
        for left_over in root.glob(f".{address}.*.tmp"):  # of a build that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        if not folder.exists():
            _build_checked(crystals, cutoffs, folder, workers or n_cores(), check, progress)
    return GraphStore(folder)


def _map(path: Path, name: str, rows: int) -> NDArray[np.generic]:
    dtype, shape, _ = _ARRAYS[name]
    if rows == 0:
        return np.empty((0, *shape), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r", shape=(rows, *shape))


def is_whole(folder: Path) -> bool:
    """Return True where every array has the size its manifest gives."""
    try:
        rows = read_json(folder / "meta.json")["rows"]
        return all(
            (folder / f"{name}.bin").stat().st_size
            == rows[name] * np.dtype(dtype).itemsize * int(np.prod(shape, dtype=int))
            for name, (dtype, shape, _) in _ARRAYS.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _build_checked(
    crystals: CrystalTable, cutoffs: Cutoffs, folder: Path, workers: int, check: Check | None, progress: Progress
) -> None:
    """Build into a temporary sibling, check its folds, then rename it: no reader sees half a store."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        for gap in (GAP, GAP / 10, 0.0):
            shutil.rmtree(temporary, ignore_errors=True)
            meta = _build(crystals, cutoffs, temporary, workers, gap, progress)
            error = check(GraphStore(temporary)) if check is not None and gap > 0 and len(crystals) else 0.0
            if error <= FOLD_BOUND:  # not so where it is nan
                write_json(temporary / "meta.json", meta | {"fold_error_ev_per_atom": error if check else None})
                break
            progress.message(
                f"folded graphs are up to {error:.1e} eV/atom off on a sample; rebuilding "
                + ("with a narrower tolerance" if gap == GAP else "without folding, which is slower but exact")
            )
        temporary.rename(folder)
    except BrokenProcessPool:
        raise UserError("a converting process was killed (out of memory, most likely); run the command again") from None
    except OSError as error:
        raise UserError(
            f"the graph store at {folder} cannot be written ({error.strerror}): free space there or set "
            "CRYSTALTUNE_CACHE to another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _build(
    crystals: CrystalTable, cutoffs: Cutoffs, folder: Path, workers: int, gap: float, progress: Progress
) -> dict[str, Any]:
    """Convert chunk by chunk; returns the content of meta.json, which is written."""
    folder.mkdir(parents=True)
    rows = dict.fromkeys(_ARRAYS, 0)
    with contextlib.ExitStack() as stack:
        handles = {name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in _ARRAYS}
        bar = stack.enter_context(progress.stage("convert", len(crystals), "crystals"))
        for chunk in _converted_chunks(crystals, cutoffs, workers, gap):
            for name, array in chunk.items():
                handles[name].write(array.tobytes())
                rows[name] += len(array)
            bar.advance(len(chunk["counts"]))
    meta = {"cutoffs": asdict(cutoffs), "rows": rows, "converter": CONVERTER_VERSION, "gap": gap}
    write_json(folder / "meta.json", meta)
    return meta


def _converted_chunks(
    crystals: CrystalTable, cutoffs: Cutoffs, workers: int, gap: float
) -> Iterable[dict[str, NDArray[np.generic]]]:
    chunks = (crystals[begin : begin + _CHUNK] for begin in range(0, len(crystals), _CHUNK))
    if workers == 1 or len(crystals) < _PARALLEL_FROM:
        yield from (_convert_chunk(chunk, cutoffs, gap) for chunk in chunks)
        return
    with spawned_pool(workers) as pool:
        waiting = []
        for chunk in chunks:
            waiting.append(pool.submit(_convert_chunk, chunk, cutoffs, gap))
            if len(waiting) > 4 * workers:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def _convert_chunk(crystals: CrystalTable, cutoffs: Cutoffs, gap: float) -> dict[str, NDArray[np.generic]]:
    packed = [_pack(crystal, cutoffs, gap) for crystal in crystals]
    return {
        name: np.concatenate([row[name].reshape(-1, *shape).astype(dtype) for row in packed])
        for name, (dtype, shape, _) in _ARRAYS.items()
    }


def _pack(crystal: Crystal, cutoffs: Cutoffs, gap: float = GAP) -> dict[str, NDArray[np.generic]]:
    """One crystal's arrays; a crystal that cannot be converted keeps its atoms and has no bonds."""
    failed = False
    try:
        graph = convert(crystal, cutoffs)
        if np.abs(graph.bond_image).max(initial=0) > 127 or len(crystal.numbers) > 32767:
            raise ConversionError("a cell too small or too large for the store's integers")
    except (ConversionError, MemoryError):
        graph, failed = _no_graph(len(crystal.numbers)), True
    symmetry = site_symmetry(crystal) if cutoffs.skin > 0 else None
    folded = fold(crystal, graph, [] if symmetry is None else probes(crystal, symmetry), gap=gap)
    return {
        "lattice": crystal.lattice,
        "numbers": crystal.numbers,
        "frac": crystal.frac,
        "bond_atoms": graph.bond_atoms,
        "bond_image": graph.bond_image,
        "short_bond": graph.short_bond,
        "angle_halves": graph.angle_halves,
        "fold_atom": folded.atom,
        "fold_atom_count": folded.atom_count,
        "fold_bond": folded.bond,
        "fold_length": folded.length,
        "fold_edge": folded.edge,
        "fold_edge_count": folded.edge_count,
        "fold_short": folded.short,
        "fold_angle": folded.angle,
        "fold_angle_count": folded.angle_count,
        "fold_halves": folded.angle_halves,
        "fold_cosine": folded.cosine,
        **_symmetry_arrays(symmetry),
        "counts": np.array([*graph.counts, *folded.counts]),
        "flags": np.array([graph.n_isolated, int(failed)]),
    }


def _symmetry_arrays(symmetry: SiteSymmetry | None) -> dict[str, NDArray[np.generic]]:
    if symmetry is None:
        none = np.empty(0)
        return {"site": none, "motion": none, "strain_projector": none}
    return {"site": symmetry.site, "motion": symmetry.motion, "strain_projector": symmetry.strain}


def _no_graph(n_atoms: int) -> Graph:
    none = np.empty(0, dtype=np.int64)
    pairs = none.reshape(0, 2)
    return Graph(pairs, none.reshape(0, 3), none, pairs, none, n_isolated=n_atoms, n_atoms=n_atoms)
