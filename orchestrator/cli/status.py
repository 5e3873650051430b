"""The command that tells how a run, an ablation or a search stands."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.cli.interrupts import interruptible
from orchestrator.cli.options import out_console
from orchestrator.execution.status import ExecutionStatus, ModelState, ModelStatus, read_status
from orchestrator.report.format import readable
from orchestrator.study.options import MANIFEST
from orchestrator.study.status import StudyStatus, read_study_status
from orchestrator.train.options import STUDENT
from trainables.errors import UserError

_SECONDS_BETWEEN_LOOKS = 2.0
_MOST_ROWS = 30
_FIRST = (ModelState.FAILED, ModelState.RUNNING, ModelState.INTERRUPTED, ModelState.READY, ModelState.WAITING)


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, an ablation or a search.")],
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds until all is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON, once.")] = False,
) -> None:
    """Show what ran, runs, waits and failed, from the folder alone; also from another machine."""
    found = _read(folder)
    if as_json:
        out_console.print_json(json.dumps({name: asdict(told) for name, told in found.items()}))
        return
    if not watch:
        out_console.print(_shown(found))
        return
    with interruptible(), Live(_shown(found), console=out_console, auto_refresh=False) as live:
        while any(told.at_work is not False for told in found.values()):
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            found = _read(folder)
            live.update(_shown(found), refresh=True)
    if not out_console.is_terminal:  # where rich has shown the last state only, without the end of its line
        out_console.print()


def _read(folder: Path) -> dict[str, ExecutionStatus | StudyStatus]:
    """Return what there is in a folder, by its kind.

    Raises:
        UserError: nothing is.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} {'is a file' if folder.exists() else 'does not exist'}: name the folder of a run")
    found: dict[str, ExecutionStatus | StudyStatus] = {}
    if (models := read_status(folder)) is not None:
        found["models"] = models
    if (folder / MANIFEST).is_file():
        if (teachers := read_status(folder / "teachers")) is not None:
            found["teachers"] = teachers
        found["search"] = read_study_status(folder)
    if not found and folder.name == STUDENT and (folder.parent / "run.json").is_file():
        raise UserError(f"{folder} is a student's: its models are told with its ensemble's, in {folder.parent}")
    if not found:
        raise UserError(f"{folder} contains no run, ablation or search that has begun (execution.jsonl is missing)")
    return found


def _shown(found: dict[str, ExecutionStatus | StudyStatus]) -> RenderableType:
    parts: list[RenderableType] = []
    for name, told in found.items():
        parts += _of_search(told) if isinstance(told, StudyStatus) else _of_models(name, told)
    return Group(*parts)


def _of_models(name: str, told: ExecutionStatus) -> list[RenderableType]:
    counts = ", ".join(f"{count} {state}" for state in ModelState if (count := told.count(state)))
    lines = [f"{len(told.models)} {name}: {counts}." if told.models else f"No {name}."]
    lines += [_worker(told.at_work, told.worker, told.silence)]
    if told.at_work is False and told.count(ModelState.FINISHED) + told.count(ModelState.FAILED) < len(told.models):
        lines.append("Repeat the command that began it to continue.")
    if told.seconds_left is not None and told.at_work is not False:
        lines.append(f"About {readable(told.seconds_left)} left.")
    if told.gpu_seconds > 0:
        lines.append(f"{told.gpu_seconds:,.0f} GPU seconds so far.")
    rows = [model for state in _FIRST for model in told.models if model.state == state]
    return [Text(" ".join(lines)), *([_table(rows)] if rows else [])]


def _worker(at_work: bool | None, worker: str, silence: float) -> str:
    if at_work:
        return f"At work: {worker}."
    if at_work is None:
        return f"On another machine: {worker}, last heard of {readable(silence)} ago."
    return "Nothing is running."


def _table(models: Sequence[ModelStatus]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("model", "state", "time", "device", ""):
        table.add_column(column, no_wrap=column != "", overflow="fold", justify="right" if column == "time" else "left")
    for model in models[:_MOST_ROWS]:
        seconds = "" if model.seconds is None else readable(model.seconds)
        table.add_row(model.name, str(model.state), seconds, model.device, model.why)
    if len(models) > _MOST_ROWS:
        table.caption = f"and {len(models) - _MOST_ROWS:,} more"
    return table


def _of_search(told: StudyStatus) -> list[RenderableType]:
    counts = ", ".join(f"{count} {name}" for name, count in told.states.items())
    lines: list[Any] = [f"Search: {told.begun} of {told.asked} trials{f': {counts}' if counts else ''}."]
    if told.checks:
        lines.append(f"Confirmation runs: {told.checks}.")
    if told.best is not None:
        lines.append(
            f"Best so far: trial {told.best_trial} with a validation MAE of {told.best:.4g} {told.unit}".rstrip()
        )
        lines[-1] += "."
    lines.append(_worker(told.at_work, told.worker or "unknown process", told.silence))
    return [Text(" ".join(lines)), *(Text(f"- {reason}") for reason in told.failures)]
