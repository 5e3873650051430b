"""Files are written whole, with the umask's mode, and their own name is in every error."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trainables.files import write_atomically, write_json
from trainables.training.checkpoint import Checkpoint, write_checkpoint


@pytest.fixture(params=[0o022, 0o027, 0o002])
def mode(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(before)


def test_models_and_all_else_get_the_mode_of_the_umask(mode: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", Checkpoint({"w": torch.ones(2)}, {}))
    write_json(tmp_path / "a.json", {})
    for name in ("model.safetensors", "model.json", "a.json"):
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name


@pytest.mark.parametrize("place", ["a folder", "a file as folder", "a writer's own error", "no space"])
def test_an_error_names_the_file_and_never_the_temporary_one(place: str, tmp_path: Path) -> None:
    path = tmp_path / "out.txt"

    def write(temporary: Path) -> None:
        temporary.write_text("x")
        if place == "a writer's own error":
            raise OSError(f"cannot open {temporary} for writing")
        if place == "no space":
            raise OSError(28, "No space left on device")

    if place == "a folder":
        path.mkdir()
    if place == "a file as folder":
        path.write_text("")
        path = path / "inner.txt"
    with pytest.raises(OSError) as problem:  # noqa: PT011 - its text is looked at below
        write_atomically(path, write)
    assert ".tmp" not in str(problem.value)
    assert str(problem.value.filename) in (str(path), str(path.parent))
    assert not list(tmp_path.glob(".*.tmp"))


def test_an_error_of_something_else_is_left_as_it_is(tmp_path: Path) -> None:
    class Unreachable(OSError):
        pass

    def write(temporary: Path) -> None:
        raise Unreachable("no route to host")

    with pytest.raises(Unreachable, match="no route to host"):
        write_atomically(tmp_path / "x", write)
    with pytest.raises(FileNotFoundError) as problem:
        write_atomically(tmp_path / "x", lambda temporary: (tmp_path / "input").read_bytes() and None)
    assert problem.value.filename == str(tmp_path / "input")
