"""Options that do not exist are told what to use instead."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from orchestrator.cli.main import app
from orchestrator.cli.option_hints import TAKEN_BY, option_hint


@pytest.mark.parametrize(
    ("typed", "wanted"),
    [
        ("train jdft2d --epochs 3", "use --set optim.epochs=3"),
        ("ensemble jdft2d --sedes 2", "use --seeds 2"),
        ("train mine --taget y", "use --target y"),
        ("train mine --engery", "use --energy"),
        ("train jdft2d --epochs=3", "use --set optim.epochs=3"),
        ("search jdft2d --epochs 3", "use --set optim.epochs=3"),
        ("train jdft2d --lr 3", "use --set optim.lr=3"),
        ("train jdft2d --learning-rate 1e-3", "use --set optim.lr=1e-3"),
        ("train jdft2d --lr", "use --set optim.lr=VALUE"),
        ("train jdft2d --optim.lr 1e-3", "use --set optim.lr=1e-3"),
        ("train jdft2d --batch-size 8", "use --set optim.batch_size=8"),
        ("train jdft2d --patience 8", "use --set optim.patience=8"),
        ("train jdft2d --gpu", "use --device cuda"),
        ("predict run new.csv --cuda", "use --device cuda"),
        ("train jdft2d --cpu", "use --device cpu"),
        ("train jdft2d --seed 0", "use --set seed=0"),
        ("train jdft2d --workers 4", "use --processes 4"),
        ("search jdft2d --workers 4", "use --max-concurrent 4"),
        ("train jdft2d --output runs/x", "use --out runs/x"),
        ("train --name mine", "the task's name follows the command: crystaltune train mine"),
        ("train mine --file t.csv", "use --data t.csv"),
        ("predict run --file t.csv", "crystaltune predict DIR FILE"),
        ("train mine --test t.csv", "crystaltune predict DIR FILE"),
        ("search jdft2d --n-trials 20", "use --trials 20"),
        ("train jdft2d --n-trials 20", "--trials is an option of search, not of train"),
        ("train jdft2d --trials 20", "--trials is an option of search, not of train"),
        ("train jdft2d --fold 0", "use --folds 0"),
        ("search jdft2d --folds 0", "use --fold 0"),
        ("train jdft2d --views 4", "use --set tta.views=4"),
        ("ensemble jdft2d --n-models 4", "use --seeds 4"),
        ("train jdft2d --resume", "the same command resumes"),
        ("train jdft2d --override optim.lr=3", "use --set optim.lr=3"),
    ],
)
def test_the_option_that_is_meant(typed: str, wanted: str) -> None:
    words = typed.split()
    option = next(word for word in words if word.startswith("-"))
    assert wanted in (option_hint(option.partition("=")[0], words) or "")


@pytest.mark.parametrize("typed", ["train jdft2d --zzz", "predict run new.csv --epochs 3", "record run --lr 3"])
def test_where_nothing_fits_nothing_is_said(typed: str) -> None:
    words = typed.split()
    assert option_hint(next(word for word in words if word.startswith("-")), words) is None


def test_commands_take_the_options_that_are_named() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for option, named in TAKEN_BY.items():
        taking = {name for name, command in commands.items() if any(option in each.opts for each in command.params)}
        assert taking == set(named), option


def test_what_is_checked_first_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "import orchestrator.inputs.source, orchestrator.cli.option_hints\n"
        "import orchestrator.predict.files, trainables.config\n"
        "heavy = {'numpy', 'pandas', 'torch', 'pymatgen', 'chgnet', 'ray', 'optuna', 'matplotlib', 'scipy'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
