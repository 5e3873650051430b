"""Stock CHGNet's graph conversion against crystaltune's, interleaved (sixteen crystals each in turn) in one process.

    uv run python benchmarks/conversion.py [--data FILE] [--limit N] [--json OUT]

FILE is a Matbench table (json.gz); without it the embedded synthetic sample is used. Every crystal's graph is
compared: bonds in order and the set of angles. Prints the median ratio of times by number of sites.
"""

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from chgnet.graph import CrystalGraphConverter
from common import SIZES, arguments, read_crystals, save

from trainables.crystals import CrystalTable
from trainables.graphs.convert import Cutoffs, Graph, convert

BLOCK = 16  # crystals that one converter takes before the other does: each meets warm caches, as in real use


def main() -> None:
    torch.set_num_threads(1)
    parser = arguments(__doc__, limit=300)
    args = parser.parse_args()
    results = measure(read_crystals(args))
    for row in results["by_size"]:
        print(
            "{sites:>8} sites: {crystals:4d} crystals, {stock_ms:7.2f} ms -> {ours_ms:6.3f} ms, {ratio:5.1f}x".format(
                **row
            )
        )
    print(f"median ratio {results['conversion_ratio']:.1f}, at 20 and more sites {results['ratio_20_sites']:.1f}; "
          f"{results['different_graphs']} graphs differ")  # fmt: skip
    save(results, args.json)


def measure(crystals: CrystalTable) -> dict[str, Any]:
    converter, cutoffs = CrystalGraphConverter(on_isolated_atoms="ignore"), Cutoffs()
    times, sites, different = [], [], 0
    for begin in range(0, len(crystals), BLOCK):
        block = crystals[begin : begin + BLOCK]
        structures = [crystal.to_structure() for crystal in block]
        stock = [timed(converter, structure) for structure in structures]
        ours = [timed(convert, crystal, cutoffs) for crystal in block]
        times += [(theirs[1], mine[1]) for theirs, mine in zip(stock, ours, strict=True)]
        sites += [len(crystal.numbers) for crystal in block]
        different += sum(not same_graph(theirs[0], mine[0]) for theirs, mine in zip(stock, ours, strict=True))
    seconds, n_sites = np.array(times), np.array(sites)
    ratio = seconds[:, 0] / seconds[:, 1]
    by_size = []
    for low, high in SIZES:
        chosen = (n_sites >= low) & (n_sites <= high)
        if chosen.any():
            stock_ms, ours_ms = np.median(seconds[chosen], axis=0) * 1e3
            name = f"{low}-{high}" if high < 1000 else f"{low}+"
            by_size.append({"sites": name, "crystals": int(chosen.sum()), "stock_ms": float(stock_ms),
                            "ours_ms": float(ours_ms), "ratio": float(np.median(ratio[chosen]))})  # fmt: skip
    large = ratio[n_sites >= 20]
    return {
        "machine": f"{platform.processor() or platform.machine()}, 1 thread",
        "conversion_ratio": float(np.median(ratio)),
        "ratio_20_sites": float(np.median(large)) if len(large) else float("nan"),
        "different_graphs": different,
        "by_size": by_size,
    }


def timed(function: Callable[..., Any], *arguments: object) -> tuple[Any, float]:
    begin = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - begin


def same_graph(stock: object, ours: Graph) -> bool:
    """The same directed bonds in the same order, and the same set of angles."""
    bond, end = ours.directed >> 1, ours.directed & 1
    atoms = np.where(end[:, None] == 0, ours.bond_atoms[bond], ours.bond_atoms[bond][:, ::-1])
    image = np.where(end[:, None] == 0, ours.bond_image[bond], -ours.bond_image[bond])
    place = np.empty(len(ours.directed), dtype=np.int64)
    place[ours.directed] = np.arange(len(ours.directed))
    halves = 2 * ours.short_bond[ours.angle_halves >> 1] + (ours.angle_halves & 1)
    angles = {tuple(pair) for pair in place[halves].tolist()}
    stock_angles = stock.bond_graph.numpy().reshape(-1, 5)[:, [2, 4]].tolist()  # type: ignore[attr-defined]
    return (
        np.array_equal(atoms, stock.atom_graph.numpy().reshape(-1, 2))  # type: ignore[attr-defined]
        and np.array_equal(image, stock.neighbor_image.numpy().reshape(-1, 3))  # type: ignore[attr-defined]
        and np.array_equal(bond, stock.directed2undirected.numpy())  # type: ignore[attr-defined]
        and len(stock_angles) == len(angles)
        and angles == {tuple(pair) for pair in stock_angles}
    )


if __name__ == "__main__":
    main()
