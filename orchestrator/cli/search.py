"""The commands of a search."""

import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli.errors import as_options
from orchestrator.cli.interrupts import continued_by, interruptible
from orchestrator.cli.options import (
    Auxiliary,
    CompileOption,
    ConfigFile,
    Device,
    Settings,
    Tf32,
    begin,
    chosen_settings,
    out_console,
    say,
    say_next,
)
from orchestrator.cli.rows import takes_rows
from orchestrator.inputs.source import Source, check_folder, default_folder
from orchestrator.report.progress import display
from orchestrator.study.options import (
    JOURNAL,
    SamplerName,
    SchedulerName,
    SearchOptions,
    TrialResources,
    budget_seconds,
    validate_options,
)
from trainables.errors import UserError

_SEARCH, _CHECKS, _WHERE, _LOGS = "Search", "Confirmation", "Where it runs", "Logging"


def _option(*names: str, help: str, panel: str = _SEARCH, **others: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **others)


@takes_rows()
def search(
    source: Source,
    space: Annotated[
        str, _option(help="A search space (see `crystaltune spaces`), or a YAML or Python file of your own.")
    ],
    trials: Annotated[int, _option(min=1, help="Number of trials, not counting the confirmation runs.")] = 32,
    fold: Annotated[int, _option(min=0, max=4, help="Outer fold whose training rows the search uses.")] = 0,
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    seed: Annotated[int, _option(min=0, help="Random seed for the sampler and all trials.")] = 0,
    sampler: Annotated[SamplerName, _option(help="Optuna sampler that suggests trials.")] = "tpe",
    scheduler: Annotated[SchedulerName, _option(help="Rule that stops trials early.")] = "asha",
    grace: Annotated[int, _option(min=1, help="Minimum number of steps before a trial can be stopped.")] = 1,
    factor: Annotated[
        int, _option(min=2, help="Reduction factor: the best 1/N of the trials continue at each rung.")
    ] = 3,
    steps_per_epoch: Annotated[int, _option(min=1, help="Validations and checkpoints per epoch.")] = 1,
    objectives: Annotated[
        str, _option(metavar="mae[,cost]", help="Objectives to minimise; cost requires --scheduler none.")
    ] = "mae",
    probes: Annotated[
        int, _option(min=0, help="Run N cheap trials on a frozen trunk first, and start from the best of them.")
    ] = 0,
    top: Annotated[
        int,
        _option(
            "--check-top",
            min=0,
            help="Retrain the best N trials (and the baseline) with new seeds.",
            panel=_CHECKS,
        ),
    ] = 3,
    check_seeds: Annotated[int, _option(min=2, help="Number of new seeds for each of them.", panel=_CHECKS)] = 3,
    gpus_per_trial: Annotated[
        float | None,
        _option(help="GPUs per trial, for example 0.25. Default: one if the machine has any.", panel=_WHERE),
    ] = None,
    cpus_per_trial: Annotated[float, _option(help="CPU cores per trial.", panel=_WHERE)] = 1.0,
    max_concurrent: Annotated[
        int | None,
        _option(min=1, help="Largest number of trials at the same time. Default: as many as fit.", panel=_WHERE),
    ] = None,
    time_budget: Annotated[
        str | None,
        _option(help="Stop this session after, for example, 30min or 2h; continue later with --resume.", panel=_WHERE),
    ] = None,
    resume: Annotated[bool, _option("--resume", help="Continue the study in --out.", panel=_WHERE)] = False,
    out: Annotated[
        Path | None, _option(help="Folder of the study. Default: runs/search-TASK-SPACE.", panel=_WHERE)
    ] = None,
    address: Annotated[
        str | None,
        _option(
            help="Ray cluster to join, as HOST:PORT, or auto for this machine's. Default: start Ray here.",
            panel=_WHERE,
        ),
    ] = None,
    device: Device = "auto",
    compiled: CompileOption = "auto",
    tf32: Tf32 = False,
    mlflow: Annotated[
        str | None, _option(metavar="URI", help="Also log trials to an MLflow server.", panel=_LOGS)
    ] = None,
    wandb: Annotated[
        str | None, _option(metavar="PROJECT", help="Also log trials to Weights & Biases.", panel=_LOGS)
    ] = None,
) -> None:
    """Search the hyperparameters of a task, confirm the best, and write best.yaml and report.html."""
    from orchestrator.cli.asked import check_asked, check_study, task_words, train_words
    from orchestrator.execution.resources import Resources

    options = SearchOptions(
        space=space,
        trials=trials,
        fold=fold,
        seed=seed,
        sampler=sampler,
        scheduler=scheduler,
        grace=grace,
        factor=factor,
        objectives=tuple(name.strip() for name in objectives.split(",")),
        validations_per_epoch=steps_per_epoch,
        probes=probes,
        top=top,
        check_seeds=check_seeds,
        budget=math.inf if time_budget is None else budget_seconds(time_budget),
        resume=resume,
        place=TrialResources(address, cpus_per_trial, gpus_per_trial, max_concurrent),
        resources=Resources(device, compiled=compiled, tf32=tf32),
        loggers=loggers(mlflow, wandb),
        command=shlex.join(["crystaltune", *(word for word in sys.argv[1:] if word != "--resume")]),
        train_command=train_words(source, aux or []),
    )
    validate_options(options)
    chosen = chosen_settings(config, settings, source.task)
    check_asked(source, chosen, aux or [])
    folder = out or default_folder("search-", source.task).with_name(
        f"{default_folder('search-', source.task).name}-{Path(space).stem}"
    )
    check_folder(folder, marker="study.json")
    check_study(folder, options)
    from search_spaces.reading import load_space

    load_space(space)  # its mistakes are told before anything begins
    begin(f"search {source.task}: {trials} trials in space {Path(space).stem}, in {folder}")
    with continued_by(lambda: _continuation(folder)):
        from orchestrator.study.report.files import study_table
        from orchestrator.study.run import search as run_search

        with interruptible(), display(as_options) as shown:
            analysis = run_search(
                source, folder, options, settings=chosen, auxiliary=aux or [], progress=shown, show=shown.above
            )
    out_console.print(study_table(analysis))
    for sentence in analysis.sentences:
        say(as_options(f"- {sentence}"))
    say(f"Everything is in {folder} (report.html, best.yaml, trials.parquet).")
    if analysis.best is not None:
        words = [*task_words(source), "--config", str(folder / "best.yaml")]
        elsewhere = [
            "--out",
            str(folder.with_name(f"{folder.name}-best")),
        ]  # the task's own folder may hold another run
        say_next(
            ("score the best configuration on the test rows", shlex.join(["crystaltune", "train", *words, *elsewhere])),
            ("an ensemble and a student of it", shlex.join(["crystaltune", "ensemble", *words, "--distil"])),
        )


