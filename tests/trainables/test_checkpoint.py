"""Checkpoints survive what happens to files."""

from pathlib import Path

import pytest
import torch

from trainables.errors import UserError
from trainables.training import checkpoint as checkpoint_module
from trainables.training.checkpoint import Checkpoint, CheckpointFolder, DamagedCheckpoint, read_checkpoint


class Messages(list[str]):
    def message(self, text: str) -> None:
        self.append(text)


def a_checkpoint(epoch: int) -> Checkpoint:
    return Checkpoint({"w": torch.full((3,), float(epoch))}, {"epoch": epoch})


def test_the_last_two_are_kept_and_the_latest_is_read(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    assert folder.latest() is None
    for epoch in range(12):
        folder.save(epoch, a_checkpoint(epoch))
    assert sorted(file.name for file in tmp_path.glob("*.json")) == ["epoch-00010.json", "epoch-00011.json"]
    latest = folder.latest()
    assert latest is not None
    assert latest.about == {"epoch": 11}
    assert torch.equal(latest.tensors["w"], torch.full((3,), 11.0))


@pytest.mark.parametrize(
    "damage", ["truncated tensors", "changed tensors", "no manifest", "broken manifest", "no tensors"]
)
def test_a_damaged_checkpoint_is_set_aside_and_the_previous_one_used(tmp_path: Path, damage: str) -> None:
    folder = CheckpointFolder(tmp_path, messages := Messages())  # type: ignore[arg-type]
    for epoch in range(2):
        folder.save(epoch, a_checkpoint(epoch))
    tensors, manifest = tmp_path / "epoch-00001.safetensors", tmp_path / "epoch-00001.json"
    if damage == "truncated tensors":
        tensors.write_bytes(tensors.read_bytes()[:-5])
    elif damage == "changed tensors":
        tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    elif damage == "broken manifest":
        manifest.write_text('{"sha256": ')
    elif damage == "no manifest":
        manifest.unlink()
    else:
        tensors.unlink()
    latest = folder.latest()
    assert latest is not None
    assert latest.about == {"epoch": 0}
    assert len(messages) == 1
    assert list(tmp_path.glob("*.damaged"))
    folder.save(1, a_checkpoint(1))
    again = folder.latest()
    assert again is not None
    assert again.about == {"epoch": 1}


def test_a_full_disk_is_one_line_and_keeps_the_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    folder.save(0, a_checkpoint(0))

    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_module, "save_file", no_space)
    with pytest.raises(UserError, match="No space left on device"):
        folder.save(1, a_checkpoint(1))
    latest = folder.latest()
    assert latest is not None
    assert latest.about == {"epoch": 0}
    assert not list(tmp_path.glob("*.tmp"))


def test_reading_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint):
        read_checkpoint(tmp_path / "nothing")
