"""A run on a cluster: submitted, followed to its end or left to itself, and brought back.

ZenML's own waiting ends with the process that waits, and says nothing of steps. So a run is submitted without it and
followed here: through ZenML's records for what the steps do, and through the cluster for what they wait for.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import ends, garbage, runs, waiting
from cluster.api import ClusterApi
from pipelines.placement import run_options
from pipelines.running import CHECKOUT, arguments, configure
from proxykd.config import RunSpec
from proxykd.config.placement import load_placement
from proxykd.config.shielding import shielded
from proxykd.config.stack import ClusterStackSpec, KubernetesStackSpec
from proxykd.exceptions import ClusterError, ConfigError

IMAGE_CHECKOUT = Path("/app")
"""Where the image has the checkout."""

POLL_S = 2.0
AWAY_S = 300.0
"""Seconds for which ZenML's server or the API server may be away while a run is followed."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A run that the cluster has.

    Attributes:
        run_id: ZenML's identity.
        name: Its name.
    """

    run_id: str
    name: str


def submit(
    run: RunSpec, stack: ClusterStackSpec, *, inputs: str, models: Mapping[str, str], anew: Sequence[str] = ()
) -> Submitted:
    """Hand a run to the cluster of the active stack; does not wait for it.

    Args:
        run: The resolved specification.
        stack: The active stack.
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        anew: Steps that are done again although they are finished.

    Raises:
        ConfigError: if the stack's kind cannot be submitted to, or the run reads files that pods do not see.
        ClusterError: if the cluster refuses it.
    """
    configured = configure(run, anew=anew, options=cluster_options(stack))
    told = {**arguments(run, inputs=inputs, models=models), "specification": shielded(relocated(run, stack))}
    response = submitted(configured, told)
    return Submitted(str(response.id), response.name)


def submitted(configured: Any, told: Mapping[str, Any]) -> Any:
    """Call a pipeline; what the cluster refuses is an error of ours."""
    from kubernetes.client import ApiException
    from zenml.orchestrators import PipelineSubmissionError

    try:
        return configured(**told)
    except (ApiException, PipelineSubmissionError) as error:
        raise ClusterError(
            f"the cluster refused the run: {error}; `proxykd stack doctor` looks for what is missing"
        ) from error


def cluster_options(stack: ClusterStackSpec) -> dict[str, Any]:
    """Options of the pipeline for a stack: image, places and sizes, and no waiting.

    Raises:
        ConfigError: if the placement cannot be used, or the stack is Kubeflow's.
    """
    if not isinstance(stack, KubernetesStackSpec):
        raise ConfigError(f"expected a stack of kind kubernetes, got {stack.name} of another kind; see docs/stacks.md")
    options = run_options(stack, load_placement(stack.placement))
    settings = options["settings"]
    orchestrator = settings["orchestrator"].model_copy(update={"synchronous": False})
    return {**options, "settings": {**settings, "orchestrator": orchestrator}}


def relocated(run: RunSpec, stack: ClusterStackSpec) -> dict[str, Any]:
    """The specification in plain types, with the paths of this checkout as they are in the image's.

    Raises:
        ConfigError: if it names a file of this machine that is neither in the checkout nor on a volume of the pods.
    """
    placement = load_placement(stack.placement)
    mounts = {
        Path(path)
        for step in ("query_teacher", "distill_student_sft")
        for path in placement.step(step).volumes.values()
    }

    def moved(value: Any, key: str) -> Any:
        if isinstance(value, dict):
            return {name: moved(one, f"{key}.{name}".lstrip(".")) for name, one in value.items()}
        if isinstance(value, list):
            return [moved(one, key) for one in value]
        path = Path(value) if isinstance(value, str) and value.startswith("/") else None
        if path is None or any(path.is_relative_to(mount) for mount in mounts) or not path.exists():
            return value
        if path.is_relative_to(CHECKOUT):
            return str(IMAGE_CHECKOUT / path.relative_to(CHECKOUT))
        raise ConfigError(
            f"{key}={value} is a file of this machine, which no pod sees; put it on a volume that the placement mounts "
            f"({', '.join(sorted(map(str, mounts)))}) and name it there, or into the checkout that the image holds"
        )

    found: dict[str, Any] = moved(run.model_dump(mode="json"), "")
    return found


def follow(
    run: Submitted,
    stack: ClusterStackSpec,
    api: ClusterApi,
    *,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for a run's end, telling what its steps do and what they wait for.

    Args:
        run: The run.
        stack: Its stack, which says how long a step may wait for its pod.
        api: The cluster.
        tell: Takes one line.
        clock: Seconds that never go back.
        sleep: Waits.

    Raises:
        ClusterError: if the run ends badly, if a step waits too long, or if nobody carries the run on.
    """
    follower, heard = _Follower(run, stack, api, tell), clock()
    while True:
        try:
            if follower.look():
                return
            heard = clock()
        except (OSError, RuntimeError) as error:  # what ZenML's client raises while its server is away
            if isinstance(error, ClusterError):
                raise
            if clock() - heard > AWAY_S:
                raise ClusterError(
                    f"ZenML's server has not answered for {AWAY_S:.0f} s ({error}); the run {run.name} goes on without "
                    f"being watched: `proxykd runs {run.name}`"
                ) from error
        sleep(POLL_S)


