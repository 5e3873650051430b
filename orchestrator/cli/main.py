"""The crystaltune command. Each command is one path: check what was asked, call what does it, show the result.

What a command needs is imported when it runs: torch takes seconds, and a mistake should be told before that.
"""

import glob
import shlex
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer

from orchestrator.cli.ablate import ablate
from orchestrator.cli.asked import after_training
from orchestrator.cli.check import check
from orchestrator.cli.doctor import doctor
from orchestrator.cli.ensemble import ensemble
from orchestrator.cli.errors import as_options, end, end_interrupted, explained
from orchestrator.cli.interrupts import INTERRUPTED, handle_interrupts, interruptible
from orchestrator.cli.options import (
    Address,
    AllData,
    Auxiliary,
    CompileOption,
    ConfigFile,
    CpusPerModel,
    Device,
    Folds,
    IdColumn,
    Limit,
    OnRay,
    PerGpu,
    Preset,
    Processes,
    Published,
    Settings,
    StructureColumn,
    Tf32,
    TimeBudget,
    begin,
    chosen_settings,
    out_console,
    resources_of,
    say,
    say_next,
)
from orchestrator.cli.results import show_scores
from orchestrator.cli.rows import takes_rows
from orchestrator.cli.search import report, search, spaces
from orchestrator.cli.status import status
from orchestrator.inputs.source import Source, check_folder, check_source, default_folder, folds_to_run, parse_folds
from orchestrator.report.progress import display
from trainables.errors import UserError

_SHOWN = 10  # predictions in the terminal
app = typer.Typer(
    help="Fine-tune CHGNet on crystal-property benchmarks and get an honest Matbench record.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["--help", "-h"]},
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"crystaltune {version('crystaltune')}")
        raise typer.Exit


@app.callback()
def common(
    version_asked: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Fine-tune CHGNet on crystal-property benchmarks and get an honest Matbench record."""


@app.command()
def tasks() -> None:
    """List the available tasks."""
    from orchestrator.report.terminal import task_table

    out_console.print(task_table())
    say("Also: synthetic_sample (embedded, no download), and any table of yours with --data FILE.")


@app.command()
@takes_rows()
def prepare(
    source: Source,
    start: Annotated[
        Literal["0.3.0", "r2scan", "0.2.0", "scratch"],
        typer.Option(
            help="Starting weights for which to build graphs; 0.2.0 has a cutoff of 5 A, all others 6 A.",
            rich_help_panel="Data",
        ),
    ] = "0.3.0",
) -> None:
    """Fetch and check a task's data and build its graphs, so that training starts immediately."""
    check_source(source)
    begin(f"prepare {source.task}")
    from orchestrator.cli.asked import task_words
    from orchestrator.inputs.datasets import prepare_data

    with interruptible(), display(as_options) as shown:
        summary = prepare_data(source, start, shown)
    say(summary)
    say_next(("train on it", shlex.join(["crystaltune", "train", *task_words(source)])))


@app.command()
@takes_rows()
def train(
    source: Source,
    folds: Folds = "0-4",
    config: ConfigFile = None,
    settings: Settings = None,
    aux: Auxiliary = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; resumed if it exists. Default: runs/TASK.", rich_help_panel="Results"),
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
    time_budget: TimeBudget = None,
    preset: Preset = "auto",
) -> None:
    """Train and test the folds of a task, resuming what is there; write scores, predictions and the record.

    Leaves scores.json, predictions.parquet and one folder per fold in the run's folder; all five folds of a whole
    Matbench task also give a submission folder.
    """
    from orchestrator.cli.asked import check_asked

    wanted = folds_to_run(source, parse_folds(folds))
    chosen = chosen_settings(config, settings, source.task)
    check_asked(source, chosen, aux or [], published)
    folder = out or default_folder("", source.task)
    check_folder(folder, marker="run.json")
    from orchestrator.study.options import budget_seconds

    where = resources_of(
        device, processes, per_gpu, compiled, tf32, ray=ray, address=address, cpus_per_model=cpus_per_model
    )
    seconds = None if time_budget is None else budget_seconds(time_budget)
    begin(f"train {source.task}, fold{'s' * (len(wanted) > 1)} {', '.join(map(str, wanted))}, in {folder}")
    from orchestrator.train.run import TrainOptions
    from orchestrator.train.run import train as run_training

    with interruptible(), display(as_options) as shown:
        scores = run_training(
            source,
            folder,
            settings=chosen,
            options=TrainOptions(wanted, where, published, all_data, seconds, preset),
            auxiliary=aux or [],
            progress=shown,
        )
    show_scores(scores, folder)
    say_next(*after_training(source, folder, config, settings or [], scores.held_out))


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run.")],
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Structures: a table, files of any format that pymatgen or ASE reads, or a folder."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="File to write: .parquet, .csv, .csv.gz, .json, .jsonl, .xlsx. Default: in DIR, as Parquet."),
    ] = None,
    id_column: IdColumn = None,
    structure: StructureColumn = None,
    device: Device = "auto",
) -> None:
    """Predict new structures with the mean of a run's folds.

    Rows that cannot be used keep their place, without a prediction and with the reason in the column `problem`; the
    exit code is then 1.
    """
    from orchestrator.predict.files import check_predictions_path

    _check_run(run)
    for file in files:
        if not file.exists() and not glob.has_magic(str(file)):
            raise UserError(f"{file} does not exist; a table of structures, structure files or a folder was expected")
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UserError(f"{file} is no regular file; save its content to a file and use that")
    check_predictions_path(out, files[0], run)
    begin(f"predict {files[0]}{f' and {len(files) - 1} more' if len(files) > 1 else ''} with {run}")
    from orchestrator.predict.run import predict_file
    from trainables.data.own_table import TableOptions

    options = TableOptions(id=id_column, structure=structure)
    with interruptible(), display(as_options) as shown:
        table, path = predict_file(run, files, out, options=options, device=device, progress=shown)
    if len(table) > _SHOWN:
        say(f"The first {_SHOWN} of {len(table):,}:")
    shown_columns = [name for name in table.columns if table[name].dtype != bool or table[name].any()]
    shown_columns = [name for name in shown_columns if name != "problem" or table[name].any()]
    rows = table.head(_SHOWN)[shown_columns].to_string(index=False, float_format="{:.6g}".format, max_colwidth=24)
    out_console.print(rows, soft_wrap=True)
    failed = int((table["problem"] != "").sum())
    say(f"{len(table) - failed:,} prediction{'s' * (len(table) - failed != 1)} in {path}")
    if failed:
        counts = table["problem"][table["problem"] != ""].value_counts()
        say(f"{failed:,} row{'s' * (failed != 1)} could not be used; column `problem` says why:")
        for problem, count in counts.items():
            say(f"  {count:,} x {problem}")
        raise typer.Exit(1)


