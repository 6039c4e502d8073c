"""A run on a cluster: submitted, followed to its end or left to itself, and brought back.

ZenML's own waiting ends with the process that waits, and says nothing of steps. So a run is submitted without it and
followed here: through ZenML's records for what the steps do, and through the cluster for what they wait for.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster import ends, garbage, neighbours, runs, waiting
from cluster.api import ClusterApi
from cluster.kubeflow_runs import Idleness, KubeflowRuns, kubeflow_id, why_over
from cluster.starving import why_starved
from cluster.stopping import stop_jobs
from pipelines.placement import run_options
from pipelines.running import CHECKOUT, arguments, configure
from proxykd.config import RunSpec
from proxykd.config.placement import load_placement
from proxykd.config.shielding import shielded
from proxykd.config.stack import ClusterStackSpec
from proxykd.config.steps import STEPS, can_be_divided, step_names
from proxykd.exceptions import ClusterError, ClusterUnreachableError, ConfigError

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
    run: RunSpec,
    stack: ClusterStackSpec,
    *,
    inputs: str,
    models: Mapping[str, str],
    anew: Sequence[str] = (),
    shards: Mapping[str, int] | None = None,
) -> Submitted:
    """Hand a run to the cluster of the active stack; does not wait for it.

    Args:
        run: The resolved specification.
        stack: The active stack.
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        anew: Steps that are done again although they are finished.
        shards: Step -> in how many parts its prompts are worked on; of those left out the placement says it.

    Raises:
        ConfigError: if a step cannot be divided, the stack's kind cannot be submitted to, or the run reads files that
            pods do not see.
        ClusterError: if the cluster refuses it.
    """
    response = started(run, stack, inputs=inputs, models=models, anew=anew, shards=shards)
    return Submitted(str(response.id), response.name)


def started(
    run: RunSpec,
    stack: ClusterStackSpec,
    *,
    inputs: str,
    models: Mapping[str, str],
    anew: Sequence[str] = (),
    shards: Mapping[str, int] | None = None,
    **options: Any,
) -> Any:
    """What ZenML answers to a run that is to begin now, or at the times that ``options`` name; errors as ``submit``'s.

    Args:
        run: As of ``submit``, like all up to ``shards``.
        stack: The active stack.
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        anew: Steps that are done again although they are finished.
        shards: Step -> in how many parts its prompts are worked on; of those left out the placement says it.
        options: More of the pipeline's.
    """
    divided = {**shards_of(run, stack), **(shards or {})}
    configured = configure(run, anew=anew, shards=divided, options={**cluster_options(stack, divided), **options})
    told = arguments(run, inputs=inputs, models=models, shards=divided)
    return submitted(configured, {**told, "specification": shielded(relocated(run, stack))})


def submitted(configured: Any, told: Mapping[str, Any]) -> Any:
    """Call a pipeline; what the cluster refuses is an error of ours, and what its client prints is not our answer."""
    from kubernetes.client import ApiException
    from zenml.orchestrators import PipelineSubmissionError

    try:
        with redirect_stdout(sys.stderr):  # kfp prints the addresses of pages, and stdout is what a shell reads
            return configured(**told)
    except (ApiException, PipelineSubmissionError) as error:
        raise ClusterError(
            f"the cluster refused the run: {error}; `proxykd stack doctor` looks for what is missing"
        ) from error


def shards_of(run: RunSpec, stack: ClusterStackSpec) -> dict[str, int]:
    """In how many parts the stack's placement has steps of a run worked on; recorded texts are not divided."""
    shards = load_placement(stack.placement).shards if stack.placement else {}
    return {name: count for name, count in shards.items() if can_be_divided(run, name)}


