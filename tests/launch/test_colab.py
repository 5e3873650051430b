"""The notebook for Colab runs from its first cell to its last one, on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "launch" / "colab.ipynb"
# Around the cells that train and search, run a second time: as in the session after one that ended.
BEFORE = """
def models():
    return {path: path.stat().st_mtime_ns for path in OUT.glob("sample*/fold_*/**/model.safetensors")}

made, tried = models(), study.trials
"""
AFTER = """
assert len(made) == 2
assert models() == made, "trained again"
assert study.trials.equals(tried), "tried again"
"""


def stored() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=nbformat.NO_CONVERT)


def printed(cell: nbformat.NotebookNode) -> str:
    """What a cell has written and shown, as text in one line."""
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return " ".join("".join(texts).split())


def test_it_is_valid_and_has_no_outputs() -> None:
    notebook = stored()
    nbformat.validate(notebook)
    assert notebook.nbformat == 4
    for cell in notebook.cells:
        assert cell.cell_type in ("markdown", "code")
        assert cell.source.strip()
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id


def test_it_is_as_ruff_has_it() -> None:
    for words in (["check"], ["format", "--check"]):
        told = subprocess.run(
            [sys.executable, "-m", "ruff", *words, "--no-cache", str(NOTEBOOK)],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert told.returncode == 0, told.stdout + told.stderr


def test_of_this_project_it_imports_only_what_users_import() -> None:
    lines = [line.split() for cell in stored().cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    modules = {words[1].split(".")[0] for words in lines if words[:1] in (["import"], ["from"])}
    assert modules == {"pathlib", "importlib", "crystaltune", "sys", "google", "html", "IPython"}


@pytest.mark.trains
@pytest.mark.long
def test_every_cell_runs_in_order_and_what_is_finished_is_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    assert "CRYSTALTUNE_CACHE" in os.environ  # the kernel, which inherits the environment, has the tests' cache
    notebook = stored()
    by_name = {cell.id: cell for cell in notebook.cells}
    assert "QUICK = True" in by_name["choices"].source
    notebook.cells.append(nbformat.v4.new_code_cell(BEFORE))
    notebook.cells += [nbformat.v4.new_code_cell(by_name[name].source) for name in ("train", "search", "train-best")]
    notebook.cells.append(nbformat.v4.new_code_cell(AFTER))

    client = NotebookClient(
        notebook, timeout=400, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()  # raises at a cell that fails

    cells = {cell.id: cell for cell in notebook.cells}
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert printed(cells["install"]) == ""  # it is there, so pip is not asked
    assert printed(cells["import"]).startswith("crystaltune ")
    assert "GPU" in printed(cells["doctor"])
    assert str(tmp_path / "runs") in printed(cells["drive"])
    assert "MAE of the trained models" in printed(cells["scores"])
    assert "Verdict" in printed(cells["search"])
    assert "'lr'" in printed(cells["best-config"])
    assert "MAE with the best configuration" in printed(cells["train-best"])
    assert "plotly" in cells["report"].outputs[-1].data["text/html"]
    assert "formula" in printed(cells["predict"])
    for name in ("sample", "sample-best"):
        assert (tmp_path / "runs" / name / "scores.json").is_file()
    assert (tmp_path / "runs" / "sample-expanded.csv").is_file()
    assert (tmp_path / "runs" / "sample-search" / "best.yaml").is_file()
