"""The commands of a search."""

import math
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from orchestrator.cli_options import (
    Auxiliary,
    CompileOption,
    ConfigFile,
    DataFile,
    Device,
    Energy,
    Limit,
    Settings,
    Target,
    TaskName,
    Tf32,
    Unit,
    chosen_settings,
    out_console,
)
from orchestrator.display import display
from trainables.errors import UserError

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def search(
    task: TaskName,
    space: Annotated[
        str, typer.Option(help="A search space (see `crystaltune spaces`), or a YAML or Python file of your own.")
    ],
    trials: Annotated[int, typer.Option(help="Trials of the search, without the checks after it.")] = 32,
    fold: Annotated[int, typer.Option(min=0, max=4, help="Outer fold whose training part is searched on.")] = 0,
    data: DataFile = None,
    target: Target = None,
    unit: Unit = "",
    energy: Energy = False,
    limit: Limit = None,
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampler and of every trial.")] = 0,
    sampler: Annotated[str, typer.Option(metavar="tpe|gp|random", help="Optuna's sampler.")] = "tpe",
    scheduler: Annotated[str, typer.Option(metavar="asha|hyperband|median|none", help="Early stopping.")] = "asha",
    grace: Annotated[int, typer.Option(min=1, help="Steps that every trial makes.")] = 1,
    factor: Annotated[int, typer.Option(min=2, help="One trial in so many goes on at each rung.")] = 3,
    steps_per_epoch: Annotated[int, typer.Option(min=1, help="Steps (validation, checkpoint) an epoch.")] = 1,
    objectives: Annotated[str, typer.Option(metavar="mae[,cost]", help="Minimised; cost wants --scheduler none.")] = (
        "mae"
    ),
    probes: Annotated[
        int,
        typer.Option(min=0, help="So many cheap trials on a frozen trunk first; the search begins with their best."),
    ] = 0,
    top: Annotated[
        int, typer.Option("--check-top", min=0, help="So many of the best are trained again with fresh seeds.")
    ] = 3,
    check_seeds: Annotated[int, typer.Option(min=2, help="Fresh seeds of those checks.")] = 3,
    gpus_per_trial: Annotated[
        float | None, typer.Option(help="A GPU's share, for example 0.25. Default: one where there is any.")
    ] = None,
    cpus_per_trial: Annotated[float, typer.Option(help="Cores of a trial.")] = 1.0,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at once. Default: as many as fit.")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="Such as 30min or 2h: nothing goes on after it in this session.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the study in --out.")] = False,
    out: Annotated[Path | None, typer.Option(help="Folder of the study. Default: runs/search-TASK-SPACE.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; auto: the one of this machine. Default: a Ray of its own.")
    ] = None,
    device: Device = "auto",
    compiled: CompileOption = "auto",
    tf32: Tf32 = False,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Log trials to an MLflow server, too.")] = None,
    wandb: Annotated[str | None, typer.Option(metavar="PROJECT", help="Log trials to Weights & Biases, too.")] = None,
) -> None:
    """Search the hyperparameters of a task, check the best, and write best.yaml and report.html."""
    from orchestrator.datasets import Source
    from orchestrator.execute import Resources
    from orchestrator.sampling import parse_sampler
    from orchestrator.stopping import parse_rule
    from orchestrator.study import search as run_search
    from orchestrator.study_options import Place, SearchOptions
    from orchestrator.study_report import study_table
    from trainables.model.compiled import parse_compile

    options = SearchOptions(
        space=space,
        trials=trials,
        fold=fold,
        seed=seed,
        sampler=parse_sampler(sampler),
        scheduler=parse_rule(scheduler),
        grace=grace,
        factor=factor,
        objectives=tuple(name.strip() for name in objectives.split(",")),
        shares=steps_per_epoch,
        probes=probes,
        top=top,
        check_seeds=check_seeds,
        budget=math.inf if time_budget is None else parse_budget_seconds(time_budget),
        resume=resume,
        place=Place(address, cpus_per_trial, gpus_per_trial, max_concurrent),
        resources=Resources(device, compiled=parse_compile(compiled), tf32=tf32),
        loggers=loggers(mlflow, wandb),
        command=shlex.join(["crystaltune", *(word for word in sys.argv[1:] if word != "--resume")]),
    )
    folder = out or Path("runs") / f"search-{task}-{Path(space).stem}"
    source = Source(task, data, target, unit, energy, limit)
    with display() as shown:
        analysis = run_search(
            source,
            folder,
            options,
            settings=chosen_settings(config, settings),
            auxiliary=aux or [],
            progress=shown,
            show=shown.above,
        )
    out_console.print(study_table(analysis))
    for sentence in analysis.sentences:
        out_console.print(f"- {sentence}", soft_wrap=True)
    out_console.print(f"Everything is in {folder} (report.html, best.yaml, trials.parquet).", soft_wrap=True)


def report(folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a search.")]) -> None:
    """Write the report of a search anew, also while it runs."""
    from orchestrator.study import report as write_report
    from orchestrator.study_report import study_table

    analysis = write_report(folder)
    out_console.print(study_table(analysis))
    for sentence in analysis.sentences:
        out_console.print(f"- {sentence}", soft_wrap=True)
    out_console.print(f"Written: {folder / 'report.html'}", soft_wrap=True)


def spaces(
    name: Annotated[str | None, typer.Argument(help="A space, or a file with one: its dimensions.")] = None,
) -> None:
    """List the search spaces, or the dimensions of one."""
    from orchestrator.tables import space_table, spaces_table
    from search_spaces.reading import load_space
    from search_spaces.spaces import SPACES

    out_console.print(spaces_table(SPACES.values()) if name is None else space_table(load_space(name)))


def parse_budget_seconds(text: str) -> float:
    """Read a time such as 90, 30min or 2h, in seconds.

    Raises:
        UserError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(\w*)", text.strip())
    if found is None or found[2] not in _SECONDS or float(found[1]) <= 0:
        raise UserError(f"--time-budget {text}: a time such as 90s, 30min or 2h was wanted")
    return float(found[1]) * _SECONDS[found[2]]


def loggers(mlflow: str | None, wandb: str | None) -> Callable[[], Sequence[Any]]:
    """Ray Tune's callbacks for TensorBoard and for what was asked for.

    Raises:
        UserError: a package that is not installed.
    """
    from importlib.util import find_spec

    for option, package in (("--mlflow", "mlflow" if mlflow else None), ("--wandb", "wandb" if wandb else None)):
        if package is not None and find_spec(package) is None:
            raise UserError(
                f"{option} wants the package {package}: install crystaltune[{package}], for example by "
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
