"""Training and prediction on a GPU: how fast, what limits them, and whether the numbers are a CPU's.

    uv run python benchmarks/gpu.py [--data FILE] [--sections 0,3,4] [--device cuda|cpu] [--quick] --out gpu.json

FILE is a part of mp_e_form in Matbench's layout; without it the embedded synthetic sample is used. jdft2d is read as
`crystaltune train jdft2d` reads it, and left out where it is not there. Sections come in order of worth, each within a
time limit of its own; one that fails is noted and stops nothing else. The JSON is written anew after each. What needs
CUDA is skipped on a CPU. Times are medians of 30 calls after 11 that don't count, with the device waited for.

    0 environment          11 whole runs, GPU and CPU    3 training steps         4 compiled training steps
    2 host waits           7 repeatability               9 the graph store        5 a CUDA graph of a gradient
    6 TF32                 8 processes on one GPU        1 single operations at this model's shapes
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_hardware import environment, operations
from gpu_tools import Bench, Stepper, config_of, flat, kernels, stage_ms, waits
from numpy.typing import NDArray
from seeds import shared_seconds, stacked_seconds
from torch import Tensor
from torch.nn import functional as F

from orchestrator.inputs.datasets import graph_store, load_dataset
from orchestrator.inputs.source import Source
from trainables.data.dataset import Dataset
from trainables.data.folds import FoldSplit, make_split
from trainables.errors import UserError
from trainables.graphs.batch import Batch, collate
from trainables.graphs.store import GraphStore
from trainables.model.compiled import has_compiler
from trainables.processes import n_cores
from trainables.progress import silent
from trainables.training.compute import Compute, precision, tf32_error
from trainables.training.data import TrainingData
from trainables.training.fit import fit
from trainables.training.predict import load_model, predict

Found = dict[str, Any]
FIT_EPOCHS = 3


def whole_runs(bench: Bench) -> Iterator[Found]:
    """`fit` of fold 0 and predictions of its test rows, from the same seed on the GPU and on the CPU."""
    datasets = [*_jdft2d(), bench.dataset]
    sizes = (32,) if bench.quick else (32, 256)
    for dataset in datasets:
        _one_run(dataset, 32, bench.device, compiled=False, epochs=1)  # kernels are loaded
    compiled = (False, True) if has_compiler(bench.device.type) and bench.device.type == "cuda" else (False,)
    for dataset in datasets:
        for size in sizes:
            for choice in compiled:
                yield _one_run(dataset, size, bench.device, compiled=choice)
    if bench.device.type == "cuda":
        torch.set_num_threads(n_cores())
        for dataset in datasets:
            for size in sizes[:1]:
                yield _one_run(dataset, size, torch.device("cpu"), compiled=False)


def _jdft2d() -> list[Dataset]:
    try:
        return [load_dataset(Source("jdft2d"), silent)]
    except UserError:
        return []


def _one_run(dataset: Dataset, size: int, device: torch.device, *, compiled: bool, epochs: int = FIT_EPOCHS) -> Found:
    config = config_of(dataset.task, {"optim.batch_size": size, "optim.epochs": epochs})
    split = make_split(dataset, 0, val_share=config.data.val_share, seed=config.data.split_seed)
    store = graph_store(dataset, "0.3.0", silent)
    with tempfile.TemporaryDirectory() as folder:
        compute = Compute(device.type, "on" if compiled else "off")
        begin = time.perf_counter()
        data = TrainingData(dataset.task, split.without_test(), store)
        result = fit(config, data, Path(folder), compute=compute)
        wall = time.perf_counter() - begin
        model, _, _ = load_model(Path(folder) / "model", device)
    epochs_s = [epoch.seconds for epoch in result.history]
    return {
        "task": dataset.task.name,
        "batch": size,
        "device": device.type,
        "compiled": result.compiled,
        "train_rows": result.n_train,
        "wall_s": wall,
        "epoch_s": epochs_s,
        "structures_per_s": result.history[-1].structures / epochs_s[-1],
        "val_mae": result.best_val_mae,
        "train_loss": [epoch.train_loss for epoch in result.history],
        **_predicted(model, store, split, dataset.task.unit),
    }


def _predicted(model: Any, store: GraphStore, split: FoldSplit, unit: str) -> Found:
    """Test error, and the speed of predicting every row of the store."""
    assert split.test is not None
    error = np.abs(predict(model, store, split.test.rows) - split.test.targets)
    rows = np.arange(len(store))
    predict(model, store, rows)
    begin = time.perf_counter()
    predict(model, store, rows)
    speed = len(rows) / (time.perf_counter() - begin)
    return {"test_mae": float(np.nanmean(error)), "unit": unit, "predicted_per_s": speed}


def plain_steps(bench: Bench) -> Iterator[Found]:
    """take_step at several batch sizes, uncompiled."""
    for size in bench.sizes:
        yield _steps(bench, size, compiled=False)


def compiled_steps(bench: Bench) -> Iterator[Found]:
    """The same through torch.compile; first how long compiling takes, with what the cache holds by now."""
    torch._dynamo.reset()
    stepper, seconds = Stepper(bench, 32, compiled=True), []
    for _ in range(4):
        begin = time.perf_counter()
        stepper()
        bench.wait()
        seconds.append(time.perf_counter() - begin)
    yield {"first_steps_s": seconds}
    for size in bench.sizes:
        yield _steps(bench, size, compiled=True)
    counters = torch._dynamo.utils.counters
    limit = getattr(torch._dynamo.config, "recompile_limit", None)
    yield {"recompile_limit": limit, "stats": dict(counters["stats"]), "recompiled": dict(counters["recompiles"])}


def _steps(bench: Bench, size: int, *, compiled: bool) -> Found:
    stepper, on_gpu = Stepper(bench, size, compiled=compiled), bench.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    times = bench.timed(stepper)
    ms = [step_ms for step_ms, _ in times]
    found: Found = {
        "batch": size,
        "compiled": compiled,
        "step_ms": statistics.median(ms),
        "step_ms_10_90": np.percentile(ms, [10, 90]).tolist(),
        "structures_per_s": sum(n for _, n in times) / sum(ms) * 1e3,
        "mean_cost": float(stepper.objective.costs.mean()),
    }
    if on_gpu:
        peak = torch.cuda.max_memory_allocated() - before
        found |= {"peak_mb": peak / 1e6, "kb_a_cost_unit": peak / stepper.largest_cost / 1e3}
        found |= kernels(stepper, 5)
        found["busy_share"] = found["busy_ms"] / found["step_ms"]
    found["stages_ms_host_and_device"] = stage_ms(bench, stepper)
    return found


def host_waits(bench: Bench) -> Iterator[Found]:
    """Where a step waits for the device: plain, with folded views, with full views."""
    kinds: dict[str, Found] = {
        "plain": {},
        "folded views": {"augment.strain": "symmetry", "augment.strain_size": 1e-3},
        "full views": {"augment.strain": "free", "augment.displacement": "free", "augment.displacement_size": 0.01},
    }
    for name, settings in kinds.items():
        stepper = Stepper(bench, 32, settings=settings, limit=64 if settings else None)
        for _ in range(3):
            stepper()
        found = waits(stepper)
        yield {"step": name, "waits": sum(found.values()), "where": found, "step_ms": bench.median_ms(stepper)}
    plain = Stepper(bench, 32)
    store, rows = plain.objective.data.store, plain.objective.data.part.rows[:64]
    found = waits(lambda: predict(plain.model, store, rows))
    yield {"step": "predict", "waits": sum(found.values()), "where": found}


def repeatability(bench: Bench) -> Found:
    """Five gradients of one batch: their largest difference, and what torch's deterministic operations cost."""
    stepper = Stepper(bench, 256 if bench.device.type == "cuda" else 32)
    batch, targets = stepper.batch()

    def differences() -> tuple[float, float]:
        found = [flat(stepper.gradient(batch, targets)) for _ in range(5)]
        largest = max(float((each - found[0]).abs().max()) for each in found[1:])
        return largest, largest / float(found[0].abs().max())

    found: Found = dict(zip(("largest", "relative"), differences(), strict=True))
    with torch.no_grad():
        energies = [stepper.model(batch) for _ in range(5)]
    found["largest_energy"] = max(float((each - energies[0]).abs().max()) for each in energies[1:])
    found["ms"] = bench.median_ms(lambda: stepper.gradient(batch, targets))
    if bench.device.type == "cuda":
        found["relative_to_cpu"] = _distance_from_cpu(bench, flat(stepper.gradient(batch, targets)))
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found |= dict(zip(("deterministic_largest", "deterministic_relative"), differences(), strict=True))
        found["deterministic_ms"] = bench.median_ms(lambda: stepper.gradient(batch, targets))
    finally:
        torch.use_deterministic_algorithms(False)
    return found


