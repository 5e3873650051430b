"""What a model is trained on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainables.config import RunConfig
from trainables.data.folds import FoldSplit, Part
from trainables.data.tasks import Task
from trainables.errors import UserError
from trainables.graphs.store import GraphStore
from trainables.training.distill import SoftTargets
from trainables.training.joint import Auxiliary
from trainables.training.predict import with_graph


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Rows of a fold with their graphs, and what levers need beside them.

    Attributes:
        split: without test rows (FoldSplit.without_test()).
        store: graphs of all rows of the dataset.
        skinned: the same crystals with the skin of augment.skin_for(config), where config.augment is active.
        soft_targets: teachers' labels of every training row (for a refit of validation rows too), where
            config.distil.weight > 0.
        auxiliary: the tasks of config.multitask, in its order, without rows that are test crystals.

    Raises:
        ValueError: the split holds test rows.
    """

    task: Task
    split: FoldSplit
    store: GraphStore
    skinned: GraphStore | None = None
    soft_targets: SoftTargets | None = None
    auxiliary: Sequence[Auxiliary] = ()

    def __post_init__(self) -> None:
        if self.split.test is not None:
            raise ValueError("training takes a split without its test rows: split.without_test()")

    def require_for(self, config: RunConfig) -> None:
        """Require everything that the levers of a configuration need.

        Raises:
            ValueError: something is missing.
        """
        if config.augment.active and self.skinned is None:
            raise ValueError("augmentation needs skinned=, the crystals with the skin of augment.skin_for(config)")
        if config.distil.weight > 0:
            if self.soft_targets is None:
                raise ValueError("distillation needs the teachers' labels: soft_targets=")
            if config.distil.features > 0 and self.soft_targets.features is None:
                raise ValueError("distil.features > 0 needs soft targets with the teachers' features")
        if [other.task.name for other in self.auxiliary] != list(config.multitask.tasks):
            raise ValueError(f"auxiliary= must hold the tasks of config.multitask ({config.multitask.tasks}), in order")

    def usable_parts(self, config: RunConfig) -> tuple[Part, Part]:
        """Return the training and validation rows with a graph, and with one to perturb where that is needed.

        Raises:
            UserError: there are none.
        """
        usable = with_graph(self.store, np.arange(len(self.store)), config)
        if self.skinned is not None and config.augment.active:
            usable &= ~self.skinned.failed
        parts = [part.keep(usable[part.rows]) for part in (self.split.train, self.split.val)]
        for role, part in zip(("training", "validation"), parts, strict=True):
            if len(part) == 0:
                raise UserError(
                    f"fold {self.split.fold} of {self.task.name} has no {role} rows with a graph; provide more rows, "
                    "or set data.isolated_atoms=keep if their atoms are merely far apart"
                )
        return parts[0], parts[1]
