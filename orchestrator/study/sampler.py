"""What to try next: Optuna's samplers over a search space, each question answered from the trials alone.

Every question gets a sampler with a seed of its own, made from the study's seed and the trial's number. So the answer
depends on nothing but the trials before it, and a study that is interrupted asks what one that is not would ask.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, distribution_to_json, json_to_distribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import FixedTrial, FrozenTrial, create_trial
from optuna.trial import Trial as OptunaTrial
from optuna.trial import TrialState as OptunaState

from orchestrator.study.journal import Trial
from orchestrator.study.options import SamplerName
from search_spaces.space import Space
from trainables.config import RunConfig

_UNTOLD = ("model.freeze", "optim.layer_decay")  # what a head on a frozen trunk says nothing of: E0's stays
_STARTUP = 10  # trials before TPE and GP have something to go by
_TRIES = 10  # of the sampler for a configuration that was not tried yet; then as many times at random, times five


@dataclass(frozen=True)
class Sampler:
    """Asks Optuna for configurations.

    Attributes:
        base: the configuration that the space changes; the known starting points are tried first.
        probes: tried right after the base itself.
    """

    space: Space
    base: RunConfig
    sampler: SamplerName
    seed: int
    n_objectives: int = 1
    probes: tuple[Trial, ...] = ()

    def ask(self, number: int, trials: Sequence[Trial]) -> Trial | None:
        """Return the configuration of trial `number`, one that was not tried yet; None where there seem to be no more.

        Args:
            trials: of the search, in the order they began, running ones included.
        """
        tried = [trial.changes for trial in trials]
        for name, params in self._points():
            record = self._record(number, FixedTrial(params), name)
            if record.changes not in tried:
                return record
        for attempt in range(6 * _TRIES):
            study = study_of(trials, self.n_objectives)
            # Where the best so far sits on exact zeros, a sampler asks for it over and over.
            asking = self.sampler if attempt < _TRIES else "random"
            study.sampler = _make_sampler(asking, _own_seed(self.seed, number, attempt))
            with quiet_optuna():
                record = self._record(number, study.ask(), "sampler")
            if record.changes not in tried:
                return record
        return None

    def _points(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and parameters of what is tried first, each once."""
        known = self.space.points_for(self.base)
        untold = {name: value for name, value in known[0][1].items() if name.startswith(_UNTOLD)}
        probes = [(f"probe {trial.number}", {**trial.params, **untold}) for trial in self.probes]
        found: list[tuple[str, dict[str, Any]]] = []
        for name, params in [*known[:1], *probes, *known[1:]]:
            if params not in [other for _, other in found]:
                found.append((name, params))
        return found

    def _record(self, number: int, asked: OptunaTrial | FixedTrial, origin: str) -> Trial:
        changes = self.space.suggest(asked)
        known = {name: distribution_to_json(kind) for name, kind in asked.distributions.items()}
        return Trial(number, changes, dict(asked.params), origin, self.base.seed, distributions=known)


def study_of(trials: Iterable[Trial], n_objectives: int) -> optuna.Study:
    """Return an Optuna study (in memory) with these trials in their states."""
    with quiet_optuna():
        study = optuna.create_study(directions=["minimize"] * n_objectives)
        study.add_trials([frozen(trial, single=n_objectives == 1) for trial in trials])
    return study


def intermediate_values(trial: Trial) -> dict[int, float]:
    """Best MAE so far by step, finite ones only."""
    return {result.step: result.mae for result in trial.results if result.mae == result.mae}


def frozen(trial: Trial, *, single: bool) -> FrozenTrial:
    """Return the trial as Optuna has it: a trial that was stopped early is PRUNED and keeps its values by step.

    Args:
        single: there is one objective; Optuna keeps values by step for no more.
    """
    with quiet_optuna():
        return create_trial(
            state=OptunaState[trial.state],
            values=list(trial.values) or None,
            params=trial.params,
            distributions=distributions_of(trial),
            intermediate_values=intermediate_values(trial) if single else {},
            user_attrs={"origin": trial.origin, "reason": trial.reason},
        )


def distributions_of(trial: Trial) -> dict[str, BaseDistribution]:
    """Of the trial's parameters, as its journal has them."""
    return {name: json_to_distribution(text) for name, text in trial.distributions.items()}


@contextmanager
def quiet_optuna(
    level: int = optuna.logging.WARNING, warning: type[Warning] = optuna.exceptions.ExperimentalWarning
) -> Iterator[None]:
    """Silence Optuna's log below a level and a kind of warning (by default, that multivariate TPE is experimental)."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", warning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _own_seed(seed: int, number: int, attempt: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}:{attempt}".encode()).digest()[:4])


def _make_sampler(name: SamplerName, seed: int) -> BaseSampler:
    with quiet_optuna():
        if name == "tpe":
            return TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=_STARTUP)
        if name == "gp":
            return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)
        return RandomSampler(seed=seed)
