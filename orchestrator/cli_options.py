"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

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
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML with settings, over the task's defaults.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="One setting, for example optim.lr=3e-4; may be repeated."),
]
Auxiliary = Annotated[
    list[str] | None,
    typer.Option("--aux", metavar="NAME[=FILE]", help="A task to train on jointly first; may be repeated."),
]
Processes = Annotated[int | None, typer.Option(min=1, help="Runs at once. Default: one a core, or one a GPU.")]
PerGpu = Annotated[int, typer.Option(min=1, help="Runs that share a GPU, each in a process of its own.")]
CompileOption = Annotated[
    str, typer.Option("--compile", help="torch.compile: auto (long runs), on or off.", metavar="auto|on|off")
]
Tf32 = Annotated[bool, typer.Option("--tf32", help="TF32 products on a GPU, if exact enough on a sample.")]
Published = Annotated[
    Path | None, typer.Option(help="CSV of published test predictions (mbid, fold, target, one column an algorithm).")
]


def chosen_settings(config: Path | None, settings: list[str] | None) -> dict[str, object]:
    """The settings of a file, and those of the command over it."""
    from trainables.config import load_config, merged, parse_assignments

    return merged({}, *([load_config(config)] if config else []), parse_assignments(settings or []))
