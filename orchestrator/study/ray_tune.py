"""A phase of a study on Ray Tune: Tune places and runs the trials, the study's driver decides everything else."""

import logging
import pickle
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ray import tune
from ray.exceptions import RayActorError
from ray.tune import Callback, CheckpointConfig, FailureConfig, RunConfig, Stopper, TuneConfig, TuneError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from orchestrator.execution.ray_stores import fetch_from, localised_trials
from orchestrator.ray_session import Share, is_alive
from orchestrator.study.driver import StudyDriver
from orchestrator.study.journal import Trial
from trainables.errors import CannotWrite, UserError
from trainables.files import write_text
from trainables.ray_trainable import FOLDER, TRIAL, FineTune
from trainables.training.result import StepResult
from trainables.training.trial import TrialData

_FIELDS = tuple(StepResult.__dataclass_fields__)
_SECONDS_BETWEEN_LOOKS = 5.0  # at whether Ray has any machine left
_MOST_CRASHES = 3  # of Tune itself in a row, without a step between


def run_phase(
    driver: StudyDriver,
    trainable: Any,
    share: Share,
    folder: Path,
    *,
    max_concurrent: int,
    callbacks: Sequence[Callback] = (),
    name: str = "search",
) -> None:
    """Run the driver's trials until it has no more.

    Args:
        trainable: FineTune with its data, or anything that reports the fields of StepResult and `done`.
        folder: of the study; a trial's own folder is trials/NUMBER in it, and Ray keeps its files in ray/.
        callbacks: Tune's, for TensorBoard and the like.

    Raises:
        UserError: files cannot be written, Ray has no machine left, or Ray Tune itself failed again and again.
    """
    crashes, before = 0, -1
    while not driver.finished and not driver.ends_now:
        progress = sum(trial.last for trial in driver.trials.values())
        crashes = 0 if progress > before else crashes
        before = progress
        try:
            _fit(driver, trainable, share, folder, max_concurrent, callbacks, name)
        except Exception as error:
            crashes += 1  # a trial killed for its memory takes Tune along; the driver knows where all stood
            if driver.broken is None:
                driver.crashed(name, reason_of(error))
            if driver.broken is None and (crashes >= _MOST_CRASHES or not isinstance(error, TuneError)):
                write_text(folder / "error.txt", traceback.format_exc())
                raise UserError(f"Ray Tune failed ({reason_of(error)}; see {folder / 'error.txt'})") from None
        driver.interrupted()
        if driver.broken is None and not driver.finished and not is_alive():
            driver.crashed(name, "Ray has lost all its machines")
            raise UserError("Ray has lost all its machines; continue the study with `resume=True`")
    if driver.broken is not None:
        raise driver.broken


def _fit(
    driver: StudyDriver,
    trainable: Any,
    share: Share,
    folder: Path,
    max_concurrent: int,
    callbacks: Sequence[Callback],
    name: str,
) -> None:
    resources = {"cpu": share.cpus, "gpu": share.gpus}
    tuner = tune.Tuner(
        tune.with_resources(trainable, resources),
        tune_config=TuneConfig(
            search_alg=_Asking(driver, folder, max_concurrent),
            scheduler=_Reporting(driver),
            num_samples=-1,
            reuse_actors=True,
            metric="mae",
            mode="min",
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=RunConfig(
            storage_path=str((folder / "ray").resolve()),
            name=name,
            callbacks=list(callbacks),
            stop=_Ending(driver),
            failure_config=FailureConfig(max_failures=0),
            checkpoint_config=CheckpointConfig(checkpoint_at_end=False),  # trials keep their own
            verbose=0,
        ),
    )
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)  # failures are told by the study, in one line each
    try:
        tuner.fit()
    finally:
        logger.setLevel(level)


class FineTuneOnNode(FineTune):
    """FineTune on a cluster whose nodes may not see the driver's graphs: those that one lacks are copied to it once."""

    def setup(self, config: dict[str, Any], data: TrialData, keeper: Any = None) -> None:
        """Begin, or go on where the trial's folder ends.

        Args:
            keeper: actor of StoreKeeper on the driver's machine.
        """
        super().setup(config, localised_trials(data, fetch_from(keeper)))


