"""Runs of which nothing gets to run: a queue that never admits, a node that never comes, or one that does not answer.

Whoever follows a run ends it then; a run that nobody follows is ended by its own orchestrator's pod (``Guard``), and
one whose orchestrator's pod is what waits, by ``proxykd gc`` (``find_starved``).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial

from cluster import runs, waiting
from cluster.api import ClusterApi
from cluster.garbage import RUN_ANNOTATION, Ages, Waste, noop, remove_job
from cluster.kinds import JOBS
from cluster.own_pod import read_own_pod
from cluster.stopping import stop_jobs
from proxykd.exceptions import ClusterForbiddenError


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
    api: ClusterApi,
    unfinished: Iterable[runs.Run],
    orchestrator_id: str,
    ages: Ages,
    limit_s: float | None,
    *,
    tell: Callable[[str], None] = noop,
) -> Iterator[Waste]:
    """Runs of a stack whose orchestrator's pod has waited for too long, and that nobody ended.

    What the steps of a run waited for its orchestrator knows better: of pods that are gone no single look can tell.

    Args:
        api: The cluster.
        unfinished: The runs that ZenML believes to be under way.
        orchestrator_id: ZenML's identity of the stack's orchestrator.
        ages: What is too young to be judged.
        limit_s: The stack's ``start_timeout_s``.
        tell: Takes a line where this identity may not look.
    """
    for run in unfinished:
        if run.orchestrator_id != orchestrator_id or ages.now - run.created <= ages.grace:
            continue
        try:
            waits = waiting.waits(api, run.run_id, ages.now)
        except ClusterForbiddenError:
            tell("what runs wait for is not looked at: this identity may not list pods")
            return
        own = {step: wait for step, wait in waits.items() if step == waiting.ORCHESTRATOR}
        if why := why_starved(own, limit_s, ages.now):
            yield Waste("Run", run.name, why, partial(stop_jobs, api, run.run_id, f"closed by proxykd gc: {why}"))


class Guard:
    """Looks, as the orchestrator's pod of a run, whether anything of that run gets to run.

    Args:
        api: The pod's cluster.
        limit_s: Seconds for which a step may wait.
        began: When the pod did; nobody tells it what ran before that, so no wait counts from earlier.

    Attributes:
        has_given_up: Whether it has recorded the run as stopped.
    """

    def __init__(self, api: ClusterApi, limit_s: float, began: datetime) -> None:
        self._api, self._limit_s, self._began = api, limit_s, began
        self._waits: waiting.Waits | None = None
        self._run_id, self.has_given_up = "", False

    def look(self, now: datetime) -> None:
        """End the run if it has waited for too long, or go on ending it.

        Raises:
            Exception: whatever ZenML's client or the cluster's raises while its server is away; to be asked again.
        """
        if self._waits is None:
            self._waits = self._find_run()
        if self._waits is None:
            return
        if not self.has_given_up:
            waits = self._waits.look(self._api, now).items()
            own = {step: (max(since, self._began), reason) for step, (since, reason) in waits}
            if not (why := why_starved(own, self._limit_s, now)):
                return
            # Told first, so that the orchestrator beside this takes removed Jobs for a run that was stopped.
            runs.close(self._run_id, why, is_stopped=True)
            self.has_given_up = True
        self.clear()

    def clear(self) -> None:
        """Remove the steps' Jobs; to be asked again when the orchestrator has ended, which may start one meanwhile."""
        for job in waiting.jobs_of(self._api, self._run_id):
            if waiting.step_of(job) != waiting.ORCHESTRATOR:
                remove_job(self._api, job)

    def _find_run(self) -> "waiting.Waits | None":
        """ZenML notes on the orchestrator's Job which run it walks."""
        pod = read_own_pod(self._api)
        job = self._api.find(JOBS, pod.owner["name"]) if pod is not None and pod.owner else None
        self._run_id = ((job or {"metadata": {}})["metadata"].get("annotations") or {}).get(RUN_ANNOTATION, "")
        return waiting.Waits(self._run_id) if self._run_id else None
