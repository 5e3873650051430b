"""The command that makes an ensemble and a student of the best configuration."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.errors import as_options
from orchestrator.cli.interrupts import interruptible
from orchestrator.cli.options import (
    Address,
    AllData,
    Auxiliary,
    CompileOption,
    ConfigFile,
    CpusPerModel,
    Device,
    Folds,
    OnRay,
    PerGpu,
    Processes,
    Published,
    Settings,
    Tf32,
    begin,
    chosen_settings,
    out_console,
    resources_of,
    say,
    say_next,
)
from orchestrator.cli.results import show_scores
from orchestrator.cli.rows import takes_rows
from orchestrator.inputs.source import Source, check_folder, default_folder, folds_to_run, parse_folds
from orchestrator.report.progress import display
from orchestrator.train.options import SEEDS, STUDENT, CombineName, EnsembleOptions

_ENSEMBLE = "Ensemble"


@takes_rows()
def ensemble(
    source: Source,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Number of seeds, of each variant with --vary. Default: the configuration's, or {SEEDS}.",
            rich_help_panel=_ENSEMBLE,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V1,V2",
            help="Members differ in this setting: every value, and every combination, has all seeds. May be repeated.",
            rich_help_panel=_ENSEMBLE,
        ),
    ] = None,
    combine: Annotated[
        CombineName | None,
        typer.Option(
            help="How members are combined. Default: the configuration's; greedy if it is mean and something varies.",
            rich_help_panel=_ENSEMBLE,
        ),
    ] = None,
    views: Annotated[
        int | None,
        typer.Option(min=1, help="Views of each crystal that are averaged (tta.views).", rich_help_panel=_ENSEMBLE),
    ] = None,
    distil: Annotated[
        bool,
        typer.Option(
            "--distil", help="Also train a student of out-of-fold teachers, in DIR/student.", rich_help_panel=_ENSEMBLE
        ),
    ] = False,
    folds: Folds = "0-4",
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the ensemble's run; resumed if it exists. Default: runs/ensemble-TASK.",
            rich_help_panel="Results",
        ),
    ] = None,
    device: Device = "auto",
    processes: Processes = None,
    per_gpu: PerGpu = 1,
    compiled: CompileOption = "auto",
    tf32: Tf32 = False,
    ray: OnRay = False,
    address: Address = None,
    cpus_per_model: CpusPerModel = 1.0,
    published: Published = None,
    all_data: AllData = False,
) -> None:
    """Make an ensemble of a configuration, and a student of it with --distil; write scores, predictions and records.

    --config may name a search's folder. The ensemble is a run as `train` leaves one; so is the student, in DIR/student.
    """
    from orchestrator.cli.asked import after_training, check_ensemble
    from trainables.config import parse_variations

    wanted = folds_to_run(source, parse_folds(folds))
    asked = EnsembleOptions(seeds, parse_variations(vary or []), combine, views, distil)
    chosen = chosen_settings(config, settings, source.task)
    made = check_ensemble(source, asked, chosen, aux or [], published)
    folder = out or default_folder("ensemble-", source.task)
    check_folder(folder, marker="run.json")
    where = resources_of(
        device, processes, per_gpu, compiled, tf32, ray=ray, address=address, cpus_per_model=cpus_per_model
    )
    begin(f"ensemble {source.task}: {made}, fold{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted))}, in {folder}")
    from orchestrator.train.ensemble import make_ensemble
    from orchestrator.train.members_report import compared_table, members_table, sentences
    from orchestrator.train.run import TrainOptions

    with interruptible(), display(as_options) as shown:
        found = make_ensemble(
            source,
            folder,
            asked,
            settings=chosen,
            options=TrainOptions(wanted, where, published, all_data),
            auxiliary=aux or [],
            progress=shown,
        )
    if found.student is not None:
        say("The ensemble:")
    show_scores(found.scores, folder)
    if found.student is not None:
        say("The student:")
        show_scores(found.student, folder / STUDENT)
    if found.members is not None:
        out_console.print(members_table(found.members))
        out_console.print(compared_table(found.members))
        for sentence in sentences(found.members):
            say(f"- {sentence}")
    say_next(*_next(folder, after_training(source, folder)[-1], with_student=distil))


def _next(folder: Path, predict: tuple[str, str], *, with_student: bool) -> list[tuple[str, str]]:
    if not with_student:
        return [predict]
    student = shlex.join(["crystaltune", "predict", str(folder / STUDENT), "structures.csv"])
    return [("predict with the ensemble", predict[1]), ("predict with the student, which is faster", student)]
