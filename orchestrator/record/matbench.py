"""Five folds of test predictions become a Matbench submission folder.

matbench itself is not needed; where it is installed, it validates what was written. This is the only file that imports
it, and only then: importing it takes seconds, for it reads 46 MB of splits.
"""

import json
import logging
import pprint
import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from orchestrator.record.results_file import (
    official_test_ids,
    results_document,
    scores_agree,
    verify_file,
    write_document,
)
from search_spaces.presets import chooses_members
from trainables.data.folds import N_FOLDS
from trainables.data.tasks import Task
from trainables.errors import UserError, listed
from trainables.files import write_atomically, write_json, write_text

RESULTS = "results.json.gz"
COLUMNS = ("id", "fold", "target", "prediction")
# matbench 0.6 pins versions of 2022; without its pins, it runs with current ones.
INSTALL_MATBENCH = "pip install matminer && pip install --no-deps matbench==0.6"

BIBTEX = (  # one text, as the published info.json files have it
    "@article{deng2023chgnet, title={CHGNet as a pretrained universal neural network potential for "
    "charge-informed atomistic modelling}, author={Deng, Bowen and Zhong, Peichen and Jun, KyuJung and "
    "Riebesell, Janosh and Han, Kevin and Bartel, Christopher J. and Ceder, Gerbrand}, "
    "journal={Nature Machine Intelligence}, volume={5}, pages={1031--1041}, year={2023}, "
    "doi={10.1038/s42256-023-00716-3}}\n\n"
    "@article{dunn2020matbench, title={Benchmarking materials property prediction methods: the Matbench test "
    "set and Automatminer reference algorithm}, author={Dunn, Alexander and Wang, Qi and Ganose, Alex and "
    "Dopp, Daniel and Jain, Anubhav}, journal={npj Computational Materials}, volume={6}, pages={138}, "
    "year={2020}, doi={10.1038/s41524-020-00406-3}}"
)

_PRETRAINED = (
    "Started from CHGNet's published weights, pretrained on energies, forces, stresses and magnetic moments "
    "of MPtrj, the relaxation trajectories of the Materials Project. "
)
_TIER_TEXT = {
    "scratch": "Trained on the Matbench training folds alone; CHGNet's published weights (pretrained on MPtrj, "
    "the relaxation trajectories of the Materials Project) were not used.",
    "pretrained-disjoint": _PRETRAINED + "This task's data come from another source, so its test labels were "
    "not part of that pretraining.",
    "pretrained-structure-overlap": _PRETRAINED + "This task's crystals come from the Materials Project too, so "
    "test structures (not this property's labels) may have been seen in pretraining.",
    "pretrained-label-overlap": _PRETRAINED + "This task's crystals and energies come from the Materials Project "
    "too, so test structures and their energies may have been seen in pretraining: this score is not "
    "comparable with models trained on the Matbench training folds alone.",
}


@dataclass(frozen=True)
class AlgorithmDescription:
    """What made the predictions of a record; all of it is kept as the record's metadata.

    Attributes:
        name: of the algorithm, as the submission folder has it.
        tier: what pretraining may have seen of the test rows.
        settings: by dotted key, plain JSON types.
        versions: by package.
        n_fallback: predictions that a composition model made.
        notes: a sentence to add to those of the tier.
    """

    name: str
    authors: str
    tier: str
    settings: dict[str, Any]
    versions: dict[str, str]
    n_fallback: int
    notes: str = ""

    def metadata(self) -> dict[str, Any]:
        """Return all of it in plain JSON types.

        Raises:
            UserError: a setting cannot be written as JSON.
        """
        content = asdict(self)
        if not self.notes:
            del content["notes"]
        return _plain(content, "the record's description")


@dataclass(frozen=True)
class MatbenchRecord:
    """A written record.

    Attributes:
        path: results.json.gz in the submission folder, which is in the run's folder.
        validated_by: the package that has loaded and validated the file, such as "matbench 0.6", or None where it is
            not installed.
    """

    path: Path
    validated_by: str | None

    @property
    def sentence(self) -> str:
        """Say where the record is and what has checked it, on one line."""
        if self.validated_by is not None:
            return f"Matbench record: {self.path} (validated by {self.validated_by})"
        again = f"crystaltune record {shlex.quote(str(self.path.parent.parent))}"
        return (
            f"Matbench record: {self.path} (checked by crystaltune against the official splits; to have matbench "
            f"validate it too: {INSTALL_MATBENCH} && {again})"
        )


