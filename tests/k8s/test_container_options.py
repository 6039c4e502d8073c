"""A pod's fields as an engine's options: nothing that limits the process is lost, nothing unknown is ignored."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.k8s.runtimes import host_names
from tests.support.containers import container_environment, run_container, security_options, to_bytes, volume_options

RESTRICTED = {
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}


def test_a_restricted_pod_is_restricted_here() -> None:
    pod = {"securityContext": {"runAsUser": 10001, "runAsGroup": 10001, "runAsNonRoot": True}}
    options = security_options(pod, {"securityContext": RESTRICTED})
    assert {"--read-only", "--read-only-tmpfs=false", "10001:10001", "all", "no-new-privileges"} <= set(options)


def test_the_containers_own_context_wins() -> None:
    options = security_options({"securityContext": {"runAsUser": 1}}, {"securityContext": {"runAsUser": 2}})
    assert options[options.index("--user") + 1] == "2:0"


@pytest.mark.parametrize(
    "container",
    [{"lifecycle": {}}, {"securityContext": {"procMount": "Unmasked"}}, {"securityContext": {"privileged": True}}],
)
def test_what_is_not_translated_is_refused(container: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        security_options({}, container)


def test_an_empty_volume_is_shared_by_the_pods_containers_and_open_to_its_user(tmp_path: Path) -> None:
    pod = {"volumes": [{"name": "scratch", "emptyDir": {}}]}
    mount = {"volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}]}
    first, second = (volume_options(pod, mount, {}, tmp_path) for _ in range(2))
    assert first == second == ["--volume", f"{tmp_path}/scratch:/tmp:rw"]
    assert (tmp_path / "scratch").stat().st_mode & 0o777 == 0o777


def test_claims_secrets_and_memory(tmp_path: Path) -> None:
    pod = {
        "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "b", "secret": {"secretName": "key"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        ]
    }
    mounts = [
        {"name": "a", "mountPath": "/models", "subPath": "hf", "readOnly": True},
        {"name": "b", "mountPath": "/key"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    found = volume_options(pod, {"volumeMounts": mounts}, {"models": tmp_path / "m", "key": tmp_path / "k"}, tmp_path)
    assert found[1] == f"{tmp_path}/m/hf:/models:ro"
    assert found[3] == f"{tmp_path}/k:/key:ro"
    assert found[4:] == ["--shm-size", str(2**30)]
    with pytest.raises(KeyError, match="models"):
        volume_options(pod, {"volumeMounts": mounts}, {}, tmp_path)
    with pytest.raises(ValueError, match="expected a volume"):
        volume_options(
            {"volumes": [{"name": "a", "hostPath": {"path": "/"}}]}, {"volumeMounts": mounts[:1]}, {}, tmp_path
        )


def test_variables_by_value_secret_and_field() -> None:
    container = {
        "envFrom": [{"secretRef": {"name": "s3"}}],
        "env": [
            {"name": "PLAIN", "value": "a=b c"},
            {"name": "EMPTY"},
            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "teacher", "key": "OPENAI_API_KEY"}}},
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
    }
    secrets = {"s3": {"AWS_ACCESS_KEY_ID": "id"}, "teacher": {"OPENAI_API_KEY": "sk"}}
    found = container_environment(container, secrets, {"metadata.name": "pod-1"})
    assert found == {"AWS_ACCESS_KEY_ID": "id", "PLAIN": "a=b c", "EMPTY": "", "KEY": "sk", "POD": "pod-1"}
    with pytest.raises(KeyError, match="teacher"):
        container_environment(container, {"s3": {}}, {})


@given(st.integers(1, 10**6), st.sampled_from("KMGT"))
def test_quantities_of_memory_are_powers(number: int, letter: str) -> None:
    power = "KMGT".index(letter) + 1
    assert to_bytes(f"{number}{letter}i") == number * 1024**power
    assert to_bytes(f"{number}{letter.lower() if letter == 'K' else letter}") == number * 1000**power
    assert to_bytes(str(number)) == to_bytes(number) == number


def test_a_machine_without_an_engine_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PROXYKD_TEST_ENGINE", raising=False)
    with pytest.raises(FileNotFoundError, match="podman or docker"):
        run_container({"containers": [{"image": "x"}]}, log=tmp_path / "log")


def test_secrets_stay_off_the_command_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    engine = tmp_path / "podman"
    engine.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n', encoding="utf-8")
    engine.chmod(0o755)
    monkeypatch.setenv("PROXYKD_TEST_ENGINE", str(engine))
    spec = {
        "containers": [{"image": "x", "command": ["a", "b"], "args": ["c"], "env": [{"name": "K", "value": "sk-1"}]}]
    }
    container = run_container(spec, log=tmp_path / "pod.log", image="other", hosts={"mlflow": "127.0.0.1"})
    assert container.wait(10) == 0
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert "sk-1" not in asked
    assert asked.endswith("--entrypoint a other b c\n")
    assert "--add-host mlflow:127.0.0.1" in asked
    assert (tmp_path / "pod.env").stat().st_mode & 0o077 == 0
    assert (tmp_path / "pod.env").read_text(encoding="utf-8") == "K=sk-1\n"
    spec["containers"][0]["env"] = [{"name": "K", "value": "two\nlines"}]
    with pytest.raises(ValueError, match="line breaks in \\['K'\\]"):
        run_container(spec, log=tmp_path / "second.log")


@pytest.mark.parametrize("address", ["http://127.0.0.1:5001", "127.0.0.1"])
def test_a_service_is_found_by_its_name_at_its_own_port_alone(address: str) -> None:
    assert host_names({"http://mlflow:5000": "http://127.1.2.3:5000"}) == {"mlflow": "127.1.2.3"}
    assert host_names({"work-node-0-0.work": "127.0.0.1"}) == {"work-node-0-0.work": "127.0.0.1"}
    with pytest.raises(ValueError, match="on the port of its name"):
        host_names({"http://mlflow:5000": address})
