"""What the shipped placements make a stack need, by hand."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.doctor import check_askings
from cluster.names import GPU, STORAGE
from cluster.needs import Needs, needs_of
from proxykd.config.asking import Asking
from proxykd.config.placement import amount, load_placement
from proxykd.config.stack import STACKS, KubeflowStackSpec, KubernetesStackSpec
from proxykd.exceptions import ConfigError

VALUES: dict[str, Any] = {
    "kind": "kubernetes", "name": "x", "image": f"i@sha256:{'0' * 64}", "container_registry": "i",
    "artifact_store": {"kind": "s3", "path": "s3://bucket", "secret": "proxykd-s3"},
}  # fmt: skip


def needs(placement: Path, **changes: Any) -> Needs:
    return needs_of(KubernetesStackSpec.model_validate({**VALUES, "placement": str(placement), **changes}))


def test_a_placement_with_queues_and_a_train_job() -> None:
    found = needs(STACKS.parent / "placements" / "gpu.yaml", secrets={"proxykd-teacher": ["OPENAI_API_KEY"]})
    (train,) = (one for one in found.demands if one.step.startswith("the TrainJob of distill_student"))
    assert train.step == "the TrainJob of distill_student_sft and 1 more"
    assert (train.pool, train.queue, train.num_pods, train.resources[GPU]) == ("h100-spot", "proxykd-h100-spot", 2, 8)
    assert train.total == {"cpu": 192, "memory": Decimal(2000) * 2**30, GPU: 16}
    assert found.secrets == {
        "proxykd-teacher": ("OPENAI_API_KEY",), "proxykd-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    }  # fmt: skip
    assert found.accounts == ("proxykd-orchestrator", "proxykd-step", "proxykd-trainer")
    assert found.volumes == ("proxykd-models", "proxykd-journal")
    assert found.priorities == ("proxykd-high", "proxykd-normal")
    assert found.queue_priorities == ("proxykd-normal",)
    assert found.has_queue
    assert len(found.runtimes) == 1


def test_a_placement_without_queues_or_train_jobs() -> None:
    found = needs(STACKS.parent / "placements" / "cpu.yaml")
    assert not found.has_queue
    assert not found.runtimes
    assert not found.queue_priorities
    assert "proxykd-trainer" not in found.accounts
    (demand,) = found.demands
    assert demand.step == "query_teacher and 9 more"
    assert GPU not in demand.resources


def test_a_launcher_that_holds_for_all_asks_for_trainings_of_steps_that_train_alone(tmp_path: Path) -> None:
    default = {"pool": "cpu", "launcher": {"kind": "trainjob", "scratch": "3"}}
    placement = {"pools": {"cpu": {}}, "steps": {"default": default, "query_teacher": {"role": "teacher-query"}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(placement), encoding="utf-8")
    found = needs(tmp_path / "p.yaml")
    (training,) = (one for one in found.demands if one.own is not None)
    assert (training.step, training.resources) == ("the TrainJob of align_proxy and 2 more", {STORAGE: 3})
    asking = Asking("query_teacher", None, "api.openai.com:443", "internet")
    assert not list(check_askings(found, [asking])), "its role has a way there"


def test_trainings_that_differ_in_the_pod_that_waits_for_them_are_two_demands(tmp_path: Path) -> None:
    job = {"kind": "trainjob", "pool": "gpu", "gpus": 1}
    placement = {
        "pools": {"gpu": {"queue": "gpu", "gpu_max": 8}},
        "steps": {"default": {"pool": "gpu"}, "align_proxy": {"launcher": job},
                  "distill_student": {"launcher": job, "gpus": 1}},
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(placement), encoding="utf-8")
    trainings = {one.step: one.held for one in needs(tmp_path / "p.yaml").demands if one.own is not None}
    assert {step: held.get(GPU, 0) for step, held in trainings.items()} == {
        "the TrainJob of align_proxy": 0, "the TrainJob of distill_student_sft and 1 more": 1
    }  # fmt: skip


def test_kubeflow_brings_its_own_account_and_takes_no_priorities() -> None:
    placement, own = STACKS.parent / "placements" / "gpu.yaml", {"kind": "kubeflow", "hostname": "http://kubeflow"}
    stacks = (KubeflowStackSpec.model_validate({**VALUES, **own, "placement": str(placement), **one}) for one in (
        {}, {"pipelines_service_account": "mine"}))  # fmt: skip
    without, named = map(needs_of, stacks)
    assert (without.accounts, named.accounts) == ((), ("mine",))
    assert without.priorities == ()
    assert without.queue_priorities == ("proxykd-normal",)
    assert len(without.runtimes) == 1


def test_more_gpus_than_a_node_of_the_pool_has(tmp_path: Path) -> None:
    placement = {"pools": {"gpu": {"gpu_max": 8}}, "steps": {"default": {"pool": "gpu"}, "align_proxy": {"gpus": 9}}}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(placement), encoding="utf-8")
    with pytest.raises(ConfigError, match="9 asked for, but a node of pool 'gpu' has 8"):
        needs(tmp_path / "p.yaml")


@pytest.mark.parametrize("name", ["gpu", "large"])
def test_each_step_fits_the_quota_of_a_queue_with_one_kind_of_gpu(name: str) -> None:
    folder = STACKS.parent / "base" / "queue"
    queues, pools = ([*yaml.safe_load_all((folder / f"{name}.yaml").read_text())] for name in ("queues", "pools"))
    pool_of = {one["metadata"]["name"]: one["spec"]["clusterQueue"] for one in queues}
    flavors = {one["metadata"]["name"]: one["spec"]["resourceGroups"][0]["flavors"] for one in pools}
    file = STACKS.parent / "placements" / f"{name}.yaml"
    placement = load_placement(file)
    for demand in needs(file).demands:
        (flavor,) = flavors[pool_of[str(demand.queue)]]  # no other kind of GPU can be given
        quota = {one["name"]: amount(one["nominalQuota"]) for one in flavor["resources"]}
        assert all(quota[name] >= wanted for name, wanted in demand.total.items()), demand
    step = placement.step("estimate_distributions")
    wanted = {"cpu": amount(step.cpu), "memory": amount(step.memory), GPU: step.gpus}
    (flavor,) = flavors[pool_of[str(placement.pools[step.pool].queue)]]
    quota = {one["name"]: amount(one["nominalQuota"]) for one in flavor["resources"]}
    assert all(quota[name] >= step.shards * each for name, each in wanted.items())  # all shards at once
