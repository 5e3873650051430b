"""Tables of crystals beside their graphs: computed once a machine, for all models that learn from them."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from trainables.files import write_array
from trainables.graphs.store import GraphStore
from trainables.tabular.model import TabularModel
from trainables.versions import FEATURES_VERSION

Table = NDArray[np.float32]
_in_memory: dict[Path, Table] = {}  # what could not be written


def crystal_table(
    model: TabularModel, store: GraphStore, compute: Callable[[GraphStore, NDArray[np.int64]], NDArray[np.float64]]
) -> Table:
    """Return the features of all crystals of a store, (n, width); NaN where there is no graph.

    They are kept in the store's folder, so that every model of every fold reads what the first one computed; processes
    that ask at once wait for it. Where the folder
    cannot be written, each process keeps them for itself.

    Args:
        compute: returns the features of some crystals of a store.
    """
    kind = f"{model.start}{'-phonons' * model.features.phonons}"
    name = f"features-{kind}-chgnet{version('chgnet')}-{FEATURES_VERSION}.npy"
    file, shape = store.folder / name, (len(store), len(model.features.names))
    found = _read(file, shape)
    if found is not None:
        return found
    with ExitStack() as held:
        with suppress(OSError):  # a cache that somebody else keeps may be read-only
            held.enter_context(FileLock(file.with_suffix(".lock")))
        found = _read(file, shape)
        if found is None:
            values = compute(store, np.arange(len(store)))  # of one dimension where no crystal has a graph
            found = values.astype(np.float32) if values.ndim > 1 else np.full(shape, np.nan, dtype=np.float32)
            try:
                write_array(file, found)
            except OSError:
                _in_memory[file] = found
    return found


def _read(file: Path, shape: tuple[int, int]) -> Table | None:
    """Return a table that is kept; None where there is none, or it is not whole."""
    try:
        found = _in_memory[file] if file in _in_memory else np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return found if found.shape == shape and found.dtype == np.float32 else None
