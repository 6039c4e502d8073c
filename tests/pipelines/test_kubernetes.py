"""The pipeline through ZenML's Kubernetes orchestrator, every pod a process, on servers that pods would reach.

One run goes all the way through every trouble that a cluster makes and a run survives; its numbers are those of an
undisturbed run on one machine. Small runs then show how trouble ends that no run survives: with one message, and with
a run that is not left running.
"""

import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config.steps import STEPS as STEP_NAMES
from tests.k8s.access import service_account
from tests.k8s.kinds import CORE
from tests.k8s.policy import check
from tests.k8s.rbac import EVERYBODY, granted
from tests.k8s.schemas import faults
from tests.support.kubectl import render
from tests.support.platform import Outcome, Platform, platform
from tests.support.program import CHECKOUT, NUM_PROMPTS, Finished, Home
from tests.support.runner import Checkout
from tests.support.s3_server import CREDENTIALS

pytestmark = pytest.mark.integration

STEPS = {"default": {"pool": "cpu", "cpu": "1", "memory": "4Gi", "grace_s": 5}}
LIST_JOBS, DELETE_JOBS = ("list", "batch", "jobs"), ("delete", "batch", "jobs")
"""Rights of the orchestrator's pod that only a run needs which is taken up by another such pod, or stopped."""
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


def survive(found: Platform, home: Path) -> Outcome:
    """A run that loses two nodes and a token, and whose API server refuses, stalls and goes away."""
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

    cluster.kubelet.befall("evicted", step_name="query_teacher", when=lambda pod, log: found.num_answers() > 20)
    cluster.kubelet.befall("node gone", step_name="split", when=lambda pod, log: log.exists())
    cluster.kubelet.befall("killed", step_name="align_proxy", when=once("away", lambda: cluster.api.go_away(4.0)))
    cluster.kubelet.befall("killed", step_name="estimate_distributions", when=once("token", expire))
    for code, wait_s in ((409, None), (429, 1.0), (503, None)):
        cluster.api.trouble.add(code, verb="create", resource="jobs", num_times=2, retry_after_s=wait_s)
    cluster.api.trouble.add(504, verb="create", resource="jobs", num_times=2, is_after=True)  # made, and not told
    ended = found.run(home, placement(home, query_teacher=QUERY))
    cluster.kubelet.mishaps.clear()
    assert ended.status == 0, ended.stderr[-4000:]
    assert asked == {"away": 1, "token": 1}
    return ended


def test_a_run_survives_what_a_cluster_does_to_it_with_the_numbers_of_an_undisturbed_one(
    cluster_platform: Platform, undisturbed: tuple[Home, Finished], tmp_path: Path
) -> None:
    ended = survive(cluster_platform, tmp_path / "home")

    assert cluster_platform.statuses()[""] == "completed"
    assert cluster_platform.report()["arms"] == undisturbed[1].report["arms"]
    assert "tiny-student" in ended.stdout
    # What was paid for before the node was lost is not asked again.
    starts = Counter(labels.get("step_name", "") for _, labels in cluster_platform.cluster.kubelet.starts)
    assert starts.pop("query_teacher") == starts.pop("split") == 2
    assert set(starts.values()) == {1}
    assert cluster_platform.num_answers() == NUM_PROMPTS
    assert len(cluster_platform.cluster.api.store.list(CORE["Job"])) == len(STEP_NAMES) + 1
    check_objects(cluster_platform)
    check_rights(cluster_platform)


def check_objects(platform: Platform) -> None:
    """Every object of the run is strictly valid, passes the policy, and shows no secret."""
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    jobs, pods = (platform.cluster.api.store.list(CORE[kind], "proxykd") for kind in ("Job", "Pod"))
    assert not [told for found in (*jobs, *pods) for told in faults(found)]
    assert check([*overlay, *jobs]) == check(overlay)
    assert platform.zenml.key not in json.dumps(jobs)
    tokens = _tokens(jobs)
    assert len(tokens) == len(jobs)
    assert all("value" not in one and one["valueFrom"]["secretKeyRef"]["name"] for one in tokens)


def _tokens(jobs: list[Any]) -> list[Any]:
    containers = [container for job in jobs for container in job["spec"]["template"]["spec"]["containers"]]
    return [one for container in containers for one in container["env"] if one["name"] == "ZENML_STORE_API_TOKEN"]


def used(platform: Platform, account: str) -> set[tuple[str, str, str]]:
    """(verb, group, resource) of what a service account did with success."""
    did = platform.cluster.api.access.used(service_account("proxykd", account))
    return {(verb, group, resource) for group, resource, verb in did}


