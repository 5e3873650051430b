"""Options that several commands share, and how commands speak."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from orchestrator.execution.resources import Cluster, Resources
from orchestrator.inputs.source import config_file
from orchestrator.ray_environment import check_address
from orchestrator.report.progress import console
from trainables.choices import Compile, PresetName
from trainables.choices import Device as DeviceName
from trainables.data.cache import cache_home, cache_note
from trainables.errors import UserError
from trainables.processes import keep_freed_memory

out_console = Console(highlight=False, markup=False)

_DATA, _TRAINING, _WHERE = "Data", "Training", "Where it runs"

TaskName = Annotated[
    str | None,
    typer.Argument(
        metavar="TASK",
        help="A Matbench task (see `crystaltune tasks`), or a name for your own table; by default its file's.",
    ),
]
DataFile = Annotated[
    Path | None,
    typer.Option(
        "--data",
        help="Your own rows: a table (CSV, JSON, Parquet, Excel), a structure file such as extxyz, a folder of "
        "structure files with id_prop.csv, a pattern in quotes, or a partial Matbench table (json.gz).",
        rich_help_panel=_DATA,
    ),
]
IdColumn = Annotated[
    str | None,
    typer.Option("--id", metavar="COLUMN", help="Column of ids, if it has no usual name.", rich_help_panel=_DATA),
]
StructureColumn = Annotated[
    str | None,
    typer.Option(
        "--structure", metavar="COLUMN", help="Column of structures, if it has no usual name.", rich_help_panel=_DATA
    ),
]
DropMissing = Annotated[
    bool, typer.Option("--drop-missing", help="Leave out rows without a target.", rich_help_panel=_DATA)
]
TotalEnergy = Annotated[
    bool,
    typer.Option(
        "--total-energy",
        help="The target is the energy of the whole cell in eV: divide it by the number of atoms, and fit it with "
        "CHGNet's energy head.",
        rich_help_panel=_DATA,
    ),
]
Preset = Annotated[
    PresetName,
    typer.Option(
        help="What a fold is made of: one fine-tuned CHGNet, or a blend of a fine-tuned CHGNet and a tabular model, "
        "weighted on held-out rows. auto: a blend for properties of 100 to 10,000 rows.",
        rich_help_panel=_TRAINING,
    ),
]
TimeBudget = Annotated[
    str | None,
    typer.Option(
        help="Train for as many epochs as fit into, for example, 30min or 2h, by the speed measured on this machine.",
        rich_help_panel=_TRAINING,
    ),
]
AllData = Annotated[
    bool,
    typer.Option(
        "--all-data",
        help="Then also train on all rows, for use: `predict` and `export` take that model, and the folds say how good "
        "it is.",
        rich_help_panel="Results",
    ),
]
PerCell = Annotated[
    bool,
    typer.Option(
        "--per-cell",
        help="The target is a property of the whole cell, which grows with it: atoms are summed over, not averaged.",
        rich_help_panel=_DATA,
    ),
]
FoldsBy = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="What keeps rows in one fold: formula, chemical-system, composition, random, or a column of your table. "
        "Default: formula; where there are too few formulas, every crystal by itself.",
        rich_help_panel=_DATA,
    ),
]
FoldColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Column with the test fold of each row, 0 to 4; empty: never tested.",
        rich_help_panel=_DATA,
    ),
]
TestFile = Annotated[
    Path | None,
    typer.Option(
        "--test", metavar="FILE", help="Rows to test on; those of --data are trained on.", rich_help_panel=_DATA
    ),
]
Target = Annotated[str | None, typer.Option(help="Target column of your own table.", rich_help_panel=_DATA)]
Unit = Annotated[str, typer.Option(help="Unit of the target, shown in tables and reports.", rich_help_panel=_DATA)]
Energy = Annotated[
    bool,
    typer.Option(
        "--energy", help="The target is an energy in eV/atom, which CHGNet's energy head fits.", rich_help_panel=_DATA
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Use only this many rows, chosen at random with a fixed seed.", rich_help_panel=_DATA),
]
Folds = Annotated[str, typer.Option(help="Folds to use: 0-4, 0, or 0,2.", rich_help_panel=_DATA)]
Published = Annotated[
    Path | None,
    typer.Option(
        help="CSV of published test predictions (mbid, fold, target, one column per algorithm).", rich_help_panel=_DATA
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="YAML file with settings, which override the task's preset.", rich_help_panel=_TRAINING
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="One setting, for example optim.lr=3e-4. May be repeated.",
        rich_help_panel=_TRAINING,
    ),
]
Auxiliary = Annotated[
    list[str] | None,
    typer.Option(
        "--aux",
        metavar="NAME[=FILE]",
        help="Auxiliary task for joint pre-training. May be repeated.",
        rich_help_panel=_TRAINING,
    ),
]
Device = Annotated[DeviceName, typer.Option(help="Device to run on.", rich_help_panel=_WHERE)]
Processes = Annotated[
    int | None,
    typer.Option(
        min=1, help="Models trained at the same time. Default: one per core, or one per GPU.", rich_help_panel=_WHERE
    ),
]
PerGpu = Annotated[
    int, typer.Option(min=1, help="Models that share a GPU, each in its own process.", rich_help_panel=_WHERE)
]
CompileOption = Annotated[
    Compile, typer.Option("--compile", help="Use torch.compile; auto: for long runs only.", rich_help_panel=_WHERE)
]
Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        help="Allow TF32 matrix products on a GPU, if they are exact enough on a sample.",
        rich_help_panel=_WHERE,
    ),
]
OnRay = Annotated[
    bool,
    typer.Option(
        "--ray",
        help="Train on Ray: on the cluster that RAY_ADDRESS names, else on a Ray started here.",
        rich_help_panel=_WHERE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Ray cluster to train on, as HOST:PORT, or auto for the one that this machine belongs to.",
        rich_help_panel=_WHERE,
    ),
]
CpusPerModel = Annotated[float, typer.Option(help="On Ray: cores for each model.", rich_help_panel=_WHERE)]
Budget = Literal["own", "equal-steps"]


def resources_of(
    device: DeviceName,
    processes: int | None,
    per_gpu: int,
    compiled: Compile,
    tf32: bool,
    *,
    ray: bool,
    address: str | None,
    cpus_per_model: float,
) -> Resources:
    """Return where models are made, and tell of a cluster that does not answer.

    Raises:
        UserError: as Resources and check_address.
    """
    cluster = None
    if ray or address is not None:
        check_address(address)
        cluster = Cluster(address, cpus_per_model, per_gpu=per_gpu)
    elif cpus_per_model != 1:
        raise UserError(f"--cpus-per-model {cpus_per_model:g} is for models on Ray: add --ray or --address")
    return Resources(device, processes, per_gpu, compiled, tf32, cluster)


def chosen_settings(config: Path | None, settings: Sequence[str] | None, task: str) -> dict[str, Any]:
    """Return the settings of a file, and those of the command over it; what they were made for is told."""
    from trainables.config import for_task, load_config, merged, parse_assignments

    file = config_file(config) if config else None
    content, note = for_task(load_config(file), task, str(file)) if file else ({}, None)
    if note:
        console.print(note, soft_wrap=not console.is_terminal)
    changes = parse_assignments(settings or [])
    for key, chosen_by in (("task", "the command's first argument"), ("fold", "--folds or --fold")):
        if key in changes:
            raise UserError(f"--set {key}={changes[key]}: use {chosen_by} instead of a setting")
    return merged({}, content, changes)


def begin(what: str) -> None:
    """Print a long command's first line, before it loads anything that takes long."""
    keep_freed_memory()  # of this process, which is the command's own
    console.print(what, soft_wrap=not console.is_terminal)
    if note := cache_note():
        os.environ.setdefault("MPLCONFIGDIR", str(cache_home() / "matplotlib"))  # it would make a home, or complain
        console.print(note, soft_wrap=not console.is_terminal)


def say(text: str) -> None:
    """Print a sentence: broken between words on a terminal, in one line elsewhere."""
    out_console.print(text, soft_wrap=not out_console.is_terminal)


def say_next(*commands: tuple[str, str]) -> None:
    """Print what to do next, as (what it is for, command); a command is one line that can be copied."""
    out_console.print("Next:")
    for purpose, command in commands:
        out_console.print(f"  {command}  # {purpose}", soft_wrap=True)
