"""How much is computed at once."""

from collections.abc import Callable
from typing import TypeVar

import torch

from trainables.errors import UserError
from trainables.progress import Progress, silent

# In units of GraphStore.cost. Gradients: on a CPU what its caches like, on a GPU some 10 GB of activations.
GRADIENT_COST = {"cpu": 6_000.0, "cuda": 600_000.0}
PREDICTION_COST = {"cpu": 30_000.0, "cuda": 1_000_000.0}  # 0.1 GB and 3 GB

Result = TypeVar("Result")


class BatchBudget:
    """The cost taken at once. Where memory runs out it is halved, once, and the work done again.

    Attributes:
        halved: that has happened.
    """

    def __init__(self, cost: float, progress: Progress = silent) -> None:
        self.cost = cost
        self._progress, self.halved = progress, False

    def fits(self, work: Callable[[float], Result]) -> Result:
        """work(cost), with half the cost where that runs out of memory.

        Raises:
            UserError: memory ran out a second time.
        """
        while True:
            try:
                return work(self.cost)
            except torch.OutOfMemoryError:
                if self.halved:
                    raise UserError(
                        "the GPU ran out of memory even with half a batch: other programs may be using it, or a "
                        "crystal is too large for it; free memory, or use `device=cpu`"
                    ) from None
            # Outside the except clause, whose traceback holds on to the tensors that did not fit.
            self.halved, self.cost = True, self.cost / 2
            torch.cuda.empty_cache()
            self._progress.message("the GPU ran out of memory: continuing with half as much at once")
