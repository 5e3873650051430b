"""The crystaltune command. Each command is one path: read options, call the function behind it, show the result."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

# Set before anything imports ray: under `uv run` its workers never start otherwise.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from orchestrator.cli_options import (
    Auxiliary,
    CompileOption,
    ConfigFile,
    DataFile,
    Device,
    Energy,
    Folds,
    Limit,
    PerGpu,
    Processes,
    Published,
    Settings,
    Target,
    TaskName,
    Tf32,
    Unit,
    chosen_settings,
    out_console,
)
from orchestrator.cli_search import report, search, spaces
from orchestrator.display import display
from trainables.errors import UserError

# Commands import what they need when they run: torch and matbench take seconds, --help should not.

app = typer.Typer(
    help="Fine-tune CHGNet on crystal-property benchmarks and get an honest Matbench record.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def tasks() -> None:
    """List the tasks that can be named."""
    from orchestrator.tables import task_table

    out_console.print(task_table())
    out_console.print("Also: synthetic_sample (embedded, no download), and any table of yours with --data FILE.")


@app.command()
def prepare(
    task: TaskName,
    data: DataFile = None,
    target: Target = None,
    limit: Limit = None,
    start: Annotated[
        str, typer.Option(help="Weights the graphs are for: 0.3.0, r2scan, scratch (6 A) or 0.2.0.")
    ] = "0.3.0",
) -> None:
    """Fetch and check a task's data and build its graphs, so that training starts at once."""
    from orchestrator.datasets import Source, prepare_data

    with display() as shown:
        summary = prepare_data(Source(task, data, target, limit=limit), start, shown)
    out_console.print(summary)


@app.command()
def train(
    task: TaskName,
    data: DataFile = None,
    target: Target = None,
    unit: Unit = "",
    energy: Energy = False,
    limit: Limit = None,
    folds: Folds = "0-4",
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; resumed if it exists. Default: runs/TASK.")
    ] = None,
    device: Device = "auto",
    processes: Processes = None,
    per_gpu: PerGpu = 1,
    compiled: CompileOption = "auto",
    tf32: Tf32 = False,
    published: Published = None,
) -> None:
    """Train and test the folds of a task, resuming what is there; write scores, predictions and the record.

    Leaves scores.json, predictions.parquet and one folder a fold in the run's folder; all five folds of a whole
    Matbench task also give a submission folder that matbench has validated.
    """
    from orchestrator.datasets import Source
    from orchestrator.execute import Resources
    from orchestrator.train import TrainOptions, parse_folds
    from orchestrator.train import train as run_training
    from trainables.model.compiled import parse_compile

    chosen = chosen_settings(config, settings)
    resources = Resources(device, processes, per_gpu, parse_compile(compiled), tf32)
    options = TrainOptions(parse_folds(folds), resources, published)
    folder = out or Path("runs") / task
    with display() as shown:
        scores = run_training(
            Source(task, data, target, unit, energy, limit),
            folder,
            settings=chosen,
            options=options,
            auxiliary=aux or [],
            progress=shown,
        )
    _show(scores, folder)


