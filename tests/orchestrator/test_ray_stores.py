"""Graph stores that a node does not see are copied to it, once."""

import threading
from pathlib import Path

import numpy as np
import pytest
from small_data import tiny_dataset

from orchestrator.execution.ray_stores import StoreKeeper, found_or_copied
from trainables.errors import UserError
from trainables.graphs.convert import Cutoffs
from trainables.graphs.store import GraphStore, open_or_build


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("driver")
    return open_or_build(tiny_dataset(8).structures, Cutoffs(), root, workers=1).folder


class Far:
    """The keeper of a driver whose folders are not seen here."""

    def __init__(self, store: Path) -> None:
        self._store, self._keeper = store, StoreKeeper()
        self.asked = Path("/elsewhere") / store.name
        self.listed = 0

    def files(self, folder: Path) -> dict[str, int]:
        assert folder == self.asked
        self.listed += 1
        return self._keeper.files(self._store)

    def read(self, file: Path, offset: int) -> bytes:
        return self._keeper.read(self._store / file.name, offset)


def test_a_store_that_is_seen_is_used_where_it_lies(store: Path, tmp_path: Path) -> None:
    far = Far(store)
    assert found_or_copied(store, far.files, far.read, tmp_path) == store
    assert far.listed == 0


def test_all_workers_of_a_node_wait_for_one_copy_which_is_whole(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.execution.ray_stores._PART_BYTES", 1000)  # several parts a file
    far, found = Far(store), list[Path]()
    threads = [
        threading.Thread(target=lambda: found.append(found_or_copied(far.asked, far.files, far.read, tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [tmp_path / store.name] * 4
    assert far.listed == 1
    here, there = GraphStore(found[0]), GraphStore(store)
    assert all(np.array_equal(here.arrays[name], there.arrays[name]) for name in there.arrays)
    assert sorted(path.name for path in tmp_path.iterdir()) == [store.name, f"{store.name}.lock"]


def test_a_copy_that_was_cut_off_is_made_again(store: Path, tmp_path: Path) -> None:
    far = Far(store)

    def cut(file: Path, offset: int) -> bytes:
        raise OSError(5, "the network is gone")

    with pytest.raises(UserError, match=r"graphs cannot be copied to .*: free space there, or set CRYSTALTUNE_CACHE"):
        found_or_copied(far.asked, far.files, cut, tmp_path)
    assert not (tmp_path / store.name).exists()
    assert found_or_copied(far.asked, far.files, far.read, tmp_path) == tmp_path / store.name
