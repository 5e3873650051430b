"""Stock CHGNet against crystaltune's engine, interleaved on the same crystals in one process.

    uv run python benchmarks/engine.py [--data FILE] [--task mp_e_form] [--limit N] [--batch 32] [--json OUT]

FILE is a Matbench table (json.gz); without it the embedded synthetic sample is used. Timed are conversion (stock's
converter; ours, without and with folding), collate (crystals to model inputs, bases included), inference, and a
training step (collate, forward, L1 loss, backward, AdamW) on energies. Every number is a median on one thread; stock
and ours take turns, so what else the machine does meets both. Peak memory is that of separate processes.
"""

import argparse
import contextlib
import io
import json
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chgnet.graph import CrystalGraph, CrystalGraphConverter
from chgnet.model import CHGNet
from chgnet.model.model import BatchedGraph
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainables.data.dataset import Dataset, read_matbench
from trainables.data.sample import load_sample
from trainables.data.tasks import TASKS, find_task
from trainables.graphs.batch import collate
from trainables.graphs.convert import convert
from trainables.graphs.quotient import fold
from trainables.graphs.store import GraphStore, open_or_build
from trainables.model.chgnet import build_model
from trainables.model.engine import fourier

BLOCK = 16  # crystals that one converter takes before the other does: each meets warm caches, as in real use
SIZES = ((1, 9), (10, 19), (20, 39), (40, 79), (80, 10_000))  # sites


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Matbench table (json.gz)")
    parser.add_argument("--task", default="mp_e_form", help="the task of FILE; labels are not used")
    parser.add_argument("--limit", type=int, default=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--collate-batch", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", choices=("stock", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    dataset = read_matbench(args.data, find_task(args.task)) if args.data else load_sample()
    dataset = dataset.limit(args.limit)
    if args.only:
        print(peak_megabytes(Bench(dataset), args.only, args.batch))
        return
    results = measure(Bench(dataset), args.batch, args.collate_batch)
    for side in ("stock", "ours"):
        command = [sys.executable, __file__, "--only", side, "--limit", str(args.limit), "--batch", str(args.batch)]
        command += ["--data", str(args.data), "--task", args.task] if args.data else []
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[f"peak_memory_mb_{side}"] = float(shown.splitlines()[-1])
    print(json.dumps(results, indent=2))
    if args.json:
        args.json.write_text(json.dumps(results, indent=2) + "\n")


class Bench:
    """Both models, the crystals in both forms, and one function a timed step."""

    def __init__(self, dataset: Dataset) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.stock = CHGNet.load(use_device="cpu", verbose=False)
        self.ours = build_model("0.3.0", TASKS["matbench_mp_e_form"])
        self.converter = CrystalGraphConverter(on_isolated_atoms="ignore")
        whole = [convert(crystal, self.ours.cutoffs).n_isolated == 0 for crystal in dataset.structures]
        self.crystals = dataset.structures.take(np.flatnonzero(whole))
        self.structures = [crystal.to_structure() for crystal in self.crystals]
        self.optimisers = {m: torch.optim.AdamW(m.parameters(), lr=0.0) for m in (self.stock, self.ours)}
        self.graphs: list[CrystalGraph] = []
        self.store: GraphStore

    def convert(self) -> dict[str, list[float]]:
        """Convert every crystal both ways, one after the other; seconds of each."""
        folding: list[float] = []
        seconds: dict[str, list[float]] = {"stock": [], "ours": [], "ours_with_folding": folding}
        with tempfile.TemporaryDirectory() as folder:
            open_or_build(self.crystals[:2], self.ours.cutoffs, Path(folder), workers=1)  # warm
            for begin in range(0, len(self.structures), BLOCK):
                for structure in self.structures[begin : begin + BLOCK]:
                    start = time.perf_counter()
                    self.graphs.append(self.converter(structure))
                    seconds["stock"].append(time.perf_counter() - start)
                for crystal in self.crystals[begin : begin + BLOCK]:
                    seconds["ours"].append(timed(lambda: convert(crystal, self.ours.cutoffs)))  # noqa: B023
                    folding.append(timed(lambda: fold(crystal, convert(crystal, self.ours.cutoffs))))  # noqa: B023
        self.build_store()
        return seconds

    def build_store(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_or_build(self.crystals, self.ours.cutoffs, Path(self.folder.name), workers=1)

    def stock_collate(self, rows: np.ndarray) -> object:
        with torch.no_grad():
            return BatchedGraph.from_graphs(
                [self.graphs[row] for row in rows], self.stock.bond_basis_expansion, self.stock.angle_basis_expansion
            )

    def our_collate(self, rows: np.ndarray) -> object:
        with torch.no_grad():
            batch, net = collate(self.store, rows), self.ours
            length = batch.length.float()
            bases = net.bond_basis_expansion
            return (
                batch,
                bases.rbf_expansion_ag(length),
                bases.rbf_expansion_bg(length[batch.short]),
                fourier(batch.cosine.float(), net.angle_basis_expansion.fourier_expansion),
            )

    def stock_energy(self, rows: np.ndarray) -> Tensor:
        energy: Tensor = self.stock([self.graphs[row] for row in rows], task="e")["e"]
        return energy

    def our_energy(self, rows: np.ndarray) -> Tensor:
        return self.ours(collate(self.store, rows))

    def train_step(self, model: torch.nn.Module, energy: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> None:
        loss = energy(rows).abs().mean()
        self.optimisers[model].zero_grad()
        loss.backward()
        self.optimisers[model].step()


def timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def interleaved(first: Callable[[np.ndarray], object], second: Callable[[np.ndarray], object],
                batches: list[np.ndarray]) -> np.ndarray:  # fmt: skip
    """Seconds of both on every batch, (n_batches, 2); the first batch is a warm-up and left out."""
    return np.array([[timed(lambda: first(rows)), timed(lambda: second(rows))] for rows in batches])[1:]  # noqa: B023


def measure(bench: Bench, batch_size: int, collate_batch: int) -> dict[str, Any]:
    conversion = bench.convert()
    order = np.random.default_rng(0).permutation(len(bench.crystals))
    batches = [order[begin : begin + batch_size] for begin in range(0, len(order) - batch_size + 1, batch_size)]
    large = [order[begin : begin + collate_batch] for begin in range(0, len(order) - collate_batch + 1, collate_batch)]
    train = interleaved(
        lambda rows: bench.train_step(bench.stock, bench.stock_energy, rows),
        lambda rows: bench.train_step(bench.ours, bench.our_energy, rows),
        batches,
    )
    with torch.no_grad():
        inference = interleaved(bench.stock_energy, bench.our_energy, batches)
        energies = [[np.asarray(f(rows)) for f in (bench.stock_energy, bench.our_energy)] for rows in batches]
    collating = interleaved(bench.stock_collate, bench.our_collate, large or batches)
    difference = max(float(np.abs(stock - ours).max()) for stock, ours in energies)
    n_atoms = bench.crystals.n_atoms
    return {
        "machine": f"{platform.machine()}, {platform.processor() or 'unknown processor'}, 1 thread",
        "torch": torch.__version__,
        "crystals": len(bench.crystals),
        "mean_sites": float(n_atoms.mean()),
        "batch": batch_size,
        "train_step_ratio": _ratio(train),
        "inference_ratio": _ratio(inference),
        "collate_ratio": _ratio(collating),
        "collate_batch": collate_batch if large else batch_size,
        "conversion_ratio": _paired_ratio(conversion, "ours"),
        "conversion_and_folding_ratio": _paired_ratio(conversion, "ours_with_folding"),
        "max_energy_difference_ev_per_atom": difference,
        "structures_per_s": {
            "train_ours": batch_size / float(np.median(train[:, 1])),
            "train_stock": batch_size / float(np.median(train[:, 0])),
            "inference_ours": batch_size / float(np.median(inference[:, 1])),
            "inference_stock": batch_size / float(np.median(inference[:, 0])),
        },
        "share_of_floor": _share_of_floor(bench, batches[0], float(np.median(train[:, 1]))),
        "fold": float(bench.store.full_cost.sum() / bench.store.cost.sum()),
        "conversion_by_sites": _by_sites(conversion, n_atoms),
    }


def _ratio(seconds: np.ndarray) -> float:
    return float(np.median(seconds[:, 0] / seconds[:, 1]))


def _paired_ratio(seconds: dict[str, list[float]], ours: str) -> float:
    return float(np.median(np.array(seconds["stock"]) / np.array(seconds[ours])))


def _by_sites(conversion: dict[str, list[float]], n_atoms: np.ndarray) -> list[dict[str, Any]]:
    rows = []
    for low, high in SIZES:
        chosen = (n_atoms >= low) & (n_atoms <= high)
        if chosen.any():
            stock, ours = (np.array(conversion[side])[chosen] for side in ("stock", "ours"))
            row = {"sites": f"{low}-{high}", "crystals": int(chosen.sum()), "ratio": float(np.median(stock / ours))}
            rows.append(row | {"stock_ms": float(np.median(stock) * 1e3), "ours_ms": float(np.median(ours) * 1e3)})
    return rows


def _share_of_floor(bench: Bench, rows: np.ndarray, seconds: float) -> float:
    """FLOPs of the matrix products of one step / what this machine's largest products reach in the same time."""
    with FlopCounterMode(display=False) as counter:
        bench.train_step(bench.ours, bench.our_energy, rows)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = min(timed(lambda: a @ b) for _ in range(10))
    return counter.get_total_flops() / seconds / (2 * 1024**3 / best)


def peak_megabytes(bench: Bench, side: str, batch_size: int) -> float:
    """Peak resident memory of a process that converts, then takes a few training steps."""
    if side == "stock":
        bench.graphs = [bench.converter(structure) for structure in bench.structures]
    else:
        bench.build_store()
    rows = np.random.default_rng(0).permutation(len(bench.crystals))
    model, energy = (bench.stock, bench.stock_energy) if side == "stock" else (bench.ours, bench.our_energy)
    for begin in range(0, min(len(rows), 6 * batch_size), batch_size):
        bench.train_step(model, energy, rows[begin : begin + batch_size])
    status = Path("/proc/self/status").read_text()  # ru_maxrss would be the parent's where that was larger
    return float(status.split("VmHWM:")[1].split()[0]) / 1e3


if __name__ == "__main__":
    main()