def why_no_record(task: Task, *, partial: bool, n_rows: int, folds: Collection[int], n_fallback: int = 0) -> str | None:
    """Say in one sentence why these results cannot become a Matbench record; None where they can.

    Args:
        partial: rows of the official table are missing (`Dataset.partial`).
        n_rows: rows of the table, and so test predictions of all folds together.
        folds: the outer folds that were run.
        n_fallback: how many predictions are fallbacks; they are allowed, but not as the whole record.
    """
    if task.synthetic:
        return f"{task.name} is a synthetic sample, not a Matbench task: its scores only show that the tool runs"
    if not task.is_matbench:
        return f"{task.name} is a table of your own, not a Matbench task, so no official record exists for it"
    if partial:
        return (
            f"{task.name} is partial here ({n_rows} of {task.official_rows} rows); "
            "a Matbench record needs every official row"
        )
    missing = sorted(set(range(N_FOLDS)) - set(folds))
    if missing:
        which = f"folds {listed(missing)} were" if len(missing) > 1 else f"fold {missing[0]} was"
        return f"{which} not run; a Matbench record of {task.name} needs all {N_FOLDS} folds (0 to {N_FOLDS - 1})"
    if n_fallback >= n_rows:
        return f"all {n_rows} predictions are fallbacks, so there is no model to record; fix the runs first"
    return None


def submission_folder(parent: Path, name: str) -> Path:
    """Return the folder Matbench wants for an algorithm called `name`."""
    return parent / f"matbench_v0.1_{re.sub(r'[^A-Za-z0-9.+-]+', '_', name).strip('_')}"


def write_record(
    predictions: pd.DataFrame,
    task: Task,
    folder: Path,
    *,
    description: AlgorithmDescription,
    params: dict[int, dict[str, Any]],
) -> MatbenchRecord:
    """Write results.json.gz, info.json and run.py into `folder`.

    results.json.gz is what matbench's own `to_file` would write. It is read back, compared with the official splits
    and, where matbench is installed, validated and scored by matbench before it gets its name.

    Args:
        predictions: columns id (mbid), fold, target, prediction; any row order.
        params: a fold's settings, plain JSON types.

    Raises:
        UserError: anything is missing, double, foreign or not finite; nothing has been written then.
        RuntimeError: matbench refuses or scores differently what was recorded.
    """
    folds = _checked_folds(predictions, task, description.n_fallback)
    _validate_description(description, task)
    metadata = description.metadata()
    settings = {fold: _plain(params.get(fold, {}), f"the parameters of fold {fold}") for fold in range(N_FOLDS)}
    info = _info(description, n_rows=len(predictions))
    document = results_document(task, folds, metadata=metadata, params=settings)
    matbench = matbench_version()

    def write(temporary: Path) -> None:
        write_document(document, temporary)
        verify_file(temporary, task, folds)
        if matbench is not None:
            _let_matbench_validate(temporary, folds, task)

    path = folder / RESULTS
    write_atomically(path, write)
    write_json(folder / "info.json", info)
    write_text(folder / "run.py", _run_script(task, description.settings))
    return MatbenchRecord(path, None if matbench is None else f"matbench {matbench}")


def matbench_version() -> str | None:
    """Return the version of the matbench that can be imported here, or None.

    An installation that lacks what matbench imports (it is installed without its dependencies) counts as none.
    """
    try:
        import matbench.bench  # noqa: F401

        return version("matbench")
    except (ImportError, PackageNotFoundError):
        return None
    finally:
        # matbench logs to stdout; ERROR and not WARNING, because every from_file() warns that no dataset is loaded.
        logging.getLogger("matbench").setLevel(logging.ERROR)


def _validate_description(description: AlgorithmDescription, task: Task) -> None:
    required = ("name", "authors", "tier", "settings", "versions")
    if lacking := [name for name in required if not getattr(description, name)]:
        raise UserError(f"the record's description has no {listed(lacking)}, which Matbench requires")
    allowed = {"scratch", task.overlap}
    if description.tier not in allowed:
        raise UserError(f"tier {description.tier} does not fit {task.name}: use one of {listed(sorted(allowed))}")


