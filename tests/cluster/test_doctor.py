"""The doctor finds each thing that is missing, says what to do, tells no secret, and judges pools by what they give."""

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest
import yaml

from cluster import access, capacity, cohorts, doctor, pools, services
from cluster.api import ClusterApi
from cluster.capacity import Demand
from cluster.findings import Finding
from cluster.names import GPU, STORAGE
from cluster.needs import Needs
from proxykd.config.stack import KubernetesStackSpec
from tests.cluster.conftest import CHECKOUT, Connect, manifest, runtime
from tests.k8s import kinds
from tests.k8s.access import service_account
from tests.k8s.api_server import ApiServer
from tests.k8s.rbac import EVERYBODY, Right, granted
from tests.k8s.schemas import SUPPORTED

TIDIES = ("delete", "trainer.kubeflow.org", "trainjobs")
"""What `run` also does, for others' trainings that nobody follows; it goes on without."""
VALUE = "c2stdmVyeS1zZWNyZXQ="  # sk-very-secret
GIB = Decimal(2**30)


def stack(**changes: Any) -> KubernetesStackSpec:
    values = {
        "kind": "kubernetes", "name": "production", "context": "double",
        "image": f"ghcr.io/proxykd/proxykd@sha256:{'0' * 64}", "container_registry": "ghcr.io/proxykd",
        "artifact_store": {"kind": "s3", "path": "s3://bucket/artifacts"}, "placement": "placement.yaml",
    }  # fmt: skip
    return KubernetesStackSpec.model_validate({**values, **changes})


def demand(step: str = "distill_student", *, gpus: int = 1, pods: int = 1, queue: str | None = "proxykd-gpu") -> Demand:
    resources = {"cpu": Decimal(4), "memory": 16 * GIB, GPU: Decimal(gpus)}
    return Demand(step, "h100", queue, {} if queue else {"proxykd.dev/pool": "h100"}, resources, pods)


def local_queue(name: str = "proxykd-gpu", **spec: Any) -> dict[str, Any]:
    return manifest("kueue.x-k8s.io/v1beta2", "LocalQueue", name, spec={"clusterQueue": "proxykd", **spec})


def cluster_queue(gpus: int = 8, *, flavor: str = "h100", limit: int | None = None, **spec: Any) -> dict[str, Any]:
    gpu = {"name": GPU, "nominalQuota": gpus, **({} if limit is None else {"borrowingLimit": limit})}
    resources = [{"name": "cpu", "nominalQuota": "64"}, {"name": "memory", "nominalQuota": "512Gi"}, gpu]
    group = {"coveredResources": ["cpu", "memory", GPU], "flavors": [{"name": flavor, "resources": resources}]}
    found = manifest("kueue.x-k8s.io/v1beta2", "ClusterQueue", "proxykd", spec={"resourceGroups": [group], **spec})
    del found["metadata"]["namespace"]
    return found


def whole(api_version: str, kind: str, name: str, **parts: Any) -> dict[str, Any]:
    found = manifest(api_version, kind, name, **parts)
    del found["metadata"]["namespace"]
    return found


FLAVOR = whole("kueue.x-k8s.io/v1beta2", "ResourceFlavor", "h100", spec={})
CLAIM = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
NEEDS = Needs((demand(),), ("proxykd-step",), {"proxykd-teacher": ("OPENAI_API_KEY",)}, ("proxykd-models",))