def _distance_from_cpu(bench: Bench, gradient: Tensor) -> float:
    stepper = Stepper(Bench(torch.device("cpu"), bench.data, bench.quick), 256)
    reference = flat(stepper.gradient(*stepper.batch()))
    return float((gradient.cpu() - reference).norm() / reference.norm())


def resident_store(bench: Bench) -> Found:
    """The graph store in the GPU's memory: size, upload, gathering; and whether a second one still finds room."""
    store = GraphStore(bench.store.folder)
    begin = time.perf_counter()
    near = store.near(bench.device)
    bench.wait()
    found: Found = {"mb": store.n_bytes / 1e6, "kb_a_crystal": store.n_bytes / len(store) / 1e3}
    found["upload_s"] = time.perf_counter() - begin
    found["resident"] = near.device.type == bench.device.type
    for size in (32, 256):
        rows = np.random.default_rng(0).choice(np.flatnonzero(~store.failed), size)
        for name, place in (("resident", near), ("from_host", store)):
            found[f"collate_{size}_{name}_ms"] = bench.median_ms(partial(_gathered, place, rows, bench.device))
    # What a fit leaves behind: memory that torch's allocator holds and nobody uses.
    free = torch.cuda.mem_get_info(bench.device)[0]
    left_over = torch.empty(free - store.n_bytes, dtype=torch.uint8, device=bench.device)
    del left_over
    reusable = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    found["reusable_gb"], found["free_gb"] = reusable / 1e9, torch.cuda.mem_get_info(bench.device)[0] / 1e9
    found["second_is_resident"] = GraphStore(bench.store.folder).near(bench.device).device.type == "cuda"
    torch.cuda.empty_cache()
    return found


