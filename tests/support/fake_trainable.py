"""A trainable that takes no time, for tests of studies on Ray; it imports little, so that its processes begin soon."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

from ray import tune

FOLDER = "folder"  # as trainables.ray_trainable has it
N_STEPS = 9


class FakeTrial(tune.Trainable):
    """Its MAE falls with the steps towards its `x`; it counts its steps in its folder, as a real trial does.

    `x` of 101 raises in its second step, 102 becomes nan in it, 103 is killed in it once, 104 every time, 105 says too
    little, 106 finds no room on its disk.
    """

    def setup(self, config: dict[str, Any]) -> None:
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self._x, self._folder = config["x"], Path(config[FOLDER])
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder.parent / f"nice-{self._folder.name}").write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
        self._again = self._count.exists()
        self._number = int(self._count.read_text()) if self._again else 0

    @property
    def _count(self) -> Path:
        return self._folder / "steps"

    def step(self) -> dict[str, Any]:
        if not self._again:
            self._number += 1
        self._again = False
        if self._number == 2:
            self._fail()
        time.sleep(0.02)
        self._count.write_text(str(self._number))
        with (self._folder.parent / f"made-{self._folder.name}").open("a") as handle:
            handle.write(f"{self._number}\n")
        mae = math.nan if (self._x, self._number) == (102, 2) else self._x + 1 / self._number
        result = {"step": self._number, "epoch": float(self._number), "mae": mae, "current": mae, "train_loss": 0.1}
        if self._x == 105:
            return {"done": False}
        return result | {"structures": 10 * self._number, "seconds": 0.1, "done": self._number >= N_STEPS}

    def _fail(self) -> None:
        if self._x == 101:
            raise ValueError("no luck\nwith 101")
        if self._x == 106:
            from trainables.errors import CannotWrite  # imports little

            raise CannotWrite("no room left")
        killed = self._folder / "killed"
        if self._x == 104 or (self._x == 103 and not killed.exists()):
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: its folder is its checkpoint."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: see save_checkpoint."""