@pytest.fixture
def ready(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> ApiServer:
    """A cluster that has all that ``NEEDS`` names."""
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("proxykd")))
    server.apply(
        local_queue(), cluster_queue(), FLAVOR,
        manifest("v1", "ServiceAccount", "proxykd-step"),
        manifest("v1", "Secret", "proxykd-teacher", data={"OPENAI_API_KEY": VALUE}),
        manifest("v1", "PersistentVolumeClaim", "proxykd-models", spec=CLAIM),
        manifest("v1", "Service", "mlflow", spec={"ports": [{"port": 5000}]}),
        manifest("discovery.k8s.io/v1", "EndpointSlice", "mlflow-1", labels={"kubernetes.io/service-name": "mlflow"},
                 addressType="IPv4", endpoints=[{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]),
    )  # fmt: skip
    claim = {"phase": "Bound", "capacity": {"storage": "1Gi"}}
    server.store.change(
        kinds.CORE["PersistentVolumeClaim"], "proxykd", "proxykd-models", lambda one: one.update(status=claim)
    )
    return server


def looked(needs: Needs = NEEDS, **changes: Any) -> list[Finding]:
    # A name that no resolver answers: what only pods can reach.
    return list(doctor.examine_cluster(stack(tracking_uri="http://mlflow.proxykd.svc:5000", **changes), needs))


def lacking(findings: Iterable[Finding]) -> list[Finding]:
    return [one for one in findings if one.state == "missing"]


def test_the_way_to_the_api_server_is_that_of_the_pods_that_ask_it(ready: ApiServer) -> None:
    def asking(needs: Needs) -> list[str]:
        return [one.what for one in looked(needs) if one.what.endswith("to the API server")]

    assert asking(NEEDS) == ["way of orchestrator to the API server"]
    assert asking(replace(NEEDS, runtimes=("proxykd-train",))) == ["way of orchestrator and launcher to the API server"]


def remove(server: ApiServer, kind: str, name: str, namespace: str = "proxykd") -> None:
    server.store.delete(kinds.CORE[kind], namespace, name)


def test_a_cluster_that_has_all_lacks_nothing(ready: ApiServer) -> None:
    findings = looked()
    assert not lacking(findings)
    told = {one.what: one.found for one in findings}
    assert told["pool h100: queue proxykd-gpu"] == "64 cpu, 512.0 GiB memory, 8 GPUs"
    assert told["namespace proxykd"] == "enforces Pod Security restricted"
    assert told["volume claim proxykd-models"] == "bound, 1Gi"
    assert told["secret proxykd-teacher"] == "OPENAI_API_KEY"
    (mlflow,) = (one for one in findings if one.what.startswith("MLflow"))
    assert (mlflow.state, mlflow.found) == (
        "unchecked", "Service mlflow has 1 ready pods; its version can be asked from inside only"
    )  # fmt: skip
    assert VALUE not in str(findings)


@pytest.mark.parametrize(
    ("kind", "name", "namespace", "what"),
    [
        ("LocalQueue", "proxykd-gpu", "proxykd", "no such LocalQueue"),
        ("ClusterQueue", "proxykd", "", "its ClusterQueue proxykd is not there"),
        ("ResourceFlavor", "h100", "", "its ResourceFlavor h100 is not there"),
        ("ServiceAccount", "proxykd-step", "proxykd", "there is none"),
        ("Secret", "proxykd-teacher", "proxykd", "there is none"),
        ("PersistentVolumeClaim", "proxykd-models", "proxykd", "there is none"),
        ("Service", "mlflow", "proxykd", "no Service mlflow in namespace proxykd"),
        ("EndpointSlice", "mlflow-1", "proxykd", "Service mlflow has no ready pod"),
    ],
)
def test_each_thing_that_is_missing_is_one_line_with_a_remedy(
    ready: ApiServer, kind: str, name: str, namespace: str, what: str
) -> None:
    remove(ready, kind, name, namespace)
    (finding,) = lacking(looked())
    assert what in finding.found
    assert finding.remedy


def test_a_key_that_a_secret_lacks_is_named_and_its_values_are_not(ready: ApiServer) -> None:
    needs = Needs((), (), {"proxykd-teacher": ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")}, ())
    findings = looked(needs)
    (finding,) = lacking(findings)
    assert finding.found == "it lacks ANTHROPIC_API_KEY"
    assert VALUE not in str(findings)
    assert "sk-very-secret" not in str(findings)


@pytest.fixture
def submitter(ready: ApiServer, connect: Connect) -> ClusterApi:
    """Reaches the cluster with the Role of the checkout, which may make secrets and not read them."""
    objects = list(yaml.safe_load_all((CHECKOUT / "k8s/base/rbac/submitter.yaml").read_text(encoding="utf-8")))
    objects[1]["subjects"][0]["namespace"] = "proxykd"
    ready.apply(*objects, namespace="proxykd")
    ready.access.is_enforced = True
    return connect("proxykd-submitter")


def test_who_may_not_read_secrets_learns_which_are_missing_and_makes_none(
    ready: ApiServer, submitter: ClusterApi
) -> None:
    before = ready.store.list(kinds.CORE["Secret"], "proxykd")
    wanted = {"proxykd-teacher": ("OPENAI_API_KEY",), "proxykd-s3": ("AWS_ACCESS_KEY_ID",)}
    teacher, bucket = access.check_secrets(submitter, wanted)
    assert (teacher.state, teacher.found.partition(";")[0]) == ("unchecked", "it is there")
    assert (bucket.state, bucket.found) == ("missing", "there is none")
    assert "create secret generic proxykd-s3 --from-file=AWS_ACCESS_KEY_ID=FILE" in bucket.remedy
    assert ready.store.list(kinds.CORE["Secret"], "proxykd") == before


def test_a_quota_that_is_used_up_hides_whether_a_secret_is_there(ready: ApiServer, submitter: ClusterApi) -> None:
    ready.apply(manifest("v1", "ResourceQuota", "few", spec={"hard": {"count/secrets": "0"}}))
    (finding,) = access.check_secrets(submitter, {"proxykd-s3": ()})
    assert (finding.state, "may not read" in finding.found) == ("unchecked", True)


PULLED = {"type": "kubernetes.io/dockerconfigjson", "data": {".dockerconfigjson": "e30="}}


@pytest.mark.parametrize(
    ("secret", "state", "told"),
    [
        (None, "missing", "there is none, and proxykd-step pull with it"),
        ({"data": {".dockerconfigjson": "e30="}}, "missing", "no image is pulled with one of type Opaque"),
        (PULLED, "ok", "proxykd-step pull with it"),
        ({"type": "kubernetes.io/dockercfg", "data": {".dockercfg": "e30="}}, "ok", "proxykd-step pull with it"),
    ],
)
def test_a_secret_with_which_an_account_pulls_is_looked_for(
    ready: ApiServer, secret: dict[str, Any] | None, state: str, told: str
) -> None:
    assert not [one for one in looked() if one.what.startswith("pull")]
    ready.apply(manifest("v1", "ServiceAccount", "proxykd-step", imagePullSecrets=[{"name": "proxykd-registry"}]))
    if secret is not None:
        ready.apply(manifest("v1", "Secret", "proxykd-registry", **secret))
    (found,) = (one for one in looked() if one.what == "pull secret proxykd-registry")
    assert (found.state, found.found) == (state, told)
    assert ("--type=kubernetes.io/dockerconfigjson" in found.remedy) is (state == "missing")


def test_who_may_not_read_secrets_learns_whether_the_one_to_pull_with_is_there(
    ready: ApiServer, submitter: ClusterApi
) -> None:
    ready.apply(manifest("v1", "ServiceAccount", "proxykd-step", imagePullSecrets=[{"name": "proxykd-registry"}]))
    _, before = access.check_accounts(submitter, ["proxykd-step"])
    assert (before.state, "--type=" in before.remedy) == ("missing", True)
    ready.apply(manifest("v1", "Secret", "proxykd-registry", **PULLED))
    _, after = access.check_accounts(submitter, ["proxykd-step"])
    assert (after.state, after.found.partition(";")[0], after.remedy) == ("unchecked", "it is there", "")


def role(*rules: dict[str, Any]) -> list[dict[str, Any]]:
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "own"}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": "proxykd"}
    group = "rbac.authorization.k8s.io/v1"
    return [
        manifest(group, "Role", "own", rules=list(rules)),
        manifest(group, "RoleBinding", "own", roleRef=reference, subjects=[subject]),
    ]


def rule(group: str, resource: str, *verbs: str) -> dict[str, Any]:
    return {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}


def test_each_verb_that_is_forbidden_is_a_line(ready: ApiServer, connect: Connect) -> None:
    ready.access.is_enforced = True
    allowed = [
        rule("batch", "jobs", "create", "get", "list", "delete"), rule("", "secrets", "create", "delete"),
        rule("", "pods", "list"), rule("", "pods/log", "get"), rule("", "events", "list"),
    ]  # fmt: skip
    ready.apply(*role(*allowed))
    api = connect("default")
    assert [one.what for one in lacking(access.check_permissions(api, access.SUBMISSION))] == [
        "permission to patch secrets"
    ]
    ready.apply(*role(*allowed, rule("", "secrets", "patch")))
    (all_of_them,) = access.check_permissions(api, access.SUBMISSION)
    assert all_of_them.state == "ok"


def test_the_submitters_role_is_what_is_asked_for_and_what_the_doctor_looks_at(
    ready: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = list(yaml.safe_load_all((CHECKOUT / "k8s/base/rbac/submitter.yaml").read_text(encoding="utf-8")))
    objects[1]["subjects"][0]["namespace"] = "proxykd"
    ready.apply(*objects, runtime(), namespace="proxykd")
    ready.access.is_enforced = True
    monkeypatch.setenv("KUBECONFIG", str(ready.kubeconfig("proxykd", account="proxykd-submitter")))
    needs = replace(NEEDS, runtimes=("proxykd-train",), priorities=("proxykd-normal",))

    list(doctor.examine_cluster(stack(tracking_uri="http://mlflow.proxykd.svc:5000"), needs, is_scheduled=True))

    used = ready.access.used(service_account("proxykd", "proxykd-submitter"))
    looked_at = {(verb, group, resource) for group, resource, verb in used} - EVERYBODY
    asked = {right(one) for one in (*access.SUBMISSION, *access.SCHEDULING)}
    assert asked | looked_at | {TIDIES} == granted(objects, "proxykd-submitter")


def right(permission: access.Permission) -> Right:
    verb, kind, part = permission
    return verb, kind.group, f"{kind.plural}/{part}" if part else kind.plural


def test_what_may_not_be_looked_at_is_unchecked_and_not_missing(ready: ApiServer, monkeypatch: Any) -> None:
    ready.access.is_enforced = True
    ready.apply(*role(rule("batch", "jobs", "create")))
    monkeypatch.setenv("KUBECONFIG", str(ready.kubeconfig("proxykd", account="default")))
    findings = looked()
    states = {one.what: one.state for one in findings if not one.what.startswith("permission")}
    assert states["namespace"] == states["secret proxykd-teacher"] == states["pool h100"] == "unchecked"
    assert len(lacking(findings)) == len(access.SUBMISSION) - 1


@pytest.mark.parametrize(("path", "what"), [("localqueues", "Kueue"), ("trainjobs", "Trainer"), ("jobsets", "JobSet")])
def test_an_extension_that_the_placement_needs_is_missed(
    ready: ApiServer, monkeypatch: pytest.MonkeyPatch, path: str, what: str
) -> None:
    (key,) = (key for key in kinds.BY_PATH if key[2] == path)
    monkeypatch.delitem(kinds.BY_PATH, key)
    needs = Needs(NEEDS.demands, (), {}, (), runtimes=("proxykd-train",))
    (finding, *_) = lacking(looked(needs))
    assert what in finding.what
    assert "install" in finding.remedy
    if path != "localqueues":
        assert not lacking(looked(Needs(NEEDS.demands, (), {}, ())))


def test_an_api_server_that_is_away_is_one_line_and_soon(ready: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PATIENCE", doctor.Patience(deadline_s=0.3, first_s=0.05))
    ready.close()
    (finding,) = lacking(doctor.looked_at_cluster(stack(), NEEDS))
    assert finding.what == "API server"
    assert "check the kubeconfig" in finding.found


def test_a_wrong_context_is_one_line(ready: ApiServer) -> None:
    (finding,) = lacking(doctor.looked_at_cluster(stack(context="elsewhere"), NEEDS))
    assert "elsewhere" in finding.found


@pytest.mark.parametrize(
    ("version", "state"),
    [("v1.32.9", "missing"), ("v1.33.0", "ok"), ("v1.35.1-eks-1", "ok"), ("v1.99.0", "unchecked"), ("", "unchecked")],
)
def test_the_version_of_the_api_server(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, version: str, state: str
) -> None:
    api = connect()
    monkeypatch.setattr(type(api), "version", lambda _: version)
    (finding,) = access.check_version(api)
    assert finding.state == state


def test_the_versions_are_those_that_the_manifests_are_checked_for_and_the_pages_name() -> None:
    supported = [f"{major}.{minor}" for major, minor in (access.OLDEST, access.NEWEST)]
    assert [SUPPORTED[0], SUPPORTED[-1]] == supported
    assert f"Kubernetes {supported[0]} to {supported[1]}" in (CHECKOUT / "docs/kubernetes.md").read_text()
    assert f"older than Kubernetes {supported[0]} |" in (CHECKOUT / "docs/stacks.md").read_text()


def supply_of(queue: dict[str, Any], *demands: Demand) -> Finding:
    return pools.check_queue_supply("pool", cohorts.Lending([queue], []).groups(queue), demands)


def test_a_queue_gives_as_much_as_its_largest_flavor_to_all_pods_of_a_step_together() -> None:
    assert supply_of(cluster_queue(8), demand(gpus=4, pods=2)).state == "ok"
    refused = supply_of(
        cluster_queue(8), demand(gpus=4, pods=3), demand("align_proxy", gpus=9), demand("split", gpus=1)
    )
    assert refused.found == (
        "distill_student asks for 12 GPUs, it gives at most 8 GPUs; "
        "align_proxy asks for 9 GPUs, it gives at most 8 GPUs"
    )
    two = cluster_queue(8)
    spot = cluster_queue(16, flavor="h100-spot")["spec"]["resourceGroups"][0]["flavors"]
    two["spec"]["resourceGroups"][0]["flavors"] += spot
    assert supply_of(two, demand(gpus=16)).state == "ok"
    assert supply_of(two, demand(gpus=17)).state == "missing"


def test_what_a_queue_does_not_cover_it_does_not_give() -> None:
    queue = cluster_queue(8)
    group = queue["spec"]["resourceGroups"][0]
    group["flavors"][0]["resources"].pop()
    assert "it gives at most 0 GPUs" in supply_of(queue, demand()).found
    assert supply_of(queue, demand(gpus=0)).state == "ok"


@pytest.mark.parametrize("where", ["local", "cluster"])
def test_a_queue_on_hold_is_told(ready: ApiServer, where: str) -> None:
    ready.apply(local_queue(stopPolicy="Hold") if where == "local" else cluster_queue(stopPolicy="HoldAndDrain"))
    (finding,) = lacking(looked())
    assert "on hold" in finding.found


def node(name: str, gpus: int) -> dict[str, Any]:
    amounts = {"cpu": "32", "memory": "256Gi", GPU: str(gpus)}
    labels = {"proxykd.dev/pool": "h100"}
    return whole("v1", "Node", name, labels=labels, spec={}, status={"allocatable": amounts})


def test_a_pool_of_nodes_must_hold_one_pod_on_one_node(server: ApiServer, connect: Connect) -> None:
    api = connect()
    asking = demand(gpus=8, queue=None)
    (finding,) = pools.check_pools(api, [asking])
    assert (finding.state, finding.found) == ("missing", "no such node, or none that takes pods")
    (finding,) = pools.check_pools(api, [asking._replace(is_autoscaled=True)])
    assert (finding.state, finding.found) == ("unchecked", "no such node, or none that takes pods")
    server.apply(node("first", 4), node("second", 4))
    (finding,) = pools.check_pools(api, [demand(gpus=8, queue=None)])
    shortage = "distill_student asks for 8 GPUs, it gives at most 4 GPUs"
    assert (finding.state, finding.found) == ("missing", shortage)
    (finding,) = pools.check_pools(api, [asking._replace(is_autoscaled=True)])  # a larger one may be made
    assert (finding.state, finding.found) == ("unchecked", shortage)
    (finding,) = pools.check_pools(api, [demand(gpus=4, pods=8, queue=None)])
    assert finding.state == "ok"


def test_disk_is_looked_at_where_the_queue_covers_it_and_said_to_be_uncovered_where_not(
    ready: ApiServer, connect: Connect
) -> None:
    asking = demand()._replace(resources={**demand().resources, STORAGE: 160 * GIB})
    first, second = pools.check_pools(connect(), [asking])
    assert (first.state, second.state) == ("unchecked", "ok")
    assert first.found == "its ClusterQueue proxykd does not cover ephemeral-storage"
    ready.apply(queue := cluster_queue())
    group = queue["spec"]["resourceGroups"][0]
    group["coveredResources"].append(STORAGE)
    group["flavors"][0]["resources"].append({"name": STORAGE, "nominalQuota": "100Gi"})
    ready.apply(queue)
    (finding,) = pools.check_pools(connect(), [asking])
    assert finding.found == "distill_student asks for 160.0 GiB disk, it gives at most 100.0 GiB disk"


def test_quotas_are_told_apart_from_what_is_used_of_them() -> None:
    hard = {f"requests.{GPU}": "8", "requests.memory": "64Gi", "pods": "50", "configmaps": "3"}
    quota = {"metadata": {"name": "team"}, "spec": {"hard": hard}, "status": {"hard": hard, "used": {"pods": "50"}}}
    assert capacity.compare_quota(quota, [demand(gpus=9)]).state == "missing"
    assert capacity.compare_quota(quota, [demand(gpus=4, pods=5)]).found == (
        "distill_student asks for 80.0 GiB memory, it allows 64.0 GiB memory; "
        "distill_student asks for 20 GPUs, it allows 8 GPUs"
    )
    later = capacity.compare_quota(quota, [demand(gpus=1)])
    assert (later.state, later.found) == ("ok", "room for distill_student only when others end")
    quota["status"]["used"] = {"pods": "1"}  # type: ignore[index]
    assert capacity.compare_quota(quota, [demand(gpus=1)]).found == ""


def test_a_pod_that_a_limit_range_forbids_is_told_and_a_bound_on_processors_too(
    ready: ApiServer, connect: Connect
) -> None:
    def bounded(kind: str, **most: str) -> list[Finding]:
        ready.apply(manifest("v1", "LimitRange", "team", spec={"limits": [{"type": kind, "max": most}]}))
        return list(capacity.check_ranges(connect(), [demand()]))

    assert not list(capacity.check_ranges(connect(), [demand()]))
    (finding,) = bounded("Container", memory="16Gi")
    assert (finding.state, finding.found) == ("ok", "")
    (finding,) = bounded("Pod", memory="15Gi", cpu="4")
    assert finding.found == "a pod of distill_student asks for 16.0 GiB memory, it allows 15.0 GiB memory"
    (finding,) = bounded("PersistentVolumeClaim", storage="1Gi")
    assert (finding.state, finding.found) == ("ok", "")
    (finding,) = bounded("Container", cpu="4")
    assert (finding.state, finding.found) == ("ok", "no container uses more than 4 processors")
    bounded("Container", cpu="3")
    assert [one.what for one in lacking(looked())] == ["limit range team"]


@pytest.mark.parametrize("claim", [{}, {"storageClassName": "fast"}])
def test_a_claim_without_a_class_is_missing_and_one_that_waits_is_not(
    ready: ApiServer, connect: Connect, claim: dict[str, Any]
) -> None:
    ready.apply(manifest("v1", "PersistentVolumeClaim", "new", spec={**CLAIM, **claim}))
    pending = {"phase": "Pending"}
    ready.store.change(kinds.CORE["PersistentVolumeClaim"], "proxykd", "new", lambda one: one.update(status=pending))
    (finding,) = access.check_volumes(connect(), ["new"])
    assert finding.state == "missing"
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    ready.apply(
        whole("storage.k8s.io/v1", "StorageClass", "fast", provisioner="disk", volumeBindingMode="WaitForFirstConsumer",
              metadata={"annotations": default})
    )  # fmt: skip
    (finding,) = access.check_volumes(connect(), ["new"])
    assert (finding.state, finding.found) == ("ok", "not bound yet: class fast waits for the first pod")


@pytest.mark.parametrize(
    ("uri", "inside"),
    [
        ("http://mlflow:5000", True), ("http://mlflow.proxykd.svc:5000", True), ("http://localhost:5000", False),
        ("http://127.0.0.1:5000", False), ("https://mlflow.example.com", False),
    ],
)  # fmt: skip
def test_addresses_that_only_pods_know(uri: str, inside: bool) -> None:
    assert services.is_in_cluster(uri) is inside


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests go where they say, whatever proxy the machine has."""
    monkeypatch.setenv("no_proxy", "*")
