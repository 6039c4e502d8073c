"""What Kubeflow Pipelines says of a run that ZenML believes to be under way.

A pod that was killed tells ZenML nothing, and ZenML asks Kubeflow Pipelines nothing: only its server knows that such a
run is over.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from zenml.client import Client
from zenml.stack import Stack

from cluster.garbage import Ages, Waste, closing
from cluster.runs import Run
from proxykd.exceptions import ClusterMissingError, ClusterUnreachableError

RUN_ID = "kubeflow_run_id"
"""Under which a run's metadata in ZenML hold its identity in Kubeflow Pipelines."""

ENDED = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})


@contextmanager
def connecting() -> Iterator[None]:
    """Around the making of kfp's client: leaves out what each says at once, that old servers will not do."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This client only works with Kubeflow Pipeline v2", FutureWarning)
        yield


@dataclass(slots=True)
class KubeflowRuns:
    """The runs of one server.

    Attributes:
        connect: Gives kfp's client, which asks the server whether it is there.
    """

    connect: Callable[[], Any]
    _client: Any = None

    @classmethod
    def of_stack(cls, stack_id: str) -> "KubeflowRuns":
        """Those of the server that a stack of ours names.

        Args:
            stack_id: ZenML's identity of the stack.
        """
        orchestrator: Any = Stack.from_model(Client().get_stack(stack_id)).orchestrator
        return cls(orchestrator.pipelines_client)

    def state(self, kubeflow_id: str) -> str:
        """A run's state in the words of Kubeflow Pipelines; "" = it does not know the run.

        Raises:
            ClusterUnreachableError: if it does not answer, or refuses.
        """
        try:
            return str(self._ask("get_run", kubeflow_id).state or "")
        except ClusterMissingError:
            return ""

    def stop(self, kubeflow_id: str) -> None:
        """End a run's pods.

        Raises:
            ClusterError: if it cannot be told.
        """
        self._ask("terminate_run", kubeflow_id)

    def _ask(self, what: str, kubeflow_id: str) -> Any:
        from kfp_server_api import ApiException
        from urllib3.exceptions import HTTPError

        try:
            if self._client is None:
                with connecting():
                    self._client = self.connect()
            return getattr(self._client, what)(kubeflow_id)
        except (ApiException, HTTPError, TimeoutError) as error:  # the last: kfp's own, of a server that is not healthy
            if getattr(error, "status", None) == 404:
                raise ClusterMissingError(f"Kubeflow Pipelines does not know the run {kubeflow_id}") from error
            raise ClusterUnreachableError(
                f"expected Kubeflow Pipelines to {what.replace('_', ' ')} {kubeflow_id}, but: {error}; look whether "
                "the stack's hostname or context reaches it"
            ) from error


def kubeflow_id(run_id: str) -> str:
    """A run's identity in Kubeflow Pipelines; "" = nobody noted it down.

    Args:
        run_id: ZenML's identity of the run.
    """
    return str(Client().get_pipeline_run(run_id, allow_name_prefix_match=False).run_metadata.get(RUN_ID, ""))


def find_abandoned(
    server: KubeflowRuns,
    unfinished: Iterable[Run],
    orchestrator_id: str,
    ages: Ages,
    *,
    noted: Callable[[str], str] = kubeflow_id,
) -> Iterator[Waste]:
    """Runs of a stack that ZenML believes to be under way, and Kubeflow Pipelines does not.

    Args:
        server: Kubeflow Pipelines.
        unfinished: The runs that ZenML believes to be under way.
        orchestrator_id: ZenML's identity of the stack's orchestrator.
        ages: What is too young to be judged.
        noted: Run -> its identity in Kubeflow Pipelines; one without is left alone.

    Raises:
        ClusterUnreachableError: if Kubeflow Pipelines does not answer.
    """
    for run in unfinished:
        if run.orchestrator_id != orchestrator_id or ages.now - run.created <= ages.grace:
            continue
        if (own := noted(run.run_id)) and (reason := why_over(server.state(own))):
            yield closing(run, reason)


def why_over(state: str) -> str:
    """Why a run that ZenML believes to be under way will never go on; "" = it may.

    Args:
        state: As ``KubeflowRuns.state`` gives it.
    """
    if not state:
        return "Kubeflow Pipelines does not know it any more"
    told = f"Kubeflow Pipelines ended it as {state}, and a pod of it told nobody: killed for want of memory, or lost"
    return told if state in ENDED else ""


@dataclass(slots=True)
class Idleness:
    """For how long nothing of a run has run, by what ZenML says of its steps at each look.

    Attributes:
        limit_s: Seconds; None = for ever.
    """

    limit_s: float | None
    _steps: Mapping[str, str] = field(default_factory=dict)
    _since: datetime | None = None

    def look(self, steps: Mapping[str, str], now: datetime) -> str:
        """Why it should be stopped; "" = it should not.

        Args:
            steps: Step that has begun -> ZenML's word for its state.
            now: The time, with its zone.
        """
        if self._since is None or steps != self._steps or "running" in steps.values():
            self._since, self._steps = now, dict(steps)
        if self.limit_s is None or (now - self._since).total_seconds() <= self.limit_s:
            return ""
        return f"for {self.limit_s:.0f} s no step of it ran: its next pod does not start"
