"""Parts of a batch over CPU threads.

Several threads that each compute whole parts, with one OpenMP thread inside, beat the same number of OpenMP threads
inside every operation: nothing waits at the end of each operation, which on a shared machine costs far more than it
gains. Results are summed in the order of the parts, so they don't depend on the number of threads.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

Map = Callable[..., Iterator[Any]]  # as the built-in map


@contextmanager
def parts_mapper(device: torch.device) -> Iterator[Map]:
    """Yield a `map` whose calls run on torch.get_num_threads() threads on a CPU, one after the other elsewhere."""
    if device.type != "cpu":
        yield map
        return
    with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map