def cluster_options(stack: ClusterStackSpec, shards: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Options of the pipeline for a stack: image, places and sizes, and no waiting.

    Args:
        stack: The stack.
        shards: Step -> in how many parts its prompts are worked on; those left out are one.

    Raises:
        ConfigError: if the placement cannot be used, or asks for what the stack's kind cannot give.
    """
    options = run_options(stack, load_placement(stack.placement), step_names(shards or {}))
    settings = options["settings"]
    orchestrator = settings["orchestrator"].model_copy(update={"synchronous": False})
    return {**options, "settings": {**settings, "orchestrator": orchestrator}}


def relocated(run: RunSpec, stack: ClusterStackSpec) -> dict[str, Any]:
    """The specification in plain types, with the paths of this checkout as they are in the image's.

    Raises:
        ConfigError: if it names a file of this machine that is neither in the checkout nor on a volume of the pods.
    """
    placement = load_placement(stack.placement)
    mounts = {Path(path) for step in STEPS for path in placement.step(step).volumes.values()}

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
            f"({', '.join(sorted(map(str, mounts)))}) and name it there by a path that this machine has, too, as the "
            "plan reads it here, or put it into the checkout that the image holds"
        )

    found: dict[str, Any] = moved(run.model_dump(mode="json"), "")
    return found


def follow(
    run: Submitted,
    stack: ClusterStackSpec,
    api: ClusterApi | None,
    *,
    tell: Callable[[str], None],
    pipelines: KubeflowRuns | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for a run's end, telling what its steps do and what they wait for.

    Args:
        run: The run.
        stack: Its stack, which says how long a step may wait for its pod.
        api: The cluster; None = Kubeflow Pipelines starts the pods.
        tell: Takes one line.
        pipelines: Runs of Kubeflow Pipelines; None = it has no part in this.
        clock: Seconds that never go back.
        sleep: Waits.

    Raises:
        ClusterError: if the run ends badly, if a step waits too long, or if nobody carries the run on.
    """
    until_it_ends(_Follower(run, stack, api, tell, pipelines).look, run.name, clock=clock, sleep=sleep)


def until_it_ends(
    look: Callable[[], bool], name: str, *, clock: Callable[[], float], sleep: Callable[[float], None]
) -> None:
    """Look again and again, through a while in which nobody answers.

    Args:
        look: Whether the run has ended well.
        name: Of the run.
        clock: Seconds that never go back.
        sleep: Waits.

    Raises:
        ClusterError: that of ``look``; or if a server stays away for ``AWAY_S``.
    """
    heard = clock()
    while True:
        try:
            if look():
                return
            heard = clock()
        except (OSError, RuntimeError) as error:  # what ZenML's client raises while its server is away
            if isinstance(error, ClusterError) and not isinstance(error, ClusterUnreachableError):
                raise
            if clock() - heard > AWAY_S:
                who = "the API server" if isinstance(error, ClusterUnreachableError) else "ZenML's server"
                raise ClusterError(
                    f"{who} has not answered for {AWAY_S:.0f} s ({error}); the run {name} goes on without being "
                    f"watched: `proxykd runs {name}`"
                ) from error
        sleep(POLL_S)


class _Follower:
    """What was told so far."""

    def __init__(
        self,
        run: Submitted,
        stack: ClusterStackSpec,
        api: ClusterApi | None,
        tell: Callable[[str], None],
        pipelines: KubeflowRuns | None,
    ) -> None:
        self._pipelines, self._idleness = pipelines, Idleness(stack.start_timeout_s)
        self._run, self._stack, self._api, self._tell = run, stack, api, tell
        self._told: dict[str, str] = {}
        self._created: datetime | None = None
        self._waits = waiting.Waits(run.run_id)

    def look(self) -> bool:
        """Tell what is new; whether the run has ended well."""
        state, is_finished = runs.state_of(self._run.run_id)
        steps = runs.steps_of(self._run.run_id)
        for step, status in steps.items():
            self._say(step, status)
        if is_finished:
            return self._conclude(state)
        if self._api is not None:
            self._look_at_pods(self._api, datetime.now(UTC))
        if self._pipelines is not None:
            self._ask_pipelines(self._pipelines, steps, datetime.now(UTC))
        return False

    def _ask_pipelines(self, pipelines: KubeflowRuns, steps: Mapping[str, str], now: datetime) -> None:
        found = kubeflow_id(self._run.run_id)
        why = why_over(pipelines.state(found)) if found else ""
        idle = "" if why else self._idleness.look(steps, now)
        # What ended at this moment is told by the next look.
        if (why or idle) and runs.close(self._run.run_id, why or idle):
            if idle and found:
                with suppress(ClusterError):  # the records say already that it is over
                    pipelines.stop(found)
            raise ClusterError(
                f"the run {self._run.name} was recorded as failed: {why or idle}; look at its page of Kubeflow "
                "Pipelines, mend that, and run the same command again: it goes on from what is finished"
            )

    def _look_at_pods(self, api: ClusterApi, now: datetime) -> None:
        waits = self._waits.look(api, now)
        for step, (_, reason) in waits.items():
            self._say(step, f"waits {reason}")
        if why := why_starved(waits, self._stack.start_timeout_s, now):
            self._give_up(api, why)
        self._check_alive(api, now)

    def _say(self, step: str, what: str) -> None:
        if self._told.get(step) != what:
            self._told[step] = what
            self._tell(f"{step}: {what}")

    def _conclude(self, state: str) -> bool:
        if state == "completed":
            return True
        said = {} if self._api is None else ends.reasons(self._api, self._run.run_id)
        if self._api is not None:
            neighbours.remove_trainings(self._api, lambda run_id: run_id == self._run.run_id, self._tell)
        # Whoever stops a run says why; what becomes of its steps follows from that.
        reason = runs.named(self._run.name).reason
        why = [reason] if state == "stopped" and reason else runs.failures(self._run.run_id, said)
        failed = why or [reason or "no step says why"]
        raise ClusterError(
            f"the run {self._run.name} ended as {state}: {'; '.join(failed)}; `proxykd runs "
            f"{self._run.name}` shows its steps, and the same command goes on from what is finished"
        )

    def _check_alive(self, api: ClusterApi, now: datetime) -> None:
        """A run without Jobs is nobody's; those that ended lately may still be noted down."""
        ages, run = garbage.Ages(now), self._run
        self._created = self._created or runs.named(run.name).created
        if now - self._created <= ages.grace:
            return
        if reason := garbage.why_abandoned(waiting.jobs_of(api, run.run_id), ages):
            runs.close(run.run_id, f"nobody carries it on: {reason}")
            raise ClusterError(f"the run {run.name} was recorded as failed: {reason}; run the same command again")

    def _give_up(self, api: ClusterApi, why: str) -> None:
        stop_jobs(api, self._run.run_id, why, tell=self._tell)
        raise ClusterError(
            f"the run {self._run.name} was stopped: {why}; mend that, or raise start_timeout_s of the stack "
            f"{self._stack.name}, and run the same command again: it goes on from what is finished"
        )
