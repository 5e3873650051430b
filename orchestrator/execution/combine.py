"""From the predictions of a fold's members to one prediction a row."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.evaluation.ensemble import OutOfFold, choose_weights, combine, disagreement
from orchestrator.execution.job import predictions_file
from orchestrator.execution.scheduler import ModelGraph
from orchestrator.inputs.recipe import FoldRecipe
from trainables.levers import Combine, TtaConfig


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
    tables = [read_predictions(graph.folder_of(member), recipe.views) for member in recipe.members]
    test = [table[table["part"] == "test"].reset_index(drop=True) for table in tables]
    method = method_of(recipe)
    weights = None
    if len(tables) > 1 and method != "median":
        weights = choose_weights(method, _out_of_fold(graph, recipe, tables), seed=recipe.config.seed)
    members = np.stack([table["prediction"].to_numpy(float) for table in test])
    value = combine(method, members, weights) if len(tables) > 1 else members[0]
    spread = disagreement(members) if len(tables) > 1 else test[0]["std"].to_numpy(float)
    fallback = np.any([table["fallback"].to_numpy(bool) for table in test], axis=0)
    table = pd.DataFrame({"id": test[0]["id"], "prediction": value, "std": spread, "fallback": fallback})
    return Combined(table, members, weights)


def method_of(recipe: FoldRecipe) -> Combine:
    """Return how members' predictions become one; a soup is a single member by then."""
    method = recipe.config.ensemble.combine
    return "mean" if method == "soup" else method


def read_predictions(folder: Path, views: TtaConfig) -> pd.DataFrame:
    """Read a model's predictions: id, part, prediction, std, fallback."""
    return pd.read_parquet(predictions_file(folder, views))


def _out_of_fold(graph: ModelGraph, recipe: FoldRecipe, tables: list[pd.DataFrame]) -> OutOfFold:
    """Return the members' predictions of their shared validation rows.

    Of students these are rows that some of their teachers were trained on: their weights are a little optimistic.
    """
    split, _ = graph.context.split(recipe.members[0])
    known = [table[table["part"] == "val"].set_index("id").loc[list(split.val.ids)] for table in tables]
    formulas = graph.context.dataset.structures.reduced_formulas
    group = [formulas[row] for row in split.val.rows]
    return OutOfFold(np.stack([table["prediction"].to_numpy(float) for table in known]), split.val.targets, group)