def await_end(platform: Platform) -> None:
    """The orchestrator's pod still removes the run's token when the run has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if not any(job["status"].get("active") for job in platform.cluster.api.store.list(CORE["Job"])):
            return
        time.sleep(0.1)
    pytest.fail("a Job is still active")


def check_rights(platform: Platform) -> None:
    """Each account may do what it did, and beside that what is named here."""
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    await_end(platform)
    orchestrator, submitter = used(platform, "proxykd-orchestrator"), used(platform, "proxykd-submitter")

    assert granted(overlay, "proxykd-orchestrator") - orchestrator == {LIST_JOBS, DELETE_JOBS}
    assert submitter - EVERYBODY <= granted(overlay, "proxykd-submitter")
    assert used(platform, "proxykd-step") == granted(overlay, "proxykd-step") == set()


def test_ci_submits_to_the_cluster_and_posts_plan_and_report(cluster_platform: Platform, tmp_path: Path) -> None:
    """distill.yml, its lines in their order, with what a repository would give them."""
    there, checkout = cluster_platform, Checkout.create(tmp_path)
    before = len(there.cluster.kubelet.starts)
    submitter = there.cluster.api.kubeconfig("proxykd", account="proxykd-submitter")
    secrets = {
        **CREDENTIALS,
        "KUBECONFIG_TEXT": submitter.read_text(encoding="utf-8"),
        "ZENML_STORE_API_KEY": there.zenml.key,
    }
    variables = {"MLFLOW_TRACKING_URI": there.mlflow, "ZENML_STORE_URL": there.zenml.address}
    stack = str(there.stack(placement(tmp_path / "placed", query_teacher=QUERY)))
    inputs = {"specification": "tiny.yaml", "stack": stack, "budget_usd": "", "dry_run": False}

    lines = list(checkout.run("distill", inputs=inputs, secrets=secrets, variables=variables))

    assert not [done for done in lines if done.status]
    assert len(lines) == 6
    plan, _, report = checkout.summary.partition("### tiny: every check passed, nothing spent")
    assert "MISSING" not in checkout.summary
    assert "Proxy-KD" in report, (plan, report)
    assert there.statuses()[""] == "completed"
    roles = {labels["proxykd.dev/role"] for _, labels in there.cluster.kubelet.starts[before:]}
    assert "orchestrator" in roles
    assert not [told for told in (checkout.summary, *(done.output for done in lines)) if there.zenml.key in told]


def test_an_api_server_that_is_away_for_a_minute_costs_a_run_nothing(
    cluster_platform: Platform, tmp_path: Path
) -> None:
    cluster, away = cluster_platform.cluster, list[float]()

    def leave(pod: Any, log: Path) -> bool:
        if not away and is_up(pod, log):
            away.append(time.monotonic())
            cluster.api.go_away(60.0)
        return False

    before = len(cluster.kubelet.starts)
    cluster.kubelet.befall("killed", step_name="query_teacher", when=leave)
    ended = small(cluster_platform, tmp_path, wait_s=65.0)
    cluster.kubelet.mishaps.clear()

    assert ended.status == 0, ended.stderr
    assert time.monotonic() - away[0] > 60.0
    starts = Counter(labels.get("step_name", "orchestrator") for _, labels in cluster.kubelet.starts[before:])
    assert starts == {"orchestrator": 1, "query_teacher": 1, "split": 1}


def small(platform: Platform, folder: Path, wait_s: float = 60.0) -> Outcome:
    shutil.rmtree(platform.journal().parent, ignore_errors=True)
    return platform.run_small(folder, placement(folder), wait_s)


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
    assert how != "image missing" or DELETE_JOBS in used(cluster_platform, "proxykd-orchestrator")


def test_a_queue_that_never_admits_is_told_and_the_run_stopped(cluster_platform: Platform, tmp_path: Path) -> None:
    cluster_platform.cluster.jobs.closed.add("proxykd-cpu")
    path = placement(tmp_path)
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**content, "pools": {"cpu": {"queue": "proxykd-cpu"}}}), encoding="utf-8")

    ended = cluster_platform.run_small(tmp_path, path, 0.0, start_timeout_s=5)

    assert ended.status != 0
    assert "proxykd-cpu" in ended.stderr
    assert cluster_platform.statuses()[""] in ("failed", "stopped")
    waiting = [job for job in cluster_platform.cluster.api.store.list(CORE["Job"]) if job["spec"]["suspend"]]
    assert not waiting


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
    assert LIST_JOBS in used(cluster_platform, "proxykd-orchestrator")


def _has_step(kubelet: Any, before: int) -> bool:
    return any(labels.get("step_name") for _, labels in kubelet.starts[before:])
