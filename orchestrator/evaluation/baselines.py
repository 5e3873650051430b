"""What a fine-tuned model has to beat: the mean, the composition alone, and CHGNet untouched."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from orchestrator.evaluation.physics import one_variable
from orchestrator.evaluation.scores import PredictorScores, score_folds
from trainables.config import RunConfig
from trainables.data.composition import CompositionModel
from trainables.data.dataset import Dataset
from trainables.data.folds import fold_of_rows
from trainables.errors import UserError
from trainables.graphs.store import GraphStore
from trainables.model.chgnet import SCRATCH_ARCHITECTURE, build_model
from trainables.model.readout_names import readout_names
from trainables.model.reference import fit_reference
from trainables.progress import Progress
from trainables.tabular.fit import compositions
from trainables.tabular.learner import STEPS, learn
from trainables.tabular.model import TabularModel
from trainables.training.predict import predict, with_graph

FEATURES_FROM, FEATURES_UP_TO = 100, 5_000  # rows
HELD_OUT = "held_out_mae"  # attribute of a table of predictions: the error on rows held out of training, mean of folds
_TREES = 100  # of the features baseline
Predictor = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float64]]  # (train rows, test rows) -> values


def baseline_predictions(
    dataset: Dataset, folds: Sequence[int], store: GraphStore | None, progress: Progress, config: RunConfig
) -> dict[str, pd.DataFrame]:
    """Predict with every baseline that the task allows, by name: tables with the columns id, fold, target, prediction.

    Each is fitted on the whole training fold (there is nothing to validate). `zero-shot` is the untouched
    pretrained CHGNet with a per-element reference fitted to the training fold, for energies only; `features` is
    ridge regression and trees on numbers of each crystal (trainables.tabular), and `physics` a curve of one of those
    that the untrained potential gives, for tables of a size where that takes seconds. All three need `store`.
    """
    predictors: dict[str, Predictor] = {"dummy": _dummy(dataset), "linear": _linear(dataset)}
    held_out: list[float] = []
    own = config.model.family == "tabular"  # then the run itself is that
    if store is not None and not own and FEATURES_FROM <= len(dataset) <= FEATURES_UP_TO:
        numbers = _Numbers.of(dataset, store, config, progress)
        predictors["features"] = _features(numbers, progress, held_out)
        if not dataset.task.is_energy:
            predictors["physics"] = _physics(numbers, progress)
    if dataset.task.is_energy and store is not None:
        predictors["zero-shot"] = _zero_shot(dataset, store, config, progress)
    tables = {name: _over_folds(dataset, folds, predictor) for name, predictor in predictors.items()}
    if held_out and not dataset.task.is_sum:
        tables["features"].attrs[HELD_OUT] = float(np.mean(held_out))
    for name in ("zero-shot", "features", "physics"):
        if store is not None and name in tables:
            usable = dict(zip(dataset.ids, with_graph(store, np.arange(len(dataset)), config), strict=True))
            tables[name]["fallback"] = [not usable[row_id] for row_id in tables[name]["id"]]
    return tables


def baseline_scores(predictions: dict[str, pd.DataFrame]) -> dict[str, PredictorScores]:
    """Score the predictions of each baseline, by name."""
    return {name: score_folds(table) for name, table in predictions.items()}


def _over_folds(dataset: Dataset, folds: Sequence[int], predictor: Predictor) -> pd.DataFrame:
    fold_of = fold_of_rows(dataset)
    tables = []
    for fold in folds:
        train, test = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        if min(len(train), len(test)) == 0:
            raise UserError(f"fold {fold} of {dataset.task.name} has {len(train)} training and {len(test)} test rows")
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
    n_atoms = dataset.structures.n_atoms if dataset.task.is_sum else np.ones(len(dataset))

    def predictor(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        model = CompositionModel.fit(composition[train], dataset.targets[train] / n_atoms[train])
        return model.predict(composition[test]) * n_atoms[test]

    return predictor


@dataclass(frozen=True, eq=False)
class _Numbers:
    """What models of tables know of all crystals.

    Attributes:
        model: before anything is learnt.
        table: (n, width); usable: (n,) where there are numbers; groups, atoms: (n,)
    """

    dataset: Dataset
    model: TabularModel
    table: NDArray[np.float32]
    usable: NDArray[np.bool_]
    groups: NDArray[np.int64]
    atoms: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, store: GraphStore, config: RunConfig, progress: Progress) -> "_Numbers":
        start = SCRATCH_ARCHITECTURE if config.model.start == "scratch" else config.model.start
        model = TabularModel(config.model.model_copy(update={"start": start}), dataset.task)
        progress.message("features baseline: ridge regression and trees on numbers of each crystal")
        rows = np.arange(len(dataset))
        table = predict(model, store, rows, output="table", progress=progress).astype(np.float32)
        atoms = dataset.structures.n_atoms if model.per_cell else np.ones(len(dataset), dtype=np.int64)
        return cls(dataset, model, table, with_graph(store, rows, config), compositions(store, rows), atoms)

    def filled(
        self, test: NDArray[np.int64], values: NDArray[np.float64], said: Callable[[NDArray[np.int64]], Any]
    ) -> NDArray[np.float64]:
        """Return `values` of test rows with what is said of those that have numbers, from a value an atom."""
        there = self.usable[test]
        values[there] = said(test[there]) * self.atoms[test[there]]
        return values


def _features(numbers: _Numbers, progress: Progress, held_out: list[float]) -> Predictor:
    dataset, columns = numbers.dataset, numbers.model.columns.numpy()
    linear = _linear(dataset)

    def predictor(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        known = train[numbers.usable[train]]
        with progress.stage("fit features", STEPS, "steps") as bar:
            learnt = learn(
                numbers.table[known], dataset.targets[known] / numbers.atoms[known], numbers.groups[known], columns,
                most_trees=_TREES, advance=partial(bar.advance, 1),
            )  # fmt: skip
        held_out.append(learnt.errors[2])
        return numbers.filled(test, linear(train, test), lambda rows: learnt.predict(numbers.table[rows], columns))

    return predictor


def _physics(numbers: _Numbers, progress: Progress) -> Predictor:
    dataset, linear, names = numbers.dataset, _linear(numbers.dataset), numbers.model.features.names
    columns, told = [place for place, name in enumerate(names) if name in readout_names(phonons=True)], set()

    def predictor(train: NDArray[np.int64], test: NDArray[np.int64]) -> NDArray[np.float64]:
        known, table = train[numbers.usable[train]], numbers.table[:, columns].astype(np.float64)
        fitted = one_variable(table[known], dataset.targets[known] / numbers.atoms[known], numbers.groups[known])
        name = names[columns[fitted.column]]
        if name not in told:
            progress.message(f"physics baseline: a curve of the untrained CHGNet's {name}")
            told.add(name)
        return numbers.filled(test, linear(train, test), lambda rows: fitted.predict(table[rows]))

    return predictor


def _zero_shot(dataset: Dataset, store: GraphStore, config: RunConfig, progress: Progress) -> Predictor:
    start = config.model.start
    model = build_model(SCRATCH_ARCHITECTURE if start == "scratch" else start, dataset.task)
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
