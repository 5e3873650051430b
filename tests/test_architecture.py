"""Imports point one way, and the science works without the orchestration's libraries."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
    "crystaltune": {"trainables", "search_spaces", "orchestrator", "crystaltune"},
    "trainables": {"trainables"},
    "search_spaces": {"trainables", "search_spaces"},
    "orchestrator": {"trainables", "search_spaces", "orchestrator"},
}


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        assert imported(path) & set(MAY_IMPORT) <= MAY_IMPORT[package], path


def test_trainables_import_no_ray_optuna_or_matbench() -> None:
    for path in (ROOT / "trainables").rglob("*.py"):
        if path.name != "ray_trainable.py":
            assert not imported(path) & {"ray", "optuna", "matbench"}, path


def test_only_record_imports_matbench() -> None:
    importers = {path.name for path in (ROOT / "orchestrator").rglob("*.py") if "matbench" in imported(path)}
    assert importers == {"matbench.py"}


def test_fit_can_be_imported_where_ray_optuna_and_matbench_are_missing() -> None:
    code = (
        "import sys\n"
        "for name in ('ray', 'optuna', 'matbench'): sys.modules[name] = None\n"
        "import trainables.training.fit, trainables.training.predict, trainables.sample\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_no_file_is_too_long_to_read() -> None:
    for package in (*MAY_IMPORT, "tests", "benchmarks"):
        for path in (ROOT / package).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 420, path


# The rooms of orchestrator/ that the files of a room may import, beside their own.
SERVICES = {"evaluation", "report", "record", "provenance", "ray_session", "ray_environment"}
COMMANDS = ("study", "ablation", "train", "predict")  # none of them imports another
ROOMS = {
    "cli": {*COMMANDS, "execution", "inputs"} | SERVICES,
    **dict.fromkeys(COMMANDS, {"execution", "inputs"} | SERVICES),
    "execution": {"inputs"} | SERVICES,
    "inputs": SERVICES,
    "evaluation": set(),
    "report": {"evaluation"},
    "record": {"evaluation", "provenance"},
    "provenance": set(),
    "ray_session": {"ray_environment"},
    "ray_environment": {"grpc_knock"},
    "grpc_knock": set(),
    "_environment": set(),
}


def rooms_imported(path: Path) -> set[str]:
    """The rooms of orchestrator/ that a file imports from."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {name.split(".")[1] for name in names if name.startswith("orchestrator.")}
    return found


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "orchestrator").with_suffix("").parts[0]


def test_every_room_is_in_the_table() -> None:
    assert {room_of(path) for path in (ROOT / "orchestrator").rglob("*.py")} - {"__init__"} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may_touch(room: str) -> None:
    for path in (ROOT / "orchestrator").rglob("*.py"):
        if room_of(path) == room:
            assert rooms_imported(path) - {room} <= ROOMS[room], path


# A line for shells of clusters, and another program's own option.
NO_OPTION_OF_OURS = ("ray start --head", "--query-gpu", "--format=csv", "--no-deps")


def texts(path: Path) -> list[str]:
    """Every text of a file that is no docstring."""
    tree = ast.parse(path.read_text())
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_only_the_command_line_names_its_options(package: str) -> None:
    for path in (ROOT / package).rglob("*.py"):
        if package == "orchestrator" and room_of(path) == "cli":
            continue
        if path.parent.name == "report" and path.name in ("document.py", "colours.py", "interactive.py"):
            continue  # pages of CSS, whose variables begin with two dashes
        for text in texts(path):
            for known in NO_OPTION_OF_OURS:
                text = text.replace(known, "")
            assert not re.search(r"(?<![\w(-])--[a-z]{2,}\b(?!:)", text), f"{path}: {text}"
