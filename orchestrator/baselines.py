"""What a fine-tuned model has to beat: the mean, the composition alone, and CHGNet untouched."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from orchestrator.scores import fold_scores
from trainables.config import RunConfig
from trainables.data.composition import CompositionModel
from trainables.data.dataset import Dataset
from trainables.data.folds import fold_of_rows
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import build_model
from trainables.model.reference import fit_reference
from trainables.progress import Progress
from trainables.training.predict import predict, with_graph

Predictor = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]  # (train rows, test rows) -> values


def baseline_predictions(
    dataset: Dataset, folds: Sequence[int], store: GraphStore | None, progress: Progress, start: str = "0.3.0"
) -> dict[str, pd.DataFrame]:
    """Predictions of every baseline that the task allows, by name; columns id, fold, target, prediction.

    Each is fitted on the whole training fold (there is nothing to validate). `zero-shot` is the untouched
    pretrained CHGNet with a per-element reference fitted to the training fold, for energies only; it needs
    `store`.
    """
    predictors: dict[str, Predictor] = {"dummy": _dummy(dataset), "linear": _linear(dataset)}
    if dataset.task.is_energy and store is not None:
        predictors["zero-shot"] = _zero_shot(dataset, store, start if start != "scratch" else "0.3.0", progress)
    return {name: _over_folds(dataset, folds, predictor) for name, predictor in predictors.items()}


def baseline_scores(predictions: dict[str, pd.DataFrame]) -> dict[str, dict[str, object]]:
    return {name: fold_scores(table) for name, table in predictions.items()}


def _over_folds(dataset: Dataset, folds: Sequence[int], predictor: Predictor) -> pd.DataFrame:
    fold_of = fold_of_rows(dataset)
    tables = []
    for fold in folds:
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        tables.append(
            pd.DataFrame(
                {
                    "id": [dataset.ids[row] for row in test],
                    "fold": fold,
                    "target": dataset.targets[test],
                    "prediction": predictor(train, test),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _dummy(dataset: Dataset) -> Predictor:
    return lambda train, test: np.full(len(test), dataset.targets[train].mean())


def _linear(dataset: Dataset) -> Predictor:
    composition = dataset.structures.composition

    def predictor(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        return CompositionModel.fit(composition[train], dataset.targets[train]).predict(composition[test])

    return predictor


def _zero_shot(dataset: Dataset, store: GraphStore, start: str, progress: Progress) -> Predictor:
    config = RunConfig(task=dataset.task.name).changed({"model.start": start})
    model = build_model(config.model.start, dataset.task)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    rows = np.arange(len(dataset))
    progress.message("zero-shot baseline: energies of the untouched CHGNet")
    graph_energy = predict(model, store, rows, output="graph_energy", progress=progress)
    usable = with_graph(store, rows, config)
    composition, linear = dataset.structures.composition, _linear(dataset)
    n_atoms = dataset.structures.n_atoms if dataset.task.quantity == "energy_per_cell" else np.ones(len(dataset))

    def predictor(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        known = train[usable[train]]
        energy = dataset.targets[known] / n_atoms[known]
        reference = fit_reference(composition[known], graph_energy[known], energy)
        values = (graph_energy[test] + composition[test] @ reference) * n_atoms[test]
        return np.where(usable[test], values, linear(train, test))

    return predictor
