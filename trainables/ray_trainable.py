"""The Ray Tune Trainable around `fit`: the one file here that imports ray."""

import shutil
from collections.abc import Generator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ray import tune

from trainables.files import read_json, write_json
from trainables.training.result import FitResult, StepResult
from trainables.training.trial import TrialData

TRIAL, FOLDER = "trial", "folder"  # a trial's number, and its own folder: checkpoints there outlive Ray's session
_RESERVED = (TRIAL, FOLDER)
_ABOUT = "crystaltune.json"


class TrialFailed(Exception):
    """A trial ended without a result; the message says why in plain words."""


class FineTune(tune.Trainable):
    """One training run (or one way to predict) as a trial; `tune.with_parameters(FineTune, data=TrialData(...))`.

    Its configuration is dotted keys of RunConfig, as changes to `data.base`. Every step is a share of an epoch and
    reports the fields of StepResult: `step` is what schedulers count by (time_attr), `mae` (best validation MAE so
    far, in the task's unit) what they compare (mode "min"). The trial ends by itself after its last step. Checkpoints
    are crystaltune's own, so a trial that is paused, moved or restored goes on with the numbers of one that was not.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Return a core, and a GPU where there is one; `tune.with_resources` asks for something else."""
        return tune.PlacementGroupFactory([{"CPU": 1.0, "GPU": float(torch.cuda.is_available())}])

    def setup(self, config: dict[str, Any], data: TrialData) -> None:
        """Begin, or go on where the trial's folder ends."""
        self._data = data
        torch.set_num_threads(max(1, int(_given(self.trial_resources, "CPU"))))
        self._begin(config)

    def step(self) -> dict[str, Any]:
        """Train for one step.

        Raises:
            TrialFailed: the loss is not finite; its reason is the message.
            UserError: as fit.
        """
        try:
            result = next(self._steps)
        except StopIteration as end:
            raise TrialFailed(_reason(end.value)) from None
        done, self._last_step = result.step >= self._n_steps, result.step
        if done:
            self._finish()
        return asdict(result) | {"done": done}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Copy what the run has written; it is whole, for a step ends with its checkpoint on disk."""
        target = Path(checkpoint_dir)
        write_json(target / _ABOUT, {"config": self._config.model_dump(mode="json"), "step": self._last_step})
        if self._last_step:
            shutil.copytree(self._folder, target / "run", dirs_exist_ok=True)

    def load_checkpoint(self, checkpoint: str | dict[str, Any] | None) -> None:
        """Take a checkpoint's place; steps that were reported before are not reported again."""
        source = Path(str(checkpoint))
        held = read_json(source / _ABOUT)
        if held["config"] != self._config.model_dump(mode="json"):
            raise TrialFailed(f"{source} is a checkpoint of another configuration")
        self._steps.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        if held["step"]:
            shutil.copytree(source / "run", self._folder)
        self._start()
        while self._last_step < held["step"]:
            self._last_step = next(self._steps).step

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process: torch and the graphs stay loaded."""
        self._steps.close()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Close the training."""
        self._steps.close()

    def _begin(self, config: Mapping[str, Any]) -> None:
        changes = {key: value for key, value in config.items() if key not in _RESERVED}
        self._config = self._data.config(changes)
        self._n_steps = self._data.n_steps(self._config)
        self._folder = Path(config[FOLDER]) if FOLDER in config else Path(self.logdir) / "run"
        self._start()

    def _start(self) -> None:
        # Ray shows a trial its own GPUs; one that asked for none sees them all, and must not use them.
        given = self._data.on_gpu and _given(self.trial_resources, "GPU") > 0
        device = "cuda" if given and torch.cuda.is_available() else "cpu"
        self._last_step = 0
        self._steps: Generator[StepResult, None, FitResult | None]
        self._steps = self._data.steps(self._config, self._folder, device)

    def _finish(self) -> None:
        """Let the run write its model and its history."""
        try:
            while True:
                next(self._steps)
        except StopIteration as end:
            if end.value is not None and end.value.status == "failed":
                raise TrialFailed(_reason(end.value)) from None


def _reason(result: FitResult | None) -> str:
    return "the run ended before its last step" if result is None else result.reason


def _given(resources: Any, kind: str) -> float:
    """Return what Ray set aside for the trial."""
    return 0.0 if resources is None else float(resources.required_resources.get(kind, 0.0))
