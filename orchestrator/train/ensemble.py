"""What one does after a search: the best configuration becomes an ensemble and, where it is wanted, a student."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.evaluation.scores import Scores
from orchestrator.inputs.context import open_context
from orchestrator.inputs.source import Source
from orchestrator.train.deploy import deploy
from orchestrator.train.folder import began_config
from orchestrator.train.members import ENSEMBLE, EnsembleSummary
from orchestrator.train.options import STUDENT, EnsembleOptions, validate_ensemble
from orchestrator.train.plan import RunPlan
from orchestrator.train.run import TrainOptions, make_runs, rows_told
from trainables.config import validate_for_task
from trainables.files import read_json
from trainables.progress import Progress, silent


@dataclass(frozen=True)
class EnsembleScores:
    """What came of it.

    Attributes:
        scores: of the ensemble.
        student: its scores; None where none was made.
        members: the content of ensemble.json; None where there is one member.
    """

    scores: Scores
    student: Scores | None
    members: EnsembleSummary | None


def make_ensemble(
    source: Source,
    out: Path,
    asked: EnsembleOptions,
    *,
    settings: Mapping[str, Any] | None = None,
    options: TrainOptions | None = None,
    auxiliary: Sequence[str] = (),
    progress: Progress = silent,
) -> EnsembleScores:
    """Train and score the ensemble of a configuration in `out` and its student in out/student, resuming what is there.

    Each is a run like any other. Neither is chosen over the other: both are scored, and both have their record.

    Args:
        settings: keys of RunConfig, nested or dotted, over the task's preset: the configuration of the members.
        auxiliary: as `train`.

    Raises:
        UserError: a mistake in what was asked, or folds that failed (what is done is kept, and scored).
    """
    options = options or TrainOptions()
    options.resources.check(progress)
    validate_ensemble(asked, source.task, settings or {})
    context = open_context(
        source, settings or {}, auxiliary, began=began_config(out), published=options.published, folds=options.folds,
        progress=progress,
    )  # fmt: skip
    configs = asked.configurations(context.config)
    for config in configs:
        validate_for_task(config, context.task)
    plans = [RunPlan(configs[0], out)] + [RunPlan(config, out / STUDENT, STUDENT) for config in configs[1:]]
    found = make_runs(context, plans, options, rows_told(source, auxiliary))
    if options.deploy:
        for plan in plans:
            deploy(context, plan.config, plan.out, options.resources)
    return EnsembleScores(found[0], found[1] if len(found) > 1 else None, read_ensemble(out))


def read_ensemble(out: Path) -> EnsembleSummary | None:
    """Return the content of ensemble.json; None where there is none that can be read."""
    try:
        return EnsembleSummary.model_validate(read_json(out / ENSEMBLE))
    except (OSError, ValueError):
        return None
