"""The pipeline through ZenML's Kubernetes orchestrator, every pod a process, on servers that pods would reach.

One run goes all the way through every trouble that a cluster makes and a run survives; its numbers are those of an
undisturbed run on one machine. Small runs then show how trouble ends that no run survives: with one message, and with
a run that is not left running.
"""

import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.access import service_account
from tests.k8s.kinds import CORE
from tests.k8s.policy import check
from tests.k8s.rbac import granted
from tests.k8s.schemas import faults
from tests.support.kubectl import render
from tests.support.platform import Outcome, Platform, platform
from tests.support.program import CHECKOUT, NUM_PROMPTS, Finished, Home

pytestmark = pytest.mark.integration

STEPS = {"default": {"pool": "cpu", "cpu": "1", "memory": "4Gi", "grace_s": 5}}
QUERY = {"role": "teacher-query", "secrets": ["proxykd-teacher"]}


@pytest.fixture(scope="module")
def cluster_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with platform(tmp_path_factory.mktemp("platform")) as found:
        yield found


def placement(folder: Path, **steps: Any) -> Path:
    path = folder / "placement.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"pools": {"cpu": {}}, "orchestrator": {"poll_s": 1}, "steps": {**STEPS, **steps}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def journal(platform: Platform) -> Path:
    return platform.cluster.kubelet.machine.claim("proxykd", "proxykd-journal") / "journal.sqlite"


def num_answers(platform: Platform) -> int:
    try:
        with sqlite3.connect(f"file:{journal(platform)}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM answers WHERE is_final").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@pytest.fixture(scope="module")
