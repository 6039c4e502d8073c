"""The pipeline through ZenML's Kubernetes orchestrator with every pod in a real container of the built image.

What processes in ``test_kubernetes.py`` cannot show: that the pods' user, read-only root, capabilities and memory are
enough, that nothing is written but to their mounts, and that the API server is reached by the account's mounted token.
"""

import subprocess
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config.steps import STEPS as STEP_NAMES
from tests.k8s.runtimes import Containers
from tests.support.confines import Confines, confines
from tests.support.containers import built_image, engine
from tests.support.platform import Platform, platform
from tests.support.program import CHECKOUT, NUM_PROMPTS, Finished, Home

pytestmark = [pytest.mark.containers, pytest.mark.timeout(5_400)]  # the image is built first

UID = 10001
TRAINING_GIB, STEP_GIB, ORCHESTRATOR_GIB = 2, 4, 1
STEPS: dict[str, Any] = {
    "default": {"pool": "cpu", "cpu": "1", "memory": f"{STEP_GIB}Gi", "grace_s": 5},
    "query_teacher": {"role": "teacher-query", "secrets": ["proxykd-teacher"]},
    "estimate_distributions": {"retries": 1},
    # The step itself follows its TrainJob.
    "distill_student_proxy_kd": {"launcher": {"kind": "trainjob", "cpu": "1", "memory": f"{TRAINING_GIB}Gi"}},
}
"""Placement of the run."""


@pytest.fixture(scope="module")
def image() -> str:
    """The image by its digest, as a pod names it."""
    name = built_image()
    asked = [*engine(), "image", "inspect", "--format", "{{.Digest}}", name]
    found = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    if not found.startswith("sha256:"):
        pytest.skip("this engine gives no digest to an image that was never in a registry: take podman")
    return f"{name.rpartition(':')[0]}@{found}"


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    """The runtime of all pods; nothing of it may be left at the end."""
    found = Containers()
    yield found
    kept = subprocess.run([*engine(), "ps", "--all", "--format", "{{.Names}}"], check=True, capture_output=True)
    left = set(kept.stdout.decode().split()) & {one.name for one in found.started.values()}
    for name in left:
        subprocess.run([*engine(), "rm", "--force", name], check=False, capture_output=True)
    assert not left


@pytest.fixture(scope="module")
def container_platform(
    tmp_path_factory: pytest.TempPathFactory, containers: Containers, image: str
) -> Iterator[Platform]:
    with platform(tmp_path_factory.mktemp("platform"), runtime=containers, image=image, num_slots=6) as found:
        runtime = CHECKOUT / "k8s" / "trainjob" / "training-runtime.yaml"
        found.cluster.api.apply(yaml.safe_load(runtime.read_text(encoding="utf-8")), namespace="proxykd")
        yield found


def watch(platform: Platform, containers: Containers) -> dict[str, Confines]:
    """Gets name -> confines of every pod that runs."""
    seen: dict[str, Confines] = {}

    def look(pod: Any, log: Path) -> bool:
        name = pod["metadata"]["name"]
        if name not in seen and (found := confines(containers.started[name])):
            seen[name] = found
        return False

    platform.cluster.kubelet.befall("killed", when=look)
    return seen


def place(home: Path) -> Path:
    """The placement's file."""
    home.mkdir()
    path = home / "placement.yaml"
    content = {"pools": {"cpu": {}}, "orchestrator": {"poll_s": 1}, "steps": STEPS}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def lose_three(platform: Platform) -> None:
    """A node is gone while the teacher answers, a pod is told to go, and one is killed by ``podman kill``."""
    kubelet = platform.cluster.kubelet
    kubelet.befall("node gone", step_name="query_teacher", when=lambda pod, log: platform.num_answers() > 20)
    for how, step in (("evicted", "align_proxy"), ("killed", "estimate_distributions")):
        kubelet.befall(how, step_name=step, when=partial(_is_running, platform, step))


def _is_running(platform: Platform, step: str, pod: Any, log: Path) -> bool:
    return platform.statuses().get(step) == "running"


def test_a_run_in_real_containers_loses_three_of_them_and_gives_the_numbers_of_processes(
    container_platform: Platform, containers: Containers, undisturbed: tuple[Home, Finished], tmp_path: Path
) -> None:
    kubelet = container_platform.cluster.kubelet
    seen = watch(container_platform, containers)
    lose_three(container_platform)

    ended = container_platform.run(tmp_path / "home", place(tmp_path / "home"))

    assert ended.status == 0, ended.stderr[-4000:]
    assert container_platform.statuses()[""] == "completed"
    assert "tiny-student" in ended.stdout
    assert container_platform.report()["arms"] == undisturbed[1].report["arms"]
    assert container_platform.num_answers() == NUM_PROMPTS
    starts = Counter(role_of(labels) for _, labels in kubelet.starts)
    redone = ("query_teacher", "align_proxy", "estimate_distributions")
    assert starts == Counter(("orchestrator", "train", *STEP_NAMES, *redone))
    check_confines(seen, kubelet.starts)
    assert {path.stat().st_uid for path in container_platform.journal().parent.rglob("*")} == {UID}


def role_of(labels: dict[str, str]) -> str:
    """The step's name, or what else a pod is for."""
    return labels.get("step_name") or labels["proxykd.dev/role"]


def check_confines(seen: dict[str, Confines], starts: list[tuple[str, dict[str, str]]]) -> None:
    """Every pod was held as its specification says, and has an account's token if it asks the API server."""
    assert seen.keys() == {name for name, _ in starts}
    for name, labels in starts:
        role = role_of(labels)
        memory = {"orchestrator": ORCHESTRATOR_GIB, "train": TRAINING_GIB}.get(role, STEP_GIB) * 2**30
        has_token = role in ("orchestrator", "distill_student_proxy_kd")
        assert seen[name] == Confines((UID,) * 4, 0, True, True, has_token, memory), name