@app.command()
def ablate(
    task: TaskName,
    experiments: Annotated[
        str | None, typer.Option(help="E0,E1,...; parents and controls come along. Default: the whole ladder.")
    ] = None,
    data: DataFile = None,
    target: Target = None,
    unit: Unit = "",
    energy: Energy = False,
    limit: Limit = None,
    folds: Folds = "0-4",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of every experiment.")] = 3,
    start: Annotated[
        list[str] | None, typer.Option(help="Weights to start from; given again, a twin of every experiment.")
    ] = None,
    budget: Annotated[
        str, typer.Option(metavar="own|equal-steps", help="equal-steps: joint training is taken from the epochs.")
    ] = "own",
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study; resumed if it exists. Default: runs/ablation-TASK.")
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Show what would be run, and stop.")] = False,
    device: Device = "auto",
    processes: Processes = None,
    per_gpu: PerGpu = 1,
    compiled: CompileOption = "auto",
    tf32: Tf32 = False,
    published: Published = None,
) -> None:
    """Run the ladder of experiments and say what each lever did, resuming what is there.

    Leaves ablation.html, .md, .json and .parquet, every prediction, and one folder a model.
    """
    from orchestrator.ablation import AblationOptions, parse_budget, parse_starts
    from orchestrator.ablation import ablate as run_ablation
    from orchestrator.ablation_report import summary_table
    from orchestrator.datasets import Source
    from orchestrator.execute import Resources
    from orchestrator.ladder import parse_experiments
    from orchestrator.tables import plan_table
    from orchestrator.train import parse_folds
    from trainables.model.compiled import parse_compile

    options = AblationOptions(
        parse_experiments(experiments, with_auxiliary=bool(aux)),
        parse_folds(folds),
        seeds,
        parse_starts(start or []),
        parse_budget(budget),
        published,
        Resources(device, processes, per_gpu, parse_compile(compiled), tf32),
        command=shlex.join(["crystaltune", *sys.argv[1:]]),
        plan_only=plan_only,
    )
    folder, source = out or Path("runs") / f"ablation-{task}", Source(task, data, target, unit, energy, limit)
    with display() as shown:
        analysis = run_ablation(
            source,
            folder,
            options,
            settings=chosen_settings(config, settings),
            auxiliary=aux or [],
            progress=shown,
            show_plan=lambda planned: out_console.print(plan_table(planned.lines), str(planned), sep=""),
        )
    if analysis is not None:
        out_console.print(summary_table(analysis))
        for sentence in analysis.sentences:
            out_console.print(f"- {sentence}", soft_wrap=True)
        out_console.print(f"Everything is in {folder} (ablation.html, ablation.md, ablation.json).", soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    file: Annotated[Path, typer.Argument(help="A table of structures (CSV, JSON, Matbench json.gz) or a CIF file.")],
    out: Annotated[Path | None, typer.Option(help="Parquet to write. Default: predict-FILE.parquet in DIR.")] = None,
    device: Device = "auto",
) -> None:
    """Predict new structures with the mean of a run's folds."""
    from orchestrator.predict import predict_file

    with display() as shown:
        table, path = predict_file(run, file, out, device=device, progress=shown)
    out_console.print(table.head(10).to_string(index=False))
    out_console.print(f"{len(table)} predictions in {path}")


@app.command()
def record(run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run with all five folds.")]) -> None:
    """Write the Matbench record of a finished run and let matbench validate it."""
    from orchestrator.submission import record_run

    out_console.print(f"Matbench has validated {record_run(run)}")


@app.command()
def baseline(
    task: TaskName,
    data: DataFile = None,
    target: Target = None,
    unit: Unit = "",
    energy: Energy = False,
    limit: Limit = None,
    folds: Folds = "0-4",
    published: Published = None,
) -> None:
    """Score the mean, the composition alone and the untouched CHGNet on the same folds."""
    from orchestrator.datasets import Source
    from orchestrator.tables import baseline_table
    from orchestrator.train import baseline_run, parse_folds

    with display() as shown:
        scores = baseline_run(Source(task, data, target, unit, energy, limit), parse_folds(folds), published, shown)
    out_console.print(baseline_table(scores))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run; resumed if it exists.")] = Path("runs/quickstart"),
) -> None:
    """Run the main job on the embedded synthetic sample: five folds in a few minutes on a laptop."""
    from orchestrator.quickstart import quickstart as run_quickstart

    with display() as shown:
        scores = run_quickstart(out, shown)
    _show(scores, out)


app.command()(search)
app.command()(report)
app.command()(spaces)


def _show(scores: dict[str, object], folder: Path) -> None:
    from orchestrator.tables import score_table

    out_console.print(score_table(scores))
    if scores["record"]:
        out_console.print(f"Matbench has validated {folder / str(scores['record'])}", soft_wrap=True)
    else:
        out_console.print(f"No Matbench record: {scores['no_record_because']}", soft_wrap=True)
    out_console.print(f"Everything is in {folder} (scores.json, predictions.parquet).", soft_wrap=True)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    code: object = 0
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _end(str(error), 2)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        if not error.format_message().strip():  # no arguments: the help has been shown
            sys.exit(2)
        _end(f"{error.format_message()} (see `{context.command_path if context else 'crystaltune'} --help`)", 2)
    except OSError as error:
        _end(f"{error.filename or 'a file'}: {error.strerror or error}; mend that and run the command again", 2)
    except (KeyboardInterrupt, typer.Abort):
        _end("stopped; the same command goes on where this one ended (a search with --resume)", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
