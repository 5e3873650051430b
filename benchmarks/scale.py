"""The table of benchmarks/scale.sh: what is done of it, beside published models on the same test rows.

python benchmarks/scale.py OUT
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import crystaltune as ct
from orchestrator.evaluation.scores import Scores
from orchestrator.execution.summary import RunSummary
from trainables.files import read_json

HEAD = ("", "start", "models", "MAE, eV/atom", "RMSE", "training rows", "structures trained", "hours", "on")
ORDER = ("preset", "scratch", "three-seeds", "two-starts")


def lines(out: Path) -> Iterator[tuple[str, ...]]:
    """Yield a line for each run with a score, then one for each published model, the best first."""
    published: dict[str, tuple[float, float]] = {}
    for name in ORDER:
        folder = out / name
        if not (folder / "scores.json").is_file():
            continue
        scores = Scores.model_validate(read_json(folder / "scores.json"))
        if scores.mean is None:
            continue
        yield (name, *_run(ct.Run(folder), scores))
        published |= {other: (each.mean.mae, each.mean.rmse) for other, each in scores.published.items()}
    for other, (mae, rmse) in sorted(published.items(), key=lambda item: item[1]):
        yield (f"{other}, published", "", "", f"{mae:.5f}", f"{rmse:.4f}", "", "", "", "")


def _run(run: ct.Run, scores: Scores) -> tuple[str, ...]:
    files = [
        file for fold in sorted(scores.folds) for file in sorted((run.folder / f"fold_{fold}").glob("**/done.json"))
    ]
    models = [RunSummary.model_validate(read_json(file)) for file in files]
    starts = dict.fromkeys(variant.model.start for variant in run.config.variants())
    rows = max(int(getattr(model, "n_train", 0)) for model in models)
    mean = scores.mean
    return (
        ", ".join(starts),
        str(len(models)),
        "" if mean is None else f"{mean.mae:.5f}",
        "" if mean is None else f"{mean.rmse:.4f}",
        f"{rows:,}",
        f"{sum(model.structures for model in models):,}",
        f"{sum(model.seconds for model in models) / 3600:.2f}",
        ", ".join(sorted({model.device or "" for model in models})),
    )


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    found = list(lines(parser.parse_args().out))
    for line in (HEAD, ("---",) * len(HEAD), *found):
        print(f"| {' | '.join(line)} |")


if __name__ == "__main__":
    main()
