"""The README's Python blocks run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.trains
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_of_the_readme_runs(block: str, tmp_path: Path) -> None:
    assert "import crystaltune as ct" in block
    script = tmp_path / "notebook.py"
    script.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{block}", encoding="utf-8")
    told = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )
    assert told.returncode == 0, told.stderr
    assert "Verdict" in told.stdout
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()
    assert (tmp_path / "runs" / "notebook-best" / "scores.json").is_file()


def test_there_is_one() -> None:
    assert len(BLOCKS) == 1
