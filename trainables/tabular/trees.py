"""Forests as arrays: grown by scikit-learn, kept and evaluated as tensors, so that a model's file holds no code."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_ROWS = 4096  # evaluated at once
_ARRAYS = ("root", "feature", "threshold", "left", "right", "value")


class Forest(nn.Module):
    """The mean of regression trees.

    Attributes:
        root: (trees,) first node of each tree.
        feature, threshold, left, right, value: (nodes,); a leaf's children are itself.
    """

    root: Tensor
    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    def __init__(self, grown: Any = None) -> None:
        """Take over a fitted forest of scikit-learn."""
        super().__init__()
        arrays = _arrays_of([each.tree_ for each in grown.estimators_]) if grown is not None else {}
        for name in _ARRAYS:
            self.register_buffer(name, torch.from_numpy(arrays[name]) if arrays else torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        """Return the prediction of each row, (n, features) float32 -> (n,) float64."""
        return torch.cat([self._of(part) for part in x.split(_ROWS)]) if len(x) else x.new_empty(0).double()

    def _of(self, x: Tensor) -> Tensor:
        node = self.root.expand(len(x), len(self.root))
        while True:
            value = torch.gather(x, 1, self.feature[node].long())
            following = torch.where(value.double() <= self.threshold[node], self.left[node], self.right[node])
            if torch.equal(following, node):
                return self.value[node].mean(dim=1)
            node = following

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: Any) -> None:
        """Take any number of nodes."""
        for name in _ARRAYS:
            kept = state_dict.get(prefix + name)
            if kept is not None:
                setattr(self, name, torch.empty_like(kept))
        super()._load_from_state_dict(state_dict, prefix, *others)


def _arrays_of(trees: list[Any]) -> dict[str, np.ndarray]:
    sizes = [tree.node_count for tree in trees]
    root = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
    feature, threshold, left, right, value = [], [], [], [], []
    for tree, start in zip(trees, root, strict=True):
        own = np.arange(start, start + tree.node_count)
        leaf = tree.children_left < 0
        feature.append(np.where(leaf, 0, tree.feature))
        threshold.append(np.where(leaf, np.inf, tree.threshold))
        left.append(np.where(leaf, own, tree.children_left + start))
        right.append(np.where(leaf, own, tree.children_right + start))
        value.append(tree.value[:, 0, 0])
    return {
        "root": root,
        "feature": np.concatenate(feature).astype(np.int32),
        "threshold": np.concatenate(threshold),
        "left": np.concatenate(left),
        "right": np.concatenate(right),
        "value": np.concatenate(value),
    }
