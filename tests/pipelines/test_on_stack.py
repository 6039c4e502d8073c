"""The commands of a user with a cluster, as programs, against the double: stack, doctor, run, runs, schedule, gc."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.access import service_account
from tests.k8s.kinds import CORE
from tests.k8s.policy import check
from tests.k8s.rbac import EVERYBODY, granted, skip_unless_whole
from tests.k8s.refusals import Refusal
from tests.k8s.schemas import SUPPORTED, faults
from tests.support.command import Ended
from tests.support.kubectl import render
from tests.support.platform import Platform, platform
from tests.support.program import CHECKOUT, LIMIT_S, SPECIFICATION

pytestmark = pytest.mark.integration
PLACEMENT = {
    "pools": {"cpu": {"node_selectors": {}}},
    "steps": {"default": {"pool": "cpu", "cpu": "1", "memory": "1Gi"}, "query_teacher": {"role": "teacher-query"}},
}
PRIORITIES = ("proxykd-high", "proxykd-normal")


def plain(api_version: str, kind: str, name: str, **parts: Any) -> dict[str, Any]:
    metadata = {"name": name, **parts.pop("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}


class User:
    """Somebody at a machine, with the tiny specification and a stack's file.

    Attributes:
        there: What runs.
        home: The user's folder.
        stack: Path of the stack's file.
        specification: Path of the run's file.
        checkout: Whose program the user types.
    """

    def __init__(self, there: Platform, home: Path) -> None:
        self.there, self.home, self.checkout = there, home, CHECKOUT
        self.stack = str(there.stack(self.placed("placement", PLACEMENT)))
        self.specification = str(self.write("tiny.yaml", SPECIFICATION))

    def write(self, name: str, content: Any) -> Path:
        path = self.home / name
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    def placed(self, name: str, content: Any) -> Path:
        return self.write(f"{name}.yaml", content)

    def asking(self, count: int) -> str:
        """A specification with prompts of its own, none of whose steps is done already."""
        changed = {**SPECIFICATION, "prompts": {"kind": "embedded", "count": count}}
        return str(self.write(f"tiny-{count}.yaml", changed))

    def stack_with(self, placement: dict[str, Any], **changes: Any) -> str:
        """Another stack file on the same platform, under the same name in ZenML."""
        return str(self.there.stack(self.placed("other", {**PLACEMENT, **placement}), **changes))

    def types(self, *words: str, **more: str) -> Ended:
        """What a command of the command line does; ``more`` = further variables."""
        with self.starts(*words, **more) as process:
            out, err = process.communicate(timeout=2 * LIMIT_S)
        return Ended(process.returncode, out, err)

    @contextmanager
    def starts(self, *words: str, **more: str) -> Iterator["subprocess.Popen[str]"]:
        """A command as it runs; it does not outlive the context."""
        own = {"PYTHONPATH": str(self.checkout), "no_proxy": "*", "COLUMNS": "200"}
        environment = {**self.there.environment(self.home), **own, **more}
        command = [sys.executable, "-m", "proxykd", *words]
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, cwd=self.checkout, env=environment, stdout=pipe, stderr=pipe, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    @property
    def administrator(self) -> dict[str, str]:
        return {"KUBECONFIG": str(self.there.cluster.api.kubeconfig("proxykd"))}

    def objects(self, kind: str) -> list[dict[str, Any]]:
        return list(self.there.cluster.api.store.list(CORE[kind], "proxykd"))


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user of a cluster that has all that a run needs."""
    folder = tmp_path_factory.mktemp("platform")
    with platform(folder) as there:
        endpoints = [{"addresses": ["10.0.0.1"], "conditions": {"ready": True}}]
        label = {"labels": {"kubernetes.io/service-name": "mlflow"}}
        there.cluster.api.apply(
            *(plain("scheduling.k8s.io/v1", "PriorityClass", name, value=1) for name in PRIORITIES),
            plain("v1", "Service", "mlflow", spec={"ports": [{"port": 5000}]}),
            plain("discovery.k8s.io/v1", "EndpointSlice", "mlflow-1", metadata=label, addressType="IPv4",
                  endpoints=endpoints),
            namespace="proxykd",
        )  # fmt: skip
        (folder / "home").mkdir()
        made = User(there, folder / "home")
        applied = made.types("stack", "apply", made.stack, "--yes")
        assert applied.status == 0, applied.err
        assert "+ orchestrator.pass_zenml_token_as_secret: True" in applied.out
        yield made


