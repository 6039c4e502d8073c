"""``proxykd stack doctor``: what a stack has and what it lacks, looked at before anything is submitted.

The same checks run at each submission, so that a pool that is too small or a secret that is missing is one message now
and not a pod that waits. Nothing is changed, but for one empty object that is written to the bucket and removed.
"""

from collections.abc import Iterable, Iterator

from cluster import access, capacity, network, pools, services
from cluster.api import ClusterApi, Patience
from cluster.findings import Finding, guarded, missing, ok, unchecked
from cluster.image import check_image
from cluster.kinds import PRIORITY_CLASSES
from cluster.names import ROLE
from cluster.needs import Needs, needs_of
from cluster.pod_security import check_pipelines
from proxykd.config.asking import Asking
from proxykd.config.placement import OUTSIDE
from proxykd.config.stack import ClusterStackSpec, KubeflowStackSpec, S3StoreSpec, StackSpec
from proxykd.exceptions import ClusterError

PATIENCE = Patience(deadline_s=15.0)
"""A doctor says soon that the API server is away; a run waits longer."""


def examine(
    stack: StackSpec, *, askings: Iterable[Asking] = (), is_scheduled: bool = False, is_registered: bool = True
) -> Iterator[Finding]:
    """Look at everything that a run on a stack needs.

    Args:
        stack: The stack.
        askings: Which steps of the run ask an API.
        is_scheduled: Whether CronJobs are needed too.
        is_registered: Whether ZenML must hold the stack as its file says; a plan only tells where it does not.
    """
    yield from _examine_zenml(stack, is_registered=is_registered)
    if isinstance(stack.artifact_store, S3StoreSpec):
        yield from services.check_bucket(stack.artifact_store)
    if not isinstance(stack, ClusterStackSpec):
        if stack.tracking_uri is not None and stack.tracking_uri.startswith("http"):
            yield from services.check_tracking(stack.tracking_uri, None)
        return
    yield from check_image(stack.image)
    needs = needs_of(stack)
    yield from check_askings(needs, askings)
    yield from looked_at_cluster(stack, needs, is_scheduled=is_scheduled)


def looked_at_cluster(stack: ClusterStackSpec, needs: Needs, *, is_scheduled: bool = False) -> Iterator[Finding]:
    """What ``examine_cluster`` finds; an API server that is away is a finding too."""
    try:
        yield from examine_cluster(stack, needs, is_scheduled=is_scheduled)
    except ClusterError as error:
        yield missing("API server", str(error), "mend that first: the rest could not be looked at")


def examine_cluster(stack: ClusterStackSpec, needs: Needs, *, is_scheduled: bool = False) -> Iterator[Finding]:
    """Look at the cluster itself.

    Raises:
        ClusterError: if the API server cannot be reached, or not as this identity.
    """
    api = ClusterApi.connect(stack.context, namespace=stack.namespace, patience=PATIENCE)
    yield from access.check_version(api)
    yield from guarded("namespace", access.check_namespace(api))
    if not isinstance(stack, KubeflowStackSpec):  # which makes all objects itself
        permissions = access.SUBMISSION + (access.SCHEDULING if is_scheduled else ())
        yield from access.check_permissions(api, permissions)
    else:
        yield from check_pipelines(api, stack.pipelines_namespace)
    if needs.has_queue:
        yield from guarded("Kueue", access.check_kueue(api))
    if needs.runtimes:
        yield from guarded("Kubeflow Trainer", access.check_trainer(api, needs.runtimes))
    yield from guarded("priorities", access.check_priorities(api, access.PRIORITIES, needs.priorities))
    yield from guarded("queue priorities", access.check_priorities(api, PRIORITY_CLASSES, needs.queue_priorities))
    yield from guarded("service accounts", access.check_accounts(api, needs.accounts))
    yield from access.check_secrets(api, needs.secrets)
    yield from guarded("volume claims", access.check_volumes(api, needs.volumes))
    yield from pools.check_pools(api, needs.demands)
    yield from guarded("quotas", capacity.check_quotas(api, needs.demands))
    yield from guarded("limit ranges", capacity.check_ranges(api, needs.demands))
    yield from guarded("network policies", network.check_network(api, _callers(stack, needs)))
    yield from guarded("MLflow", services.check_tracking(stack.tracking_uri, api))


def _callers(stack: ClusterStackSpec, needs: Needs) -> tuple[str, ...]:
    """Roles of the pods that ask the API server; those of Kubeflow Pipelines itself are its own affair."""
    own = () if isinstance(stack, KubeflowStackSpec) else ("orchestrator",)
    return (*own, *(("launcher",) if needs.runtimes else ()))


def _examine_zenml(stack: StackSpec, *, is_registered: bool) -> Iterator[Finding]:
    from cluster import zenml_server

    if trouble := zenml_server.find_trouble():
        yield trouble
        yield unchecked(f"stack {stack.name} in ZenML", "ZenML cannot be asked")
        return
    yield from zenml_server.check_zenml(stack)
    yield _check_registered(stack, is_needed=is_registered)


def _check_registered(stack: StackSpec, *, is_needed: bool) -> Finding:
    from cluster import stacks

    what = f"stack {stack.name} in ZenML"
    if not (changes := stacks.compare(stack)):
        return ok(what, "as its file says")
    is_new = any(change.component == "stack" and change.key == "name" for change in changes)
    found = "not registered" if is_new else f"{len(changes)} settings differ from its file"
    if is_needed:
        return missing(what, found, "proxykd stack apply")
    return unchecked(what, found, "proxykd stack apply, before the run")


def check_askings(needs: Needs, askings: Iterable[Asking]) -> Iterator[Finding]:
    """Each step that asks an API has the key, as a variable out of one of its own secrets, and a way there."""
    for one in askings:
        step = needs.steps[one.step]
        if one.variable is not None:
            yield from _check_variable(needs, one.step, one.variable)
        yield from _check_way(one, "launcher" if step.launcher.kind == "trainjob" else step.role)


def _check_way(asking: Asking, role: str) -> Iterator[Finding]:
    what = f"way of {asking.step} to {asking.address}"
    if asking.way == "loopback":
        remedy = "name an address that pods reach as its base_url, a Service of the cluster say"
        yield missing(what, "an address of loopback, where the pod would find nobody but itself", remedy)
    elif asking.way == "elsewhere":
        found = "the policies of k8s/base let pods out to public addresses on port 443 alone"
        remedy = f"apply a NetworkPolicy of your own that lets pods with the label `{ROLE}: {role}` reach it"
        yield unchecked(what, found, remedy)
    elif role != OUTSIDE:
        remedy = f"add `role: {OUTSIDE}` to `steps.{asking.step}` of the placement"
        yield missing(what, f"it is on the Internet, and the step's role is {role}", remedy)


def _check_variable(needs: Needs, name: str, variable: str) -> Iterator[Finding]:
    what, own = f"variable {variable} of {name}", needs.steps[name].secrets
    holders = [secret for secret, keys in needs.secrets.items() if variable in keys]
    if not holders:
        remedy = "put it into a Kubernetes secret, and name secret and key under `secrets` in the stack's file"
        yield missing(what, "no secret of the stack holds it", remedy)
    elif not set(holders) & {*own, needs.store_secret}:
        remedy = f"add `secrets: [{', '.join((*own, holders[0]))}]` to `steps.{name}` of the placement"
        yield missing(what, f"it is in {' and '.join(holders)}, which this step does not get", remedy)
