"""Fine-tune CHGNet on crystal-property benchmarks and on any table of crystals.

    import crystaltune as ct

    ct.check("my_crystals.csv")
    run = ct.train("jdft2d", settings={"optim.epochs": 80})
    run.scores.mean.mae
    run.predict("new_structures.csv")
    ct.load(run.folder).predict(structure)

    study = ct.search("jdft2d", space="optim", trials=64)
    ct.train("jdft2d", config=study.best_config)
    ct.ensemble("jdft2d", config=study.best_config, distil=True)

Everything is imported when it is first used, so importing this package takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

import orchestrator  # noqa: F401  sets what ray reads when it is imported, and loads nothing

if TYPE_CHECKING:
    from crystaltune._check import Check as Check
    from crystaltune._check import check as check
    from crystaltune._commands import ablate as ablate
    from crystaltune._commands import baseline as baseline
    from crystaltune._commands import load_dataset as load_dataset
    from crystaltune._commands import prepare_trials as prepare_trials
    from crystaltune._commands import search as search
    from crystaltune._commands import train as train
    from crystaltune._ensemble import ensemble as ensemble
    from crystaltune._model import Model as Model
    from crystaltune._model import load as load
    from crystaltune._run import Run as Run
    from crystaltune._run import open_run as open_run
    from crystaltune._study import Study as Study
    from crystaltune._study import open_study as open_study
    from orchestrator.ray_session import ray_session as ray_session
    from search_spaces.space import Space as Space
    from trainables.config import RunConfig as RunConfig
    from trainables.errors import UserError as UserError
    from trainables.ray_trainable import FineTune as FineTune
    from trainables.training.data import TrainingData as TrainingData
    from trainables.training.fit import fit as fit

_HOMES = {
    "check": "crystaltune._check",
    "Check": "crystaltune._check",
    "train": "crystaltune._commands",
    "search": "crystaltune._commands",
    "ensemble": "crystaltune._ensemble",
    "ablate": "crystaltune._commands",
    "baseline": "crystaltune._commands",
    "load_dataset": "crystaltune._commands",
    "load": "crystaltune._model",
    "Model": "crystaltune._model",
    "open_run": "crystaltune._run",
    "open_study": "crystaltune._study",
    "Run": "crystaltune._run",
    "Study": "crystaltune._study",
    "RunConfig": "trainables.config",
    "Space": "search_spaces.space",
    "UserError": "trainables.errors",
    # for training loops and searches of one's own
    "fit": "trainables.training.fit",
    "TrainingData": "trainables.training.data",
    "FineTune": "trainables.ray_trainable",
    "prepare_trials": "crystaltune._commands",
    "ray_session": "orchestrator.ray_session",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*(name for name in globals() if name.startswith("__")), *_HOMES])
