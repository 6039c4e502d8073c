"""The whole pipeline through Kubeflow Pipelines: what is submitted, run pod by pod, ends in a registered student."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.k8s.kubeflow_pipelines import kubeflow_pipelines
from tests.pipelines.test_kubeflow import Compiled
from tests.support.platform import platform
from tests.support.program import SPECIFICATION

pytestmark = pytest.mark.integration
PLACEMENT = {
    "pools": {"cpu": {"node_selectors": {"proxykd.dev/pool": "cpu"}, "cpu_max": "4", "memory_max": "8Gi"}},
    "steps": {
        "default": {"pool": "cpu", "cpu": "1", "memory": "2Gi"},
        "query_teacher": {"role": "teacher-query", "secrets": ["proxykd-teacher"]},
        "distill_student": {},
    },
}
LIMIT_S = 900


def test_a_run_ends_in_a_student_and_no_credential_is_sent(tmp_path: Path) -> None:
    placement = tmp_path / "placement.yaml"
    placement.write_text(yaml.safe_dump(PLACEMENT), encoding="utf-8")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
    with platform(tmp_path) as place, kubeflow_pipelines(place.cluster.api) as (double, address):
        keys = {"ZENML_STORE_URL": place.zenml.address, "ZENML_STORE_API_KEY": place.zenml.key}
        data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "proxykd-zenml"}, "data": data}
        place.cluster.api.apply(secret, namespace="proxykd")
        names = {"proxykd-zenml": list(keys), "proxykd-s3": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]}
        stack = place.stack(
            placement, kind="kubeflow", context=None, hostname=address, secrets={**names, "proxykd-teacher": []}
        )
        home = tmp_path / "home"
        home.mkdir()
        command = [sys.executable, "-m", "tests.support.kubeflow_run", str(tmp_path / "tiny.yaml"), str(stack)]
        with (tmp_path / "out.txt").open("w") as out, (tmp_path / "err.txt").open("w") as err:
            process = subprocess.Popen(
                command, cwd=home, env=place.environment(home), stdout=out, stderr=err, start_new_session=True
            )
            try:
                status = process.wait(LIMIT_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        assert status == 0, (tmp_path / "err.txt").read_text(encoding="utf-8")[-4000:]
        outcome = json.loads((tmp_path / "out.txt").read_text(encoding="utf-8").splitlines()[-1])
        (run,) = double.runs.values()
        bodies = "".join(double.bodies)

    assert not double.refusals
    assert run.state == "SUCCEEDED"
    assert set(outcome["report"]["arms"]) >= {"none", "sft", "proxy_kd"}
    assert set(outcome["statuses"].values()) == {"completed"}
    assert all(len(pods) == 1 for pods in run.pods.values())
    sent = Compiled(run.spec, run.platform)
    assert "ZENML_ACTIVE_STACK_ID" in sent.environment("split")
    for value in (place.zenml.key, place.zenml.address, "eyJ"):  # a token of the server's begins like this
        assert value not in bodies