def test_a_stack_is_applied_once_and_changed_in_place(user: User) -> None:
    assert user.types("stack", "apply", user.stack).out == "double: nothing to change\n"
    moved = user.stack_with({}, container_registry="ghcr.io/another")
    asked = user.types("stack", "apply", moved)
    assert (asked.status, asked.out) == (2, "  ~ container_registry.uri: ghcr.io/proxykd -> ghcr.io/another\n")
    assert "--yes" in asked.err
    planned = user.types("plan", user.specification, "--stack", moved)  # which changes nothing, and stops at nothing
    assert planned.status == 0, planned.err
    before, _, after = planned.out.partition("1 settings differ from its file")
    assert "every check passed, nothing spent" in before
    assert "proxykd stack apply, before the run" in after
    back = user.types("stack", "apply", user.stack)
    assert back.out == "double: nothing to change\n"  # nothing had been changed
    shown = user.types("stack", "show", "double")
    assert "s3://proxykd/artifacts" in shown.out
    assert "loopback" not in shown.out  # neither key
    assert "double" in user.types("stack", "list").out


def test_the_doctor_finds_nothing_missing_and_a_run_is_refused_where_something_is(user: User) -> None:
    healthy = user.types("stack", "doctor", user.stack)
    assert healthy.status == 0, healthy.out
    jobs = len(user.objects("Job"))
    queue = {"pools": {"cpu": {"queue": "proxykd-gpu", "gpu_max": 8}}}
    secrets = {"secrets": {"proxykd-teacher": ["OPENAI_API_KEY"]}, "service_accounts": {"step": "nobody"}}
    cases: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
        (queue, secrets, ["no such LocalQueue", "service account nobody"]),
        (
            {"steps": {**PLACEMENT["steps"], "distill_student_sft": {"launcher": {"kind": "trainjob", "pool": "cpu"}}}},
            {},
            ["training runtime proxykd-train"],
        ),
        ({}, {"context": "elsewhere"}, ["name elsewhere"]),
    ]
    for placement, changes, words in cases:
        refused = user.types("run", user.specification, "--stack", user.stack_with(placement, **changes))
        assert refused.status == 2, refused.err
        assert all(word in refused.err for word in words), refused.err
        assert "nothing was submitted" in refused.err
    assert len(user.objects("Job")) == jobs
    # What is in a secret, only an administrator may look at.
    found = user.types("stack", "doctor", user.stack_with({}, **secrets), **user.administrator)
    assert found.status == 2
    assert "it lacks OPENAI_API_KEY" in found.out


def test_a_schedule_has_one_cron_job_however_often_it_is_applied(user: User) -> None:
    file = user.write("nightly.yaml", {
        "name": "nightly", "run": user.specification, "stack": user.stack,
        "schedule": {"cron": "0 3 * * *", "time_zone": "Europe/Berlin"},
    })  # fmt: skip
    assert "nightly: new" in user.types("schedule", "apply", str(file)).out
    (first,) = user.objects("CronJob")
    assert (first["metadata"]["name"], first["spec"]["timeZone"]) == ("proxykd-nightly", "Europe/Berlin")
    assert user.types("schedule", "apply", str(file)).out == "nightly: nothing to change\n"
    changed = user.types("schedule", "apply", str(file), "--cron", "@daily", "--suspend")
    assert changed.out == "nightly: schedule: 0 3 * * * -> @daily\nnightly: suspend: False -> True\n"
    again = user.write("tiny-again.yaml", {**SPECIFICATION, "student": {**SPECIFICATION["student"], "steps": 11}})
    steps = {**PLACEMENT["steps"], "query_teacher": {"role": "teacher-query", "shards": 2}}
    divided = user.stack_with({"steps": steps})
    words = ["schedule", "apply", str(again), "--stack", divided, "--name", "nightly", "--cron", "@daily"]
    assert "nightly: what is run" in user.types(*words).out
    (second,) = user.objects("CronJob")
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    assert check([*overlay, second]) == check(overlay)
    assert not [told for version in SUPPORTED for told in faults(second, version)]
    assert json.dumps(second["spec"]["jobTemplate"]) != json.dumps(first["spec"]["jobTemplate"])
    check_firing(user)
    assert user.types("schedule", "pause", "nightly", "--stack", user.stack).out == "nightly: paused\n"
    listed = user.types("schedule", "list", "--stack", user.stack).out
    assert all(word in listed for word in ("nightly", "@daily", "Etc/UTC", "Forbid", "paused"))
    assert user.types("schedule", "delete", "nightly", "--stack", user.stack, "--yes").status == 0
    assert not user.objects("CronJob")


