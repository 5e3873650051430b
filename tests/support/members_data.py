"""What made-up members of a run are worth, for tests of its report and of the terminal."""

from orchestrator.train.members import Contender, CurvePoint, EnsembleSummary, Member, MemberScores
from orchestrator.train.rows import ErrorBin


def members_summary(n_seeds: int = 2, folds: tuple[int, ...] = (0, 1, 2, 3, 4), scale: float = 0.02) -> EnsembleSummary:
    """Seeds of two starts and two rates, with errors of about `scale`, and a student."""
    varied = {"model.start": ["0.3.0", "r2scan"], "optim.lr": [1e-3, 5e-4]}
    members = tuple(
        Member(
            seed=seed,
            varied={"model.start": start, "optim.lr": rate},
            folds={
                fold: MemberScores(
                    validation_mae=scale * (1 + 0.1 * seed),
                    test_mae=scale * (1.1 + 0.01 * fold),
                    weight=1 / (4 * n_seeds),
                )
                for fold in folds
            },
        )
        for start in varied["model.start"]
        for rate in varied["optim.lr"]
        for seed in range(n_seeds)
    )
    curve = tuple(
        CurvePoint(n_members=k, n_subsets=1, mae=scale * (1 + 1 / k), min=scale, max=scale * (1 + 2 / k))
        for k in range(1, len(members) + 1)
    )
    spread = tuple(ErrorBin(low=0.01 * k, high=0.01 * k + 0.009, rows=30, mae=scale * (1 + k)) for k in range(8))
    compared = tuple(
        Contender(
            name=name,
            mae={fold: scale * factor * (1 + 0.1 * fold) for fold in folds},
            mean=scale * factor * 1.2,
            structures=12_345_678.0 * n_models,
            seconds=40_000.0 * n_models,
            predictions_per_crystal=n_models,
        )
        for name, factor, n_models in (("single member", 1.1, 1), ("ensemble", 1.0, len(members)), ("student", 1.05, 1))
    )
    return EnsembleSummary(
        combine="greedy",
        seeds=n_seeds,
        varied=varied,
        members=members,
        curve=curve,
        spread=spread,
        spearman=0.43,
        compared=compared,
    )
