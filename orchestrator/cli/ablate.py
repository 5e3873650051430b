"""The command of an ablation."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from orchestrator.cli.asked import after_training
from orchestrator.cli.errors import as_options
from orchestrator.cli.interrupts import interruptible
from orchestrator.cli.options import (
    Address,
    Auxiliary,
    Budget,
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
from orchestrator.cli.rows import takes_rows
from orchestrator.inputs.source import Source, check_folder, default_folder, folds_to_run, parse_folds
from orchestrator.report.progress import display
from trainables.errors import UserError

_LADDER = "Experiments"


@takes_rows()
def ablate(
    source: Source,
    experiments: Annotated[
        str | None,
        typer.Option(
            help="Experiments such as E0,E1; their parents and controls are added. Default: the whole ladder.",
            rich_help_panel=_LADDER,
        ),
    ] = None,
    folds: Folds = "0-4",
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds for each experiment.", rich_help_panel=_LADDER)
    ] = 3,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Weights to start from; repeat it to run every experiment from each of them.", rich_help_panel=_LADDER
        ),
    ] = None,
    budget: Annotated[
        Budget,
        typer.Option(
            help="With equal-steps, joint training counts towards the epochs of its experiment.",
            rich_help_panel=_LADDER,
        ),
    ] = "own",
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the ablation; resumed if it exists. Default: runs/ablation-TASK.",
            rich_help_panel="Results",
        ),
    ] = None,
    plan_only: Annotated[
        bool, typer.Option("--plan", help="Show what would be run, then stop.", rich_help_panel=_LADDER)
    ] = False,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="With --plan: estimate the time on this many GPUs.", rich_help_panel=_LADDER),
    ] = None,
    structures_per_second: Annotated[
        float | None,
        typer.Option(
            help="With --gpus: speed of one model on one of them, as scores.json of a run there gives it. "
            "Default: measured on this machine.",
            rich_help_panel=_LADDER,
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
) -> None:
    """Run the ladder of experiments and say what each lever did, resuming what is there.

    Leaves ablation.html, .md, .json and .parquet, every prediction, and one folder per model.
    """
    from orchestrator.ablation.ladder import parse_experiments, parse_starts
    from orchestrator.cli.asked import check_asked, check_ladder

    _check_plan(plan_only, gpus, structures_per_second)
    wanted = folds_to_run(source, parse_folds(folds))
    names, starts = parse_experiments(experiments, with_auxiliary=bool(aux)), parse_starts(start or [])
    chosen = chosen_settings(config, settings, source.task)
    check_asked(source, chosen, aux or [], published)
    check_ladder(source, names, starts, chosen, aux or [], equal_steps=budget == "equal-steps")
    folder = out or default_folder("ablation-", source.task)
    check_folder(folder, marker="ablation.json")
    where = resources_of(
        device, processes, per_gpu, compiled, tf32, ray=ray, address=address, cpus_per_model=cpus_per_model
    )
    begin(f"ablate {source.task}: {', '.join(names)}, in {folder}")
    from orchestrator.ablation.plan import Planned, plan_shown, plan_table
    from orchestrator.ablation.report import summary_table
    from orchestrator.ablation.run import AblationOptions
    from orchestrator.ablation.run import ablate as run_ablation

    command = shlex.join(["crystaltune", *sys.argv[1:]])
    plans: list[Planned] = []
    with interruptible(), display(as_options) as shown:
        analysis = run_ablation(
            source,
            folder,
            AblationOptions(
                names,
                wanted,
                seeds,
                starts,
                budget == "equal-steps",
                published,
                where,
                command,
                plan_only,
                gpus,
                structures_per_second,
            ),
            settings=chosen,
            auxiliary=aux or [],
            progress=shown,
            show_plan=plans.append if plan_only else lambda planned: shown.message(plan_shown(planned)),
        )
    for planned in plans:
        out_console.print(plan_table(planned.experiments))
        for sentence in (str(planned), *planned.fleet_sentences):
            say(as_options(sentence))
    if analysis is None:
        say_next(("run it", shlex.join(["crystaltune", *_without_plan(sys.argv[1:])])))
        return
    out_console.print(summary_table(analysis))
    for sentence in analysis.sentences:
        say(as_options(f"- {sentence}"))
    say(f"Everything is in {folder} (ablation.html, ablation.md, ablation.json).")
    say_next(*after_training(source, folder, config, settings or [])[:1])


def _check_plan(plan_only: bool, gpus: int | None, structures_per_second: float | None) -> None:
    """Refuse numbers that nothing would use."""
    if gpus is not None and not plan_only:
        raise UserError(
            f"--gpus {gpus} is for the estimate of --plan: add it; a run uses the GPUs that are there, and those of a "
            "cluster with --address"
        )
    if structures_per_second is not None and gpus is None:
        raise UserError(f"--structures-per-second {structures_per_second:g} is for the estimate of --gpus: add it")
    if structures_per_second is not None and not structures_per_second > 0:
        raise UserError(f"--structures-per-second {structures_per_second:g}: must be a number above 0")


def _without_plan(words: Sequence[str]) -> list[str]:
    """Return the words of a command without those of its plan."""
    left, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] not in ("--plan", "--gpus", "--structures-per-second"):
            left.append(word)
        skip = not skip and word in ("--gpus", "--structures-per-second")
    return left
