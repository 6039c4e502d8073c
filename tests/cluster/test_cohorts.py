"""What a queue can ever have of its cohort, by hand and against whoever may not look; what waits for itself."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import pytest
import yaml

from cluster import capacity, pools
from cluster.capacity import Demand
from cluster.cohorts import Lending, alone
from cluster.findings import Finding
from cluster.names import GPU, STORAGE
from cluster.needs import needs_of
from proxykd.config.stack import KubernetesStackSpec, load_stack
from tests.cluster.conftest import CHECKOUT, Connect, manifest
from tests.k8s import kinds
from tests.k8s.api_server import ApiServer

KUEUE = "kueue.x-k8s.io/v1beta2"
Quota = tuple[int, int | None, int | None]
"""Nominal, borrowing limit, lending limit; None = no limit."""


def whole(kind: str, name: str, quotas: Mapping[str, Quota], **spec: Any) -> dict[str, Any]:
    words = ("nominalQuota", "borrowingLimit", "lendingLimit")
    flavors = [
        {
            "name": flavor,
            "resources": [
                {"name": GPU, **{word: value for word, value in zip(words, quota, strict=True) if value is not None}}
            ],
        }
        for flavor, quota in quotas.items()
    ]
    groups = [{"coveredResources": [GPU], "flavors": flavors}] if flavors else []
    found = manifest(KUEUE, kind, name, spec={**({"resourceGroups": groups} if groups else {}), **spec})
    del found["metadata"]["namespace"]
    return found


def queue(name: str = "own", cohort: str | None = "all", **quotas: Quota) -> dict[str, Any]:
    return whole("ClusterQueue", name, quotas, **({} if cohort is None else {"cohortName": cohort}))


def cohort(name: str = "all", parent: str | None = None, **quotas: Quota) -> dict[str, Any]:
    return whole("Cohort", name, quotas, **({} if parent is None else {"parentName": parent}))


def gpus(*others: dict[str, Any], own: Quota = (8, None, None), above: str | None = "all") -> Decimal | None:
    one = queue(cohort=above, h100=own)
    cohorts = [other for other in others if other["kind"] == "Cohort"]
    lending = Lending([one, *(other for other in others if other["kind"] == "ClusterQueue")], cohorts)
    assert not lending.has_circle(one)
    ((flavors),) = lending.groups(one)
    return flavors["h100"][GPU]


OTHER = queue("other", h100=(16, None, None))


@pytest.mark.parametrize(
    ("most", "others", "own"),
    [
        (8, (), (8, None, None)),  # a cohort of one lends nothing
        (24, (OTHER,), (8, None, None)),  # 8 + 16
        (16, (OTHER,), (0, None, None)),
        (12, (OTHER,), (8, 4, None)),  # up to the own limit
        (24, (OTHER,), (8, 100, None)),  # but not what nobody has
        (13, (queue("other", h100=(16, None, 5)),), (8, None, None)),  # up to the other's limit: 8 + 5
        (8, (queue("other", h100=(16, None, 0)),), (8, None, None)),
        (24, (OTHER,), (8, None, 2)),  # what it does not lend itself it still has
        (8, (queue("other", h100_spot=(16, None, None)),), (8, None, None)),  # another flavor
        (8, (queue("other", "elsewhere", h100=(16, None, None)),), (8, None, None)),  # another cohort
        (11, (cohort(h100=(3, None, None)),), (8, None, None)),  # the cohort's own quota
        # A cohort in a cohort: 8 + 16, and of the neighbour's 32 what it lends.
        (56, (OTHER, cohort(parent="top"), queue("far", "top", h100=(32, None, None))), (8, None, None)),
        (34, (OTHER, cohort(parent="top", h100=(0, 10, None)), queue("far", "top", h100=(32, None, None))),
         (8, None, None)),
        (29, (OTHER, cohort(parent="top"), cohort("side", "top", h100=(0, None, 5)),
              queue("far", "side", h100=(32, None, None))), (8, None, None)),
    ],
)  # fmt: skip
def test_the_most_that_a_queue_gives(most: int, others: Sequence[dict[str, Any]], own: Quota) -> None:
    assert gpus(*others, own=own) == most


def test_a_queue_without_a_cohort_has_its_own() -> None:
    assert gpus(OTHER, above=None) == 8


def test_cohorts_in_a_circle_stop_their_queues() -> None:
    circle = Lending([queue()], [cohort(parent="top"), cohort("top", "all")])
    assert circle.has_circle(queue())
    assert Lending([queue()], [cohort(parent="all")]).has_circle(queue())
    assert not circle.has_circle(queue(cohort="elsewhere"))


def test_a_queue_alone_tells_its_own_limit_and_no_more() -> None:
    assert alone(queue(h100=(8, None, None))) == [{"h100": {GPU: None}}]
    assert alone(queue(h100=(8, 4, None))) == [{"h100": {GPU: 12}}]
    assert alone(queue(cohort=None, h100=(8, None, None))) == [{"h100": {GPU: 8}}]


def demand(num_gpus: int, *, own: int | None = None, queue: str = "gpu") -> Demand:
    pod = None if own is None else Demand("step", "h100", "gpu", {}, {GPU: Decimal(own)})
    return Demand("the TrainJob of step", "h100", queue, {}, {GPU: Decimal(num_gpus)}, 1, pod)


def told(asked: Demand, *groups: Mapping[str, int]) -> str:
    given = [{flavor: {GPU: Decimal(amount)} for flavor, amount in group.items()} for group in groups]
    finding = pools.check_queue_supply("pool", given, [asked])
    assert (finding.state == "missing") is bool(finding.remedy)
    return finding.found


def test_a_step_that_holds_what_its_training_waits_for_is_told() -> None:
    assert told(demand(8, own=1), {"h100": 8}) == (
        "the TrainJob of step asks for 8 GPUs beside 1 GPU of the step's own pod, which waits for it, "
        "it gives at most 8 GPUs"
    )
    assert told(demand(8, own=1), {"h100": 9}) == "9 GPUs"
    assert told(demand(7, own=1), {"h100": 8}) == "8 GPUs"
    assert told(demand(8, own=1), {"h100": 8, "a100": 1}) == "8 GPUs"  # each in a flavor of its own
    assert "8 GPUs beside 1 GPU" in told(demand(8, own=1), {"h100": 8, "a100": 0})
    assert told(demand(8, own=0), {"h100": 8}) == "8 GPUs"
    assert told(demand(8, own=1, queue="other"), {"h100": 8}) == "8 GPUs"


def test_all_pods_of_a_group_take_one_flavor() -> None:
    large = Demand("step", "h100", "gpu", {}, {GPU: Decimal(8), "cpu": Decimal(64)})
    given = [{"h100": {GPU: Decimal(8), "cpu": Decimal(4)}, "cpu": {GPU: Decimal(0), "cpu": Decimal(64)}}]
    finding = pools.check_queue_supply("pool", given, [large])
    assert finding.found == "step asks for 8 GPUs, 64 cpu, which no one flavor of it gives"
    assert pools.check_queue_supply("pool", given, [large._replace(resources={"cpu": Decimal(64)})]).state == "ok"


def test_a_quota_counts_the_pod_that_waits_for_a_training() -> None:
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {f"requests.{GPU}": "8", "pods": "50"}}}
    assert capacity.compare_quota(quota, [demand(8)]).state == "ok"
    assert "8 GPUs beside 1 GPU" in capacity.compare_quota(quota, [demand(8, own=1)]).found
    quota["spec"]["hard"] = {"pods": "1"}  # type: ignore[index]
    assert capacity.compare_quota(quota, [demand(8)]).state == "ok"
    assert capacity.compare_quota(quota, [demand(8, own=0)]).state == "missing"


SHIPPED = CHECKOUT / "k8s" / "base" / "queue"


@pytest.fixture
def shipped(server: ApiServer) -> ApiServer:
    """A cluster with the queues of the checkout."""
    for name in ("flavors", "pools", "shared", "queues"):
        objects = yaml.load_all((SHIPPED / f"{name}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
        server.apply(*objects, namespace="proxykd")
    return server


def looked(shipped: ApiServer, connect: Connect, place: Any, account: str = "", **step: Any) -> list[Finding]:
    """What is said of a placement in which one step differs from the shipped one."""
    values = yaml.safe_load((CHECKOUT / "k8s/placements/gpu.yaml").read_text(encoding="utf-8"))
    values["pools"]["any"] = {"queue": "proxykd-gpu", "gpu_max": 8}
    values["steps"]["distill_student"] |= step
    path = place / "placement.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    stack = load_stack("kubernetes")
    assert isinstance(stack, KubernetesStackSpec)
    demands = needs_of(stack.model_copy(update={"placement": path})).demands
    return list(pools.check_pools(connect(account), demands))


def train(pool: str, nodes: int) -> dict[str, Any]:
    return {"kind": "trainjob", "pool": pool, "nodes": nodes, "processes_per_node": 8, "gpus": 8}


@pytest.mark.parametrize(
    ("step", "found"),
    [
        ({}, ""),
        ({"launcher": train("h100", 1)}, ""),
        ({"launcher": train("h100", 2)}, "asks for 16 GPUs, it gives at most 8 GPUs"),
        ({"launcher": train("h100-spot", 4)}, "asks for 32 GPUs, it gives at most 16 GPUs"),
        ({"launcher": train("any", 2)}, ""),  # 16 spot GPUs are lent
        ({"launcher": train("any", 3)}, "asks for 24 GPUs, it gives at most 16 GPUs"),
        ({"scratch": "90Ti"}, "asks for 92160.0 GiB disk, it gives at most 1024.0 GiB disk"),
        ({"pool": "h100", "gpus": 1, "launcher": train("h100", 1)}, "8 GPUs beside 1 GPU of the step's own pod"),
    ],
)
def test_the_shipped_queues_give_what_they_have(
    shipped: ApiServer, connect: Connect, tmp_path: Any, step: dict[str, Any], found: str
) -> None:
    lacking = [one.found for one in looked(shipped, connect, tmp_path, **step) if one.state == "missing"]
    assert (found in lacking[0]) if found else not lacking


def test_who_may_not_list_queues_is_told_that_the_cohort_was_not_looked_at(
    shipped: ApiServer, connect: Connect, tmp_path: Any
) -> None:
    group = "rbac.authorization.k8s.io"
    rules = [
        {"apiGroups": ["kueue.x-k8s.io"], "resources": ["localqueues", "clusterqueues", "resourceflavors"],
         "verbs": ["get"]}
    ]  # fmt: skip
    role = {"apiVersion": f"{group}/v1", "kind": "ClusterRole", "metadata": {"name": "some"}, "rules": rules}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": "proxykd"}
    reference = {"apiGroup": group, "kind": "ClusterRole", "name": "some"}
    bound = {"apiVersion": f"{group}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "some"}}
    shipped.apply(role, {**bound, "roleRef": reference, "subjects": [subject]})
    shipped.access.is_enforced = True
    found = looked(shipped, connect, tmp_path, "default", launcher=train("h100", 2))
    (unseen,) = (one for one in found if one.what.startswith("pool h100:") and one.state == "unchecked")
    assert "what the cohort proxykd lends is not known" in unseen.found
    assert "administrator" in unseen.remedy
    assert "missing" not in {one.state for one in found}


def test_a_cluster_whose_kueue_knows_no_cohorts_is_looked_at(
    shipped: ApiServer, connect: Connect, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (key,) = (key for key in kinds.BY_PATH if key[2] == "cohorts")
    monkeypatch.delitem(kinds.BY_PATH, key)
    (finding,) = (one for one in looked(shipped, connect, tmp_path, scratch="90Ti") if one.state == "missing")
    assert STORAGE not in finding.found
    assert "at most 1024.0 GiB disk" in finding.found


def test_a_circle_of_cohorts_is_told(shipped: ApiServer, connect: Connect, tmp_path: Any) -> None:
    shipped.apply(cohort("proxykd", "proxykd"))
    found = {one.found for one in looked(shipped, connect, tmp_path) if one.state == "missing"}
    assert found == {"the cohort proxykd is above itself"}