def check_firing(user: User) -> None:
    """At its time a run is started, by pods, as many as the placement says; at the next, while it goes on, none."""
    cluster = user.there.cluster
    before = len(cluster.kubelet.starts)

    def fired() -> list[str]:
        owned = [job for job in user.objects("Job") if job["metadata"].get("ownerReferences")]
        return [job["metadata"]["name"] for job in owned if job["metadata"]["name"].startswith("proxykd-nightly-")]

    cluster.cron_jobs.ring("proxykd-nightly")
    awaited(lambda: len([1 for _, labels in cluster.kubelet.starts[before:] if labels.get("step_name")]) == 2)
    roles = [labels["proxykd.dev/role"] for _, labels in cluster.kubelet.starts[before:]]
    assert roles == ["orchestrator", "teacher-query", "teacher-query"]
    for number in (1, 2):
        cluster.kubelet.hold_up(step_name=f"query_teacher_{number}-of-2")
    (job,) = fired()
    cluster.cron_jobs.ring("proxykd-nightly")
    awaited(lambda: cluster.cron_jobs.skipped == ["proxykd-nightly"])
    assert fired() == [job]
    assert user.there.statuses()[""] in ("initializing", "running")
    # Nor does anybody else write to that journal meanwhile.
    refused = user.types("run", user.specification, "--stack", user.stack)
    assert refused.status == 2, refused.err
    assert "expected no run under way on the stack double" in refused.err
    assert "`proxykd gc --stack double --yes` closes it" in refused.err
    assert fired() == [job]
    cluster.api.store.delete(CORE["Job"], "proxykd", job)  # and the step's, which it owns
    close_all(user)


def remove_jobs(user: User) -> None:
    for job in user.objects("Job"):
        with suppress(Refusal):  # the orchestrator's takes those of the steps with it
            user.there.cluster.api.store.delete(CORE["Job"], "proxykd", job["metadata"]["name"])


def close_all(user: User) -> None:
    """Remove what is under way, and let it be known."""
    remove_jobs(user)
    options = ["--stack", user.stack, "--grace-min", "0", "--keep-h", "0", "--yes"]
    assert user.types("gc", *options, **user.administrator).status == 0


def test_a_run_that_a_schedule_starts_beside_another_is_refused_by_its_first_step(user: User) -> None:
    detached = user.types("run", user.specification, "--stack", user.stack, "--detach")
    assert detached.status == 0, detached.err
    awaited(lambda: user.there.journal().with_name("holder.json").is_file())
    user.there.cluster.kubelet.hold_up(step_name="query_teacher")
    words = ["--stack", user.stack, "--name", "beside", "--cron", "@daily"]
    assert "beside: new" in user.types("schedule", "apply", user.asking(100), *words).out
    user.there.cluster.cron_jobs.ring("proxykd-beside")
    awaited(lambda: user.there.statuses()[""] == "failed")
    message, *_ = [log for log in step_logs(user) if "expected no other run at work" in log]
    assert f"{detached.out.strip()} is under way there" in message
    assert user.types("schedule", "delete", "beside", "--stack", user.stack, "--yes").status == 0
    closing = ["runs", detached.out.strip(), "--close"]
    assert "recorded as failed" in user.types(*closing).out
    assert "had ended already" in user.types(*closing).out
    close_all(user)


def step_logs(user: User) -> list[str]:
    files = user.there.cluster.api.log_files.values()
    return [file.read_text(encoding="utf-8", errors="replace") for file in files if file.exists()]