def _gathered(store: GraphStore, rows: NDArray[np.int64], device: torch.device) -> Batch:
    return collate(store, rows).to(device)


def cuda_graphs(bench: Bench) -> Iterator[Found]:
    """Loss and gradient of one batch of fixed shape, launched by Python and replayed."""
    for size in bench.sizes[::2]:
        for compiled in (False, True):
            stepper = Stepper(bench, size, compiled=compiled)
            batch, targets = stepper.batch()
            plain = bench.median_ms(partial(stepper.gradient, batch, targets))
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    stepper.gradient(batch, targets)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                captured = stepper.gradient(batch, targets)
            replayed = bench.median_ms(graph.replay)
            expected = flat(stepper.gradient(batch, targets))
            apart = float((flat(captured) - expected).norm() / expected.norm())
            found = {"batch": len(batch), "compiled": compiled, "ms": plain, "replayed_ms": replayed}
            yield found | {"structures_per_s": len(batch) / replayed * 1e3, "relative_difference": apart}


def tf32(bench: Bench) -> Iterator[Found]:
    """What TF32 products gain and change."""
    rows = np.flatnonzero(~bench.store.failed)
    yield {"error_over_sd": tf32_error(Stepper(bench, 32).model.eval(), bench.store, rows)}
    for size in bench.sizes[1:]:
        stepper = Stepper(bench, size)
        batch, targets = stepper.batch()
        ms, gradients = [], []
        for allowed in (False, True):
            with precision(Compute("cuda", tf32=allowed)):
                ms.append(bench.median_ms(stepper))
                gradients.append(flat(stepper.gradient(batch, targets)))
        cosine = float(F.cosine_similarity(gradients[0], gradients[1], dim=0))
        yield {"batch": size, "fp32_ms": ms[0], "tf32_ms": ms[1], "gradient_cosine": cosine}


