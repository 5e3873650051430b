"""Crystals made here, and real ones where the shared data lies."""

import gzip
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: on shared cores two threads mostly wait for each other

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation
from xdist.scheduler import LoadScopeScheduling

from orchestrator.execution import pool as workers

torch.set_num_threads(1)  # tiny crystals: threads would only wait for each other

REPOSITORY = Path(__file__).resolve().parents[1]
# Begun first, the longest first, so that no core waits for one of them at the end.
_LONGEST = (
    "test_cluster_faults.py",  # most of whose time is waiting
    "test_screens.py",
    "test_cluster.py",
    "test_readme.py",
    "test_search.py",
    "test_study_on_ray.py",
    "test_old_folders.py",
    "test_tune_run.py",
    "test_train.py",
    "test_colab.py",
)


_ON_ONE_RAY = ("test_search.py", "test_study_on_ray.py", "test_old_folders.py")  # in one worker, with one Ray


@pytest.hookimpl(optionalhook=True, tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One worker more than there are cores: tests of clusters and terminals mostly wait, and leave theirs to others."""
    return (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1) + 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Send a module to one worker whole, as its fixtures train models, and those that want a Ray to the same one."""
    return _ByModule(config, log)


class _ByModule(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.split("::")[0]
        return "ray" if module.rpartition("/")[2] in _ON_ONE_RAY else module


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    items.sort(key=_turn)
    for item in items:  # what else the quick tier leaves out; its -m takes the place of that of pyproject
        if item.get_closest_marker("slow") or item.get_closest_marker("long") or "shared_data" in item.fixturenames:
            item.add_marker(pytest.mark.trains)


def _turn(item: pytest.Function) -> int:
    """Where a test's module stands: the longest, then all others that train."""
    if item.path.name in _LONGEST:
        return _LONGEST.index(item.path.name)
    return len(_LONGEST) + (item.get_closest_marker("trains") is None)


@pytest.fixture(scope="session", autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One cache for all tests of all workers, new with every run: graphs and the sample are made once.

    Both are found by their content. Tests of the cache itself, or of what fills it, set another.
    """
    root = tmp_path_factory.getbasetemp()
    cache = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "cache"  # a root a worker, under one
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CRYSTALTUNE_CACHE", str(cache))
        yield cache


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Jobs in a test's own process get one thread: with one a core, each xdist worker would want the whole machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(workers, "n_cores", lambda: 1)
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_disk() -> Iterator[None]:
    """Nothing waits for the disk: what tests write has to outlive killed processes, not the machine."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        yield


_local_ray = ExitStack()


@pytest.fixture(scope="module")
def local_ray() -> None:
    """One Ray for all modules that want one, as starting it takes seconds; trials find tests/support."""
    import ray

    from orchestrator.ray_session import ray_session

    if not ray.is_initialized():
        support = REPOSITORY / "tests" / "support"
        patched = _local_ray.enter_context(pytest.MonkeyPatch.context())
        patched.setenv("PYTHONPATH", os.pathsep.join([str(support), str(REPOSITORY)]))
        _local_ray.enter_context(ray_session(cores=2))


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End that Ray after the last of these modules: other tests are told of a process without one."""
    if item.path.name in _ON_ONE_RAY and (nextitem is None or nextitem.path.name not in _ON_ONE_RAY):
        _local_ray.close()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real Matbench data; tests that want it are skipped where it is not."""
    folder = Path(os.environ.get("CRYSTALTUNE_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
    if not (folder / "matbench_targets").is_dir():
        pytest.skip("needs the shared Matbench data: set CRYSTALTUNE_SHARED_DATA to its folder")
    return folder


def _structures(path: Path, rows: slice) -> list[Structure]:
    content = json.loads(gzip.decompress(path.read_bytes()))
    place = content["columns"].index("structure")
    return [Structure.from_dict(row[place]) for row in content["data"][rows]]


@pytest.fixture(scope="session")
def real_bulk(shared_data: Path) -> list[Structure]:
    """63 real crystals of matbench_mp_e_form, spread over the part that is here."""
    return _structures(shared_data / "matbench_partial" / "matbench_mp_e_form_partial.json.gz", slice(None, None, 14))


@pytest.fixture(scope="session")
def real_layers(shared_data: Path) -> list[Structure]:
    """Ten real 2D materials of matbench_jdft2d."""
    return _structures(shared_data / "matbench_full" / "matbench_jdft2d.json.gz", slice(None, None, 64))


def random_crystal(seed: int, n_atoms: int, nearest_angstrom: float = 1.7) -> Structure:
    """A crystal without any symmetry."""
    rng = np.random.default_rng(seed)
    structure = Structure(Lattice.from_parameters(*rng.uniform(4.5, 7, 3), *rng.uniform(70, 110, 3)), [], [])
    while len(structure) < n_atoms:
        place = rng.random(3)
        taken = [structure.lattice.get_distance_and_image(place, site.frac_coords)[0] for site in structure]
        if min(taken, default=np.inf) > nearest_angstrom:
            structure.append(str(rng.choice(["Li", "O", "Si", "Fe", "S", "La", "Pu"])), place)
    return structure


def rotated(structure: Structure, seed: int) -> Structure:
    """The same crystal in another orientation."""
    matrix = Rotation.random(rng=np.random.default_rng(seed)).as_matrix()
    return Structure(Lattice(structure.lattice.matrix @ matrix.T), structure.species, structure.frac_coords)


def _made() -> dict[str, Structure]:
    cubic, hexagonal = Lattice.cubic, Lattice.hexagonal
    perovskite = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    layer = [[1 / 3, 2 / 3, 0.5], [2 / 3, 1 / 3, 0.5 + 1.56 / 25], [2 / 3, 1 / 3, 0.5 - 1.56 / 25]]
    far_out = random_crystal(3, 6)
    face_centred = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    rocksalt = np.concatenate([face_centred, face_centred + 0.5])
    exact_rocksalt = Structure(cubic(6.0), ["Ca"] * 4 + ["S"] * 4, rocksalt)
    return {
        "rocksalt": Structure(cubic(5.64), ["Na"] * 4 + ["Cl"] * 4, rocksalt),
        "perovskite": Structure(cubic(3.905), ["Sr", "Ti", "O", "O", "O"], perovskite),
        "hcp": Structure(hexagonal(3.21, 5.21), ["Mg", "Mg"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]]),
        "one atom, fcc": Structure([[0, 1.805, 1.805], [1.805, 0, 1.805], [1.805, 1.805, 0]], ["Cu"], [[0, 0, 0]]),
        "one atom, bcc": Structure([[-1.58, 1.58, 1.58], [1.58, -1.58, 1.58], [1.58, 1.58, -1.58]], ["W"], [[0] * 3]),
        # bonds of exactly 3 A (the angles' cutoff) and of exactly 6 A (the bonds' cutoff)
        "exactly 3 A, one atom": Structure(cubic(3.0), ["Po"], [[0, 0, 0]]),
        "exactly 3 A, rocksalt": exact_rocksalt,
        "exactly 3 A, turned": rotated(exact_rocksalt, 5),
        "triclinic": random_crystal(1, 7),
        "triclinic, dense": random_crystal(2, 9, nearest_angstrom=1.3),
        "outside the cell": Structure(far_out.lattice, far_out.species, far_out.frac_coords + np.array([2, -3, 1])),
        "layer in vacuum": Structure(hexagonal(3.18, 25.0), ["Mo", "S", "S"], layer),
        "bonds but no angles": Structure([[0, 2.65, 2.65], [2.65, 0, 2.65], [2.65, 2.65, 0]], ["Xe"], [[0, 0, 0]]),
        "one isolated atom": Structure(cubic(20.0), ["O", "O", "Kr"], [[0, 0, 0], [0.06, 0, 0], [0.5, 0.5, 0.5]]),
        "no bonds at all": Structure(cubic(15.0), ["Kr"], [[0.2, 0.3, 0.4]]),
    }


@pytest.fixture(scope="session")
def made() -> dict[str, Structure]:
    """Small crystals by name, from a single atom in a box to low symmetry."""
    return _made()


@pytest.fixture
def cells(made: dict[str, Structure]) -> list[Structure]:
    return [made[name] for name in ("rocksalt", "perovskite", "hcp", "triclinic", "outside the cell")]
