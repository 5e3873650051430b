"""Tables of crystals beside their graphs: computed once a machine, for all models that learn from them."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from trainables.files import write_array
from trainables.graphs.store import GraphStore
from trainables.tabular.model import TabularModel
from trainables.versions import FEATURES_VERSION

Table = NDArray[np.float32]


def crystal_table(
    model: TabularModel, store: GraphStore, compute: Callable[[GraphStore, NDArray[np.int64]], NDArray[np.float64]]
) -> Table:
    """Return the features of all crystals of a store, (n, width); NaN where there is no graph.

    They are kept in the store's folder, so that every model of every fold reads what the first one computed; processes
    that ask at once wait for it. A folder that cannot be written does without.

    Args:
        compute: returns the features of some crystals of a store.
    """
    name = f"features-{model.start}{'-phonons' * model.features.phonons}-{FEATURES_VERSION}.npy"
    file, shape = store.folder / name, (len(store), len(model.features.names))
    found = _read(file, shape)
    if found is not None:
        return found
    with ExitStack() as held:
        with suppress(OSError):  # a cache that somebody else keeps may be read-only
            held.enter_context(FileLock(file.with_suffix(".lock")))
        found = _read(file, shape)
        if found is None:
            found = compute(store, np.arange(len(store))).reshape(shape).astype(np.float32)
            with suppress(OSError):
                write_array(file, found)
    return found


def _read(file: Path, shape: tuple[int, int]) -> Table | None:
    """Return a table that is kept; None where there is none, or it is not whole."""
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None