def _plain(content: dict[str, Any], what: str) -> dict[str, Any]:
    """Return a deep copy in plain JSON types with text keys: matbench's own hash survives nothing else."""
    try:
        return dict(json.loads(json.dumps(content, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be written as JSON ({error}): use text, finite numbers and lists") from None


def _checked_folds(predictions: pd.DataFrame, task: Task, n_fallback: int) -> list[pd.DataFrame]:
    """Target and prediction of every fold as float64, indexed by id in matbench's own order."""
    absent = [column for column in COLUMNS if column not in predictions.columns]
    if absent:
        raise UserError(f"the predictions have no column {listed(absent)}; {listed(COLUMNS)} are required")
    folds = set(predictions["fold"])
    reason = why_no_record(task, partial=False, n_rows=len(predictions), folds=folds, n_fallback=n_fallback)
    if reason:
        raise UserError(reason)
    unknown = folds - set(range(N_FOLDS))
    if unknown:
        raise UserError(f"the predictions contain folds {listed(unknown)}; only 0 to {N_FOLDS - 1} exist")
    double = predictions["id"][predictions["id"].duplicated()].unique()
    if len(double):
        raise UserError(f"{len(double)} ids are predicted more than once ({listed(double)}); keep one row per id")
    table = pd.DataFrame(
        {column: _finite(predictions, column) for column in ("target", "prediction")}, index=predictions["id"]
    )
    return [
        _official_order(table[predictions["fold"].to_numpy() == fold], official, f"fold {fold} of {task.name}")
        for fold, official in enumerate(official_test_ids(task))
    ]


def _finite(predictions: pd.DataFrame, column: str) -> NDArray[np.float64]:
    values = predictions[column]
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raise UserError(f"the {column}s are {values.dtype} values; each id needs one plain number")
    numbers: NDArray[np.float64] = values.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = predictions["id"][~np.isfinite(numbers)]
    if len(bad):
        raise UserError(f"{len(bad)} {column}s are not finite ({listed(bad)}); predict these ids again")
    return numbers


def _official_order(rows: pd.DataFrame, official: list[str], what: str) -> pd.DataFrame:
    lacking = sorted(set(official) - set(rows.index))
    foreign = sorted(set(rows.index) - set(official), key=str)
    if lacking or foreign:
        faults = [f"is missing {len(lacking)} official test ids ({listed(lacking)})"] if lacking else []
        faults += [f"contains {len(foreign)} ids that do not belong to it ({listed(foreign)})"] if foreign else []
        raise UserError(f"{what} {' and '.join(faults)}; predict exactly its {len(official)} rows")
    return rows.loc[official]


def _let_matbench_validate(path: Path, folds: Sequence[pd.DataFrame], task: Task) -> None:
    """Open the file as Matbench will, which validates it, and let matbench score its predictions too.

    Raises:
        RuntimeError: matbench refuses the file, or computes different scores.
    """
    from matbench.bench import MatbenchBenchmark
    from matbench.data_ops import score_array

    try:
        recorded = MatbenchBenchmark.from_file(str(path)).tasks_map[task.name]
    except (KeyError, TypeError, ValueError) as error:
        raise RuntimeError(f"matbench refuses the record of {task.name}: {error}") from error
    for fold, rows in enumerate(folds):
        ours = recorded.results[f"fold_{fold}"].scores
        theirs = score_array(rows["target"], rows["prediction"].tolist(), recorded.metadata.task_type)
        if not scores_agree(ours, theirs):
            raise RuntimeError(f"fold {fold} of {task.name}: matbench's scores are {theirs}, ours are {dict(ours)}")


def _info(description: AlgorithmDescription, n_rows: int) -> dict[str, Any]:
    how = _trained(description.tier == "scratch", description.settings)
    honesty = (
        f"Tier: {description.tier}. {_TIER_TEXT[description.tier]} "
        f"{description.n_fallback} of {n_rows} test predictions are fallbacks (the model could not give a value)."
    )
    return {
        "authors": description.authors,
        "algorithm": description.name,
        "algorithm_long": f"{how} on each fold's training rows with crystaltune{_method(description.settings)}.",
        "bibtex_refs": BIBTEX,
        "requirements": {"python": [f"{package}=={version}" for package, version in description.versions.items()]},
        "notes": " ".join(filter(None, [honesty, description.notes])),
    }


def _trained(scratch: bool, settings: Mapping[str, Any]) -> str:
    """Return what kinds of models there are, and that they were trained."""
    tuned = "CHGNet's architecture trained from random weights" if scratch else "CHGNet fine-tuned"
    numbers = "" if scratch else ", those of the pretrained CHGNet among them"
    fitted = f"Ridge regression and extremely randomised trees fitted to numbers of each crystal{numbers},"
    families = settings.get("ensemble.vary.model.family", [settings.get("model.family", "chgnet")])
    if "tabular" not in families:
        return tuned
    return fitted if "chgnet" not in families else f"{tuned}; {fitted[0].lower()}{fitted[1:]} all"


def _method(settings: Mapping[str, Any]) -> str:
    """Return what a configuration is more than one model's training, in words."""
    seeds, inner = int(settings.get("ensemble.members", 1)), settings.get("ensemble.inner_folds", 0)
    varied = [key.removeprefix("ensemble.vary.") for key in settings if key.startswith("ensemble.vary.")]
    parts = []
    if seeds > 1 or varied or inner:
        of = f" of each variant of {', '.join(varied)}" if varied else ""
        if inner:
            of += f", each {inner} models validated on different parts of the training fold"
        parts.append(f"{settings.get('ensemble.combine', 'mean')} of {seeds} seed{'s' * (seeds != 1)}{of}")
    if settings.get("distil.weight"):
        parts.append("taught by out-of-fold teachers as well as by the labels")
    if int(settings.get("tta.views", 1)) > 1:
        parts.append(f"{settings['tta.views']} views of each crystal averaged")
    return f": {'; '.join(parts)}" if parts else ""


def _run_script(task: Task, settings: Mapping[str, Any]) -> str:
    """Return the .py file that Matbench requires beside every record: how its results were made."""
    preset = "" if any(map(chooses_members, settings)) else ', preset="single"'
    return (
        '"""Reproduce the results; info.json lists the versions it ran with."""\n\n'
        "import crystaltune\n\n"
        f"SETTINGS = {pprint.pformat(dict(settings), sort_dicts=False, width=110)}\n\n"
        'if __name__ == "__main__":\n'
        f"    crystaltune.train({task.name!r}, settings=SETTINGS{preset})\n"
    )
