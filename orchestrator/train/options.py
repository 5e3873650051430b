"""What an ensemble is asked for, and the configurations that follow from it. Nothing heavy is imported here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainables.config import RunConfig, merged, parse_config
from trainables.errors import UserError
from trainables.levers import Combine

SEEDS = 4  # of each variant, where neither the command nor the configuration says how many
STUDENT_WEIGHT = 0.5  # of the teachers' labels, where the configuration has none
STUDENT = "student"  # the folder of the student's run, within the ensemble's

CombineName = Literal[Combine, "soup"]


@dataclass(frozen=True)
class EnsembleOptions:
    """What is made from a configuration.

    Attributes:
        seeds: of each variant; None for the configuration's ensemble.members or, where that is 1, SEEDS.
        vary: as ensemble.vary, over the configuration's own.
        combine: as ensemble.combine; None for the configuration's or, where that is the mean, greedy if something is
            varied: seeds of one configuration hardly differ, and chosen weights then lose to equal ones.
        views: as tta.views; None for the configuration's.
        distil: also make a student, which learns from out-of-fold teachers; the members then learn from labels alone.
    """

    seeds: int | None = None
    vary: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    combine: CombineName | None = None
    views: int | None = None
    distil: bool = False

    def ensemble(self, base: RunConfig) -> RunConfig:
        """Return the configuration of the ensemble.

        Raises:
            UserError: members that cannot be, or cannot be combined so.
        """
        vary = {**base.ensemble.vary, **self.vary}
        if self.distil and (key := next((key for key in vary if f"{key}.".startswith("distil.")), None)):
            raise UserError(f"{key} cannot be varied with `distil=True`: members then learn from labels alone")
        members = self.seeds or (base.ensemble.members if base.ensemble.members > 1 else SEEDS)
        changes = self._views() | {"ensemble.members": members, "ensemble.vary": vary}
        changes["ensemble.combine"] = self.combine or _default_combine(base, varied=bool(vary))
        return base.changed(changes | ({"distil": {}} if self.distil else {}))

    def student(self, base: RunConfig) -> RunConfig | None:
        """Return the configuration of the student: one model that learns from teachers, too; None where none is made.

        Raises:
            UserError: levers that do not fit together.
        """
        if not self.distil:
            return None
        return base.changed(self._views() | {"ensemble": {}, "distil.weight": base.distil.weight or STUDENT_WEIGHT})

    def configurations(self, base: RunConfig) -> list[RunConfig]:
        """Return the configurations of all runs, the ensemble's first.

        Raises:
            UserError: as `ensemble` and `student`.
        """
        student = self.student(base)
        return [self.ensemble(base), *([] if student is None else [student])]

    def _views(self) -> dict[str, Any]:
        return {} if self.views is None else {"tta.views": self.views}


def _default_combine(base: RunConfig, *, varied: bool) -> str:
    if base.ensemble.combine == "mean" and varied and not base.data.refit:  # a refit leaves no rows to choose by
        return "greedy"
    return base.ensemble.combine


def validate_ensemble(options: EnsembleOptions, task: str, settings: Mapping[str, Any]) -> None:
    """Tell what cannot be asked for, before anything is read.

    Args:
        task: name of the task.
        settings: keys of RunConfig, nested or dotted.

    Raises:
        UserError: with what came and what was expected.
    """
    for name in ("seeds", "views"):
        number = getattr(options, name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
            raise UserError(f"`{name}={number}`: must be a whole number of at least 1")
    if not isinstance(options.distil, bool):
        raise UserError(f"`distil={options.distil}`: True or False was expected")
    if not isinstance(options.vary, Mapping):
        raise UserError(
            f"`vary` of type {type(options.vary).__name__}: a dictionary was expected, such as "
            "{'model.start': ['0.3.0', 'r2scan']}"
        )
    for key, values in options.vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence | Mapping):
            raise UserError(f"`vary`: {key} has {values!r}; a list of values was expected, such as [{values!r}]")
    options.configurations(parse_config(merged({"task": task}, settings), "configuration"))
