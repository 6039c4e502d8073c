"""The command line on Kubeflow Pipelines: doctor, apply, and a run whose pods end in a registered student.

One arm is trained by the pods of a TrainJob that its step's pod makes, the other by its step's own process.
"""

import base64
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.train_job import FOLDER
from proxykd.config.steps import STEPS
from tests.k8s.access import service_account
from tests.k8s.kinds import CORE
from tests.k8s.kubeflow_pipelines import KubeflowPipelines, kubeflow_pipelines
from tests.pipelines.test_kubeflow import Compiled
from tests.support.platform import Platform, platform
from tests.support.program import CHECKOUT, SPECIFICATION

pytestmark = pytest.mark.long
ACCOUNT = "proxykd-kubeflow"
PLACEMENT = {
    "pools": {"cpu": {"node_selectors": {"proxykd.dev/pool": "cpu"}}},
    "steps": {
        "default": {"pool": "cpu", "cpu": "1", "memory": "2Gi"},
        "query_teacher": {"role": "teacher-query", "secrets": ["proxykd-teacher"]},
        "distill_student_sft": {"launcher": {"kind": "trainjob"}},
    },
}
SMALLER = {
    "prompts.count": "60",
    "split.min_heldout": "10",
    "student.steps": "2",
    "student.alpha": "0",
    "proxy.preference.epochs": "0.05",
    "teacher.concurrency": "8",
    "evaluation.exact_kl": "false",
    "evaluation.tasks": "[]",
}
"""What other tests look at: here it is the pods."""


def furnish(place: Platform, keys: dict[str, str]) -> None:
    """What a user makes beside the overlay: the ZenML server's Secret, the runtime, and an account for Kubeflow."""
    data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "proxykd-trainer"}
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": "proxykd"}
    made: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "proxykd-zenml"}, "data": data},
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": ACCOUNT},
         "roleRef": reference, "subjects": [subject]},
        yaml.safe_load((CHECKOUT / "k8s" / "trainjob" / "training-runtime.yaml").read_text(encoding="utf-8")),
    ]  # fmt: skip
    place.cluster.api.apply(*made, namespace="proxykd")


def check_pods(place: Platform, double: KubeflowPipelines) -> None:
    """Every step had one pod with the run's account, and the training of one arm had pods of its own."""
    (run,) = double.runs.values()
    deadline = time.monotonic() + 60.0  # the last step is done before its pod has ended
    while run.state == "RUNNING" and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not double.refusals
    assert (run.state, run.account) == ("SUCCEEDED", ACCOUNT)
    assert {name.replace("-", "_") for name in run.pods} == set(STEPS) - {"estimate_distributions"}
    assert all(len(pods) == 1 for pods in run.pods.values())
    used = place.cluster.api.access.used(service_account("proxykd", ACCOUNT))
    assert {("trainer.kubeflow.org", "trainjobs", verb) for verb in ("create", "delete")} <= used
    trained = [labels for _, labels in place.cluster.kubelet.starts if labels.get("proxykd.dev/role") == "train"]
    assert len(trained) == 1
    assert not place.cluster.api.store.list(CORE["TrainJob"])
    volume = place.cluster.kubelet.machine.claim("proxykd", "proxykd-journal")
    assert not list((volume / FOLDER).iterdir())


def check_stop(place: Platform, double: KubeflowPipelines, words: list[str], home: Path) -> None:
    """A run is ended by its name: its pods go, and it is recorded as stopped."""
    started = place.types(home, *words, "--set", "prompts.count=70", "--detach")
    assert started.status == 0, started.stderr
    name = started.stdout.strip()
    run = list(double.runs.values())[-1]
    deadline = time.monotonic() + 60.0
    while place.statuses().get("query_teacher") != "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    stopped = place.types(home, "runs", name, "--stop")
    assert (stopped.status, stopped.stdout) == (0, f"{name}: stopped\n"), stopped.stderr
    assert run.state == "CANCELED"
    assert place.statuses()[""] == "stopped"
    living = {pod["metadata"]["name"] for pod in place.cluster.api.store.list(CORE["Pod"], "proxykd")}
    assert not living & {pod for pods in run.pods.values() for pod in pods}


