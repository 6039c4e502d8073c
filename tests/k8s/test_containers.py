"""The image as a pod runs it: built, looked into, and made to distil with nothing but its mounts to write to.

Needs podman or docker; PROXYKD_TEST_IMAGE names an image that is there already, else it is built (minutes).
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.containers import Container, built_image, engine, make_image, run_container
from tests.support.program import CHECKOUT, SPECIFICATION

LIMIT_S = 1500
pytestmark = [pytest.mark.containers, pytest.mark.timeout(2 * LIMIT_S)]  # the first one builds the image

PULL_LIMIT_BYTES = 5_000_000
UID = 10001


@pytest.fixture(scope="session")
def image() -> str:
    return built_image()


@pytest.fixture(scope="session")
def facts(image: str) -> dict[str, Any]:
    """What the engine says of the image."""
    (found,) = json.loads(ask("image", "inspect", image))
    return dict(found)


def ask(*arguments: str) -> str:
    return subprocess.run([*engine(), *arguments], check=True, capture_output=True, text=True).stdout


def inside(image: str, script: str, *options: str) -> str:
    """What a shell in the image prints, without network."""
    return ask("run", "--rm", "--network", "none", *options, "--entrypoint", "sh", image, "-euc", script)


def pod(image: str, *arguments: str, memory: str = "6Gi", command: list[str] | None = None) -> dict[str, Any]:
    """A pod as the cluster's manifests make it: the namespace admits no other."""
    mounts = {"tmp": "/tmp", "home": "/home/proxykd", "state": "/var/lib/proxykd", "inputs": "/inputs"}
    return {
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": "proxykd",
                "image": image,
                **({"command": command} if command else {}),
                "args": list(arguments),
                "env": [
                    {"name": "OMP_NUM_THREADS", "value": "2"},
                    {"name": "PROXYKD_PROGRESS", "value": "lines"},
                ],
                "resources": {"limits": {"memory": memory, "cpu": "2"}},
                "securityContext": {
                    "readOnlyRootFilesystem": True,
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [
                    *({"name": name, "mountPath": path} for name, path in mounts.items()),
                    {"name": "shm", "mountPath": "/dev/shm"},
                ],
            }
        ],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "home", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "256Mi"}},
            {"name": "state", "persistentVolumeClaim": {"claimName": "proxykd-journal"}},
            {"name": "inputs", "persistentVolumeClaim": {"claimName": "inputs"}},
        ],
    }  # fmt: skip


@pytest.fixture
def claims(tmp_path: Path) -> dict[str, Path]:
    """Folders for the claims: state that is the user's, and inputs with a tiny specification."""
    state, inputs = tmp_path / "state", tmp_path / "inputs"
    for folder in (state, inputs):
        folder.mkdir()
        folder.chmod(0o777)
    (inputs / "tiny.yaml").write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
    return {"proxykd-journal": state, "inputs": inputs}


def until(container: Container, text: str) -> None:
    """Wait for the container to print a text."""
    deadline = time.monotonic() + LIMIT_S
    while text not in container.text():
        assert container.poll() is None, container.text()
        assert time.monotonic() < deadline, container.text()
        time.sleep(0.2)


def test_the_quickstart_runs_with_a_read_only_root_as_nobody_in_particular(
    image: str, claims: dict[str, Path], tmp_path: Path
) -> None:
    specification = pod(image, "run", "configs/quickstart.yaml")
    container = run_container(specification, log=tmp_path / "run.log", folders=claims, network="none")
    assert container.wait(LIMIT_S) == 0, container.text()
    assert "models:/quickstart-student/1" in container.text()
    written = list(claims["proxykd-journal"].iterdir())
    assert {"journal.sqlite", "mlflow.db", "reports", "zenml"} <= {path.name for path in written}
    assert {path.stat().st_uid for path in written} == {UID}

    question = run_container(
        pod(image, "ask", "quickstart-student", "Ana has 6 bags with 6 books in each bag. How many books?"),
        log=tmp_path / "ask.log", folders=claims, network="none",
    )  # fmt: skip
    assert question.wait(LIMIT_S) == 0, question.text()
    assert "####" in question.text()


