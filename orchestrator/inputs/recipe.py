"""Which models a configuration needs: members of an ensemble, out-of-fold teachers, students, soups.

Equal models are one, whoever asks for them: a model's name is made from all that decides its result.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from trainables.config import RunConfig
from trainables.levers import FULL_WIDTH, TtaConfig


@dataclass(frozen=True)
class ModelSpec:
    """One model to be made.

    Attributes:
        config: a member's (no ensemble, no views).
        inner: the part of the training fold that it does not see: of an out-of-fold teacher, or of a member in parts.
        n_inner: in how many parts the training fold falls; 0 where nothing is held out.
        validated: the model is validated on that part; a teacher, which labels it, is not.
        teachers: whose labels it learns from.
        soup_of: models whose weights are averaged; then nothing is trained.
    """

    config: RunConfig
    inner: int = 0
    n_inner: int = 0
    teachers: tuple["ModelSpec", ...] = ()
    soup_of: tuple["ModelSpec", ...] = ()
    validated: bool = False

    @property
    def needs(self) -> tuple["ModelSpec", ...]:
        """Return the models that have to be there first."""
        return self.teachers + self.soup_of

    def key(self, data: str) -> str:
        """Return a hash of all that decides the model, given the data's digest."""
        known: dict[str, str] = self.__dict__.setdefault("_keys", {})  # asked for over and over
        if data not in known:
            known[data] = self._new_key(data)
        return known[data]

    def _new_key(self, data: str) -> str:
        parts = [self.config.fingerprint(data), str(self.inner), str(self.n_inner), str(len(self.teachers))]
        parts += ["validated"] * self.validated + [run.key(data) for run in self.needs]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:12]

    def name(self, data: str) -> str:
        """Return a name that is readable, and unique by its key."""
        return self.name_with(self.key(data))

    def name_with(self, key: str) -> str:
        """Return the name for a key that is known already."""
        part = f"-{'part' if self.validated else 'inner'}{self.inner}of{self.n_inner}" if self.n_inner else ""
        kind = "-soup" if self.soup_of else part
        return f"fold{self.config.fold}-seed{self.config.seed}{kind}-{key}"


@dataclass(frozen=True)
class FoldRecipe:
    """What one fold of a configuration is made of: its models, and how they predict together.

    Attributes:
        models: of all members, those of a member together.
        per_member: how many of them are one member.
    """

    config: RunConfig
    models: tuple[ModelSpec, ...]
    per_member: int = 1

    @property
    def views(self) -> TtaConfig:
        """Return how each member predicts; the default where it is one view, so that equal predictions are one."""
        return self.config.tta if self.config.tta.views > 1 else TtaConfig()


def fold_recipe(config: RunConfig) -> FoldRecipe:
    """Return the models of a configuration on its fold."""
    members = range(config.ensemble.size)
    if (n_inner := config.ensemble.inner_folds) > 0:
        parts = [(config.member(index), inner) for index in members for inner in range(n_inner)]
        models = tuple(ModelSpec(member, inner, n_inner, validated=True) for member, inner in parts)
        return FoldRecipe(config, models, n_inner)
    models = tuple(_member(config, index) for index in members)
    if config.ensemble.combine == "soup" and len(models) > 1:
        models = (ModelSpec(config.member(0), soup_of=models),)
    return FoldRecipe(config, models)


def _member(config: RunConfig, index: int) -> ModelSpec:
    member = config.member(index)
    return ModelSpec(member, teachers=teachers_of(member) if member.distil.weight > 0 else ())


def teachers_of(config: RunConfig) -> tuple[ModelSpec, ...]:
    """Return the teachers of a student: the same model without teachers, at full width.

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
            found.append(ModelSpec(teacher))
        else:
            n_inner = config.distil.inner_folds
            found += [ModelSpec(teacher, inner, n_inner) for inner in range(n_inner)]
    return tuple(found)


def topological_levels(specs: Iterable[ModelSpec], data: str) -> list[list[ModelSpec]]:
    """Return all models that are needed, each once, in levels: a level needs nothing but the levels before it."""
    depth: dict[str, int] = {}
    known: dict[str, ModelSpec] = {}

    def depth_of(spec: ModelSpec) -> int:
        key = spec.key(data)
        if key not in depth:
            known[key] = spec
            depth[key] = 1 + max((depth_of(other) for other in spec.needs), default=-1)
        return depth[key]

    for spec in specs:
        depth_of(spec)
    levels: list[list[ModelSpec]] = [[] for _ in range(1 + max(depth.values(), default=-1))]
    for key, spec in known.items():
        levels[depth[key]].append(spec)
    return levels
