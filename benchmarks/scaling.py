"""What the ladder of experiments takes on 1 to 512 GPUs, on paper: the scheduler's own order, and a measured speed.

    python benchmarks/scaling.py --task mp_e_form --rows 132752 --speed 1060 --price 3

Nothing is trained. `--speed` is structures a second of one model on a GPU (scores.json of a run there, or
benchmarks/README.md), `--per-gpu` the models that share one, `--per-model` seconds of a model beside its training
(starting, predicting, writing), `--price` the price of a GPU for an hour, in any currency.
"""

import argparse
import json
from collections.abc import Sequence

from orchestrator.ablation.ladder import build_ladder
from orchestrator.execution.estimate import fleet_estimate
from orchestrator.inputs.recipe import ModelSpec, topological_levels
from search_spaces.experiments import LADDER
from search_spaces.presets import preset
from trainables.data.tasks import N_FOLDS, find_task

PREDICTION = 0.3  # of the time of a prediction with its gradient, as orchestrator.execution.estimate has it


def structures_of(spec: ModelSpec, rows: int) -> float:
    """Return how many structures are processed in training a model on a table of so many rows."""
    if spec.soup_of:
        return 0.0
    config = spec.config
    known = rows * (N_FOLDS - 1) / N_FOLDS * ((spec.n_inner - 1) / spec.n_inner if spec.n_inner else 1.0)
    views = 2 if config.augment.active and config.consistency.weight > 0 else 1
    return config.optim.epochs * known * ((1 - config.data.val_share) * views + PREDICTION * config.data.val_share)


def models_of(task: str, seeds: int, names: Sequence[str]) -> list[ModelSpec]:
    """Return every model of the ladder once; none comes before one that it needs."""
    official = find_task(task)
    rungs = build_ladder(names, official, preset(official), folds=range(N_FOLDS), seeds=seeds)
    members = [member for rung in rungs for recipe in rung.recipes.values() for member in recipe.models]
    return [spec for level in topological_levels(members, "") for spec in level]


def main() -> None:
    """Print a line of JSON for each number of GPUs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="mp_e_form")
    parser.add_argument("--rows", type=int, default=132_752)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--speed", type=float, required=True)
    parser.add_argument("--per-gpu", type=int, default=1)
    parser.add_argument("--per-model", type=float, default=2.0)
    parser.add_argument("--price", type=float, default=1.0)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64, 512])
    options = parser.parse_args()
    models = models_of(options.task, options.seeds, [name for name in LADDER if name != "E5"])
    needs = {spec.key(""): [other.key("") for other in spec.needs] for spec in models}
    seconds = {spec.key(""): structures_of(spec, options.rows) / options.speed + options.per_model for spec in models}
    for gpus in options.gpus:
        found = fleet_estimate(needs, seconds, gpus * options.per_gpu, options.speed)
        hours = found.seconds / 3600
        print(
            json.dumps(
                {
                    "gpus": gpus,
                    "models": len(models),
                    "hours": round(hours, 2),
                    "longest_chain_hours": round(found.longest / 3600, 2),
                    "gpu_hours_of_work": round(found.work / 3600 / options.per_gpu, 1),
                    "busy": round(found.busy, 3),
                    "price_held_to_the_end": round(gpus * hours * options.price),
                    "price_given_back_when_idle": round(found.work / 3600 / options.per_gpu * options.price),
                }
            )
        )


if __name__ == "__main__":
    main()
