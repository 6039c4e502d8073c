"""A TrainJob followed to its end: what it says is told, and what it cannot recover from is one clear error."""

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.api import ClusterApi
from cluster.kinds import PODS, TRAIN_JOBS, WORKLOADS
from cluster.manifest import CONTAINER, REPLICATED_JOB
from cluster.own_pod import condition, has_condition
from cluster.pod_log import LogCopies, last_lines
from cluster.refusals import refusals
from cluster.training_pods import (
    JOBSET_LABEL,
    Trouble,
    describe,
    has_begun,
    is_queued,
    is_running,
    node_index,
    starts_in_vain,
    troubles,
)
from proxykd.config.launcher import LauncherSpec
from proxykd.exceptions import (
    ClusterAuthError,
    ClusterError,
    ClusterForbiddenError,
    ClusterMissingError,
    ClusterUnreachableError,
    ModelError,
)
from proxykd.progress import report

AWAY_S, REFUSED_S, IMAGE_S, UNHEARD_S = 1800.0, 60.0, 180.0, 300.0
"""Seconds for which the API server may be away, or refuse who was let in before (a token that is being renewed, a Role
that is being applied anew), for which an image may be missing, and Kubeflow Trainer may say nothing."""
_PASSING = (ClusterUnreachableError, ClusterAuthError, ClusterForbiddenError)
_POLL_S, _SLOWEST_POLL_S, _NEAR_END_S, _WHY_S = 0.25, 5.0, 10.0, 30.0
_LINES = 30
STARTS = 10
"""How often a training may lose a node between two checkpoints."""


