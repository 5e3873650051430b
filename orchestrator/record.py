"""Five folds of test predictions become a Matbench submission folder. The only file that imports matbench.

Importing it takes seconds (matbench reads 46 MB of splits), so import it where a record is made, not before.
"""

import json
import logging
import math
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matbench.bench import MatbenchBenchmark
from matbench.metadata import mbv01_metadata, mbv01_validation
from numpy.typing import NDArray

from trainables.data.folds import N_FOLDS
from trainables.data.tasks import Task
from trainables.errors import UserError, listed
from trainables.files import write_atomically, write_json, write_text

# matbench logs to stdout; ERROR and not WARNING, because every from_file() warns that no dataset is loaded.
logging.getLogger("matbench").setLevel(logging.ERROR)

RESULTS = "results.json.gz"
COLUMNS = ("id", "fold", "target", "prediction")
WANTED_ABOUT = ("name", "authors", "tier", "command", "versions", "n_fallback")
MAE_TOLERANCE = 1e-9  # relative; only the order of summation may differ from matbench's

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
    "too, so test structures and their energies may have been seen in pretraining: this score does not compare "
    "with models trained on the Matbench training folds alone.",
}


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
    if not task.is_matbench or task.name not in mbv01_metadata:
        return f"{task.name} is a table of your own, not a Matbench task, so no official record exists for it"
    if partial:
        return (
            f"{task.name} is partial here ({n_rows} of {task.official_rows} rows); "
            "a Matbench record wants every official row"
        )
    missing = sorted(set(range(N_FOLDS)) - set(folds))
    if missing:
        which = f"folds {listed(missing)} were" if len(missing) > 1 else f"fold {missing[0]} was"
        return f"{which} not run; a Matbench record of {task.name} wants all {N_FOLDS} folds (0 to {N_FOLDS - 1})"
    if n_fallback >= n_rows:
        return f"all {n_rows} predictions are fallbacks, so there is no model to record; mend the runs first"
    return None


def official_mad(task: Task) -> float:
    """Mean absolute deviation of the task's official targets, as matbench's metadata give it."""
    return float(mbv01_metadata[task.name]["mad"])


def submission_folder(parent: Path, name: str) -> Path:
    """The folder Matbench wants for an algorithm called `name`."""
    return parent / f"matbench_v0.1_{re.sub(r'[^A-Za-z0-9.+-]+', '_', name).strip('_')}"


def write_record(
    predictions: pd.DataFrame, task: Task, folder: Path, *, about: dict[str, Any], params: dict[int, dict[str, Any]]
) -> Path:
    """Write results.json.gz, info.json and run.py into `folder`, and return the path of the first.

    results.json.gz is what matbench's own `to_file` writes and `from_file` reads: in matbench 0.6 that is plain
    JSON, whatever the name says (its issue 249). Its scores are compared with ours before it gets its name.

    Args:
        predictions: columns id (mbid), fold, target, prediction; any row order.
        about: name, authors, tier, command, versions {package: version} and n_fallback; optionally
            algorithm_long and notes. Plain JSON types; all of it is kept as the record's metadata.
        params: a fold's settings, plain JSON types.

    Raises:
        UserError: anything is missing, double, foreign or not finite; nothing has been written then.
        RuntimeError: matbench refuses or scores differently what was recorded.
    """
    folds = _checked_folds(predictions, task, about.get("n_fallback") or 0)
    about = _checked_about(about, task)
    settings = {fold: _plain(params.get(fold, {}), f"the parameters of fold {fold}") for fold in range(N_FOLDS)}
    info = _info(about, n_rows=len(predictions))
    benchmark = _recorded(folds, task, about, settings)
    path = folder / RESULTS
    write_atomically(path, lambda temporary: _write_verified(benchmark, folds, task, temporary))
    write_json(folder / "info.json", info)
    write_text(folder / "run.py", _run_script(about["command"]))
    return path


def _checked_about(about: dict[str, Any], task: Task) -> dict[str, Any]:
    lacking = [key for key in WANTED_ABOUT if about.get(key) in (None, "", [], {})]
    if lacking:
        raise UserError(f"the record's description lacks {listed(lacking)}; Matbench wants them, so give them")
    allowed = {"scratch", task.overlap}
    if about["tier"] not in allowed:
        raise UserError(f"tier {about['tier']} does not fit {task.name}; it is one of {listed(sorted(allowed))}")
    return _plain(about, "the record's description")


def _plain(content: dict[str, Any], what: str) -> dict[str, Any]:
    """A deep copy in plain JSON types with text keys: matbench's own hash survives nothing else."""
    try:
        return dict(json.loads(json.dumps(content, allow_nan=False)))
    except (TypeError, ValueError) as error:
        raise UserError(f"{what} cannot be written as JSON ({error}); give text, finite numbers and lists") from None


def _official_test_ids(task: Task, fold: int) -> list[str]:
    return list(mbv01_validation.splits[task.name][f"fold_{fold}"].test)


