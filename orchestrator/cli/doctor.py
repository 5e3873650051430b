"""The command that looks at the machine."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.table import Table

from orchestrator.cli.errors import as_options
from orchestrator.cli.interrupts import interruptible
from orchestrator.cli.options import begin, out_console, say


def doctor(
    out: Annotated[Path, typer.Option(help="Where runs will be written: its free space is told.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this machine: GPU, Ray, cores, memory, disk, data and versions, each with its cure."""
    if not as_json:
        begin("doctor: looking at this machine")
    from orchestrator.execution.doctor import Level, examine

    with interruptible():
        findings = list(examine(out))
    if as_json:
        out_console.print_json(json.dumps([asdict(finding) for finding in findings]))
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
        for column in ("", "", "found"):
            table.add_column(column, no_wrap=column != "found", overflow="fold")
        for finding in findings:
            cure = f"\n→ {finding.cure}" if finding.cure else ""
            style = "bold" if finding.level != Level.OK else None
            table.add_row(finding.name, str(finding.level), as_options(f"{finding.found}{cure}"), style=style)
        out_console.print(table)
        problems = [finding.name for finding in findings if finding.level == Level.PROBLEM]
        say(f"To be mended: {', '.join(problems)}." if problems else "Nothing stands in the way.")
    if any(finding.level == Level.PROBLEM for finding in findings):
        raise typer.Exit(1)