def shared_gpu(bench: Bench) -> Iterator[Found]:
    """Processes that share the GPU, gradients at batch 32; and as many seeds stacked in one process."""
    folder, repeats = bench.store.folder, 1 if bench.quick else 10
    steps = repeats * (int((~bench.store.failed & (bench.store.n_isolated == 0)).sum()) // 32)
    for count in (1, 2) if bench.quick else (1, 2, 4, 8):
        seconds = shared_seconds((folder, 32, repeats, "cuda"), count)
        yield {"processes": count, "structures_per_s": count * steps * 32 / seconds}
    seconds, apart = stacked_seconds(folder, 32, repeats, "cuda", 4)
    yield {"stacked": 4, "structures_per_s": 4 * steps * 32 / seconds, "gradient_difference": apart}


@dataclass(frozen=True)
class Section:
    """A part of the benchmark: its name, seconds it may take, and whether it runs without a GPU."""

    name: str
    seconds: int
    work: Callable[[Bench], Found | Iterator[Found]]
    on_cpu: bool = False


SECTIONS = {
    0: Section("environment", 60, environment, on_cpu=True),
    11: Section("whole runs", 270, whole_runs, on_cpu=True),
    3: Section("training steps", 120, plain_steps, on_cpu=True),
    4: Section("compiled training steps", 150, compiled_steps, on_cpu=True),
    2: Section("host waits", 60, host_waits),
    7: Section("repeatability", 60, repeatability, on_cpu=True),
    9: Section("resident store", 60, resident_store),
    5: Section("CUDA graphs", 90, cuda_graphs),
    6: Section("TF32", 60, tf32),
    8: Section("processes on one GPU", 180, shared_gpu),
    1: Section("operations", 60, operations),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a part of mp_e_form (json.gz)")
    parser.add_argument("--sections", help="numbers, in the order wanted; all by default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few crystals and steps, to see that all of it runs")
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    bench = Bench(torch.device(options.device), options.data, options.quick)
    chosen = [int(number) for number in options.sections.split(",")] if options.sections else list(SECTIONS)
    results: Found = {"command": " ".join(sys.argv)}
    for number in chosen:
        results[str(number)] = _run_section(SECTIONS[number], bench)
        options.out.write_text(json.dumps(results, indent=1, default=str) + "\n")
        print(
            f"{number} {SECTIONS[number].name}: {json.dumps(_rounded(results[str(number)]), default=str)}", flush=True
        )


def _run_section(section: Section, bench: Bench) -> Found:
    """What a section found, also where it ended early."""
    found: Found = {"found": []}
    if bench.device.type != "cuda" and not section.on_cpu:
        return {"skipped": "needs CUDA"}
    begin = time.perf_counter()
    try:
        with _at_most(section.seconds):
            result = section.work(bench)
            for line in [result] if isinstance(result, dict) else result:
                found["found"].append(line)
    except (
        Exception,
        _OutOfTime,
    ) as error:  # an out-of-memory error, a kernel that does not compile: the rest is worth having
        found |= {"failed": f"{type(error).__name__}: {error}"[:500], "traceback": traceback.format_exc()[-3000:]}
    return found | {"seconds": time.perf_counter() - begin}


class _OutOfTime(BaseException):
    """Not an Exception: torch.compile would take it for a failure of its own and go on."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise _OutOfTime(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 5.0)  # and again, where it was not heard
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


def _rounded(value: Any) -> Any:
    """Four digits of every number, for reading; tracebacks are in the file."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items() if key not in ("traceback", "most")}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


if __name__ == "__main__":
    main()
