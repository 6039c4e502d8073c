"""The pipeline through ZenML's Kubernetes orchestrator, every pod a process, on servers that pods would reach.

One run, by the commands of docs/kubernetes.md, goes all the way through every trouble that a cluster makes and a run
survives; its numbers are those of an undisturbed run on one machine. Small runs then show how trouble ends that no run
survives: with one message, and with a run that is not left running.
"""

import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config.steps import STEPS as STEP_NAMES
from tests.k8s.access import service_account
from tests.k8s.kinds import CORE
from tests.k8s.pages import commands, page
from tests.k8s.rbac import EVERYBODY, granted, skip_unless_whole
from tests.support.created import check_objects
from tests.support.kubectl import render
from tests.support.platform import Outcome, Platform, platform
from tests.support.program import CHECKOUT, NUM_PROMPTS, SPECIFICATION, Finished, Home
from tests.support.runner import HOSTILE, MODEL, Checkout
from tests.support.s3_server import CREDENTIALS
from tests.support.troubles import QUEUE, Troubles

pytestmark = pytest.mark.integration

STEPS = {"default": {"pool": "cpu", "cpu": "1", "memory": "4Gi", "grace_s": 5}}
LIST_JOBS, DELETE_JOBS = ("list", "batch", "jobs"), ("delete", "batch", "jobs")
TRAIN_JOBS = ("trainer.kubeflow.org", "trainjobs")
QUERY = {"role": "teacher-query", "secrets": ["proxykd-teacher"]}
WHOLE = {
    "query_teacher": {**QUERY, "shards": 3},
    "estimate_distributions": {"shards": 2},
    "distill_student_proxy_kd": {"launcher": {"kind": "trainjob", "cpu": "1", "memory": "2Gi"}},
}
"""Of the whole pipeline: parts in pods of their own, and one arm that a TrainJob trains."""


_ON_THE_CLUSTER, _, _REMOVE = page("kubernetes").partition("\n## Remove\n")
THERE, AWAY = commands(_ON_THE_CLUSTER), commands(_REMOVE)


def documents(path: str) -> list[Any]:
    """The objects of a file of ``k8s/``."""
    return list(yaml.safe_load_all((CHECKOUT / "k8s" / path).read_text(encoding="utf-8")))


RUNTIME = documents("trainjob/training-runtime.yaml")


@pytest.fixture(scope="module")
def cluster_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with platform(tmp_path_factory.mktemp("platform"), num_slots=5) as found:
        (queue,) = (one for one in documents("base/queue/queues.yaml") if one["metadata"]["name"] == QUEUE)
        found.cluster.api.apply(queue, *RUNTIME, namespace="proxykd")
        yield found


def placement(folder: Path, **steps: Any) -> Path:
    path = folder / "placement.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"pools": {"cpu": {}}, "orchestrator": {"poll_s": 1}, "steps": {**STEPS, **steps}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def in_queue(path: Path) -> Path:
    """The placement, whose pool has a queue from now on."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump({**content, "pools": {"cpu": {"queue": QUEUE}}}), encoding="utf-8")
    return path


@dataclass(frozen=True)
class Reader:
    """Of docs/kubernetes.md, who types its commands with a specification and a stack of their own.

    Attributes:
        there: What runs.
        home: The reader's folder.
        names: What stands on the page -> what is typed.
    """

    there: Platform
    home: Path
    names: dict[str, str]

    @classmethod
    def create(cls, there: Platform, home: Path) -> "Reader":
        stack, specification = there.stack(in_queue(placement(home, **WHOLE))), home / "tiny.yaml"
        specification.write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
        return cls(there, home, {"local-cluster": str(stack), "configs/quickstart.yaml": str(specification)})

    def types(self, *words: str, **more: str) -> Outcome:
        """A command of the page, which has to succeed."""
        done = self.there.types(self.home, *(self.names.get(word, word) for word in words), **more)
        assert done.status == 0, f"{words}\n{done.stdout}\n{done.stderr[-4000:]}"
        return done


@pytest.fixture(scope="module")
def reader(cluster_platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader.create(cluster_platform, tmp_path_factory.mktemp("reader"))


def test_the_page_leads_through_every_trouble_to_a_student_with_the_numbers_of_an_undisturbed_run(
    reader: Reader, undisturbed: tuple[Home, Finished]
) -> None:
    """docs/kubernetes.md up to "Remove": its commands in their order; the whole pipeline, in a queue."""
    there, troubles = reader.there, Troubles(reader.there.cluster)
    troubles.arrange()
    said = {" ".join(words[:2]) if words[0] == "stack" else words[0]: reader.types(*words) for words in THERE}
    troubles.clear()
    assert set(troubles.befallen.values()) == {1}

    run = said["run"]
    assert "query_teacher: completed" in run.stderr
    assert "promote_model: completed" in run.stderr
    assert "tiny-student" in run.stdout
    assert "alias challenger" in run.stdout or "alias champion" in run.stdout
    assert "completed" in said["runs"].stdout
    assert there.statuses()[""] == "completed"
    check_numbers(there.report()["arms"], undisturbed[1].report["arms"])
    # What was paid for before the node was lost is not asked again; what was lost alone is begun again.
    starts = Counter(role_of(labels) for _, labels in there.cluster.kubelet.starts)
    again = {"query_teacher_2-of-3", "split", "distill_student_sft", "train"}
    assert {name for name, count in starts.items() if count != 1} == again
    assert {starts[name] for name in again} == {2}
    parts = {*(f"query_teacher_{n}-of-3" for n in (1, 2, 3)), *(f"estimate_distributions_{n}-of-2" for n in (1, 2))}
    assert starts.keys() == {"orchestrator", "train", *STEP_NAMES, *parts}
    assert there.num_answers() == NUM_PROMPTS
    check_objects(there, troubles.seen, RUNTIME)
    check_rights(there)


def check_numbers(found: Any, undisturbed: Any) -> None:
    """Those of an undisturbed run; targets estimated in parts, so in other batches, are equal but for rounding."""
    estimated, wanted = found.pop("proxy_kd"), {**undisturbed}
    expected = wanted.pop("proxy_kd")
    assert found == wanted
    assert numbers(estimated).keys() == numbers(expected).keys()
    assert numbers(estimated) == pytest.approx(numbers(expected), rel=1e-4, abs=1e-9, nan_ok=True)


def numbers(found: Any, path: str = "") -> dict[str, float]:
    """Path -> every number in an object."""
    if isinstance(found, bool | int | float):
        return {path: float(found)}
    parts = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return {key: value for name, one in parts for key, value in numbers(one, f"{path}/{name}").items()}


def role_of(labels: dict[str, str]) -> str:
    """The step's name, or what else a pod is for."""
    return labels.get("step_name") or labels["proxykd.dev/role"]