class _Follower:
    """What was told so far."""

    def __init__(self, run: Submitted, stack: ClusterStackSpec, api: ClusterApi, tell: Callable[[str], None]) -> None:
        self._run, self._stack, self._api, self._tell = run, stack, api, tell
        self._told: dict[str, str] = {}

    def look(self) -> bool:
        """Tell what is new; whether the run has ended well."""
        state, is_finished = runs.state_of(self._run.run_id)
        steps = runs.steps_of(self._run.run_id)
        for step, status in steps.items():
            self._say(step, status)
        if is_finished:
            return self._conclude(state)
        now = datetime.now(UTC)
        for step, (since, reason) in waiting.waits(self._api, self._run.run_id).items():
            self._say(step, f"waits {reason}")
            limit = self._stack.start_timeout_s
            if limit is not None and (now - since).total_seconds() > limit:
                self._give_up(f"{step} has waited for {limit:.0f} s {reason}")
        self._check_alive(now)
        return False

    def _say(self, step: str, what: str) -> None:
        if self._told.get(step) != what:
            self._told[step] = what
            self._tell(f"{step}: {what}")

    def _conclude(self, state: str) -> bool:
        if state == "completed":
            return True
        failed = runs.failures(self._run.run_id, ends.reasons(self._api, self._run.run_id))
        raise ClusterError(
            f"the run {self._run.name} ended as {state}: {'; '.join(failed) or 'no step says why'}; `proxykd runs "
            f"{self._run.name}` shows its steps, and the same command goes on from what is finished"
        )

    def _check_alive(self, now: datetime) -> None:
        """A run without Jobs is nobody's; those that ended lately may still be noted down."""
        ages = garbage.Ages(now)
        run = runs.named(self._run.name)
        if now - run.created > ages.grace and (
            reason := garbage.why_abandoned(waiting.jobs_of(self._api, run.run_id), ages)
        ):
            runs.close(run.run_id, f"nobody carries it on: {reason}")
            raise ClusterError(f"the run {run.name} was recorded as failed: {reason}; run the same command again")

    def _give_up(self, why: str) -> None:
        runs.close(self._run.run_id, why)
        for job in waiting.jobs_of(self._api, self._run.run_id):
            garbage.remove_job(self._api, job)
        raise ClusterError(
            f"the run {self._run.name} was stopped: {why}; mend that, or raise start_timeout_s of the stack "
            f"{self._stack.name}, and run the same command again: it goes on from what is finished"
        )
