"""From the predictions of a fold's members to one prediction a row."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.evaluation.ensemble import OutOfFold, choose_weights, combine, disagreement
from orchestrator.evaluation.predictions import Predictions
from orchestrator.execution.job import predictions_file
from orchestrator.execution.scheduler import ModelGraph
from orchestrator.inputs.recipe import FoldRecipe
from trainables.levers import Combine


@dataclass(frozen=True, eq=False)
class Combined:
    """One fold's predictions.

    Attributes:
        table: id, prediction, std, fallback; std is over the members, or over the views of a single member.
        members: (m, n) each member's predictions, in the table's order.
        weights: (m,) of the members; None for a median or a single member.
    """

    table: pd.DataFrame
    members: NDArray[np.float64]
    weights: NDArray[np.float64] | None


def combined(graph: ModelGraph, recipe: FoldRecipe) -> Combined:
    """Combine the test predictions of a recipe whose members are finished.

    Weights are chosen on the inner validation rows, which the members share and none was trained on.
    """
    found = [Predictions.read(predictions_file(graph.folder_of(member), recipe.views)) for member in recipe.members]
    test = [predictions.of("test") for predictions in found]
    members = np.stack([predictions.prediction for predictions in test])
    if len(test) == 1:
        return Combined(test[0].table(), members, None)
    method, weights = method_of(recipe), None
    if method != "median":
        weights = choose_weights(method, _out_of_fold(graph, recipe, found), seed=recipe.config.seed)
    together = replace(
        test[0],
        prediction=combine(method, members, weights),
        std=disagreement(members),
        fallback=np.any([predictions.fallback for predictions in test], axis=0),
    )
    return Combined(together.table(), members, weights)


def method_of(recipe: FoldRecipe) -> Combine:
    """Return how members' predictions become one; a soup is a single member by then."""
    method = recipe.config.ensemble.combine
    return "mean" if method == "soup" else method


def _out_of_fold(graph: ModelGraph, recipe: FoldRecipe, found: list[Predictions]) -> OutOfFold:
    """Return the members' predictions of their shared validation rows.

    Of students these are rows that some of their teachers were trained on: their weights are a little optimistic.
    Rows that only some members predict from their composition (their cutoffs differ) are left out: the composition's
    model was fitted to them, and would flatter those members.
    """
    split, _ = graph.context.split(recipe.members[0])
    known = [predictions.of("val").for_ids(split.val.ids) for predictions in found]
    formulas = graph.context.dataset.structures.reduced_formulas
    group = [formulas[row] for row in split.val.rows]
    rows = OutOfFold(np.stack([each.prediction for each in known]), split.val.targets, group)
    n_fallback = np.sum([each.fallback for each in known], axis=0)  # (n,)
    return rows.keep(np.isin(n_fallback, (0, len(known))))
