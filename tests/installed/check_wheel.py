"""Install the wheel as a stranger would, and run the commands of an installation in a terminal.

    python tests/installed/check_wheel.py [PYTHON...]

Builds the wheel with uv, installs it by plain pip into an empty environment in an empty folder for each Python
(default: every 3.11 and 3.12 found here), and runs crystaltune there under a pseudo-terminal. Run by .ci/run, not by
pytest: it downloads gigabytes where pip's cache is empty.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path += [str(REPOSITORY), str(REPOSITORY / "tests" / "support"), str(REPOSITORY / "tests" / "terminal")]

from record_data import write_finished_run  # noqa: E402
from screen import Terminal  # noqa: E402

from orchestrator.record.matbench import INSTALL_MATBENCH  # noqa: E402

VERSIONS = ("3.11", "3.12")
PACKAGES = {"trainables", "search_spaces", "orchestrator", "crystaltune"}
SMALL = ("sample", "--limit", "60", "--set", "optim.epochs=2")
QUICKSTART = ("quickstart", *SMALL[1:], "--out", "q")
SEARCH = ("search", *SMALL, "--space", "optim", "--trials", "3", "--check-top", "0", "--out", "s")
DISTIL = ("--seeds", "2", "--distil", "--set", "distil.inner_folds=2", "--set", "distil.seeds=1")
ENSEMBLE = ("ensemble", *SMALL[:3], "--config", "s", *DISTIL, "--folds", "0", "--ray", "--out", "e")


def main() -> None:
    pythons = [Path(argument) for argument in sys.argv[1:]] or found_pythons()
    if not pythons:
        sys.exit(f"no Python {' or '.join(VERSIONS)} was found; give the path of one")
    with tempfile.TemporaryDirectory(prefix="wheel-") as folder:
        wheel = built_wheel(Path(folder))
        check_content(wheel)
        for python in pythons:
            check_installed(wheel, python)


def found_pythons() -> list[Path]:
    """A working interpreter of each version: on PATH, or in pyenv, whose shims work for the chosen version only."""
    found = []
    for version in VERSIONS:
        candidates = [Path(f"python{version}"), *_pyenv().glob(f"versions/{version}.*/bin/python{version}")]
        working = [candidate for candidate in candidates if _works(candidate)]
        found += working[:1]
        if not working:
            print(f"Python {version} was not found here and is left out", flush=True)
    return found


def _pyenv() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser()


def _works(python: Path) -> bool:
    try:
        return subprocess.run([python, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def built_wheel(folder: Path) -> Path:
    subprocess.run(["uv", "build", "--quiet", "--wheel", "--out-dir", folder, REPOSITORY], check=True)
    (wheel,) = folder.glob("crystaltune-*.whl")
    return wheel


def check_content(wheel: Path) -> None:
    """The wheel has every tracked file of the packages, the licence, and nothing else; no pins that cannot be met."""
    names = set(zipfile.ZipFile(wheel).namelist())
    (information,) = {name.partition("/")[0] for name in names} - PACKAGES
    assert information.endswith(".dist-info"), information
    tracked = subprocess.run(
        ["git", "ls-files", *sorted(PACKAGES)], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    packed = {name for name in names if not name.startswith(information)}
    assert packed == {name for name in tracked if name}, packed ^ set(tracked)
    assert f"{information}/licenses/LICENSE" in names
    metadata = zipfile.ZipFile(wheel).read(f"{information}/METADATA").decode()
    wanted = re.findall(r"^Requires-Dist: ([\w-]+)", metadata, flags=re.MULTILINE)
    assert wanted, metadata
    assert not {"matbench", "matminer"} & set(wanted), wanted
    print(f"{wheel.name}: {len(packed)} files of {', '.join(sorted(PACKAGES))}", flush=True)


def check_installed(wheel: Path, python: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="my environment ") as folder:  # spaces, as in many a user's folders
        subprocess.run([python, "-m", "venv", Path(folder) / "venv"], check=True)
        Installation(Path(folder)).check(wheel)
    print(f"{python}: installed and run", flush=True)


class Installation:
    """An environment with the wheel in it, and an empty folder to work in."""

    def __init__(self, folder: Path) -> None:
        self.binaries = folder / "venv" / "bin"
        self.work = folder / "my work"
        self.work.mkdir()
        self.environment: Mapping[str, str | None] = {
            "PATH": f"{self.binaries}{os.pathsep}{os.environ['PATH']}",
            "CRYSTALTUNE_CACHE": str(folder / "cache"),
            "PYTHONPATH": None,  # nothing of this clone
            "VIRTUAL_ENV": None,
            "UV_PROJECT_ENVIRONMENT": None,
        }

    def check(self, wheel: Path) -> None:
        self.shell(f"pip install --quiet '{wheel}'")
        installed = subprocess.run(
            [self.binaries / "python", "-c", "import importlib.metadata as m; print(m.version('crystaltune'))"],
            capture_output=True,
            text=True,
            check=True,
            cwd=self.work,
        ).stdout.strip()
        assert installed in self.screen("--version")
        self.check_face()
        self.screen(*QUICKSTART)
        self.holds("q/report.html", "q/scores.json", "q/predictions.parquet", "q/fold_0/model.safetensors")
        self.screen(*SEARCH)
        self.holds("s/best.yaml", "s/report.html", "s/journal.jsonl", "s/trials.parquet")
        self.screen(*ENSEMBLE)  # on a Ray of its own, whose workers have to find the packages
        self.holds("e/ensemble.json", "e/report.html", "e/student/scores.json", "e/student/fold_0/model.safetensors")
        assert "5 models: 5 finished" in self.screen("status", "e")
        refusal = self.screen("record", "q", code=2, columns=1000)
        assert "synthetic_sample is a synthetic sample, not a Matbench task" in refusal, refusal
        assert len(refusal.splitlines()) == 1, refusal
        left = {path.name for path in self.work.iterdir()}
        assert left == {"q", "s", "e"}, left
        self.check_record()

    def check_face(self) -> None:
        """Every name of the package can be imported from Python."""
        code = "import crystaltune as ct; print(all(getattr(ct, name) for name in ct.__all__))"
        told = subprocess.run(
            [self.binaries / "python", "-c", code], capture_output=True, text=True, check=True, cwd=self.work
        )
        assert told.stdout.strip() == "True", told

    def check_record(self) -> None:
        """A record is made without matbench; the line that it shows installs one that validates it."""
        write_finished_run(self.work / "run")
        path = "run/matbench_v0.1_crystaltune_chgnet/results.json.gz"
        told = self.screen("record", "run", columns=1000)
        self.holds(path)
        assert "checked by crystaltune against the official splits" in told, told
        assert INSTALL_MATBENCH in told, told
        self.shell(INSTALL_MATBENCH)
        assert "validated by matbench 0.6" in self.screen("record", "run", columns=1000)
        self.screen("train", *SMALL, "--folds", "0", "--out", "t")  # with the versions that this line has brought

    def shell(self, command: str) -> None:
        """Run a line in a shell, with this environment's programs first."""
        environment = os.environ | {name: value for name, value in self.environment.items() if value is not None}
        for name in (name for name, value in self.environment.items() if value is None):
            environment.pop(name, None)
        subprocess.run(["bash", "-c", command], check=True, cwd=self.work, env=environment)

    def screen(self, *arguments: str, code: int = 0, columns: int = 80) -> str:
        """Run crystaltune in a terminal and return all that it has shown.

        Raises:
            AssertionError: another exit code than `code`, a traceback, or "error" on the final screen of a success (the
                column "max error" is none).
        """
        with Terminal(
            [str(self.binaries / "crystaltune"), *arguments], columns=columns, env=self.environment, cwd=self.work
        ) as terminal:
            ended, text, last = terminal.wait(timeout=900), terminal.text(), "\n".join(terminal.screen())
        assert ended == code, f"crystaltune {' '.join(arguments)} ended with {ended}:\n{text}"
        assert "Traceback" not in text, text
        assert code or not re.search(r"error:|traceback", last, flags=re.IGNORECASE), last
        return text

    def holds(self, *names: str) -> None:
        missing = [name for name in names if not (self.work / name).is_file()]
        assert not missing, f"{missing} were not written"


if __name__ == "__main__":
    main()