def check_replaced_pod(place: Platform, double: KubeflowPipelines, words: list[str], home: Path) -> None:
    """A pod that is killed is replaced where the placement has a retry for it, and the run goes on."""
    written = place.folder / "placement.yaml"
    teacher = {**PLACEMENT["steps"]["query_teacher"], "retries": 1}  # type: ignore[dict-item]
    steps = {**PLACEMENT["steps"], "query_teacher": teacher}
    written.write_text(yaml.safe_dump({**PLACEMENT, "steps": steps}), encoding="utf-8")

    def has_begun(pod: object, log: Path) -> bool:  # ZenML knows of this pod, so that the next is another try
        return place.statuses().get("query_teacher") == "running"

    place.cluster.kubelet.befall("killed", **{"proxykd.dev/role": "teacher-query"}, when=has_begun)
    started = place.types(home, *words, "--set", "prompts.count=62", "--detach")
    assert started.status == 0, started.stderr
    run, deadline = list(double.runs.values())[-1], time.monotonic() + 120.0
    while "validate_data" not in place.statuses() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert (place.statuses()["query_teacher"], len(run.pods["query-teacher"])) == ("completed", 2)
    assert place.types(home, "runs", started.stdout.strip(), "--stop").status == 0
    written.write_text(yaml.safe_dump(PLACEMENT), encoding="utf-8")


def check_lost_pod(place: Platform, words: list[str], home: Path) -> None:
    """A pod that is killed tells ZenML nothing: Kubeflow Pipelines says that the run is over, in one message."""
    kubelet = place.cluster.kubelet
    kubelet.befall("killed", **{"proxykd.dev/role": "teacher-query"}, when=lambda pod, log: log.exists())
    ended = place.types(home, *words, "--set", "prompts.count=65")
    kubelet.mishaps.clear()
    assert ended.status == 2
    assert "Kubeflow Pipelines ended it as FAILED" in ended.stderr
    assert place.statuses()[""] == "failed"


def test_a_run_ends_in_a_student_and_no_credential_is_sent(tmp_path: Path) -> None:
    for name, content in {"placement": PLACEMENT, "tiny": SPECIFICATION}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with platform(tmp_path) as place, kubeflow_pipelines(place.cluster.api) as (double, address):
        keys = {"ZENML_STORE_URL": place.zenml.address, "ZENML_STORE_API_KEY": place.zenml.key}
        furnish(place, keys)
        names = {"proxykd-zenml": list(keys), "proxykd-s3": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]}
        stack = place.stack(
            tmp_path / "placement.yaml",
            kind="kubeflow",
            hostname=address,
            pipelines_service_account=ACCOUNT,
            secrets={**names, "proxykd-teacher": []},
        )
        home = tmp_path / "home"
        looked = place.types(home, "stack", "doctor", str(stack))
        applied = place.types(home, "stack", "apply", str(stack), "--yes")
        changes = [word for key, value in SMALLER.items() for word in ("--set", f"{key}={value}")]
        ended = place.types(home, "run", str(tmp_path / "tiny.yaml"), "--stack", str(stack), *changes)
        assert ended.status == 0, ended.stderr[-4000:]
        check_pods(place, double)
        report = place.report()
        (run,) = double.runs.values()
        bodies = "".join(double.bodies)
        words = ["run", str(tmp_path / "tiny.yaml"), "--stack", str(stack), *changes]
        check_stop(place, double, words, home)
        check_replaced_pod(place, double, words, home)
        check_lost_pod(place, words, home)

    assert looked.status == 2
    lacking = [line for line in looked.stdout.splitlines() if line.startswith("│ MISSING")]
    assert len(lacking) == 1, lacking
    assert "not registered" in lacking[0]
    assert "permission" not in looked.stdout  # to make Jobs, say: Kubeflow Pipelines makes all objects
    assert applied.status == 0, applied.stderr
    assert "promote_model: completed" in ended.stderr
    assert "tiny-student" in ended.stdout
    assert set(report["arms"]) >= {"none", "sft", "proxy_kd"}
    sent = Compiled(run.spec, run.platform)
    assert "ZENML_ACTIVE_STACK_ID" in sent.environment("split")
    for value in (*keys.values(), "eyJ"):  # a token of the server's begins like this
        assert value not in bodies
