"""Compilation, precision and memory: what they may change, and when they are refused."""

import contextlib
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from small_data import tiny_run

from trainables.data.tasks import TASKS
from trainables.errors import UserError
from trainables.graphs.batch import Batch, collate
from trainables.model import compiled as compiled_module
from trainables.model import engine as engine_module
from trainables.model.chgnet import CrystalModel, build_model
from trainables.model.compiled import compiles, has_compiler, trace_once_for_all_sizes
from trainables.model.engine import padded
from trainables.training import compute as compute_module
from trainables.training.compute import Compute, precision, require_exact_tf32
from trainables.training.data import TrainingData
from trainables.training.fit import fit
from trainables.training.memory import BatchBudget
from trainables.training.predict import predict

pytestmark = pytest.mark.trains

CPU, GPU = torch.device("cpu"), torch.device("cuda")


class Said:
    """A progress that keeps its messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def out_of_memory_once(monkeypatch: pytest.MonkeyPatch, model_class: type, *, times: int = 1) -> list[int]:
    """Let the forward pass run out of memory so many times; returns the sizes of the batches it met."""
    inner, sizes = model_class.forward, []

    def forward(self: CrystalModel, batch: Batch) -> torch.Tensor:
        sizes.append(len(batch))
        if len(sizes) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        found: torch.Tensor = inner(self, batch)
        return found

    monkeypatch.setattr(model_class, "forward", forward)
    return sizes


def test_a_fit_that_runs_out_of_memory_goes_on_with_half_the_cap_and_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=2)
    untroubled = fit(config, TrainingData(dataset.task, split, store), tmp_path / "untroubled")
    with monkeypatch.context() as patched:
        sizes = out_of_memory_once(patched, CrystalModel)
        troubled = fit(config, TrainingData(dataset.task, split, store), tmp_path / "troubled")
    assert troubled.status == "finished"
    assert len(sizes) > 1
    for one, other in zip(untroubled.history, troubled.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)


def test_the_cap_is_halved_once_and_says_so() -> None:
    said = Said()
    cap, asked = BatchBudget(100.0, said), []  # type: ignore[arg-type]

    def work(cost: float) -> str:
        asked.append(cost)
        if cost > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert cap.fits(work) == "done"
    assert cap.fits(work) == "done"
    assert asked == [100.0, 50.0, 50.0]
    assert len(said.messages) == 1
    assert "half" in said.messages[0]


def test_memory_that_is_short_twice_ends_the_run_in_one_sentence() -> None:
    cap = BatchBudget(100.0)

    def work(cost: float) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UserError, match="half a batch"):
        cap.fits(work)


def test_predictions_survive_a_memory_too_small_for_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, split, store, _ = tiny_run(tmp_path)
    model = build_model("scratch", TASKS["matbench_mp_e_form"])
    expected = predict(model, store, split.train.rows)
    sizes = out_of_memory_once(monkeypatch, CrystalModel)
    np.testing.assert_allclose(predict(model, store, split.train.rows), expected, atol=1e-5)
    assert len(sizes) > 1


@pytest.mark.parametrize(
    ("choice", "work", "device", "expected"),
    [
        ("off", 1e12, CPU, False),
        ("on", 1.0, CPU, True),
        ("auto", 1.0, CPU, False),
        ("auto", 1e12, CPU, True),
        ("auto", 1e8, GPU, False),
        ("auto", 1e12, GPU, True),
    ],
)
def test_compilation_pays_from_some_work_on(
    choice: compiled_module.Compile, work: float, device: torch.device, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_module, "has_compiler", lambda _: True)
    assert compiles(choice, work, device) == expected
    monkeypatch.setattr(compiled_module, "has_compiler", lambda _: False)
    assert not compiles(choice, work, device)


def test_a_machine_where_compiling_fails_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> object:
        raise RuntimeError("g++: fatal error")

    has_compiler.cache_clear()
    monkeypatch.setattr(compiled_module, "compiled_once", broken)
    assert not has_compiler("cpu")
    assert not compiles("auto", 1e12, CPU)
    with pytest.raises(UserError, match="`compiled=on`"):
        Compute(compiled="on").check()
    has_compiler.cache_clear()


def test_a_resumed_run_keeps_to_the_decision_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=2)
    plain = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run", compute=Compute(compiled="off"))
    monkeypatch.setattr(compiled_module, "has_compiler", lambda _: True)
    monkeypatch.setattr(compute_module, "has_compiler", lambda _: True)
    again = fit(config, TrainingData(dataset.task, split, store), tmp_path / "run", compute=Compute(compiled="on"))
    assert (plain.compiled, again.compiled) == (False, False)


def test_several_threads_are_not_compiled_for_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled_module, "has_compiler", lambda _: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert not Compute().compiles(1e12)
    assert Compute(compiled="on").compiles(1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert Compute().compiles(1e12)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def test_one_traced_graph_serves_all_sizes_and_gives_the_plain_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    """Traced as torch.compile does, without generating code, which takes a minute (see the slow tests)."""
    traced = []
    torch._dynamo.reset()

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        traced.append(graph)
        return graph.forward

    stack.enter_context(torch.fx.experimental._config.patch(use_duck_shape=True))  # put back when this ends
    trace_once_for_all_sizes()
    monkeypatch.setattr(
        engine_module, "compiled_once", lambda function: torch.compile(function, dynamic=True, backend=backend)
    )
    _, split, store, _ = tiny_run(tmp_path)
    model, rows = build_model("scratch", TASKS["matbench_mp_e_form"]), split.train.rows
    # First the sizes a compiler might take for one another, all padded to the same number.
    assert len(padded(collate(store, rows[:2])).short) == len(padded(collate(store, rows[:2])).numbers)
    for n in (2, 9, 4, 7, 1):
        model.compiled = False
        expected = model(collate(store, rows[:n]))
        model.compiled = True
        torch.testing.assert_close(model(collate(store, rows[:n])), expected, atol=1e-6, rtol=0)
    assert len(traced) == 1


@pytest.mark.slow
def test_a_compiled_run_ends_where_the_plain_one_does(tmp_path: Path) -> None:
    assert has_compiler("cpu"), "this test wants a C++ compiler"
    config, split, store, dataset = tiny_run(tmp_path, optim__epochs=3)
    plain = fit(config, TrainingData(dataset.task, split, store), tmp_path / "plain", compute=Compute(compiled="off"))
    compiled = fit(
        config, TrainingData(dataset.task, split, store), tmp_path / "compiled", compute=Compute(compiled="on")
    )
    assert (plain.compiled, compiled.compiled) == (False, True)
    for one, other in zip(plain.history, compiled.history, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
    assert plain.best_val_mae == pytest.approx(compiled.best_val_mae, rel=1e-3)


def test_compiled_code_is_kept_in_the_cache_that_was_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler sets the variable itself when it is loaded: ours has to be there before."""
    seen: list[str | None] = []
    monkeypatch.setenv("CRYSTALTUNE_CACHE", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setattr(
        compiled_module, "trace_once_for_all_sizes", lambda: seen.append(os.environ.get("TORCHINDUCTOR_CACHE_DIR"))
    )
    compiled_module.compiled_once.__wrapped__(lambda x: x)
    assert seen == [str(tmp_path / "compiled")]


def test_tf32_is_for_gpus(tmp_path: Path) -> None:
    config, split, store, dataset = tiny_run(tmp_path)
    with pytest.raises(UserError, match="leave out `tf32`"):
        fit(config, TrainingData(dataset.task, split, store), tmp_path / "run", compute=Compute(tf32=True))


@pytest.mark.parametrize(("error", "allowed"), [(1e-4, True), (1e-3, False), (float("nan"), False)])
def test_tf32_is_refused_where_it_changes_predictions(
    error: float, allowed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, split, store, _ = tiny_run(tmp_path)
    monkeypatch.setattr(compute_module, "tf32_error", lambda *_: error)
    before = torch.backends.cuda.matmul.allow_tf32
    refused = contextlib.nullcontext() if allowed else pytest.raises(UserError, match="TF32 changes predictions")
    with refused:
        require_exact_tf32(build_model("scratch", TASKS["matbench_mp_e_form"]), store, split.train.rows)
    with precision(Compute(tf32=True)):
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_the_error_of_tf32_is_nothing_where_there_is_none(tmp_path: Path) -> None:
    _, split, store, _ = tiny_run(tmp_path)
    assert (
        compute_module.tf32_error(build_model("scratch", TASKS["matbench_mp_e_form"]), store, split.train.rows) == 0.0
    )
