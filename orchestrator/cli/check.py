"""The command that looks at rows before anything is trained on them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from orchestrator.cli.errors import as_options
from orchestrator.cli.interrupts import interruptible
from orchestrator.cli.options import out_console
from orchestrator.cli.results import say
from orchestrator.cli.rows import LOOKED_AT, takes_rows
from orchestrator.inputs.source import Source, check_source, known_task
from orchestrator.report.progress import display
from trainables.errors import listed

_SHOWN = 8  # ids of a finding


@takes_rows(*LOOKED_AT)
def check(
    source: Source,
    data: Annotated[str, typer.Argument(metavar="DATA", help="Rows as for --data, or the name of a Matbench task.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, with all ids.")] = False,
) -> None:
    """Look at rows before training: what is in them, what cannot be used, and what should be known.

    The exit code is 2 where something has to be corrected first.
    """
    is_task = not Path(data).exists() and known_task(data) is not None
    source = replace(source, task=data) if is_task else replace(source, file=Path(data))
    check_source(source)
    from orchestrator.inputs.datasets import facts_of, look_at

    with interruptible(), display(as_options) as shown:
        dataset, found = look_at(source, shown)
    facts = {} if dataset is None else facts_of(dataset)
    if as_json:
        out_console.print_json(json.dumps({"facts": facts, "findings": [asdict(each) for each in found]}))
    else:
        for name, value in facts.items():
            say(f"{name}: {value}")
        if found:
            table = Table(box=None, pad_edge=False)
            for column in ("", "what", "rows"):
                table.add_column(column, overflow="fold", no_wrap=not column)
            for each in found:
                text = as_options(f"{each.text}" + (f" -> {each.cure}" if each.cure else ""))
                table.add_row(each.level, text, listed(each.ids, _SHOWN))
            out_console.print(table)
        else:
            say("Nothing stands in the way.")
    if any(each.level == "error" for each in found):
        raise typer.Exit(2)