def awaited(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def newest_run(user: User) -> str:
    """Name of the run that was submitted last; "" = none yet that is under way."""
    found = re.search(r"(tiny-\S+) +│ double +│ (?:initializing|provisioning|running)", user.types("runs").out)
    return found[1] if found else ""


def did(user: User) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of the submitter's calls."""
    return user.there.cluster.api.access.used(service_account("proxykd", "proxykd-submitter"))


def training(run_id: str) -> dict[str, Any]:
    """A TrainJob as a run's step makes it, which waits for its queue."""
    labels = {"app.kubernetes.io/part-of": "proxykd", "proxykd.dev/run-id": run_id}
    spec = {"runtimeRef": {"name": "proxykd-train"}, "suspend": True}
    return plain("trainer.kubeflow.org/v1alpha1", "TrainJob", "left", metadata={"labels": labels}, spec=spec)


def test_a_run_is_stopped_with_all_that_it_started_and_whoever_watches_it_is_told(user: User) -> None:
    cluster = user.there.cluster
    for resource in ("secrets", "jobs"):  # each is made, and the answer lost
        cluster.api.trouble.add(503, verb="create", resource=resource, is_after=True)
    full = plain("v1", "ResourceQuota", "full", spec={"hard": {"count/pods": "0"}})
    cluster.api.apply(full, namespace="proxykd")
    with user.starts("run", user.asking(95), "--stack", user.stack) as watching:
        awaited(lambda: watching.poll() is not None or ("", "events", "list") in did(user))
        cluster.api.store.delete(CORE["ResourceQuota"], "proxykd", "full")
        awaited(lambda: watching.poll() is not None or user.there.statuses().get("query_teacher") == "running")
        assert watching.poll() is None, watching.communicate()
        name, (run_id,) = newest_run(user), {job["metadata"]["labels"]["run_id"] for job in user.objects("Job")}
        cluster.api.apply(training(run_id), namespace="proxykd")
        powerless = str(cluster.api.kubeconfig("proxykd", account="proxykd-step"))
        refused = user.types("runs", name, "--stop", KUBECONFIG=powerless)
        assert refused.status == 2
        assert "forbidden" in refused.err
        assert user.there.statuses()[""] == "running"
        stopped = user.types("runs", name, "--stop")
        assert (stopped.status, stopped.out) == (0, f"{name}: stopped\n"), stopped.err
        _, told = watching.communicate(timeout=LIMIT_S)
    assert watching.returncode == 2
    assert (stopped.err + told).count("TrainJob left is removed") == 1  # by either
    assert "the orchestrator: waits for its pod to be made: Error creating: " in told
    assert f"{name} ended as stopped: stopped by proxykd runs {name} --stop" in told
    assert not [one for kind in ("Job", "TrainJob", "Pod") for one in user.objects(kind)]
    assert not [one for one in user.objects("Secret") if one["metadata"]["name"].startswith("zenml-token-")]
    assert user.there.statuses()[""] == "stopped"
    assert user.types("runs", name, "--stop").out == f"{name}: had ended already\n"


def test_a_run_that_fails_says_what_became_of_its_pod(user: User) -> None:
    kubelet = user.there.cluster.kubelet
    kubelet.befall("killed", step_name="query_teacher", when=lambda pod, log: log.exists())
    failed = user.types("run", user.asking(90), "--stack", user.stack)
    kubelet.mishaps.clear()
    assert failed.status == 2
    assert "query_teacher" in failed.err
    assert "exit_code=137" in failed.err
    remove_jobs(user)


def test_a_run_of_other_code_than_the_image_has_spends_nothing(
    user: User, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in ("proxykd", "steps", "pipelines", "cluster"):
        shutil.copytree(CHECKOUT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "proxykd" / "teacher" / "engine.py").open("a", encoding="utf-8") as file:
        file.write("# Not in the image yet.\n")
    monkeypatch.setattr(user, "checkout", tmp_path)
    answers = user.there.num_answers()
    refused = user.types("run", user.asking(105), "--stack", user.stack)
    assert refused.status == 2
    assert "the image holds other code than the checkout that submitted" in refused.err
    assert refused.err.count("proxykd: ") == 1
    assert user.there.num_answers() == answers
    assert user.there.statuses()[""] == "failed"
    remove_jobs(user)


def test_a_run_that_lost_its_jobs_is_closed_and_what_it_left_is_removed(user: User) -> None:
    detached = user.types("run", user.specification, "--stack", user.stack, "--detach")
    assert detached.status == 0, detached.err
    name = detached.out.strip()
    assert name in user.types("runs").out
    remove_jobs(user)
    elsewhere = user.types("gc", "--yes", "--stack", user.stack_with({}, namespace="elsewhere"), "--grace-min", "0")
    assert elsewhere.status == 2
    assert "orchestrator.kubernetes_namespace" in elsewhere.err
    assert "failed" not in user.types("runs", name).out
    options = ["gc", "--stack", user.stack, "--grace-min", "0", "--keep-h", "0"]
    assert "secrets are not looked at" in user.types(*options).err  # the submitter may not
    planned = user.types(*options, **user.administrator)
    assert f"would close Run {name}: its Jobs are gone from the cluster" in planned.out
    assert "would remove Secret zenml-token-" in planned.out
    assert "`--yes` does it" in planned.out
    assert "running" in user.types("runs", name).out or "provisioning" in user.types("runs", name).out
    done = user.types(*options, "--yes", **user.administrator)
    assert f"closed Run {name}" in done.out
    shown = user.types("runs", name).out
    assert f"{name} on double: failed" in shown
    assert "its Jobs are gone from the cluster" in shown
    assert not [one for one in user.objects("Secret") if one["metadata"]["name"].startswith("zenml-token-")]
    assert user.types(*options, "--yes", **user.administrator).out == "nothing to remove\n"


def test_the_submitter_may_do_what_these_commands_did_and_nothing_else(
    user: User, request: pytest.FixtureRequest
) -> None:
    """By the calls that its commands made here, each of which the Role let through."""
    skip_unless_whole(request, globals())
    used = {(verb, group, name) for group, name, verb in did(user)}
    assert used - EVERYBODY == granted(render(CHECKOUT / "k8s" / "overlays" / "local"), "proxykd-submitter")
