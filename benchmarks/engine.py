"""Stock CHGNet against crystaltune's engine, interleaved on the same crystals in one process.

    uv run python benchmarks/engine.py [--data FILE] [--task mp_e_form] [--limit N] [--batch 32]
                                       [--system cubic] [--compile on|off] [--json OUT]

FILE is a Matbench table (json.gz); without it the embedded synthetic sample is used. Timed are conversion (stock's
converter; ours, without and with folding), collate (crystals to model inputs, bases included), inference, and a
training step (collate, forward, L1 loss, backward, AdamW) on energies, plain and through torch.compile (on by default
where there is a compiler: a minute or two, once). Everything runs on one thread; stock and ours take turns on batches
(conversion: on blocks of 16 crystals), so what else the machine does meets both, and every ratio is the median of the
ratios of the turns. A first pass over all batches, not timed, lets kernels be made. Peak memory is that of separate
processes, without compilation.
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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from chgnet.graph import CrystalGraph, CrystalGraphConverter
from chgnet.model import CHGNet
from chgnet.model.model import BatchedGraph
from common import SIZES, arguments, read_crystals, save, whole_batches
from folding import crystal_system
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from trainables.config import OptimConfig
from trainables.crystals import CrystalTable
from trainables.data.tasks import TASKS
from trainables.graphs.batch import collate
from trainables.graphs.convert import convert
from trainables.graphs.quotient import fold
from trainables.graphs.store import GraphStore, open_or_build
from trainables.model.chgnet import build_model
from trainables.model.compiled import has_compiler
from trainables.model.engine import fourier
from trainables.model.linear import linear
from trainables.processes import keep_freed_memory
from trainables.training.optim import make_optimiser

BLOCK = 16  # crystals that one converter takes before the other does: each meets warm caches, as in real use


def main() -> None:
    parser = arguments(__doc__, limit=500)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--collate-batch", type=int, default=128)
    parser.add_argument("--system", help="crystals of this system only, such as cubic")
    parser.add_argument("--compile", choices=("on", "off"), default="on")
    parser.add_argument("--only", choices=("stock", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    crystals = read_crystals(args)
    if args.system:
        chosen = [crystal_system(crystal) == args.system for crystal in crystals]
        crystals = crystals.take(np.flatnonzero(chosen))
    if args.only:
        print(peak_megabytes(Bench(crystals), args.only, args.batch))
        return
    results = measure(Bench(crystals), args.batch, args.collate_batch, args.compile == "on" and has_compiler("cpu"))
    for side in ("stock", "ours"):
        command = [sys.executable, __file__, "--only", side, "--limit", str(args.limit), "--batch", str(args.batch)]
        command += ["--system", args.system] if args.system else []
        command += ["--data", str(args.data), "--task", args.task] if args.data else []
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[f"peak_memory_mb_{side}"] = float(shown.splitlines()[-1])
    print(json.dumps(results, indent=2))
    save(results, args.json)


class Bench:
    """Both models, the crystals in both forms, and one function a timed step."""

    def __init__(self, crystals: CrystalTable) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self.stock = CHGNet.load(use_device="cpu", verbose=False)
        self.ours = build_model("0.3.0", TASKS["matbench_mp_e_form"])
        self.converter = CrystalGraphConverter(on_isolated_atoms="ignore")
        whole = [convert(crystal, self.ours.cutoffs).n_isolated == 0 for crystal in crystals]
        self.crystals = crystals.take(np.flatnonzero(whole))
        self.structures = [crystal.to_structure() for crystal in self.crystals]
        self.compiled = build_model("0.3.0", TASKS["matbench_mp_e_form"])
        self.compiled.compiled = True
        self.optimisers: dict[torch.nn.Module, torch.optim.Optimizer] = {
            self.stock: torch.optim.AdamW(self.stock.parameters(), lr=0.0)
        }
        self.optimisers |= {model: make_optimiser(model, OptimConfig(lr=1e-12)) for model in (self.ours, self.compiled)}
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

    def compiled_energy(self, rows: np.ndarray) -> Tensor:
        return self.compiled(collate(self.store, rows))

    def train_step(self, model: torch.nn.Module, energy: Callable[[np.ndarray], Tensor], rows: np.ndarray) -> None:
        loss = energy(rows).abs().mean()
        self.optimisers[model].zero_grad()
        loss.backward()
        self.optimisers[model].step()


def timed(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def interleaved(functions: list[Callable[[np.ndarray], object]], batches: list[np.ndarray]) -> np.ndarray:
    """Seconds of every function on every batch, (n_batches, functions), after a pass that is not timed."""
    for function in functions[1:]:  # stock, the first, makes nothing that it keeps
        for rows in batches:
            function(rows)
    return np.array([[timed(lambda: function(rows)) for function in functions] for rows in batches])  # noqa: B023


def measure(bench: Bench, batch_size: int, collate_batch: int, compiled: bool) -> dict[str, Any]:
    conversion = bench.convert()
    keep_freed_memory()  # as our training does; from here on it serves stock as well
    batches, large = (whole_batches(np.arange(len(bench.crystals)), size) for size in (batch_size, collate_batch))
    steps = [(bench.stock, bench.stock_energy), (bench.ours, bench.our_energy)]
    steps += [(bench.compiled, bench.compiled_energy)] if compiled else []
    train = interleaved([partial(bench.train_step, model, energy) for model, energy in steps], batches)
    with torch.no_grad():
        inference = interleaved([bench.stock_energy, bench.our_energy], batches)
        energies = [[np.asarray(f(rows)) for f in (bench.stock_energy, bench.our_energy)] for rows in batches]
    collating = interleaved([bench.stock_collate, bench.our_collate], large or batches)
    difference = max(float(np.abs(stock - ours).max()) for stock, ours in energies)
    n_atoms, rate = bench.crystals.n_atoms, batch_size / np.median(train, axis=0)
    return {
        "machine": f"{processor()}, 1 thread",
        "torch": torch.__version__,
        "crystals": len(bench.crystals),
        "mean_sites": float(n_atoms.mean()),
        "batch": batch_size,
        "train_step_ratio": _ratio(train, -1),
        "train_step_ratio_plain": _ratio(train, 1),
        "compiled": compiled,
        "inference_ratio": _ratio(inference),
        "collate_ratio": _ratio(collating),
        "collate_batch": collate_batch if large else batch_size,
        "conversion_ratio": _block_ratio(conversion, "ours"),
        "conversion_and_folding_ratio": _block_ratio(conversion, "ours_with_folding"),
        "conversion_ratio_median_crystal": _paired_ratio(conversion, "ours"),
        "max_energy_difference_ev_per_atom": difference,
        "structures_per_s": {
            "train_ours": float(rate[-1]),
            "train_ours_plain": float(rate[1]),
            "train_stock": float(rate[0]),
            "inference_ours": batch_size / float(np.median(inference[:, 1])),
            "inference_stock": batch_size / float(np.median(inference[:, 0])),
        },
        **_floor(bench, batches, train[:, 1]),
        "fold": float(bench.store.full_cost.sum() / bench.store.cost.sum()),
        "conversion_by_sites": _by_sites(conversion, n_atoms),
    }


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _ratio(seconds: np.ndarray, column: int = 1) -> float:
    return float(np.median(seconds[:, 0] / seconds[:, column]))


def _block_ratio(seconds: dict[str, list[float]], ours: str) -> float:
    """Median ratio of the times of blocks of crystals, as they are converted in turn."""
    begins = np.arange(0, len(seconds["stock"]), BLOCK)
    return float(np.median(np.add.reduceat(seconds["stock"], begins) / np.add.reduceat(seconds[ours], begins)))


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


def _floor(bench: Bench, batches: list[np.ndarray], seconds: np.ndarray) -> dict[str, float]:
    """FLOPs of the matrix products of a step, and the share of the time that this machine's fastest would take."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.mkldnn._linear_pointwise: _linear_flops}) as counter:
        for rows in batches:
            bench.train_step(bench.ours, bench.our_energy, rows)
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    peak = max(
        2 * 4096 * 1024**2 / min(timed(product) for _ in range(10)) for product in (lambda: a @ b, lambda: linear(a, b))
    )
    flops = counter.get_total_flops()
    n_crystals = sum(len(rows) for rows in batches)
    return {
        "mflops_per_structure": flops / n_crystals / 1e6,
        "peak_gflops_per_s": peak / 1e9,
        "share_of_floor": flops / float(seconds.sum()) / peak,
    }


def _linear_flops(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * int(x[0]) * int(x[1]) * int(weight[0])


def peak_megabytes(bench: Bench, side: str, batch_size: int) -> float:
    """Peak resident memory of a process that converts, then takes a few training steps."""
    keep_freed_memory()
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
