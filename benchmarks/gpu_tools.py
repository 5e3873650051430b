"""What benchmarks/gpu.py measures with: prepared training steps, timers, the profiler, the audit of waits."""

import itertools
import statistics
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import trainables
from orchestrator.inputs.datasets import graph_store, load_dataset
from orchestrator.inputs.source import Source
from search_spaces.presets import preset
from trainables.config import RunConfig, merged, parse_config
from trainables.data.dataset import Dataset
from trainables.data.folds import Part
from trainables.data.tasks import Task
from trainables.graphs.batch import Batch, collate, training_batches
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import configured_model
from trainables.progress import silent
from trainables.training.augment import skin_for
from trainables.training.memory import GRADIENT_COST, PREDICTION_COST, BatchBudget
from trainables.training.objective import Objective, TaskData
from trainables.training.optim import Anchor, averaged_weights, make_optimiser, set_learning_rate
from trainables.training.predict import with_graph
from trainables.training.state import TrainState
from trainables.training.steps import take_step

_RATE = 1e-6  # a learning rate at which hundreds of steps leave the weights where they are
_ROOT = Path(trainables.__file__).resolve().parents[1]


@dataclass
class Bench:
    """The device and the crystals, read once for all sections.

    Attributes:
        data: a part of mp_e_form; None for the synthetic sample.
        quick: a few steps of everything, to see that it runs.
    """

    device: torch.device
    data: Path | None
    quick: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        return (8, 32) if self.quick else (32, 64, 256, 1024)

    @property
    def n_timed(self) -> int:
        return 3 if self.quick else 30

    @cached_property
    def dataset(self) -> Dataset:
        """The crystals that steps are timed on."""
        name = "sample" if self.data is None else "mp_e_form"
        return load_dataset(Source(name, self.data, limit=60 if self.quick else None), silent)

    @cached_property
    def store(self) -> GraphStore:
        return graph_store(self.dataset, "0.3.0", silent)

    def timed(self, work: Callable[[], Any]) -> list[tuple[float, Any]]:
        """Milliseconds and result of each of `n_timed` calls, after a third as many that don't count."""
        for _ in range(1 + self.n_timed // 3):
            work()
        found = []
        for _ in range(self.n_timed):
            self.wait()
            begin = time.perf_counter()
            result = work()
            self.wait()
            found.append(((time.perf_counter() - begin) * 1e3, result))
        return found

    def median_ms(self, work: Callable[[], Any]) -> float:
        return statistics.median(ms for ms, _ in self.timed(work))

    def queued_us(self, work: Callable[[], Any], repeats: int) -> float:
        """Microseconds of device time a call, by CUDA events around `repeats` of them."""
        for _ in range(3):
            work()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(repeats):
            work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / repeats * 1e3

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def config_of(task: Task, settings: Mapping[str, Any]) -> RunConfig:
    """The task's preset with these settings over it."""
    return parse_config(merged(preset(task)), "preset").changed(settings)


class Stepper:
    """Optimiser steps on batch after batch, as a run takes them; a call takes one and returns its crystals.

    Args:
        limit: of the dataset's rows, where a store with a skin has to be built first.
    """

    def __init__(
        self,
        bench: Bench,
        size: int,
        *,
        compiled: bool = False,
        settings: Mapping[str, Any] | None = None,
        limit: int | None = None,
    ) -> None:
        dataset = bench.dataset.limit(limit)
        config = config_of(dataset.task, {"optim.batch_size": size, **(settings or {})})
        store = bench.store if limit is None else graph_store(dataset, "0.3.0", silent)
        usable = np.flatnonzero(with_graph(store, np.arange(len(store)), config))
        rows = np.tile(usable, -(-4 * size // len(usable)))  # enough for several whole batches of any size
        part = Part(tuple(map(str, range(len(rows)))), rows, dataset.targets[rows])
        skin, skinned = skin_for(config, store.cutoffs), None
        if skin > 0:
            skinned = graph_store(dataset, "0.3.0", silent, skin=skin).near(bench.device)
        one = torch.ones((), device=bench.device)
        data = TaskData(dataset.task, part, store.near(bench.device), one, skinned=skinned)
        self.model = configured_model(config.model, dataset.task).to(bench.device).train()
        self.model.compiled = compiled
        training, validation = (BatchBudget(cost[bench.device.type]) for cost in (GRADIENT_COST, PREDICTION_COST))
        averaged = averaged_weights(self.model, config.optim, 1000)
        optimiser = make_optimiser(self.model, config.optim)
        anchor = Anchor(self.model, config.optim)
        self.run = TrainState(
            config, config.optim.epochs, self.model, averaged, optimiser, training, validation, anchor
        )
        self.objective = Objective(config, data, bench.device)
        self.batches = training_batches(self.objective.costs, size, seed=0, epoch=0)
        self._rng, self._next = np.random.default_rng(0), itertools.cycle(self.batches)
        self.weights = [weight for weight in self.model.parameters() if weight.requires_grad]

    @property
    def largest_cost(self) -> float:
        """Of the parts that batches are cut into."""
        return min(max(float(self.objective.costs[batch].sum()) for batch in self.batches), self.run.cap.cost)

    def __call__(self) -> int:
        places = next(self._next)
        chosen = self.objective.choose(places, self._rng)
        take_step(self.run, self.objective, chosen, rate=_RATE, ramp=1.0)
        return len(places)

    def batch(self, number: int = 0) -> tuple[Batch, Tensor]:
        """One batch on the device, and its targets there."""
        data, places = self.objective.data, self.batches[number]
        batch = collate(data.store, data.part.rows[places]).to(data.scale.device)
        return batch, torch.from_numpy(data.part.targets[places]).to(data.scale)

    def gradient(self, batch: Batch, targets: Tensor) -> tuple[Tensor | None, ...]:
        energies = self.model.outputs(self.model.features(batch), batch).expected()
        return torch.autograd.grad((energies - targets).abs().mean(), self.weights, allow_unused=True)


def flat(gradients: tuple[Tensor | None, ...]) -> Tensor:
    """Gradients side by side, in float64."""
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None]).double()


def stage_ms(bench: Bench, stepper: Stepper) -> dict[str, tuple[float, float]]:
    """Of each stage of a step: milliseconds until the host is free, and until the device is; medians."""
    run = stepper.run
    batch: list[Batch] = []
    loss: list[Tensor] = []
    data, batches = stepper.objective.data, itertools.cycle(stepper.batches)

    def gather() -> None:
        rows = data.part.rows[next(batches)]
        batch[:] = [collate(data.store, rows).to(bench.device)]

    def forward() -> None:
        loss[:] = [stepper.model.outputs(stepper.model.features(batch[0]), batch[0]).value.sum()]

    def backward() -> None:
        gradients = torch.autograd.grad(loss[0], stepper.weights, allow_unused=True)
        for weight, gradient in zip(stepper.weights, gradients, strict=True):
            weight.grad = gradient

    def optimise() -> None:
        set_learning_rate(run.optimiser, _RATE)
        run.optimiser.step()

    stages: dict[str, Callable[[], Any]] = {
        "collate": gather,
        "forward": forward,
        "backward": backward,
        "clip": lambda: torch.nn.utils.clip_grad_norm_(stepper.weights, 10.0),
        "optimiser": optimise,
        "average": lambda: run.averaged.update_parameters(stepper.model),
    }
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
    for _ in range(3 + bench.n_timed // 2):
        for name, stage in stages.items():
            bench.wait()
            begin = time.perf_counter()
            stage()
            free = time.perf_counter() - begin
            bench.wait()
            taken[name].append((free * 1e3, (time.perf_counter() - begin) * 1e3))
    return {name: tuple(np.median(times[3:], axis=0).round(3).tolist()) for name, times in taken.items()}


def kernels(work: Callable[[], Any], repeats: int) -> dict[str, Any]:
    """Kernels, copies and busy milliseconds a call, and the kernels that take most of it, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(repeats):
            work()
        torch.cuda.synchronize()
    on_device = [e for e in profile.events() if e.device_type == torch.autograd.DeviceType.CUDA]
    # Spans that torch marks on the device (an optimiser's step, a compiled region) hold kernels and are none.
    on_device = [e for e in on_device if not e.name.startswith(("Optimizer.", "Torch-Compiled", "## ", "ProfilerStep"))]
    copies = [e for e in on_device if e.name.startswith(("Memcpy", "Memset"))]
    spent: Counter[str] = Counter()
    for event in on_device:
        spent[event.name[:90]] += event.time_range.elapsed_us() / repeats
    busy = sum(spent.values())
    return {
        "kernels": (len(on_device) - len(copies)) / repeats,
        "copies": len(copies) / repeats,
        "busy_ms": busy / 1e3,
        "most": {name: round(us / busy, 3) for name, us in spent.most_common(10)} if busy else {},
    }


def waits(work: Callable[[], Any]) -> dict[str, int]:
    """Where the host waits for the device during a call: file:line of ours, how often.

    Pageable copies with non_blocking=True are not seen by torch.
    """
    found: Counter[str] = Counter()

    def note(message: Warning | str, *_: Any) -> None:
        if "called a synchronizing" not in str(message):
            return
        stack = [frame for frame in traceback.extract_stack()[:-1] if not frame.filename.endswith("warnings.py")]
        frames = [frame for frame in stack if f"{_ROOT}/trainables" in frame.filename] or stack
        found[f"{frames[-1].filename.removeprefix(f'{_ROOT}/')}:{frames[-1].lineno}"] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return dict(found.most_common())
