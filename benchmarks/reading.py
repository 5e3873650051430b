"""How fast structures are read: a folder of POSCARs of 20 sites, the same as one extxyz file, and CIFs.

python benchmarks/reading.py [--files 10000 --cifs 500]
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.io import write
from pymatgen.core import Lattice, Structure

from trainables.data.tasks import custom_task
from trainables.data.to_predict import read_structures

TASK = custom_task("mine", "y", "", "property")
SITES = 20


def crystal(number: int) -> Structure:
    """Return a cell of 20 sites on a grid, shaken."""
    rng = np.random.default_rng(number)
    grid = np.array([[i, j, k] for i in range(3) for j in range(3) for k in range(3)])[:SITES] / 3
    lattice = Lattice(np.diag(rng.uniform(8, 10, 3)) + rng.normal(0, 0.1, (3, 3)))
    return Structure(lattice, ["Na", "Cl"] * (SITES // 2), grid + rng.normal(0, 0.01, (SITES, 3)))


def atoms_of(cell: Structure) -> Atoms:
    """Return ASE's atoms of a cell."""
    symbols = [site.specie.symbol for site in cell]
    return Atoms(symbols, scaled_positions=cell.frac_coords, cell=cell.lattice.matrix, pbc=True)


def timed(name: str, n: int, read: Callable[[], int]) -> None:
    """Print how long it takes, as one line of JSON."""
    start = time.perf_counter()
    found = read()
    seconds = time.perf_counter() - start
    assert found == n, (found, n)
    print(json.dumps({"what": name, "crystals": n, "seconds": seconds, "per_s": n / seconds}), flush=True)


def main() -> None:
    """Write the files, and read them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--cifs", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("poscar", "cif"):
            (folder / name).mkdir()
        frames = []
        for number in range(options.files):
            cell = crystal(number)
            frames.append(atoms_of(cell))
            (folder / "poscar" / f"POSCAR-{number}").write_text(cell.to(fmt="poscar"))
            if number < options.cifs:
                (folder / "cif" / f"{number}.cif").write_text(cell.to(fmt="cif"))
        write(folder / "all.extxyz", frames)
        timed("folder of POSCARs", options.files, lambda: len(read_structures(folder / "poscar", TASK).dataset))
        timed("extxyz", options.files, lambda: len(read_structures(folder / "all.extxyz", TASK).dataset))
        timed("folder of CIFs", options.cifs, lambda: len(read_structures(folder / "cif", TASK).dataset))


if __name__ == "__main__":
    main()
