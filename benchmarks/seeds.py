"""Several seeds on one device: processes that share it against one process with the seeds' models stacked.

    uv run python benchmarks/seeds.py [--data FILE] [--task mp_e_form] [--limit N] [--seeds 4] [--batch 32]
                                      [--device cpu|cuda] [--json OUT]

Processes are what `crystaltune train --per-gpu N` uses. Stacked models go through torch.func (one functional model,
vmap over the seeds' weights) and share every batch. Both take the same number of gradients on the same batches; the
stacked gradients are compared with those of the single models. Printed are structures/s, seeds counted.
"""

import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, read_crystals, save, whole_batches
from torch.func import functional_call, grad, stack_module_state, vmap

from trainables.data.tasks import TASKS
from trainables.graphs.batch import Batch, collate
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build
from trainables.model import engine, linear
from trainables.model.chgnet import CrystalModel, build_model
from trainables.processes import keep_freed_memory


def main() -> None:
    parser = arguments(__doc__, limit=256)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    crystals = read_crystals(args)
    with tempfile.TemporaryDirectory() as folder:
        store = open_or_build(crystals, Cutoffs(), Path(folder))
        job = (store.folder, args.batch, args.repeats, args.device)
        stacked, difference = stacked_seconds(*job, args.seeds)
        shared = shared_seconds(job, args.seeds)
        work = args.seeds * args.repeats * len(batches_of(store, args.batch)) * args.batch
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else f"{args.device}, a thread a process"
    results = {
        "device": device,
        "seeds": args.seeds,
        "batch": args.batch,
        "processes_structures_per_s": work / shared,
        "stacked_structures_per_s": work / stacked,
        "stacked_gradient_difference": difference,
    }
    print(json.dumps(results, indent=2))
    save(results, args.json)


def batches_of(store: GraphStore, size: int) -> list[np.ndarray]:
    usable = np.flatnonzero(~store.failed & (store.n_isolated == 0))
    return whole_batches(usable, size)


def seed_model(seed: int, device: str) -> CrystalModel:
    """The pretrained model with weights a little apart, as seeds have them."""
    model = build_model("0.3.0", TASKS["matbench_mp_e_form"]).to(device)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data += 1e-3 * torch.randn(weight.shape, generator=generator).to(weight)
    return model


def stacked_seconds(folder: Path, size: int, repeats: int, device: str, n_seeds: int) -> tuple[float, float]:
    """Seconds of all gradients, and their relative distance from the single models' on the first batch."""
    torch.set_num_threads(n_seeds)
    store = GraphStore(folder).near(torch.device(device))
    models = [seed_model(seed, device) for seed in range(n_seeds)]
    weights, buffers = stack_module_state(models)
    frame = models[0]
    engine.has_onednn = linear.has_onednn = lambda: False  # vmap has no rule for an operator of our own

    def loss(weights: dict[str, Any], buffers: dict[str, Any], batch: Batch) -> torch.Tensor:
        energy: torch.Tensor = functional_call(frame, (weights, buffers), (batch,))
        return energy.abs().mean()

    gradients = vmap(grad(loss), in_dims=(0, 0, None))
    batches = batches_of(store, size)
    first = collate(store, batches[0]).to(torch.device(device))
    found, apart, size_of = gradients(weights, buffers, first), 0.0, 0.0
    for place, model in enumerate(models):
        names, parameters = zip(*model.named_parameters(), strict=True)
        single = torch.autograd.grad(model(first).abs().mean(), parameters, allow_unused=True)
        for name, value in zip(names, single, strict=True):
            if value is not None:
                apart += float((found[name][place] - value).square().sum())
                size_of += float(value.square().sum())
    synchronise(device)
    begin = time.perf_counter()
    for rows in batches * repeats:
        gradients(weights, buffers, collate(store, rows).to(torch.device(device)))
    synchronise(device)
    return time.perf_counter() - begin, (apart / size_of) ** 0.5


def shared_seconds(job: tuple[Path, int, int, str], n_seeds: int) -> float:
    """Seconds from a common start until the last process has its gradients."""
    spawn = multiprocessing.get_context("spawn")
    start, done = spawn.Barrier(n_seeds + 1), spawn.Queue()
    processes = [spawn.Process(target=one_seed, args=(*job, seed, start, done)) for seed in range(n_seeds)]
    for process in processes:
        process.start()
    start.wait()
    begin = time.perf_counter()
    for _ in processes:
        done.get()
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
    return seconds


def one_seed(folder: Path, size: int, repeats: int, device: str, seed: int, start: Any, done: Any) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    store, model = GraphStore(folder).near(torch.device(device)), seed_model(seed, device)
    weights, batches = list(model.parameters()), batches_of(store, size)

    def gradients(rows: np.ndarray) -> None:
        energy = model(collate(store, rows).to(torch.device(device)))
        torch.autograd.grad(energy.abs().mean(), weights, allow_unused=True)

    gradients(batches[0])
    synchronise(device)
    start.wait()
    for rows in batches * repeats:
        gradients(rows)
    synchronise(device)
    done.put(seed)


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