class _Here:
    """Something of this process alone: copies hold the same, pickles hold nothing.

    Tune pickles whoever asks, judges and ends its trials, to restore them some day. Nothing here is restored from it,
    and what the driver tells (a live display among it) cannot be pickled.
    """

    def __init__(self, driver: StudyDriver | None = None) -> None:
        self._held = driver

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Here":
        return self

    def __reduce__(self) -> tuple[type["_Here"], tuple[()]]:
        return _Here, ()

    @property
    def driver(self) -> StudyDriver:
        if self._held is None:
            raise RuntimeError("a study's driver was asked for in a copy that Ray Tune has pickled")
        return self._held


class _Ending(Stopper):
    """Ends Tune's part where nothing can go on; trials that wait for a place would never be asked."""

    def __init__(self, driver: StudyDriver) -> None:
        self._here, self._asked = _Here(driver), time.monotonic()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self._here.driver.ends_now:
            return True
        if time.monotonic() - self._asked < _SECONDS_BETWEEN_LOOKS:
            return False
        self._asked = time.monotonic()
        return not is_alive()


def _trial_name(trial: Any) -> str:
    return f"{trial.config[TRIAL]:05d}-{trial.trial_id}"


class _Asking(Searcher):
    """Hands the driver's trials to Tune. Its state is the journal, so Tune has nothing to save of it."""

    def __init__(self, driver: StudyDriver, folder: Path, max_concurrent: int) -> None:
        super().__init__(metric="mae", mode="min")
        self._here, self._folder, self._max = _Here(driver), folder, max_concurrent
        self._running: set[str] = set()

    def suggest(self, trial_id: str) -> Any:
        driver = self._here.driver
        if driver.nothing_to_begin and not self._running:
            return Searcher.FINISHED
        trial = driver.next() if len(self._running) < self._max else None
        if trial is None:
            return Searcher.FINISHED if driver.late or driver.finished else None
        self._running.add(trial_id)
        return configuration(trial, self._folder)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._running.discard(trial_id)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is kept by the driver."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing: see save."""

    def get_state(self) -> dict[str, Any]:
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing: see save."""


def configuration(trial: Trial, folder: Path) -> dict[str, Any]:
    """Return what a trial's process is told."""
    own = str((folder / "trials" / f"{trial.number:05d}").resolve())
    return {**trial.changes, "seed": trial.seed, TRIAL: trial.number, FOLDER: own}


class _Reporting(FIFOScheduler):
    """Passes results and failures to the driver, and its decisions to Tune."""

    def __init__(self, driver: StudyDriver) -> None:
        super().__init__()
        self._here = _Here(driver)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        missing = [name for name in _FIELDS if name not in result]
        if missing:
            self._here.driver.failed(trial.config[TRIAL], f"a result without {', '.join(missing)}")
            return str(TrialScheduler.STOP)
        decision = self._here.driver.report(trial.config[TRIAL], _step(result), done=bool(result.get("done")))
        return str(TrialScheduler.CONTINUE if decision == "continue" else TrialScheduler.STOP)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        self.on_trial_result(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        error = _error_of(trial)
        number = trial.config[TRIAL]
        cause = getattr(error, "cause", None) or error
        driver = self._here.driver
        if isinstance(cause, CannotWrite):
            driver.unwritable(number, str(cause))
        elif not isinstance(error, RayActorError) or error.actor_init_failed:
            driver.failed(number, reason_of(error))
        else:
            driver.killed(number, "its process was killed (out of memory, most likely)")


def _error_of(trial: Any) -> BaseException | None:
    """Return what Tune has just written down, from this machine's copy: storage has it only later."""
    try:
        return cast(BaseException, pickle.loads(Path(trial.pickled_error_file).read_bytes()))
    except Exception:  # a class that only the trial's process knows, for one
        return None


def reason_of(error: BaseException | None) -> str:
    """Return a trial's error in one line: the message alone where it was meant for people."""
    cause = getattr(error, "cause", None) or error
    if cause is None:
        return "it failed without a reason"
    kind = type(cause).__name__
    if isinstance(cause, RayActorError):  # what its process said when it ended, a traceback, is told last
        kind, cause = "its process could not begin", str(cause).strip().rpartition("\n")[2]
    words = " ".join(str(cause).split())
    return words if kind in ("TrialFailed", "UserError", "CannotWrite") else f"{kind}: {words}"[:500]


def _step(result: dict[str, Any]) -> StepResult:
    return StepResult(**{name: result[name] for name in _FIELDS})