def used(platform: Platform, account: str) -> set[tuple[str, str, str]]:
    """(verb, group, resource) of what a service account did with success."""
    did = platform.cluster.api.access.used(service_account("proxykd", account))
    return {(verb, group, resource) for group, resource, verb in did}


def check_rights(platform: Platform) -> None:
    """Steps ask the API server nothing, but for the one that has its training done by others."""
    platform.await_end()
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    assert used(platform, "proxykd-step") == granted(overlay, "proxykd-step") == set()
    assert {("create", *TRAIN_JOBS), ("get", *TRAIN_JOBS), ("delete", *TRAIN_JOBS)} <= used(platform, "proxykd-trainer")


def test_ci_submits_to_the_cluster_posts_plan_and_report_and_promotes(
    cluster_platform: Platform, tmp_path: Path
) -> None:
    """distill.yml, promote.yml and rollback.yml, their lines in order, with what a repository would give them."""
    there, checkout = cluster_platform, Checkout.create(tmp_path)
    before = len(there.cluster.kubelet.starts)
    submitter = there.cluster.api.kubeconfig("proxykd", account="proxykd-submitter")
    secrets = {
        **CREDENTIALS,
        "KUBECONFIG_TEXT": submitter.read_text(encoding="utf-8"),
        "ZENML_STORE_API_KEY": there.zenml.key,
    }
    variables = {"MLFLOW_TRACKING_URI": there.mlflow, "ZENML_STORE_URL": there.zenml.address}
    stack = str(there.stack(in_queue(placement(tmp_path / "placed", **WHOLE))))
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
    check_promotions(checkout, {"MLFLOW_TRACKING_URI": there.mlflow})


def check_promotions(checkout: Checkout, variables: dict[str, str]) -> None:
    """Its student becomes champion; a second version takes its place where it may, and goes again."""
    told = {"model": MODEL, "reason": f"looks good {HOSTILE}"}

    def runs(workflow: str, *, only: str = "", **inputs: str) -> list[int]:
        done = list(checkout.run(workflow, only=only, inputs={**told, **inputs}, secrets={}, variables=variables))
        return [one.status for one in done]

    assert runs("promote", version="1", expect_champion="none") == [0, 0, 0, 0]
    assert f"champion of {MODEL}: version 1, in place of nobody" in checkout.summary
    checkout.register_again(variables)
    for version, expected, status in (("7", "1", 2), ("2", "7", 2), ("2", "1", 0)):
        assert runs("promote", only="proxykd promote", version=version, expect_champion=expected) == [status]
    assert runs("rollback", expect_champion="2") == [0, 0, 0]
    assert f"champion of {MODEL}: version 1, in place of version 2" in checkout.summary
    assert not (checkout.folder / "pwned").exists()


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