def _check_run(run: Path) -> None:
    if run.is_dir() and (run / "run.json").is_file():
        return
    if run.is_dir() and any(run.glob("fold_*/fold.json")):
        raise UserError(f"{run / 'run.json'} is missing: run its `crystaltune train` again, which writes it")
    what = "is not the folder of a run" if run.is_dir() else "is a file" if run.exists() else "does not exist"
    raise UserError(f"{run} {what}: train one first: `crystaltune train TASK --out {run}`")


@app.command()
def record(run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run with all five folds.")]) -> None:
    """Write the Matbench record of a finished run, validated by matbench where it is installed."""
    if not (run / "scores.json").is_file():
        raise UserError(f"{run} does not contain a finished run; train one first: `crystaltune train TASK --out {run}`")
    from orchestrator.record.submission import record_run

    with interruptible():
        written = record_run(run)
    say(written.sentence)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a finished run of energies.")],
    to: Annotated[Literal["chgnet"], typer.Option(help="Whose checkpoints to write.")] = "chgnet",
    out: Annotated[Path | None, typer.Option(help="Folder of the checkpoints. Default: DIR/chgnet.")] = None,
) -> None:
    """Write a run's models as checkpoints that chgnet's own CHGNet.from_file reads, with forces and stress."""
    _check_run(run)
    from orchestrator.predict.export import export_run

    with interruptible():
        files = export_run(run, out)
    say(f"{len(files)} checkpoint{'s' * (len(files) != 1)} for CHGNet.from_file in {files[0].parent}:")
    for file in files:
        say(f"  {file.name}")
    say_next(("use it", f'python -c "from chgnet.model import CHGNet; CHGNet.from_file({str(files[0])!r})"'))


@app.command()
@takes_rows()
def baseline(
    source: Source,
    folds: Folds = "0-4",
    published: Published = None,
) -> None:
    """Score the mean, the composition alone and the untouched CHGNet on the same folds."""
    from orchestrator.cli.asked import check_asked, task_words

    wanted = folds_to_run(source, parse_folds(folds))
    check_asked(source, {}, (), published)
    begin(f"baseline {source.task}")
    from orchestrator.report.terminal import baseline_table
    from orchestrator.train.run import baseline_run

    with interruptible(), display(as_options) as shown:
        scores = baseline_run(source, wanted, published, shown)
    out_console.print(baseline_table(scores))
    say_next(("beat them", shlex.join(["crystaltune", "train", *task_words(source)])))


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder of the run; resumed if it exists.")] = Path("runs/quickstart"),
    limit: Limit = None,
    settings: Settings = None,
) -> None:
    """Try the whole pipeline on a built-in synthetic sample: five folds in a few minutes on a laptop."""
    from orchestrator.cli.asked import check_asked
    from orchestrator.inputs.quickstart import SETTINGS, SOURCE

    chosen, source = {**SETTINGS, **chosen_settings(None, settings, SOURCE.task)}, replace(SOURCE, limit=limit)
    check_asked(source, chosen)
    check_folder(out, marker="run.json")
    begin(f"quickstart: five folds on the synthetic sample, a few minutes, in {out}")
    from orchestrator.train.run import train as run_training

    with interruptible(), display(as_options) as shown:
        scores = run_training(source, out, settings=chosen, progress=shown)
    show_scores(scores, out)
    say_next(*after_training(None, out))


app.command()(check)
app.command()(ablate)
app.command()(search)
app.command()(ensemble)
app.command()(report)
app.command()(spaces)
app.command()(status)
app.command()(doctor)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    handle_interrupts()
    code: object = 0
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        end(str(error))
    except typer.TyperException as error:
        end(explained(error))
    except OSError as error:
        end(f"{error.filename or 'a file'}: {error.strerror or error}; fix this and rerun the command")
    except (KeyboardInterrupt, typer.Abort):
        end_interrupted()
    if code == INTERRUPTED:  # typer turns KeyboardInterrupt into this code
        end_interrupted()
    sys.exit(code if isinstance(code, int) else 0)