def _checked_folds(predictions: pd.DataFrame, task: Task, n_fallback: int) -> list[pd.DataFrame]:
    """Target and prediction of every fold as float64, indexed by id in matbench's own order."""
    absent = [column for column in COLUMNS if column not in predictions.columns]
    if absent:
        raise UserError(f"the predictions lack the columns {listed(absent)}; {listed(COLUMNS)} are wanted")
    folds = set(predictions["fold"])
    reason = why_no_record(task, partial=False, n_rows=len(predictions), folds=folds, n_fallback=n_fallback)
    if reason:
        raise UserError(reason)
    unknown = folds - set(range(N_FOLDS))
    if unknown:
        raise UserError(f"the predictions hold the folds {listed(unknown)}; only 0 to {N_FOLDS - 1} exist")
    double = predictions["id"][predictions["id"].duplicated()].unique()
    if len(double):
        raise UserError(f"{len(double)} ids are predicted more than once ({listed(double)}); keep one row an id")
    table = pd.DataFrame(
        {column: _finite(predictions, column) for column in ("target", "prediction")}, index=predictions["id"]
    )
    return [_official_order(table[predictions["fold"].to_numpy() == fold], task, fold) for fold in range(N_FOLDS)]


def _finite(predictions: pd.DataFrame, column: str) -> NDArray[np.float64]:
    values = predictions[column]
    if not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        raise UserError(f"the {column}s are {values.dtype} values; one plain number an id is wanted")
    numbers: NDArray[np.float64] = values.to_numpy(dtype=np.float64, na_value=np.nan)
    bad = predictions["id"][~np.isfinite(numbers)]
    if len(bad):
        raise UserError(f"{len(bad)} {column}s are not finite ({listed(bad)}); predict these ids again")
    return numbers


def _official_order(rows: pd.DataFrame, task: Task, fold: int) -> pd.DataFrame:
    official = _official_test_ids(task, fold)
    lacking = sorted(set(official) - set(rows.index))
    foreign = sorted(set(rows.index) - set(official), key=str)
    if lacking or foreign:
        faults = [f"lacks {len(lacking)} official test ids ({listed(lacking)})"] if lacking else []
        faults += [f"holds {len(foreign)} ids that are not its own ({listed(foreign)})"] if foreign else []
        raise UserError(f"fold {fold} of {task.name} {' and '.join(faults)}; predict exactly its {len(official)}")
    return rows.loc[official]


def _recorded(folds: list[pd.DataFrame], task: Task, about: dict[str, Any], settings: dict[int, dict[str, Any]]) -> Any:
    benchmark = MatbenchBenchmark(autoload=False, subset=[task.name])
    matbench_task = benchmark.tasks_map[task.name]
    targets = pd.concat(folds)["target"]
    columns = {matbench_task.metadata.input_type: None, matbench_task.metadata.target: targets}
    matbench_task.df = pd.DataFrame(columns, index=targets.index)  # scoring reads the targets only
    for fold, rows in enumerate(folds):
        matbench_task.record(fold, rows["prediction"].tolist(), params=settings[fold])
    benchmark.add_metadata(about)
    errors = benchmark.validate()
    if errors:
        raise RuntimeError(f"matbench refuses the record of {task.name}: {errors[task.name].splitlines()[-1]}")
    return benchmark


def _write_verified(benchmark: Any, folds: list[pd.DataFrame], task: Task, path: Path) -> None:
    # matbench gets the final file name, should a later version choose the compression by it
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".record.") as staging:
        written = Path(staging) / RESULTS
        benchmark.to_file(str(written))
        _compare_scores(written, folds, task)
        written.replace(path)


def _compare_scores(path: Path, folds: list[pd.DataFrame], task: Task) -> None:
    """Open the file as Matbench will (which validates it) and compare each fold's MAE with our own."""
    results = MatbenchBenchmark.from_file(str(path)).tasks_map[task.name].results
    for fold, rows in enumerate(folds):
        ours = float((rows["prediction"] - rows["target"]).abs().mean())
        theirs = results[f"fold_{fold}"].scores.mae
        if not math.isclose(ours, theirs, rel_tol=MAE_TOLERANCE):
            raise RuntimeError(f"fold {fold} of {task.name}: matbench scores an MAE of {theirs}, we score {ours}")


def _info(about: dict[str, Any], n_rows: int) -> dict[str, Any]:
    start = "CHGNet's architecture trained from random weights" if about["tier"] == "scratch" else "CHGNet fine-tuned"
    honesty = (
        f"Tier: {about['tier']}. {_TIER_TEXT[about['tier']]} "
        f"{about['n_fallback']} of {n_rows} test predictions are fallbacks (the model could not give a value)."
    )
    return {
        "authors": about["authors"],
        "algorithm": about["name"],
        "algorithm_long": about.get("algorithm_long") or f"{start} on each fold's training rows with crystaltune.",
        "bibtex_refs": BIBTEX,
        "requirements": {"python": [f"{package}=={version}" for package, version in about["versions"].items()]},
        "notes": " ".join(filter(None, [honesty, about.get("notes")])),
    }


def _run_script(command: str) -> str:
    """Matbench wants at least one .py file or notebook that shows how the results were made."""
    return (
        '"""Makes the results again; info.json lists the versions it ran with."""\n\n'
        "import shlex\nimport subprocess\n\n"
        f"COMMAND = {command!r}\n\n"
        'if __name__ == "__main__":\n'
        "    subprocess.run(shlex.split(COMMAND), check=True)\n"
    )
