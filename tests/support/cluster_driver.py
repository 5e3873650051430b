"""A driver in a process of its own, to be killed: python cluster_driver.py ADDRESS OUT [SECONDS_UNTIL_LOST EPOCHS]."""

import sys
from pathlib import Path

from ladders import plan_of

import crystaltune  # noqa: F401 - before ray
from orchestrator.execution.resources import Cluster, Resources
from orchestrator.execution.scheduler import run_all
from trainables.errors import UserError
from trainables.progress import silent


class Said:
    """Progress of which only messages are printed."""

    stage = staticmethod(silent.stage)

    def message(self, text: str) -> None:
        print(text, flush=True)


def main() -> None:
    address, out = sys.argv[1], Path(sys.argv[2])
    if len(sys.argv) > 3:
        from orchestrator.execution import ray_nodes

        ray_nodes._SECONDS_UNTIL_LOST = float(sys.argv[3])
    graph = plan_of(out, Said(), seeds=2, epochs=int(sys.argv[4]) if len(sys.argv) > 4 else 2)
    try:
        run_all(graph, Resources("cpu", processes=2, cluster=Cluster(address)), log=out)
    except UserError as error:
        print(f"error: {error}", flush=True)
        sys.exit(2)
    print("made", sum(not summary.failed for summary in graph.summaries.values()), flush=True)


if __name__ == "__main__":
    main()
