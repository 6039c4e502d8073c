"""Placements: what may stand in one, what each step gets by it, and what no pool can give."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config import RunSpec
from proxykd.config.placement import (
    RUNTIME_CLAIMS,
    RUNTIME_USER,
    LauncherPlacementSpec,
    PlacementSpec,
    amount,
    check_processes,
    load_placement,
)
from proxykd.config.steps import STEPS, TRAINING
from proxykd.exceptions import ConfigError

FOLDER = Path(__file__).parents[2] / "k8s" / "placements"
POOLS: dict[str, Any] = {
    "cpu": {"cpu_max": "8", "memory_max": "16Gi"},
    "gpu": {"queue": "proxykd-gpu", "gpu_max": 4, "spot": True},
}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "placement.yaml"
    content = {"pools": POOLS, "steps": {"default": {"pool": "cpu"}}, **changes}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def placed(folder: Path, **steps: Any) -> PlacementSpec:
    return load_placement(write(folder, steps={"default": {"pool": "cpu", "cpu": "2"}, **steps}))


@pytest.mark.parametrize("entry", ["default", "query_teacher"])
def test_a_credential_among_the_variables_in_clear_text_is_refused_and_never_repeated(
    tmp_path: Path, entry: str
) -> None:
    step = {"pool": "cpu", "env": {"OPENAI_API_KEY": "sk-live-123", "HF_HUB_OFFLINE": "1"}}
    with pytest.raises(ConfigError, match=r"got \['OPENAI_API_KEY'\]: name a Secret") as caught:
        placed(tmp_path, **{entry: step})
    assert "sk-live" not in str(caught.value)
    assert placed(tmp_path, **{entry: {**step, "env": {"HF_HUB_OFFLINE": "1"}}}).step("query_teacher").env


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_placement_of_the_checkout_places_every_step(path: Path) -> None:
    placement = load_placement(path)

    for name in STEPS:
        step, launcher = placement.step(name), placement.launcher(name)
        assert step.pool in placement.pools
        assert launcher.kind == step.launcher.kind


def test_the_longest_fitting_name_wins_and_the_default_fills_up(tmp_path: Path) -> None:
    placement = placed(tmp_path, distill_student={"memory": "8Gi", "retries": 3}, distill_student_sft={"retries": 0})

    assert (placement.step("split").memory, placement.step("split").cpu) == ("4Gi", "2")
    assert (placement.step("distill_student_proxy_kd").memory, placement.step("distill_student_proxy_kd").retries) == (
        "8Gi",
        3,
    )
    assert (placement.step("distill_student_sft").memory, placement.step("distill_student_sft").retries) == ("8Gi", 0)
    assert placement.step("distill_student_sft_3").retries == 0


def test_a_train_job_gets_its_own_pools_queue_and_no_selector(tmp_path: Path) -> None:
    job = {"kind": "trainjob", "pool": "gpu", "nodes": 2, "processes_per_node": 4, "gpus": 4}
    launcher = placed(tmp_path, distill_student={"launcher": job}).launcher("distill_student_sft")

    assert (launcher.queue, launcher.priority, launcher.node_selectors) == ("proxykd-gpu", "proxykd-normal", {})
    assert (launcher.nodes, launcher.processes_per_node, launcher.gpus) == (2, 4, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": {"default": {"pool": "cpus"}}}, "unknown pool 'cpus'; there are cpu, gpu"),
        ({"steps": {"default": {"pool": "cpu", "gpus": 1}}}, "1 asked for, but a node of pool 'cpu' has 0"),
        ({"steps": {"default": {"pool": "gpu", "gpus": 5}}}, "5 asked for, but a node of pool 'gpu' has 4"),
        ({"steps": {"default": {"pool": "cpu", "memory": "17Gi"}}}, "17Gi asked for"),
        ({"steps": {"default": {"pool": "cpu", "cpu": "8500m"}}}, "8500m asked for"),
        ({"steps": {"default": {"pool": "cpu"}, "splitt": {}}}, "did you mean 'split'"),
        ({"steps": {"default": {"pool": "cpu"}, "split": {"gpu": 1}}}, "did you mean 'gpus'"),
        ({"steps": {"default": {"pool": "cpu"}, "align_proxy": {"launcher": {"node": 1}}}}, "did you mean 'nodes'"),
        ({"steps": {"split": {"pool": "cpu"}}}, "pool: Field required"),
        ({"pools": {"cpu": {"queue": "a", "node_selectors": {"a": "b"}}}}, "not both"),
        ({"orchestrator": {"pool": "gpu"}}, "expected a pool without a queue"),
        ({"pool": {}}, "pool"),
        (
            {"steps": {"default": {"pool": "gpu", "gpus": 4, "launcher": {"kind": "torchrun"}}}},
            "one process a GPU",
        ),
        (
            {"steps": {"default": {"pool": "cpu", "launcher": {"kind": "trainjob", "pool": "gpu", "gpus": 8,
                                                               "processes_per_node": 8}}}},
            "launcher.gpus: 8 asked for, but a node of pool 'gpu' has 4",
        ),
        (
            {"steps": {"default": {"pool": "cpu"},
                       "distill_student": {"launcher": {"kind": "trainjob", "pool": "gpu", "processes_per_node": 4}}}},
            "distill_student_sft.launcher.gpus: expected 4, one for each process, got 0 in pool 'gpu', whose nodes",
        ),
        (
            {"steps": {"default": {"pool": "gpu"},
                       "align_proxy": {"launcher": {"kind": "torchrun", "processes_per_node": 4}}}},
            "steps.align_proxy.gpus: expected 4, one for each process, got 0 in pool 'gpu'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_placed_is_told_at_load(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a placement") as caught:
        load_placement(write(tmp_path, **changes))

    assert told in str(caught.value)


def test_processes_without_gpus_train_in_a_pool_without_gpus(tmp_path: Path) -> None:
    for kind in ("torchrun", "trainjob"):
        launcher = {"kind": kind, "processes_per_node": 4}
        assert placed(tmp_path, distill_student={"launcher": launcher}).step("distill_student_sft").gpus == 0


OTHERS: dict[str, Any] = {
    "nodes": 2, "pool": "gpu", "cpu": "1", "memory": "1Gi", "gpus": 1, "priority": "high", "start_s": 60,
    "grace_s": 100, "shm": "1Gi", "scratch": "30Gi",
}  # fmt: skip


@pytest.mark.parametrize("entry", ["default", "distill_student"])
@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        *(("torchrun", key, value) for key, value in OTHERS.items()),
        *(("process", key, value) for key, value in {**OTHERS, "processes_per_node": 4}.items()),
    ],
)
def test_what_a_launchers_kind_has_no_use_for_is_refused(
    tmp_path: Path, entry: str, kind: str, key: str, value: Any
) -> None:
    own = {"kind": kind, key: value}
    with pytest.raises(ConfigError, match=rf"steps\.{entry}.*kind '{kind}' has no use for {key}; leave it out"):
        placed(tmp_path, **{entry: {"pool": "cpu", "launcher": own}})
    own[key] = LauncherPlacementSpec.model_fields[key].default
    assert placed(tmp_path, **{entry: {"pool": "cpu", "launcher": own}}).launcher("distill_student_sft").kind == kind
    # An entry may go back to another kind than the one that holds for all.
    job = {"pool": "gpu", "launcher": {"kind": "trainjob", **OTHERS}}
    back = placed(tmp_path, default=job, distill_student={"launcher": {"kind": kind}, "gpus": int(kind == "torchrun")})
    assert back.launcher("distill_student_sft").kind == kind


def test_a_priority_of_kueues_needs_a_queue(tmp_path: Path) -> None:
    job = {"kind": "trainjob", "priority": "proxykd-high"}
    with pytest.raises(ConfigError, match=r"distill_student_sft\.launcher\.priority: .* pool 'cpu' has none"):
        placed(tmp_path, distill_student_sft={"launcher": job})
    with pytest.raises(ConfigError, match=r"align_proxy\.launcher\.priority: .* pool 'cpu' has none"):
        placed(tmp_path, default={"pool": "cpu", "launcher": job})
    queued = {"pool": "gpu", "launcher": {**job, "gpus": 1}}
    assert placed(tmp_path, distill_student_sft=queued).launcher("distill_student_sft").priority == "proxykd-high"


def test_shared_memory_is_part_of_the_pods(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps\.split\.: .*shm: 5Gi is part of memory, which is 4Gi"):
        placed(tmp_path, split={"shm": "5Gi"})
    assert placed(tmp_path, split={"shm": "4Gi"}).step("split").shm == "4Gi"
    assert placed(tmp_path, split={"memory": "512Mi"}).step("split").memory == "512Mi"  # the usual shm is no wish


def test_sizes_of_shared_memory_and_disk_reach_a_train_job(tmp_path: Path) -> None:
    def sizes(**step: Any) -> tuple[str | None, str | None]:
        own = {"memory": "8Gi", **step, "launcher": {"kind": "trainjob", **step.get("launcher", {})}}
        launcher = placed(tmp_path, distill_student=own).launcher("distill_student_sft")
        return launcher.shm, launcher.scratch

    assert sizes() == (None, None)  # as the runtime says
    assert sizes(shm="3Gi") == ("3Gi", None)
    assert sizes(shm="3Gi", launcher={"shm": "6Gi", "scratch": "50Gi"}) == ("6Gi", "50Gi")
    for step in ({"shm": "7Gi", "launcher": {"memory": "4Gi"}}, {"launcher": {"shm": "7Gi", "memory": "4Gi"}}):
        with pytest.raises(ConfigError, match=r"launcher\.shm: 7Gi is part of memory, which is 4Gi"):
            sizes(**step)


JOURNAL, WEIGHTS = {"proxykd-journal": "/var/lib/proxykd"}, {"proxykd-models": "/models"}


@pytest.mark.parametrize(
    ("volumes", "told"),
    [
        ({"mine": "/var/lib/proxykd", **WEIGHTS}, "proxykd-journal at /var/lib/proxykd, .* got mine"),
        (WEIGHTS, "proxykd-journal at /var/lib/proxykd, .* got none"),
        ({**JOURNAL, "mine": "/models/"}, "proxykd-models at /models, .* got mine"),
    ],
)
def test_a_claim_that_the_pods_of_a_train_job_do_not_share_is_refused(
    tmp_path: Path, volumes: dict[str, str], told: str
) -> None:
    job = {"launcher": {"kind": "trainjob"}}
    with pytest.raises(ConfigError, match=f"volumes: expected the claim {told}; leave volumes out"):
        placed(tmp_path, distill_student={"volumes": volumes, **job})
    with pytest.raises(ConfigError, match=f"volumes: expected the claim {told}; leave volumes out"):
        placed(tmp_path, default={"pool": "cpu", "volumes": volumes}, distill_student=job)
    assert placed(tmp_path, distill_student={"volumes": volumes}).step("distill_student_sft").volumes == volumes
    more = {**JOURNAL, "corpus": "/data"}
    assert placed(tmp_path, distill_student={"volumes": more, **job}).step("distill_student_sft").volumes == more


def test_another_user_than_the_one_of_a_train_jobs_pods_is_refused(tmp_path: Path) -> None:
    steps = {"default": {"pool": "cpu"}, "align_proxy": {"launcher": {"kind": "trainjob"}}}
    with pytest.raises(ConfigError, match=r"user: expected 10001, .* got 1000; leave it out"):
        load_placement(write(tmp_path, steps=steps, user=1000))
    assert load_placement(write(tmp_path, user=1000)).user == 1000


def test_user_and_claims_of_a_train_jobs_pods_are_the_runtimes() -> None:
    runtime = yaml.safe_load((FOLDER.parent / "trainjob" / "training-runtime.yaml").read_text(encoding="utf-8"))
    pod = runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    places = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
    claims = {places[one["name"]]: one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"]
              if "persistentVolumeClaim" in one}  # fmt: skip
    assert claims == RUNTIME_CLAIMS
    assert pod["securityContext"]["runAsUser"] == RUNTIME_USER == PlacementSpec.model_fields["user"].default


@pytest.mark.parametrize("name", TRAINING)
def test_a_gpu_without_a_process_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{name}\.gpus: expected 1, .* got 4; add `launcher: {{kind: torchrun, "):
        placed(tmp_path, **{name: {"pool": "gpu", "gpus": 4}})
    assert placed(tmp_path, **{name: {"pool": "gpu", "gpus": 1}}).step(name).gpus == 1
    shared = {"pool": "gpu", "gpus": 4, "launcher": {"kind": "torchrun", "processes_per_node": 4}}
    assert placed(tmp_path, **{name: shared}).step(name).gpus == 4
    # One process of these spreads a model over all of them.
    spread = {"pool": "gpu", "gpus": 4}
    assert placed(tmp_path, evaluate_student=spread, estimate_distributions=spread).step("evaluate_student").gpus == 4


@pytest.mark.parametrize(("section", "step"), [("proxy", "align_proxy"), ("student", "distill_student_sft")])
def test_several_processes_of_a_specification_need_a_launcher_that_starts_them(
    tmp_path: Path, make_run: Callable[..., RunSpec], section: str, step: str
) -> None:
    run = make_run()
    run = run.model_copy(update={section: getattr(run, section).model_copy(update={"processes": 4})})
    with pytest.raises(ConfigError, match=rf"expected {section}\.processes=1, as {step} .* got 4; add `launcher: "):
        check_processes(run, placed(tmp_path))
    for kind in ("torchrun", "trainjob"):
        own = {"launcher": {"kind": kind, "processes_per_node": 2}}
        check_processes(run, placed(tmp_path, distill_student=own, align_proxy=own))
    check_processes(make_run(), placed(tmp_path))


ALONE = [("cross_tokenizer", {}), ("living_teacher", {"kind": "gkd"})]


@pytest.mark.parametrize("kind", ["torchrun", "trainjob"])
@pytest.mark.parametrize(("setting", "value"), ALONE)
def test_what_needs_student_and_teacher_in_one_process_is_placed_there(
    tmp_path: Path, make_run: Callable[..., RunSpec], kind: str, setting: str, value: dict[str, Any]
) -> None:
    several = {"launcher": {"kind": kind, "processes_per_node": 2}}
    run = make_run(student={setting: value})
    for entry in ("distill_student", "distill_student_proxy_kd"):
        with pytest.raises(ConfigError, match=rf"student\.{setting} needs student and teacher in one process; leave "):
            check_processes(run, placed(tmp_path, **{entry: several}))
    check_processes(run, placed(tmp_path, distill_student_sft=several, align_proxy=several))
    check_processes(make_run(), placed(tmp_path, distill_student=several))
    # Without a weight nothing is translated.
    hard = make_run(student={"cross_tokenizer": {}, "alpha": 0.0})
    check_processes(hard, placed(tmp_path, distill_student=several))


@pytest.mark.parametrize("kind", ["torchrun", "trainjob"])
def test_steps_that_start_no_processes_take_nothing_of_a_launcher_that_holds_for_all(tmp_path: Path, kind: str) -> None:
    default = {"pool": "cpu", "launcher": {"kind": kind, "processes_per_node": 4}}
    placement = placed(tmp_path, default=default, split={"pool": "gpu"})

    kinds = {name: (placement.step(name).launcher.kind, placement.launcher(name).kind) for name in STEPS}
    assert kinds == {name: (kind, kind) if name in TRAINING else ("process", "process") for name in STEPS}
    assert placement.step("query_teacher_3-of-8").launcher.kind == "process"


@pytest.mark.parametrize("entry", ["query_teacher", "query", "split", "evaluate_student"])
@pytest.mark.parametrize("kind", ["process", "torchrun", "trainjob"])
def test_a_launcher_of_a_step_that_does_not_train_is_refused(tmp_path: Path, entry: str, kind: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"steps\.{entry}\.launcher: expected a launcher of align_proxy.*leave it out"
    ):
        placed(tmp_path, **{entry: {"launcher": {"kind": kind}}})


@pytest.mark.parametrize(
    ("text", "number"), [("500m", "0.5"), ("16", "16"), ("1.5Gi", str(1.5 * 2**30)), ("2k", "2000"), ("3M", "3000000")]
)
def test_amounts(text: str, number: str) -> None:
    assert amount(text) == Decimal(number)