def test_a_pod_that_is_ended_in_the_middle_goes_on_where_it_was(
    image: str, claims: dict[str, Path], tmp_path: Path
) -> None:
    specification = pod(image, "run", "/inputs/tiny.yaml")
    first = run_container(specification, log=tmp_path / "first.log", folders=claims, network="none")
    until(first, "Validating")
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130, first.text()
    assert "Traceback" not in first.text()

    second = run_container(specification, log=tmp_path / "second.log", folders=claims, network="none")
    assert second.wait(LIMIT_S) == 0, second.text()
    assert "Asking the teacher" not in second.text()
    assert "models:/tiny-student/1" in second.text()


def test_the_containers_first_process_can_be_ended_before_the_run_has_begun(
    image: str, claims: dict[str, Path], tmp_path: Path
) -> None:
    fifo = claims["inputs"] / "waited-for.yaml"
    os.mkfifo(fifo, 0o666)
    fifo.chmod(0o666)
    container = run_container(pod(image, "plan", f"/inputs/{fifo.name}"), log=tmp_path / "plan.log", folders=claims)
    with fifo.open("wb"):  # once somebody reads it
        container.send_signal(signal.SIGTERM)
        assert container.wait(60) == 130, container.text()
    assert "interrupted" in container.text()


def test_too_little_memory_ends_the_container_as_it_ends_a_pod(
    image: str, claims: dict[str, Path], tmp_path: Path
) -> None:
    greedy = pod(image, "-c", "bytearray(900_000_000)", memory="128Mi", command=["python"])
    container = run_container(greedy, log=tmp_path / "greedy.log", folders=claims)
    assert container.wait(60) == 137


def test_every_step_of_the_application_loads_without_writing(
    image: str, claims: dict[str, Path], tmp_path: Path
) -> None:
    loading = (
        "from zenml.utils.source_utils import set_custom_source_root; set_custom_source_root('/app'); "
        "import pipelines.running, steps.adapters, kubernetes, s3fs, boto3, reasoning_gym, gguf; print('loaded')"
    )
    container = run_container(
        pod(image, "-c", loading, command=["/opt/venv/bin/python"]),
        log=tmp_path / "loading.log", folders=claims, network="none",
    )  # fmt: skip
    assert container.wait(LIMIT_S) == 0, container.text()
    assert container.text().splitlines()[-1] == "loaded"


def test_nothing_of_the_build_is_left(image: str, facts: dict[str, Any]) -> None:
    programs = "cc gcc g++ c++ make cmake ld as git curl wget uv"
    assert inside(image, f"for name in {programs}; do command -v $name || true; done") == ""
    assert inside(image, "ls -d /opt/tools /build /wheels /split /root/.cache 2>/dev/null || true") == ""
    assert inside(image, "ls /tmp /run/secrets 2>/dev/null || true", "--user", "0").strip() in ("", "/tmp:")
    stale = "find /opt/venv /app -name '*.pyc' -newermt 1990-01-01 | head -1"
    assert inside(image, stale) == ""
    variables = " ".join(facts["Config"]["Env"]).lower()
    assert not re.search(r"index|token|password|_proxy=|cert", variables)


def test_the_user_owns_nothing_that_runs(image: str, facts: dict[str, Any]) -> None:
    assert facts["Config"]["User"] == f"{UID}:{UID}"
    writable = "find / -xdev -path /proc -prune -o -writable ! -type l -print 2>/dev/null || true"
    roots = {"/".join(path.split("/")[:3]) for path in inside(image, writable).split()}
    assert {path for path in roots if path.startswith(("/app", "/opt", "/usr", "/bin", "/etc"))} == set()
    assert {"/home/proxykd", "/var/lib", "/models", "/tmp"} <= roots
    assert inside(image, "find / -xdev -type f -perm /6000 2>/dev/null || true", "--user", "0") == ""


