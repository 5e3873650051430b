"""Which models a configuration needs: members of an ensemble, out-of-fold teachers, students, soups.

Equal models are one run, whoever asks for them: a run's name is made from all that decides its result.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from trainables.config import RunConfig
from trainables.levers import FULL_WIDTH, TtaConfig


@dataclass(frozen=True)
class ModelRun:
    """One model to be made.

    Attributes:
        config: a member's (no ensemble, no views).
        inner: for an out-of-fold teacher, the part of the training fold that it does not see.
        n_inner: in how many parts the training fold falls; 0 where nothing is held out.
        teachers: whose labels it learns from.
        soup_of: models whose weights are averaged; then nothing is trained.
    """

    config: RunConfig
    inner: int = 0
    n_inner: int = 0
    teachers: tuple["ModelRun", ...] = ()
    soup_of: tuple["ModelRun", ...] = ()

    @property
    def needs(self) -> tuple["ModelRun", ...]:
        """The runs that have to be there first."""
        return self.teachers + self.soup_of

    def key(self, data: str) -> str:
        """A hash of all that decides the model, given the data's digest."""
        known: dict[str, str] = self.__dict__.setdefault("_keys", {})  # asked for over and over
        if data not in known:
            known[data] = self._new_key(data)
        return known[data]

    def _new_key(self, data: str) -> str:
        parts = [self.config.fingerprint(data), str(self.inner), str(self.n_inner), str(len(self.teachers))]
        parts += [run.key(data) for run in self.needs]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]

    def name(self, data: str) -> str:
        """Readable, and unique by its key."""
        return self.name_with(self.key(data))

    def name_with(self, key: str) -> str:
        kind = f"-inner{self.inner}of{self.n_inner}" if self.n_inner else "-soup" if self.soup_of else ""
        return f"fold{self.config.fold}-seed{self.config.seed}{kind}-{key}"


@dataclass(frozen=True)
class Recipe:
    """What one fold of a configuration is made of: its members, and how they predict together."""

    config: RunConfig
    members: tuple[ModelRun, ...]

    @property
    def views(self) -> TtaConfig:
        """How each member predicts; the default where it is one view, so that equal predictions are one."""
        return self.config.tta if self.config.tta.views > 1 else TtaConfig()


def recipe(config: RunConfig) -> Recipe:
    """The models of a configuration on its fold."""
    members = tuple(_member(config, index) for index in range(config.ensemble.members))
    if config.ensemble.combine == "soup" and len(members) > 1:
        members = (ModelRun(config.member(0), soup_of=members),)
    return Recipe(config, members)


def _member(config: RunConfig, index: int) -> ModelRun:
    member = config.member(index)
    return ModelRun(member, teachers=teachers_of(member) if member.distil.weight > 0 else ())


def teachers_of(config: RunConfig) -> tuple[ModelRun, ...]:
    """The teachers of a student: the same run without teachers, at full width.

    They are not trained jointly: an auxiliary row may be a crystal that a teacher has to label unseen.
    Their seeds count from 0, whatever the student's, so that all students of a fold share them.
    """
    start = config.distil.teacher_start or config.model.start
    changes: dict[str, object] = {
        "multitask": {},
        "distil": {},
        "model.start": start,
        "model.width": FULL_WIDTH,
        "model.init_seed": None,
    }
    found = []
    for seed in range(config.distil.seeds):
        teacher = config.changed(changes | {"seed": seed})
        if config.distil.teachers == "in_sample":
            found.append(ModelRun(teacher))
        else:
            n_inner = config.distil.inner_folds
            found += [ModelRun(teacher, inner, n_inner) for inner in range(n_inner)]
    return tuple(found)


def waves(runs: Iterable[ModelRun], data: str) -> list[list[ModelRun]]:
    """All runs that are needed, each once, in waves: a wave needs nothing but the waves before it."""
    level: dict[str, int] = {}
    known: dict[str, ModelRun] = {}

    def place(run: ModelRun) -> int:
        key = run.key(data)
        if key not in level:
            known[key] = run
            level[key] = 1 + max((place(other) for other in run.needs), default=-1)
        return level[key]

    for run in runs:
        place(run)
    found: list[list[ModelRun]] = [[] for _ in range(1 + max(level.values(), default=-1))]
    for key, run in known.items():
        found[level[key]].append(run)
    return found
