"""What perturbed views cost: an augmented training step and k test-time views against clean ones.

    uv run python benchmarks/views.py [--data FILE] [--task mp_e_form] [--limit N] [--batch 32] [--json OUT]

FILE is a Matbench table (json.gz); without it the embedded synthetic sample is used. Folded views move by what keeps
each crystal's symmetry, full views by any strain and displacement (0.5 % and 0.01 A at most here). The kinds take turns
on the same batches, on one thread; every number is the median over batches of its time over the clean one's. Nothing is
converted in the timed part.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import arguments, read_crystals, save, whole_batches

from trainables.data.tasks import TASKS
from trainables.graphs.batch import Batch, collate
from trainables.graphs.convert import Cutoffs
from trainables.graphs.perturb import needed_skin, perturbed
from trainables.graphs.store import GraphStore, open_or_build
from trainables.graphs.view import View, folded_view, full_view
from trainables.model.chgnet import build_model
from trainables.processes import keep_freed_memory

STRAIN, DISPLACEMENT = 0.005, 0.01  # spectral norm; A


def main() -> None:
    parser = arguments(__doc__, limit=256)
    parser.add_argument("--batch", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    crystals = read_crystals(args)
    # Projecting a strain on the invariant ones can raise its spectral norm, to its Frobenius norm at most.
    skin = needed_skin(6.0, displacement=2 * DISPLACEMENT, strain=2 * STRAIN)
    with tempfile.TemporaryDirectory() as folder:
        clean = open_or_build(crystals, Cutoffs(), Path(folder))
        skinned = open_or_build(crystals, Cutoffs(skin=skin), Path(folder))
        results = {
            "crystals": len(crystals),
            "fold": float(clean.full_cost.sum() / clean.cost.sum()),
            "symmetric_fold": float(skinned.full_cost.sum() / skinned.cost.sum()),
            **measure(clean, skinned, args.batch),
        }
    print(json.dumps(results, indent=2))
    save(results, args.json)


def measure(clean: GraphStore, skinned: GraphStore, batch_size: int) -> dict[str, float]:
    """Times over those of the clean step and the clean prediction."""
    model = build_model("0.3.0", TASKS["matbench_mp_e_form"])
    usable = np.flatnonzero(~clean.failed & (clean.n_isolated == 0))
    batches = whole_batches(usable, batch_size)

    def moved(view: View) -> Batch:
        return perturbed(view, skinned.cutoffs, **draws(view)).batch(trim=skinned.cutoffs)

    def step(batch: Batch) -> None:
        torch.autograd.grad(model(batch).abs().mean(), list(model.parameters()), allow_unused=True)

    def views(gather: Callable[[GraphStore, np.ndarray], View], k: int, rows: np.ndarray) -> None:
        with torch.inference_mode():
            view = gather(skinned, rows)
            for _ in range(k):
                model(moved(view))

    def predict(rows: np.ndarray) -> None:
        with torch.inference_mode():
            model(collate(clean, rows))

    kinds: dict[str, Callable[[np.ndarray], None]] = {
        "step_clean": lambda rows: step(collate(clean, rows)),
        "step_folded_view": lambda rows: step(moved(folded_view(skinned, rows))),
        "step_full_view": lambda rows: step(moved(full_view(skinned, rows))),
        "step_full_view_untrimmed": lambda rows: step(
            perturbed(view := full_view(skinned, rows), skinned.cutoffs, **draws(view)).batch()
        ),
        "predict_clean": predict,
        "predict_4_folded_views": lambda rows: views(folded_view, 4, rows),
        "predict_8_folded_views": lambda rows: views(folded_view, 8, rows),
        "predict_4_full_views": lambda rows: views(full_view, 4, rows),
        "predict_8_full_views": lambda rows: views(full_view, 8, rows),
    }
    for kind in kinds.values():
        for rows in batches:
            kind(rows)
    seconds = {name: np.empty(len(batches)) for name in kinds}
    for place, rows in enumerate(batches):
        for name, kind in kinds.items():
            begin = time.perf_counter()
            kind(rows)
            seconds[name][place] = time.perf_counter() - begin
    return {name: float(np.median(values / seconds[f"{name.split('_')[0]}_clean"])) for name, values in seconds.items()}


def draws(view: View) -> dict[str, torch.Tensor]:
    """Random strains and displacements within their bounds."""
    strain = torch.randn(len(view.rows), 3, 3, dtype=torch.float64)
    strain = strain + strain.mT
    displacement = torch.randn(len(view.frac), 3, dtype=torch.float64)
    return {
        "strain": STRAIN * strain / torch.linalg.matrix_norm(strain)[:, None, None],
        "displacement": DISPLACEMENT * displacement / displacement.norm(dim=1, keepdim=True),
    }


if __name__ == "__main__":
    main()