def test_a_user_that_the_cluster_chose_can_run_it(image: str) -> None:
    said = ask(
        "run", "--rm", "--network", "none", "--user", "1000650000:0", "--read-only", "--tmpfs", "/tmp",
        "--tmpfs", "/home/proxykd", "--tmpfs", "/var/lib/proxykd", image, "plan", "configs/quickstart.yaml",
    )  # fmt: skip
    assert "every check passed" in said


def test_bytecode_is_there_for_the_code_and_is_not_compared_with_it(image: str) -> None:
    script = "import zenml, torch, proxykd.plan as p, sys; print(p.__cached__, zenml.__cached__, torch.__cached__)"
    for file in inside(image, f'python -c "{script}"').split():
        flags = inside(image, f"head -c 8 {file} | od -An -tu4 -j4")
        assert int(flags) == 1, file  # hash-based, never checked


def test_the_bill_of_materials_is_what_is_installed(image: str) -> None:
    listing = "import importlib.metadata as m; print(*sorted({f'{d.name}=={d.version}' for d in m.distributions()}))"
    installed = set(inside(image, f'python -c "{listing}"').split())
    bill = json.loads(inside(image, "cat /usr/share/sbom/proxykd.cdx.json"))
    listed = {f"{part['name']}=={part['version']}" for part in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert listed == {entry for entry in installed if not entry.startswith("proxykd==")}
    assert bill["metadata"]["component"]["name"] == "proxykd"
    assert "file:" not in json.dumps(bill)


def test_what_is_installed_is_what_the_repository_pins(image: str) -> None:
    pinned = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line)
    bill = json.loads(inside(image, "cat /usr/share/sbom/proxykd.cdx.json"))
    installed = {re.sub(r"[-_.]+", "-", part["name"]).lower(): part["version"] for part in bill["components"]}
    assert {name: version.split("+")[0] for name, version in installed.items()} == {
        name: pinned.get(name) for name in installed
    }


def test_labels_say_what_it_was_made_from(image: str, facts: dict[str, Any]) -> None:
    labels = facts["Config"]["Labels"] or facts["Labels"]
    names = ("title", "version", "revision", "created", "source", "licenses")
    found = {name: labels[f"org.opencontainers.image.{name}"] for name in names}
    assert found["title"] == "proxykd"
    assert found["licenses"] == "Apache-2.0"
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", found["revision"])
    assert inside(image, "proxykd --version").strip() == f"proxykd {found['version']}"


def test_a_change_of_the_code_pulls_the_last_layer_alone(image: str, tmp_path: Path) -> None:
    same, changed = f"{image}-same", f"{image}-changed"
    checkout = tmp_path / "checkout"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, checkout / name)
    make_image(checkout, same)
    with (checkout / "proxykd" / "plan.py").open("a", encoding="utf-8") as file:
        file.write("# One line more.\n")
    make_image(checkout, changed)
    try:
        before, after = layers(same), layers(changed)
        assert after[:-1] == before[:-1]
        assert after[-1] != before[-1]
        pulled = compressed_bytes(changed, after[-1])
        print(f"a change of the code pulls {pulled / 1e6:.1f} MB")
        assert pulled < PULL_LIMIT_BYTES
    finally:
        ask("image", "rm", same, changed)


def layers(image: str) -> list[str]:
    """Digests of the layers' contents, base first."""
    (found,) = json.loads(ask("image", "inspect", image))
    return list(found["RootFS"]["Layers"])


def compressed_bytes(image: str, digest: str) -> int:
    """How much a registry sends of a layer."""
    with (
        subprocess.Popen([*engine(), "save", image], stdout=subprocess.PIPE) as saving,
        tarfile.open(fileobj=saving.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if not member.isfile() or member.size > 100_000_000:
                continue
            file = archive.extractfile(member)
            content = file.read() if file else b""
            if f"sha256:{hashlib.sha256(content).hexdigest()}" == digest:
                saving.kill()
                return len(gzip.compress(content))
    raise AssertionError(f"expected the layer {digest} in what the engine saves of {image}")
