"""Runs of which nothing gets to run: a queue that never admits, a node that never comes, or one that does not answer.

Whoever follows a run ends it then; a run that nobody follows is ended by its own orchestrator's pod (``Guard``), and
one whose orchestrator's pod is what waits, by ``proxykd gc`` (``find_starved``).
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial

from cluster import runs, waiting
from cluster.api import ClusterApi
from cluster.garbage import RUN_ANNOTATION, Ages, Waste, remove_job
from cluster.kinds import JOBS
from cluster.own_pod import read_own_pod
from cluster.stopping import stop_jobs


def why_starved(waits: Mapping[str, tuple[datetime, str]], limit_s: float | None, now: datetime) -> str:
    """Why a run is given up; "" = it may wait on.

    Args:
        waits: Step -> since when it waits while nothing of the run runs, and for what.
        limit_s: Seconds for which a step may wait; None = for ever.
        now: The time, with its zone.
    """
    if limit_s is None:
        return ""
    over = (step for step, (since, _) in waits.items() if (now - since).total_seconds() > limit_s)
    return next((f"for {limit_s:.0f} s nothing of it ran, as {step} waited {waits[step][1]}" for step in over), "")


def find_starved(
    api: ClusterApi, unfinished: Iterable[runs.Run], orchestrator_id: str, ages: Ages, limit_s: float | None
) -> Iterator[Waste]:
    """Runs of a stack that nobody ended although they have waited for too long.

    Args:
        api: The cluster.
        unfinished: The runs that ZenML believes to be under way.
        orchestrator_id: ZenML's identity of the stack's orchestrator.
        ages: What is too young to be judged.
        limit_s: The stack's ``start_timeout_s``.
    """
    for run in unfinished:
        if run.orchestrator_id != orchestrator_id or ages.now - run.created <= ages.grace:
            continue
        if why := why_starved(waiting.waits(api, run.run_id, ages.now), limit_s, ages.now):
            yield Waste("Run", run.name, why, partial(stop_jobs, api, run.run_id, f"closed by proxykd gc: {why}"))


class Guard:
    """Looks, as the orchestrator's pod of a run, whether anything of that run gets to run.

    Args:
        api: The pod's cluster.
        limit_s: Seconds for which a step may wait.
    """

    def __init__(self, api: ClusterApi, limit_s: float) -> None:
        self._api, self._limit_s = api, limit_s
        self._waits: waiting.Waits | None = None
        self._run_id = ""

    def look(self, now: datetime) -> bool:
        """End the run if it has waited for too long; whether it did.

        Raises:
            ClusterError: if the cluster is not reached; to be asked again.
            OSError, RuntimeError: if ZenML's server is not.
        """
        if self._waits is None and not self._find_run():
            return False
        assert self._waits is not None
        why = why_starved(self._waits.look(self._api, now), self._limit_s, now)
        if why:
            self._give_up(why)
        return bool(why)

    def _find_run(self) -> bool:
        """ZenML notes on the orchestrator's Job which run it walks."""
        pod = read_own_pod(self._api)
        job = self._api.find(JOBS, pod.owner["name"]) if pod is not None and pod.owner else None
        self._run_id = ((job or {"metadata": {}})["metadata"].get("annotations") or {}).get(RUN_ANNOTATION, "")
        self._waits = waiting.Waits(self._run_id) if self._run_id else None
        return self._waits is not None

    def _give_up(self, why: str) -> None:
        """Told first, so that the orchestrator beside this takes removed Jobs for a run that was stopped."""
        runs.close(self._run_id, why, is_stopped=True)
        for job in waiting.jobs_of(self._api, self._run_id):
            if waiting.step_of(job) != waiting.ORCHESTRATOR:
                remove_job(self._api, job)
