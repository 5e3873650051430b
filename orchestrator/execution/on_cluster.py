"""Models made on a Ray cluster; it loads Ray, so it is imported only where one was asked for."""

from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.execution.job import Job, run_job
from orchestrator.execution.pool import Begun
from orchestrator.execution.ray_pool import ClusterRun, ClusterSource, run_on_ray
from orchestrator.execution.ray_stores import localised
from orchestrator.execution.resources import Resources
from orchestrator.execution.summary import RunSummary
from trainables.progress import Progress


def run_on_cluster(
    source: ClusterSource[Job],
    resources: Resources,
    folder: Path | None,
    progress: Progress,
    *,
    begun: Begun = lambda name, device: None,
    workers_changed: Callable[[int, bool], None] = lambda count, gpus: None,
) -> Iterator[tuple[str, RunSummary]]:
    """Make the models of a source on the cluster of `resources`, and yield (name, summary) as each ends.

    Args:
        folder: of the results, which all nodes have to share.

    Raises:
        UserError: as run_on_ray.
    """
    if resources.cluster is None:
        raise ValueError("these resources have no cluster")
    run = ClusterRun(
        resources.cluster, resources.device, resources.processes, None if folder is None else folder.absolute()
    )
    yield from run_on_ray(
        run_job,
        source,
        run,
        progress,
        failed=RunSummary.failure,
        localise=localised,
        begun=begun,
        workers_changed=workers_changed,
    )