class Follower:
    """Follows one TrainJob.

    Args:
        api: Its namespace.
        name: Of the TrainJob.
        spec: What was asked for.
        advice: What to lower where memory runs out.
        clock: Seconds.
        sleep: Waits; None = until a pod's log ends, if that is sooner.
        say: Tells the user.
        checkpoint: File that the training writes from time to time; None = it writes none.
        catch_up_s: Seconds that the copies of the logs have, once it ended, to reach their ends.
    """

    def __init__(
        self,
        api: ClusterApi,
        name: str,
        spec: LauncherSpec,
        *,
        advice: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
        say: Callable[[str], None] = report,
        checkpoint: Path | None = None,
        catch_up_s: float = 1.0,
    ) -> None:
        self._api, self._name, self._spec, self._advice = api, name, spec, advice
        self._clock, self._sleep, self._say = clock, sleep, say
        self._checkpoint, self._catch_up_s = checkpoint, catch_up_s
        self._logs = LogCopies(api, container=CONTAINER)
        self._said, self._why, self._asked_why = "", "", float("-inf")
        self._refused, self._asked_refused = "", float("-inf")
        self._began = self._idle_since = self._heard = clock()
        self._missing_since: float | None = None
        self._refused_since: float | None = None
        self._was_let_in = False
        self._log_ended = float("-inf")

    def wait(self) -> None:
        """Return when it is complete.

        Raises:
            ModelError: if it used up its memory, or failed.
            ClusterError: if it is never admitted, its image is missing, somebody removed it, or the server stays away
                or goes on refusing.
        """
        try:
            while not self._look():
                self._pause()
        finally:
            self._logs.finish(wait_s=self._catch_up_s)

    def _pause(self) -> None:
        """The older the training the longer, but not while it seems to end."""
        now = self._clock()
        is_near_end = now - self._log_ended < _NEAR_END_S
        seconds = _POLL_S if is_near_end else min(max(_POLL_S, (now - self._began) / 60.0), _SLOWEST_POLL_S)
        if self._sleep is not None:
            self._sleep(seconds)
        elif self._logs.wait_for_end(seconds):
            self._log_ended = self._clock()

    def _look(self) -> bool:
        try:
            job = self._api.get(TRAIN_JOBS, self._name)
            pods = list(self._api.list(PODS, labels=f"{JOBSET_LABEL}={self._name}"))
        except ClusterMissingError:
            raise ClusterError(
                f"expected the TrainJob {self._name} in namespace {self._api.namespace} until its end, but somebody "
                "removed it; run the same command again: it goes on from the last checkpoint"
            ) from None
        except _PASSING as error:
            self._bear(error)
            return False
        self._heard, self._refused_since, self._was_let_in = self._clock(), None, True
        for pod in pods:
            if has_begun(pod):
                prefix = f"[node {node_index(pod)}] " if self._spec.nodes > 1 else ""
                self._logs.follow(pod["metadata"]["name"], prefix=prefix, is_running=is_running(pod))
        if has_condition(job, "Complete"):
            return True
        self._check(job, pods)
        return False

    def _bear(self, error: ClusterError) -> None:
        now, is_away = self._clock(), isinstance(error, ClusterUnreachableError)
        # A server that was away may refuse at first, before its rules and token reviews are there again.
        self._refused_since = None if is_away else now if self._refused_since is None else self._refused_since
        since, limit = (self._heard, AWAY_S) if self._refused_since is None else (self._refused_since, REFUSED_S)
        if now - since >= limit or not (is_away or self._was_let_in):
            raise error
        self._tell(f"goes on unseen, as the API server {'does not answer' if is_away else 'refuses'}: {error}")

    def _check(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        for trouble in troubles(pods):
            self._judge(trouble)
        if not any(trouble.may_pass for trouble in troubles(pods)):
            self._missing_since = None
        if has_condition(job, "Failed"):
            raise self._failure(job, pods)
        self._check_progress(pods)
        if is_queued(job):
            self._ask_why(job)
        elif len(pods) < self._spec.nodes:
            self._ask_why_refused()
        else:
            self._refused = ""
        self._tell(self._described(job, pods))
        if sum(map(is_running, pods)) >= self._spec.nodes:
            self._idle_since = self._clock()
        elif self._clock() - self._idle_since > self._spec.start_s:
            raise self._never_started(job, pods)
        self._check_heard(job, pods)

    def _judge(self, trouble: Trouble) -> None:
        """Raise what will not pass, and what has not passed for too long."""
        if trouble.kind == "memory":
            raise ModelError(
                f"expected the training to fit into the memory of pod {trouble.pod} ({trouble.text}), but it was used "
                f"up and the pod killed; lower {self._advice}, or raise the launcher's memory in the placement"
            )
        if trouble.may_pass:
            self._missing_since = self._clock() if self._missing_since is None else self._missing_since
            if self._clock() - self._missing_since < IMAGE_S:
                self._tell(f"pod {trouble.pod} cannot start yet: {trouble.text}")
                return
        wanted = "its image" if trouble.kind == "image" else "all that its manifest names (secrets, claims, command)"
        raise ClusterError(
            f"expected pod {trouble.pod} to find {wanted}, but: {trouble.text}; push the image, correct the stack's "
            "image, or add the pull secret to the service account: `proxykd stack doctor` looks for them"
        )

    def _check_progress(self, pods: list[dict[str, Any]]) -> None:
        """No count of the Job's ends a training that loses a node again and again before it has saved anything."""
        if (count := starts_in_vain(pods, _written(self._checkpoint))) >= STARTS:
            raise ModelError(
                f"expected the TrainJob {self._name} to get on, but it was begun {count} times without a new "
                "checkpoint: each time one node lost another; look for the cause in the log above (network rules, "
                "NCCL_SOCKET_IFNAME, a node that fails), or lower checkpoint_s if its nodes are taken away that often"
            )

    def _failure(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> ModelError:
        failed = condition(job, "Failed")
        ended = [pod for pod in pods if (pod.get("status") or {}).get("phase") == "Failed"]
        shown = ""
        if ended:
            name = ended[-1]["metadata"]["name"]
            shown = f"; the end of pod {name}'s log:\n{last_lines(self._api, name, container=CONTAINER, count=_LINES)}"
        return ModelError(
            f"expected the TrainJob {self._name} to complete, but it failed ({failed.get('reason')}: "
            f"{failed.get('message')}); its log stands above{shown}"
        )

    def _never_started(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> ClusterError:
        state = self._described(job, pods)
        queue = f"queue {self._spec.queue!r}" if self._spec.queue else "no queue"
        return ClusterError(
            f"expected the TrainJob {self._name} ({self._spec.nodes} x {self._spec.gpus} GPUs, {queue}) to run within "
            f"{self._spec.start_s:g} s, but it {state}; ask for fewer GPUs or another queue in the placement, raise "
            "the launcher's start_s, or let `proxykd stack doctor` look at the queue"
        )

    def _described(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> str:
        why = self._why if is_queued(job) else self._refused
        return describe(job, pods, nodes=self._spec.nodes, why=why)

    def _check_heard(self, job: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        """A TrainJob that nobody has touched since it was made shows that its controller is not there."""
        if not pods and not job.get("status") and not is_queued(job) and self._clock() - self._began > UNHEARD_S:
            raise ClusterError(
                f"expected Kubeflow Trainer to take up the TrainJob {self._name}, but for {UNHEARD_S:g} s nobody did; "
                "install or restart its controller: `proxykd stack doctor` looks for it"
            )

    def _ask_why(self, job: dict[str, Any]) -> None:
        """What Kueue says of its Workload, where this identity may read it."""
        if self._clock() - self._asked_why < _WHY_S:
            return
        self._asked_why = self._clock()
        try:
            found = list(self._api.list(WORKLOADS, labels=f"kueue.x-k8s.io/job-uid={job['metadata']['uid']}"))
        except (ClusterForbiddenError, ClusterMissingError):
            self._asked_why = float("inf")
            return
        except (ClusterUnreachableError, ClusterAuthError):
            return  # as the next look will find, and bear
        reserved = condition(found[-1], "QuotaReserved") if found else {}
        self._why = str(reserved.get("message", "")) if reserved.get("status") == "False" else ""

    def _ask_why_refused(self) -> None:
        """What keeps the Job that stands behind the TrainJob from making its pods."""
        if self._clock() - self._asked_refused < _WHY_S:
            return
        self._asked_refused = self._clock()
        with suppress(*_PASSING):  # as the next look will find, and bear
            self._refused = refusals(self._api).get(f"{self._name}-{REPLICATED_JOB}-0", "")

    def _tell(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say(f"TrainJob {self._name} {text}")


def _written(checkpoint: Path | None) -> datetime | None:
    try:
        return None if checkpoint is None else datetime.fromtimestamp(checkpoint.stat().st_mtime, UTC)
    except OSError:
        return None
