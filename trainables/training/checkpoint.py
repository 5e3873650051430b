"""Checkpoints: tensors in safetensors, everything else in a JSON manifest that holds the tensors' hash.

The manifest is written last, so a checkpoint without a matching manifest is one whose writing was cut off.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainables.errors import CannotWrite
from trainables.files import sha256_of_file, write_atomically, write_json
from trainables.progress import Progress, silent

_KEPT = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Named tensors and the manifest's own content."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


class DamagedCheckpoint(Exception):
    """A checkpoint whose tensors and manifest don't agree."""


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write `path`.safetensors, then `path`.json.

    Raises:
        CannotWrite: the folder cannot be written (a full disk, for one); the older checkpoint is still there.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    file = path.with_suffix(".safetensors")
    try:
        write_atomically(file, lambda temporary: save_file(tensors, temporary))
        write_json(path.with_suffix(".json"), {"sha256": sha256_of_file(file), **checkpoint.about})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CannotWrite(f"{file} cannot be written ({reason}): free space there and run the command again") from None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint given by its path without suffix.

    Raises:
        DamagedCheckpoint: a file is missing, cut off or changed.
    """
    about = verified_manifest(path)
    try:
        return Checkpoint(load_file(path.with_suffix(".safetensors")), about)
    except (OSError, SafetensorError) as error:
        raise DamagedCheckpoint(f"{path}: {error}") from None


def verified_manifest(path: Path) -> dict[str, Any]:
    """Return a checkpoint's manifest, where its tensors have the hash that it gives; they are not read as tensors.

    Raises:
        DamagedCheckpoint: a file is missing, cut off or changed.
    """
    file, manifest = path.with_suffix(".safetensors"), path.with_suffix(".json")
    try:
        about: dict[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
        if sha256_of_file(file) != about.pop("sha256"):
            raise DamagedCheckpoint(f"{file} does not have the hash its manifest gives")
    except OSError as error:
        raise DamagedCheckpoint(f"{error.filename or path}: {error.strerror or error}") from None
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise DamagedCheckpoint(f"{manifest} is not a valid manifest of a checkpoint ({error})") from None
    return about


class CheckpointFolder:
    """The checkpoints of one run, by epoch; the last two are kept."""

    def __init__(self, folder: Path, progress: Progress = silent) -> None:
        self._folder, self._progress = folder, progress

    def save(self, epoch: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of an epoch and remove those before the last two."""
        write_checkpoint(self._path(epoch), checkpoint)
        for old in self._epochs()[:-_KEPT]:
            self._path(old).with_suffix(".json").unlink(missing_ok=True)
            self._path(old).with_suffix(".safetensors").unlink(missing_ok=True)

    def latest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; damaged ones are set aside and said so."""
        for epoch in reversed(self._epochs()):
            try:
                return read_checkpoint(self._path(epoch))
            except DamagedCheckpoint as problem:
                self._set_aside(epoch)
                self._progress.message(f"damaged checkpoint set aside, the one before it is used: {problem}")
        return None

    def _set_aside(self, epoch: int) -> None:
        for suffix in (".safetensors", ".json"):
            file = self._path(epoch).with_suffix(suffix)
            if file.exists():
                file.replace(file.with_name(file.name + ".damaged"))

    def _epochs(self) -> list[int]:
        names = {file.stem for pattern in ("*.safetensors", "*.json") for file in self._folder.glob(pattern)}
        return sorted(int(name.removeprefix("epoch-")) for name in names if name.startswith("epoch-"))

    def _path(self, epoch: int) -> Path:
        return self._folder / f"epoch-{epoch:05d}"