def _continuation(folder: Path) -> list[str]:
    """Return the command that continues a search: with --resume once there is a study."""
    words = ["crystaltune", *sys.argv[1:]]
    return words + (["--resume"] if (folder / JOURNAL).exists() and "--resume" not in words else [])


def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run or of a search.")]) -> None:
    """Write the report of a run or of a search again; a search may still be running."""
    if (folder / "run.json").is_file():
        from orchestrator.train.report import write_report as write_run_report

        with interruptible():
            say(f"Written: {write_run_report(folder)}")
        return
    if not (folder / "study.json").is_file():
        if (folder / "ablation.json").is_file():
            raise UserError(f"{folder} is an ablation's: repeat its command, which writes the report without training")
        raise UserError(f"{folder} contains neither a run nor a search (run.json and study.json are missing)")
    from orchestrator.study.report.files import study_table
    from orchestrator.study.run import report as write_report

    with interruptible():
        analysis = write_report(folder)
    out_console.print(study_table(analysis))
    for sentence in analysis.sentences:
        say(as_options(f"- {sentence}"))
    say(f"Written: {folder / 'report.html'}")


def spaces(
    name: Annotated[
        str | None, typer.Argument(help="Space, or file that defines one, whose dimensions to show.")
    ] = None,
) -> None:
    """List the search spaces, or the dimensions of one."""
    from orchestrator.report.terminal import space_table, spaces_table
    from search_spaces.reading import load_space
    from search_spaces.spaces import SPACES

    if name is not None:
        out_console.print(space_table(load_space(name)))
        return
    out_console.print(spaces_table(SPACES.values()))
    say("Your own: --space FILE (YAML or Python). `crystaltune spaces NAME` shows the dimensions of one.")


def loggers(mlflow: str | None, wandb: str | None) -> Callable[[], Sequence[Any]]:
    """Ray Tune's callbacks for TensorBoard and for what was asked for.

    Raises:
        UserError: a package that is not installed.
    """
    from importlib.util import find_spec

    for option, package in (("--mlflow", "mlflow" if mlflow else None), ("--wandb", "wandb" if wandb else None)):
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"{option} requires the package {package}: install crystaltune[{package}], for example by "
                f"`uv sync --extra {package}`"
            )

    def make() -> list[Any]:
        from ray.tune.logger import TBXLoggerCallback

        found: list[Any] = [TBXLoggerCallback()]
        if mlflow:
            from ray.air.integrations.mlflow import MLflowLoggerCallback

            found.append(MLflowLoggerCallback(tracking_uri=mlflow, experiment_name="crystaltune"))
        if wandb:
            from ray.air.integrations.wandb import WandbLoggerCallback

            found.append(WandbLoggerCallback(project=wandb))
        return found

    return make
