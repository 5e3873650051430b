"""Imports point one way, and the science works without the orchestration's libraries."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAY_IMPORT = {
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
