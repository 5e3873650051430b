"""How much folding equal atoms, bonds and angles saves, by number of sites and by crystal system.

    uv run python benchmarks/folding.py [--data FILE] [--task mp_e_form] [--limit N] [--json OUT]

FILE is a Matbench table (json.gz); without it the embedded synthetic sample is used. Also computes every crystal's
energy on both graphs and gives the largest difference.
"""

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import SIZES, arguments, read_crystals, save
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from trainables.crystals import Crystal
from trainables.data.tasks import TASKS
from trainables.graphs.batch import collate, prediction_batches
from trainables.graphs.convert import Cutoffs, convert
from trainables.graphs.quotient import fold
from trainables.graphs.store import COUNTED, GraphStore, open_or_build
from trainables.graphs.view import full_view
from trainables.model.chgnet import build_model

SYMPREC = 0.1  # A, Matbench's own
PAIRS = {"atoms": ("atom", "fold_atom"), "angles": ("angle", "fold_angle"), "bonds": ("bond", "fold_edge")}


def main() -> None:
    parser = arguments(__doc__, limit=1000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    crystals = read_crystals(args)
    with tempfile.TemporaryDirectory() as folder:
        store = open_or_build(crystals, Cutoffs(), Path(folder))
        systems = np.array([crystal_system(crystal) for crystal in crystals])
        n_atoms = crystals.n_atoms
        groups = {"all": np.ones(len(crystals), dtype=bool)}
        groups |= {f"{low}-{high} sites": (n_atoms >= low) & (n_atoms <= high) for low, high in SIZES}
        groups |= {system: systems == system for system in sorted(set(systems))}
        results: dict[str, Any] = {"crystals": len(crystals)}
        results["groups"] = {name: compression(store, chosen) for name, chosen in groups.items() if chosen.any()}
        results["max_energy_difference_ev_per_atom"] = largest_difference(store)
    results["fold_ms"], results["convert_ms"] = build_times(crystals[:200])
    show(results)
    save(results, args.json)


def crystal_system(crystal: Crystal) -> str:
    try:
        return str(SpacegroupAnalyzer(crystal.to_structure(), symprec=SYMPREC).get_crystal_system())
    except Exception:  # spglib finds no group for a few distorted cells
        return "unknown"


def compression(store: GraphStore, chosen: np.ndarray) -> dict[str, float]:
    """Mean rows a crystal, before and after, and the ratio of training costs."""
    mean = store.counts[chosen].mean(axis=0)
    row: dict[str, float] = {"crystals": int(chosen.sum())}
    for name, (full, folded) in PAIRS.items():
        before = mean[COUNTED.index(full)] * (2 if name == "bonds" else 1)  # directed
        row |= {f"{name}_full": float(before), f"{name}_folded": float(mean[COUNTED.index(folded)])}
    return row | {"cost_ratio": float(store.full_cost[chosen].sum() / store.cost[chosen].sum())}


def largest_difference(store: GraphStore) -> float:
    model, largest = build_model("0.3.0", TASKS["matbench_mp_e_form"]), 0.0
    with torch.inference_mode():
        for rows in prediction_batches(store.full_cost, 50_000.0):
            difference = model(collate(store, rows)) - model(full_view(store, rows).batch())
            largest = max(largest, float(difference.abs().max()))
    return largest


def build_times(crystals: Any) -> tuple[float, float]:
    """Median milliseconds of folding and of converting one crystal."""
    seconds = []
    for crystal in crystals:
        begin = time.perf_counter()
        graph = convert(crystal, Cutoffs())
        middle = time.perf_counter()
        fold(crystal, graph)
        seconds.append((time.perf_counter() - middle, middle - begin))
    folding, converting = np.median(seconds, axis=0) * 1e3
    return float(folding), float(converting)


def show(results: dict[str, Any]) -> None:
    print("| crystals | number | atoms | directed bonds | angles | cost ratio |\n|---|---|---|---|---|---|")
    for name, row in results["groups"].items():
        cells = [f"{row[f'{kind}_full']:.0f} -> {row[f'{kind}_folded']:.0f}" for kind in ("atoms", "bonds", "angles")]
        print(f"| {name} | {row['crystals']} | {' | '.join(cells)} | {row['cost_ratio']:.1f} |")
    print(
        f"largest energy difference {results['max_energy_difference_ev_per_atom']:.1e} eV/atom; "
        f"convert {results['convert_ms']:.2f} ms, fold {results['fold_ms']:.2f} ms a crystal (medians)"
    )


if __name__ == "__main__":
    main()
