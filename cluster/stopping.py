"""The end of a run that somebody wants ended, or that waited too long: Jobs, trainings and token go."""

from collections.abc import Callable
from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType

from cluster import neighbours, runs, waiting
from cluster.api import ClusterApi
from cluster.flavors import PATIENT
from cluster.garbage import noop, remove_job, tokens_in
from cluster.kinds import CRON_JOBS, SECRETS
from cluster.kubeflow_flavor import FLAVOR
from cluster.kubeflow_runs import KubeflowRuns, kubeflow_id
from proxykd.exceptions import InputError


def stop(run: runs.Run, reason: str, *, tell: Callable[[str], None] = noop) -> bool:
    """End a run on a cluster, wherever its stack's orchestrator runs it; what is finished of it is kept.

    Args:
        run: The run.
        reason: Why; kept with the run.
        tell: Takes a line for each training that is removed.

    Returns:
        Whether this call did it: False if the run had ended already.

    Raises:
        InputError: if it runs on this machine, where its own process is to be told, or its stack is gone.
        ClusterError: if the cluster is not reached, or forbids it; the run then goes on.
    """
    if run.is_finished:
        return False
    if not run.stack:
        raise InputError(
            f"expected a run of a stack that ZenML holds, but that of {run.name} is gone: `proxykd runs {run.name} "
            "--close` records it as failed, and `proxykd gc --stack STACK --yes` then removes its Jobs"
        )
    if run.orchestrator == PATIENT:
        found = _orchestrator_of(run).configuration
        api = ClusterApi.connect(found.get("kubernetes_context"), namespace=found.get("kubernetes_namespace"))
        return stop_jobs(api, run.run_id, reason, tell=tell)
    if run.orchestrator == FLAVOR:
        return _stop_in_pipelines(run, reason)
    raise InputError(
        f"expected a run on a cluster, but {run.name} is one of the stack {run.stack}, on this machine: end its "
        "process with Ctrl-C where it was started; if that is gone, `proxykd gc --yes` records it as failed"
    )


def stop_jobs(api: ClusterApi, run_id: str, reason: str, *, tell: Callable[[str], None] = noop) -> bool:
    """End a run of ZenML's Kubernetes orchestrator; as ``stop``.

    The orchestrator's Job goes first, so that no step is tried again, and before anything is noted down: who may not
    remove Jobs has stopped nothing.

    Args:
        api: Its cluster.
        run_id: ZenML's identity of the run.
        reason: Why; kept with the run.
        tell: Takes a line for each training that is removed.
    """
    jobs = sorted(waiting.jobs_of(api, run_id), key=lambda job: waiting.step_of(job) != waiting.ORCHESTRATOR)
    for job in jobs[:1]:
        remove_job(api, job)
    did = runs.close(run_id, reason, is_stopped=True)
    for job in jobs[1:]:
        remove_job(api, job)
    neighbours.remove_trainings(api, lambda one: one == run_id, tell)
    _remove_token(api, run_id)
    return did


def _remove_token(api: ClusterApi, run_id: str) -> None:
    """The orchestrator's pod would have done it at its end; a schedule goes on using the token of its snapshot."""
    if (name := runs.token_of(run_id)) and not any(name in tokens_in(one) for one in api.list(CRON_JOBS)):
        api.delete(SECRETS, name)


def _stop_in_pipelines(run: runs.Run, reason: str) -> bool:
    if not (found := kubeflow_id(run.run_id)):
        raise InputError(
            f"nobody noted down which run of Kubeflow Pipelines {run.name} is: end it on Kubeflow's page, then "
            f"`proxykd runs {run.name} --close` records it as failed"
        )
    KubeflowRuns.of_stack(run.stack).stop(found)
    return runs.close(run.run_id, reason, is_stopped=True)


def _orchestrator_of(run: runs.Run) -> Any:
    return Client().get_stack_component(StackComponentType.ORCHESTRATOR, run.orchestrator_id)