def survivor(cluster_platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A run that loses two nodes and a token, and whose API server refuses, stalls and goes away."""
    found, home = cluster_platform, tmp_path_factory.mktemp("survivor")
    cluster, asked = found.cluster, Counter[str]()

    def once(name: str, act: Any) -> Any:
        def when(pod: Any, log: Path) -> bool:
            if log.exists() and not asked[name]:
                asked[name] += 1
                act()
            return False

        return when

    def expire() -> None:
        cluster.api.access.expire(service_account("proxykd", "proxykd-orchestrator"))
        cluster.kubelet.rotate_tokens()

    cluster.kubelet.befall("evicted", step_name="query_teacher", when=lambda pod, log: num_answers(found) > 20)
    cluster.kubelet.befall("node gone", step_name="split", when=lambda pod, log: log.exists())
    cluster.kubelet.befall("killed", step_name="align_proxy", when=once("away", lambda: cluster.api.go_away(4.0)))
    cluster.kubelet.befall("killed", step_name="estimate_distributions", when=once("token", expire))
    for code, wait_s in ((409, None), (429, 0.5), (503, None)):
        cluster.api.trouble.add(code, verb="create", resource="jobs", num_times=2, retry_after_s=wait_s)
    ended = found.run(home, placement(home, query_teacher=QUERY))
    assert ended.status == 0, ended.stderr[-4000:]
    assert asked == {"away": 1, "token": 1}
    return ended


def test_a_run_through_all_that_befalls_it_ends_with_the_numbers_of_an_undisturbed_one(
    survivor: Outcome, cluster_platform: Platform, undisturbed: tuple[Home, Finished]
) -> None:
    assert cluster_platform.statuses()[""] == "completed"
    assert cluster_platform.report()["arms"] == undisturbed[1].report["arms"]
    assert "registered tiny-student" in survivor.stdout or "tiny-student" in survivor.stdout


def test_what_was_paid_for_before_a_node_was_lost_is_not_asked_again(
    survivor: Outcome, cluster_platform: Platform
) -> None:
    starts = Counter(labels.get("step_name", "") for _, labels in cluster_platform.cluster.kubelet.starts)

    assert starts["query_teacher"] == starts["split"] == 2
    assert set(starts.values()) == {1, 2}
    assert num_answers(cluster_platform) == NUM_PROMPTS


def test_every_object_of_the_run_is_strictly_valid_and_passes_the_policy(
    survivor: Outcome, cluster_platform: Platform
) -> None:
    store = cluster_platform.cluster.api.store
    jobs = store.list(CORE["Job"], "proxykd")
    pods = store.list(CORE["Pod"], "proxykd")
    assert len(jobs) == 11

    assert not [told for found in (*jobs, *pods) for told in faults(found)]
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    for found in jobs:
        found.setdefault("apiVersion", "batch/v1")
    assert check([*overlay, *jobs]) == check(overlay) == []
    plain = json.dumps(jobs)
    assert "ZENML_STORE_API_TOKEN" in plain
    assert cluster_platform.zenml.key not in plain


def test_each_account_may_do_what_it_did_and_nothing_more(survivor: Outcome, cluster_platform: Platform) -> None:
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    access = cluster_platform.cluster.api.access
    used = {
        name: {(verb, group, resource) for group, resource, verb in access.used(service_account("proxykd", name))}
        for name in ("proxykd-orchestrator", "proxykd-submitter", "proxykd-step")
    }

    # Lists and deletions are for the restart and the stop of a run, which this one did not need.
    spare = {("list", "batch", "jobs"), ("delete", "batch", "jobs")}
    assert used["proxykd-orchestrator"] | spare == granted(overlay, "proxykd-orchestrator")
    assert used["proxykd-submitter"] <= granted(overlay, "proxykd-submitter")
    assert used["proxykd-step"] == granted(overlay, "proxykd-step") == set()


def small(platform: Platform, folder: Path, wait_s: float = 60.0, **stack: Any) -> Outcome:
    shutil.rmtree(journal(platform).parent, ignore_errors=True)
    steps = {"pools": {}, **stack.pop("steps", {})}
    del steps["pools"]
    return platform.run_small(folder, placement(folder, **steps), wait_s, **stack)


def is_up(pod: Any, log: Path) -> bool:
    return log.exists() and b"up" in log.read_bytes()


@pytest.mark.parametrize(
    ("how", "word"),
    [("killed", "exit_code=137"), ("out of memory", "OOMKilled"), ("image missing", "ImagePullBackOff")],
)
def test_what_no_pod_survives_ends_the_run_with_its_reason(
    cluster_platform: Platform, tmp_path: Path, how: Any, word: str
) -> None:
    when = None if how == "image missing" else is_up
    cluster_platform.cluster.kubelet.befall(how, step_name="query_teacher", when=when)

    ended = small(cluster_platform, tmp_path)

    assert ended.status != 0
    assert ended.stderr.count("error: ") == 1
    assert word in ended.stderr
    assert cluster_platform.statuses()[""] == "failed"


def test_a_queue_that_never_admits_is_told_and_the_run_stopped(cluster_platform: Platform, tmp_path: Path) -> None:
    cluster_platform.cluster.jobs.closed.add("proxykd-cpu")
    path = placement(tmp_path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**content, "pools": {"cpu": {"queue": "proxykd-cpu"}}}), encoding="utf-8")

    ended = cluster_platform.run_small(tmp_path, path, 0.0, start_timeout_s=5)

    assert ended.status != 0
    assert "proxykd-cpu" in ended.stderr
    assert cluster_platform.statuses()[""] in ("failed", "stopped")
    assert not [
        job
        for job in cluster_platform.cluster.api.store.list(CORE["Job"], "proxykd")
        if not job["status"].get("conditions") or job["status"]["conditions"][-1]["type"] == "Suspended"
    ]


def test_another_orchestrator_pod_goes_on_with_the_run(cluster_platform: Platform, tmp_path: Path) -> None:
    """The pod that walks the pipeline is lost while a step runs; the step is not started again."""
    before = len(cluster_platform.cluster.kubelet.starts)
    kubelet = cluster_platform.cluster.kubelet
    kubelet.befall(
        "node gone", **{"proxykd.dev/role": "orchestrator"}, when=lambda pod, log: _has_step(kubelet, before)
    )

    ended = small(cluster_platform, tmp_path, wait_s=10.0)

    assert ended.status == 0, ended.stderr
    starts = [labels.get("step_name", "orchestrator") for _, labels in kubelet.starts[before:]]
    assert Counter(starts) == {"orchestrator": 2, "query_teacher": 1, "split": 1}


def _has_step(kubelet: Any, before: int) -> bool:
    return any(labels.get("step_name") for _, labels in kubelet.starts[before:])
