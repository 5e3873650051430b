"""Ray Tune by hand: crystaltune's trials under your own searcher and scheduler, in a notebook or on a cluster.

    python launch/tune_run.py                       # the embedded sample, on this machine
    ray submit CLUSTER.yaml launch/tune_run.py -- --task mp_e_form --address auto

`crystaltune.search` does more (it resumes, confirms its best trials and writes a report); this is for studies of your
own.
"""

import argparse
from pathlib import Path

import crystaltune as ct  # before ray: it sets what ray reads when it is imported

# isort: split
from ray import tune
from ray.tune.schedulers import ASHAScheduler


def main() -> None:
    """Search learning rates twice: with a Tuner, and with tune.run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="sample")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--address", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/tune_run"))
    options = parser.parse_args()

    data = ct.prepare_trials(
        options.task, "optim", options.out, limit=options.limit, settings={"optim.epochs": options.epochs}
    )
    trainable = tune.with_parameters(ct.FineTune, data=data)
    learning_rates = {"optim.lr": tune.loguniform(3e-4, 3e-3)}
    # Rungs are counted in the trial's own steps: `training_iteration` would count on where a trial begins anew.
    asha = ASHAScheduler(time_attr="step", metric="mae", mode="min", max_t=options.epochs)

    with ct.ray_session(options.address):
        # 1. the Tuner
        tuner = tune.Tuner(
            trainable,
            param_space=learning_rates,
            tune_config=tune.TuneConfig(num_samples=options.trials, scheduler=asha, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=str(options.out.resolve()), name="tuner", verbose=0),
        )
        best = tuner.fit().get_best_result(metric="mae", mode="min")
        print(f"Tuner: lr {best.config['optim.lr']:.2g}, validation MAE {best.metrics['mae']:.4g} {data.task.unit}")

        # 2. tune.run
        analysis = tune.run(
            trainable,
            config={"optim.lr": tune.grid_search([5e-4, 1e-3])},
            metric="mae",
            mode="min",
            reuse_actors=True,
            storage_path=str(options.out.resolve()),
            name="tune_run",
            verbose=0,
        )
        print(f"tune.run: lr {analysis.best_config['optim.lr']:.2g}, MAE {analysis.best_result['mae']:.4g}")


if __name__ == "__main__":
    main()
