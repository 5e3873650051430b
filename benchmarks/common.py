"""What every benchmark takes and gives: a table of crystals, and results as JSON."""

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainables.crystals import CrystalTable
from trainables.data.dataset import read_matbench
from trainables.data.tasks import find_task
from trainables.sample import load_sample

SIZES = ((1, 9), (10, 19), (20, 39), (40, 79), (80, 10_000))  # sites


def arguments(description: str | None, *, limit: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    warnings.filterwarnings("ignore")
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Matbench table (json.gz)")
    parser.add_argument("--task", default="mp_e_form", help="the task of FILE; labels are not used")
    parser.add_argument("--limit", type=int, default=limit)
    parser.add_argument("--json", type=Path)
    return parser


def read_crystals(args: argparse.Namespace) -> CrystalTable:
    """The crystals of --data, or of the embedded synthetic sample."""
    dataset = read_matbench(args.data, find_task(args.task)) if args.data else load_sample()
    return dataset.limit(args.limit).structures


def save(results: dict[str, Any], path: Path | None) -> None:
    if path:
        path.write_text(json.dumps(results, indent=2) + "\n")


def whole_batches(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """The rows in a seeded random order, in batches of one size; what is left over is left out."""
    order = np.random.default_rng(0).permutation(rows)
    return [order[begin : begin + size] for begin in range(0, len(order) - size + 1, size)]
