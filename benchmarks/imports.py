"""CPU time of whole commands, most of which importing is, beside another checkout of this project.

    python benchmarks/imports.py [--against CHECKOUT] [--repeats 5]

Each command runs in a process of its own, those of the two checkouts in turn; the medians of user and system time are
shown with their ratio, and what was imported that takes long. The run that `predict` needs is trained first, on the
synthetic sample, in a temporary folder.
"""

import argparse
import csv
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pymatgen.core import Lattice, Structure

HERE = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torch._dynamo", "pandas", "scipy", "pymatgen", "chgnet", "ase", "matplotlib", "ray", "optuna")
CODE = f"""
import atexit, sys
atexit.register(lambda: print("loaded:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from orchestrator.cli.main import main
sys.argv[0] = "crystaltune"
main()
"""
COMMANDS = {
    "--help": ("--help",),
    "a mistyped key": ("train", "jdft2d", "--set", "optim.lrr=1"),
    "a missing file": ("train", "mine", "--data", "missing.csv"),
    "predict 16 crystals": ("predict", "run", "sixteen.csv"),
}
TRAIN = ("train", "sample", "--limit", "60", "--set", "optim.epochs=1", "--folds", "0", "--out", "run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", type=Path, help="another checkout, measured side by side")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    checkouts = [HERE] + ([options.against.resolve()] if options.against else [])
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_crystals(work / "sixteen.csv")
        run(HERE, TRAIN, work)
        print(f"{'command':24}{'CPU s':>10}{'other s':>10}{'ratio':>8}  loaded here")
        for name, arguments in COMMANDS.items():
            show(name, arguments, checkouts, work, options.repeats)


def show(name: str, arguments: Sequence[str], checkouts: Sequence[Path], work: Path, repeats: int) -> None:
    seconds: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    loaded = ""
    for _ in range(repeats):
        for checkout in checkouts:
            used, told = run(checkout, arguments, work)
            seconds[checkout].append(used)
            loaded = told if checkout == HERE else loaded
    here, *others = (statistics.median(found) for found in seconds.values())
    beside = f"{others[0]:10.2f}{here / others[0]:8.2f}" if others else f"{'':18}"
    print(f"{name:24}{here:10.2f}{beside}  {loaded}", flush=True)


def run(checkout: Path, arguments: Sequence[str], work: Path) -> tuple[float, str]:
    """CPU seconds of a command and its children, and the heavy packages that it had imported at its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(checkout), "CRYSTALTUNE_CACHE": str(work / "cache")}
    told = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    last = told.stderr.strip().splitlines()[-1:] or [""]
    if not last[0].startswith("loaded:"):
        sys.exit(f"{checkout}: crystaltune {' '.join(arguments)} ended with {told.returncode}: {told.stderr[-500:]}")
    return used, last[0].removeprefix("loaded:").strip()


def write_crystals(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.writer(handle)
        table.writerow(["id", "structure"])
        for index in range(16):
            cell = Structure.from_spacegroup(
                "Fm-3m", Lattice.cubic(5.4 + 0.05 * index), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
            )
            table.writerow([f"crystal-{index}", cell.to(fmt="cif")])


if __name__ == "__main__":
    main()
