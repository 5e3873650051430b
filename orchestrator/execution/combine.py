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
        table: id, prediction, std, fallback; std is over the models, or over the views of a single one.
        members: (m, n) each member's predictions, in the table's order.
        weights: (m,) of the members; None for a median or a single member.
    """

    table: pd.DataFrame
    members: NDArray[np.float64]
    weights: NDArray[np.float64] | None


def combined(graph: ModelGraph, recipe: FoldRecipe) -> Combined:
    """Combine the test predictions of a recipe whose models are finished.

    Weights are chosen on rows that no model which predicts them was trained on: the inner validation rows, which the
    members share, or in parts all rows of the training fold.
    """
    found = [Predictions.read(predictions_file(graph.folder_of(model), recipe.views)) for model in recipe.models]
    test = [predictions.of("test") for predictions in found]
    models = np.stack([predictions.prediction for predictions in test])
    members = members_of(models, recipe.per_member)
    if len(test) == 1:
        return Combined(test[0].table(), members, None)
    method, weights = method_of(recipe), None
    if method != "median" and len(members) > 1:
        weights = choose_weights(method, _out_of_fold(graph, recipe, found), seed=recipe.config.seed)
    together = replace(
        test[0],
        prediction=together_of(method, models, recipe.per_member, weights),
        std=disagreement(models),
        fallback=np.any([predictions.fallback for predictions in test], axis=0),
    )
    return Combined(together.table(), members, weights)


def members_of(models: NDArray[np.float64], per_member: int) -> NDArray[np.float64]:
    """Return the predictions of members, (m, n), from those of their models, (m * per_member, n): their means."""
    return np.asarray(models.reshape(len(models) // per_member, per_member, models.shape[1]).mean(axis=1))


def together_of(
    method: Combine, models: NDArray[np.float64], per_member: int, weights: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Return one prediction a row, (n,), from those of all models, (m * per_member, n).

    Args:
        weights: (m,) of the members; None for a median or a single member.
    """
    members = members_of(models, per_member)
    return members[0] if len(members) == 1 else combine(method, members, weights)


def method_of(recipe: FoldRecipe) -> Combine:
    """Return how members' predictions become one; a soup is a single member by then."""
    method = recipe.config.ensemble.combine
    return "mean" if method == "soup" else method


def _out_of_fold(graph: ModelGraph, recipe: FoldRecipe, found: list[Predictions]) -> OutOfFold:
    """Return the members' predictions of rows that the predicting models were not trained on, the same for all members.

    They have chosen the epoch of those models, though, which flatters members that are trained in epochs a little; and
    of students they are rows that some of their teachers were trained on.
    Rows that only some members predict from their composition (their cutoffs differ) are left out: the composition's
    model was fitted to them, and would flatter those members.
    """
    formulas, n = graph.context.dataset.structures.reduced_formulas, recipe.per_member
    parts = [graph.context.split(spec)[0].val for spec in recipe.models[:n]]
    ids, targets = tuple(row_id for part in parts for row_id in part.ids), [part.targets for part in parts]
    known = [_joined(found[start : start + n], ids) for start in range(0, len(found), n)]
    group = [formulas[row] for part in parts for row in part.rows]
    rows = OutOfFold(np.stack([each.prediction for each in known]), np.concatenate(targets), group)
    n_fallback = np.sum([each.fallback for each in known], axis=0)  # (n,)
    return rows.keep(np.isin(n_fallback, (0, len(known))))


def _joined(models: list[Predictions], ids: tuple[str, ...]) -> Predictions:
    """Return what a member's models say of the rows that each is validated on."""
    return Predictions.join([predictions.of("val") for predictions in models]).for_ids(ids)
