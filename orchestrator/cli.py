"""The crystaltune command. Each command is one path: read options, call the function behind it, show the result."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# Set before anything imports ray: under `uv run` its workers never start otherwise.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

from orchestrator.display import display
from trainables.errors import UserError

# Commands import what they need when they run: torch and matbench take seconds, --help should not.

app = typer.Typer(
    help="Fine-tune CHGNet on crystal-property benchmarks and get an honest Matbench record.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out_console = Console(highlight=False, markup=False)

TaskName = Annotated[
    str, typer.Argument(metavar="TASK", help="A Matbench task (see `crystaltune tasks`), or a name for your own table.")
]
DataFile = Annotated[
    Path | None,
    typer.Option("--data", help="Your own CSV/JSON table, or a partial Matbench table (json.gz)."),
]
Target = Annotated[str | None, typer.Option(help="Target column of your own table.")]
Unit = Annotated[str, typer.Option(help="Unit of that target, for the tables.")]
Energy = Annotated[bool, typer.Option("--energy", help="The target is an energy in eV/atom: use CHGNet's energy head.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Keep this many rows, chosen at random with a fixed seed.")]
Folds = Annotated[str, typer.Option(help="Folds to train: 0-4, 0, or 0,2.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Published = Annotated[
    Path | None, typer.Option(help="CSV of published test predictions (mbid, fold, target, one column an algorithm).")
]


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
    config: Annotated[Path | None, typer.Option(help="YAML with settings, over the task's defaults.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, for example optim.lr=3e-4; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run; resumed if it exists. Default: runs/TASK.")
    ] = None,
    device: Device = "auto",
    processes: Annotated[
        int | None, typer.Option(min=1, help="Folds at once. Default: one a core, or one a GPU.")
    ] = None,
    per_gpu: Annotated[int, typer.Option(min=1, help="Folds that share a GPU, each in a process of its own.")] = 1,
    compiled: Annotated[
        str, typer.Option("--compile", help="torch.compile: auto (long runs), on or off.", metavar="auto|on|off")
    ] = "auto",
    tf32: Annotated[bool, typer.Option("--tf32", help="TF32 products on a GPU, if exact enough on a sample.")] = False,
    published: Published = None,
) -> None:
    """Train and test the folds of a task, resuming what is there; write scores, predictions and the record.

    Leaves scores.json, predictions.parquet and one folder a fold in the run's folder; all five folds of a whole
    Matbench task also give a submission folder that matbench has validated.
    """
    from orchestrator.datasets import Source
    from orchestrator.train import TrainOptions, parse_folds
    from orchestrator.train import train as run_training
    from trainables.config import load_config, merged, parse_assignments
    from trainables.model.compiled import parse_compile

    layers = [load_config(config)] if config else []
    chosen = merged({}, *layers, parse_assignments(settings or []))
    options = TrainOptions(parse_folds(folds), device, processes, published, per_gpu, parse_compile(compiled), tf32)
    folder = out or Path("runs") / task
    with display() as shown:
        scores = run_training(
            Source(task, data, target, unit, energy, limit), folder, settings=chosen, options=options, progress=shown
        )
    _show(scores, folder)


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
        _end("stopped; the same command goes on where this one ended", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _end(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
