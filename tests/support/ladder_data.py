"""Made-up outcomes of a ladder with known answers, for tests of its analysis and reports."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from orchestrator.ablation.analysis import Analysis, Outcome, analyse

N = 600
FOLD = np.arange(N) % 5
IDS = [f"row-{i:03d}" for i in range(N)]
SYSTEMS = {row: f"system {place // 4}" for place, row in enumerate(IDS)}
PARENTS = {"E1": "E0", "E2": "E1", "E3": "E0", "E4": "E3", "E5": "E0", "E6": "E4", "L3": "E0", "B1": "E4"}
CONTROLS = {"E3": "L3", "E4": "E0", "B1": "E0"}
COMMAND = "crystaltune ablate mp_e_form --experiments E0,E3"
TASK = {"task": "matbench_mp_e_form", "unit": "eV/atom", "tier": "pretrained-label-overlap"}
LIMITS = {"partial": True, "synthetic": False, "n_rows": N, "official_rows": 132752, "marks": []}
ORIGIN = {"versions": {"chgnet": "0.4.2", "torch": "2.15.0"}, "data": "0123456789abcdef", "seeds": 2, "folds": [0, 1]}
ABOUT: dict[str, Any] = TASK | LIMITS | ORIGIN | {"command": COMMAND, "device": "cpu"}


def predictions(gain: float, seed: int = 1, replicates: int = 2) -> pd.DataFrame:
    """Errors of the size (1 - gain) times those of a common baseline, of mean 0.034, with a spread of their own."""
    target = np.random.default_rng(0).normal(0, 1, N)
    common = np.random.default_rng(0).exponential(0.03, N) + 0.004
    tables = []
    for replicate in range(replicates):
        own = np.random.default_rng([seed, replicate]).normal(0, 0.002, N)
        table = pd.DataFrame({"id": IDS, "fold": FOLD, "replicate": replicate, "target": target})
        tables.append(table.assign(prediction=target + np.abs((1 - gain) * common + own)))
    return pd.concat(tables, ignore_index=True)


def outcome(name: str, rows: pd.DataFrame, **changes: Any) -> Outcome:
    base, _, suffix = name.partition("-")
    twin = f"-{suffix}" if suffix else ""
    parent, control = (known[base] + twin if base in known else None for known in (PARENTS, CONTROLS))
    structures = {"E3": 3, "E4": 4, "E6": 4, "L3": 3}.get(base, 1) * 120_000
    change, tier = f"lever.of={name}" if parent else "", suffix or "pretrained-label-overlap"
    told = Outcome(name, f"what {name} is", parent, control, change, rows, structures, 12.5, "cpu", 1, tier)
    use = {"views": 4 if base in ("E2", "E6") else 1, "n_members": 3 if base == "E3" else 1}
    return replace(told, **(use | changes))


CURVE = tuple({"n_members": k, "mae": 0.03 + 0.004 / k, "min": 0.03, "max": 0.03 + 0.008 / k} for k in (1, 2, 3))
GAINS = {"E0": 0.0, "E1": 0.0, "E2": 0.0, "E3": 0.2, "E4": 0.1, "E5": 0.0, "E6": 0.1, "L3": 0.0}


def ladder(suffix: str = "", **gains: float) -> dict[str, Outcome]:
    """The whole ladder; by default E3 is a fifth better, E4 keeps half of that, and nothing else differs."""
    found = {}
    for place, (base, gain) in enumerate((GAINS | gains).items()):
        name = base + suffix
        found[name] = outcome(name, predictions(gain - 2 * bool(suffix), seed=place + 10 * bool(suffix)))
    return found


def analysed(outcomes: dict[str, Outcome], **options: Any) -> Analysis:
    return analyse(list(outcomes.values()), SYSTEMS, unit="eV/atom", n_resamples=500, **options)


def row(analysis: Analysis, name: str) -> dict[str, Any]:
    """What the files hold of an experiment."""
    return next(row.content() for row in analysis.rows if row.name == name)


def sentence(analysis: Analysis, start: str) -> str:
    found = [said for said in analysis.sentences if said.startswith(start)]
    assert len(found) == 1, analysis.sentences
    return found[0]


@cache
def full_ladder() -> Analysis:
    """All of it: a failure, a mark, a curve, a twin ladder and published algorithms."""
    outcomes = ladder() | ladder("-scratch")
    outcomes["E1"] = replace(outcomes["E1"], predictions=pd.DataFrame(), failed="out of memory | at step 3")
    outcomes["E3"] = replace(outcomes["E3"], curve=CURVE)
    outcomes["E5"] = replace(outcomes["E5"], caveats=("12 auxiliary rows are test crystals and were KEPT",))
    published = {"coNGN": 0.0178, "ALIGNN": 0.0275, "CGCNN": 0.0337, "CrabNet": 0.0343, "dummy": 1.0059}
    return analysed(outcomes, published=published)


# the rows