def small(platform: Platform, folder: Path, wait_s: float = 60.0, **steps: Any) -> Outcome:
    shutil.rmtree(platform.journal().parent, ignore_errors=True)
    return platform.run_small(folder, placement(folder, **steps), wait_s)


def is_up(pod: Any, log: Path) -> bool:
    return log.exists() and b"up" in log.read_bytes()


@pytest.mark.parametrize(("how", "word"), [("out of memory", "OOMKilled"), ("image missing", "ImagePullBackOff")])
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


def test_a_killed_pod_is_replaced_where_the_placement_allows_a_retry(
    cluster_platform: Platform, tmp_path: Path
) -> None:
    kubelet = cluster_platform.cluster.kubelet
    before = len(kubelet.starts)
    kubelet.befall("killed", step_name="query_teacher", when=is_up)

    ended = small(cluster_platform, tmp_path, default={**STEPS["default"], "retries": 1})

    assert ended.status == 0, ended.stderr
    starts = Counter(labels.get("step_name", "orchestrator") for _, labels in kubelet.starts[before:])
    assert starts == {"orchestrator": 1, "query_teacher": 2, "split": 1}
    assert cluster_platform.statuses()[""] == "completed"


@pytest.mark.parametrize("leaves", [False, True])
def test_a_queue_that_never_admits_ends_the_run_with_its_reason_whoever_follows_it(
    cluster_platform: Platform, tmp_path: Path, leaves: bool
) -> None:
    there, queued = cluster_platform, in_queue(placement(tmp_path))
    there.cluster.jobs.closed.add(QUEUE)
    ended = there.run_small(tmp_path, queued, 0.0, leaves=leaves, start_timeout_s=5)
    there.await_end()
    there.cluster.jobs.closed.clear()

    assert (ended.status == 0) == leaves
    told = there.types(tmp_path, "runs", ended.stdout.split()[-1]).stdout if leaves else ended.stderr
    assert f"for 5 s nothing of it ran, as query_teacher waited to be admitted by the queue {QUEUE}" in told
    assert there.statuses()[""] == "stopped"
    assert not [job for job in there.cluster.api.store.list(CORE["Job"]) if job["spec"]["suspend"]]


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


def test_a_submitter_whose_token_expires_is_told_and_the_run_goes_on(
    cluster_platform: Platform, tmp_path: Path
) -> None:
    def expire(pod: Any, log: Path) -> bool:
        if is_up(pod, log):
            cluster_platform.cluster.api.access.expire(service_account("proxykd", "proxykd-submitter"))
        return False

    cluster_platform.cluster.kubelet.befall("killed", step_name="query_teacher", when=expire)
    ended = small(cluster_platform, tmp_path, wait_s=5.0)
    cluster_platform.cluster.kubelet.mishaps.clear()

    assert ended.status != 0
    assert ended.stderr.count("error: ") == 1
    assert "log in again" in ended.stderr
    cluster_platform.await_end()
    assert cluster_platform.statuses()[""] == "completed"


def test_the_page_leads_away_again(reader: Reader) -> None:
    """docs/kubernetes.md from "Remove" on; the Jobs of runs that have ended are left to `gc`, which is to find them."""
    there, store = reader.there, reader.there.cluster.api.store
    reader.types(*THERE[0])
    assert "double" in reader.types("stack", "list").stdout
    there.await_end()
    assert store.list(CORE["Job"], "proxykd")
    administrator = {"KUBECONFIG": str(there.cluster.api.kubeconfig("proxykd"))}
    for words in AWAY:
        names = {"local-cluster": "double"} if words[0] == "stack" else {}  # which ZenML knows by its name
        reader.types(*(names.get(word, word) for word in words), **(administrator if words[0] == "gc" else {}))
    assert "double" not in reader.types("stack", "list").stdout
    left = [one["metadata"]["name"] for one in store.list(CORE["Secret"], "proxykd")]
    assert not [name for name in left if name.startswith("zenml-token-")]
    # Nothing of a run is left for the page's last commands, which remove what the overlay brought.
    assert not [one for kind in ("Job", "TrainJob", "CronJob", "Pod") for one in store.list(CORE[kind], "proxykd")]


def test_the_orchestrator_may_do_what_it_did_and_nothing_else(
    cluster_platform: Platform, request: pytest.FixtureRequest
) -> None:
    """By the calls of all its pods here, each of which the Role let through."""
    skip_unless_whole(request, globals())
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    assert used(cluster_platform, "proxykd-orchestrator") - EVERYBODY == granted(overlay, "proxykd-orchestrator")


def _has_step(kubelet: Any, before: int) -> bool:
    return any(labels.get("step_name") for _, labels in kubelet.starts[before:])
