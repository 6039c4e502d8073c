"""A pod's container as a real container: the Kubernetes fields of its specification become podman's (or docker's) options.

``run_container`` takes the same dictionaries as the API server stores, so whoever plays the kubelet can hand a pod's
container here. Only what the application's pods use is translated; anything else that would change what the process
may do or see is an error, and not left out.
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

IMAGE_VARIABLE = "PROXYKD_TEST_IMAGE"
ENGINE_VARIABLE = "PROXYKD_TEST_ENGINE"
IMAGE = os.environ.get(IMAGE_VARIABLE, "localhost/proxykd:test")

_CONTAINER_FIELDS = {
    "name", "image", "command", "args", "workingDir", "env", "envFrom", "volumeMounts", "resources", "securityContext",
    # Of no meaning to one container that runs to its end here:
    "imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy", "ports", "stdin", "tty",
}  # fmt: skip
_SECURITY_FIELDS = {
    "runAsUser", "runAsGroup", "runAsNonRoot", "readOnlyRootFilesystem", "allowPrivilegeEscalation", "capabilities",
    "privileged", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "supplementalGroups",
}  # fmt: skip


def engine() -> list[str]:
    """The program that runs containers and its global options; empty where there is none."""
    if named := os.environ.get(ENGINE_VARIABLE):
        return shlex.split(named)
    found = next((name for name in ("podman", "docker") if shutil.which(name)), None)
    return [found] if found else []


@dataclass(frozen=True)
class Container:
    """A container that was started.

    Attributes:
        name: Its name with the engine.
        process: The engine's process, which ends with the container's status.
        log: File with what it printed, both streams.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path

    def wait(self, timeout_s: float) -> int:
        """The exit status; a container that runs for longer is killed and the time-out raised."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def terminate(self, grace_s: int = 30) -> None:
        """As the kubelet ends a pod: SIGTERM, then SIGKILL once the time of grace is over."""
        subprocess.run([*engine(), "stop", "--time", str(grace_s), self.name], capture_output=True, check=False)

    def kill(self) -> None:
        """SIGKILL at once; the container is gone afterwards."""
        subprocess.run([*engine(), "rm", "--force", self.name], capture_output=True, check=False)
        self.process.wait(30)

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def run_container(
    pod: Mapping[str, Any],
    container: Mapping[str, Any] | None = None,
    *,
    log: Path,
    folders: Mapping[str, Path] | None = None,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    image: str | None = None,
    network: str = "host",
) -> Container:
    """Start a container of a pod.

    Args:
        pod: The pod's ``spec`` (V1PodSpec as JSON).
        container: Which one of its containers; None means its only one.
        log: New file for what the container prints.
        folders: Name of a persistentVolumeClaim -> folder of this machine that stands in for it.
        secrets: Name of a secret -> its keys and values, for ``secretKeyRef`` and ``secretRef``.
        image: Run this one and not the container's.
        network: The engine's network: ``host`` reaches servers on loopback, ``none`` reaches nobody.

    Raises:
        KeyError: if the specification names a claim or a secret that is not given.
        ValueError: if the specification has a field that is not translated.
        FileNotFoundError: if this machine has no engine.
    """
    if not engine():
        raise FileNotFoundError(f"expected podman or docker; install one or name it with {ENGINE_VARIABLE}")
    chosen = container or _only(pod["containers"])
    name = f"proxykd-{uuid4().hex[:12]}"
    command = [
        *engine(), "run", "--rm", "--name", name, "--network", network, "--pull", "never",
        *security_options(pod, chosen), *_resource_options(chosen), *volume_options(pod, chosen, folders or {}),
    ]  # fmt: skip
    environment = container_environment(chosen, secrets or {})
    # By name only: a value on the command line could be read by every user of the machine.
    command += [word for key in environment for word in ("--env", key)]
    if "workingDir" in chosen:
        command += ["--workdir", chosen["workingDir"]]
    entrypoint, arguments = list(chosen.get("command", [])), list(chosen.get("args", []))
    if entrypoint:
        command += ["--entrypoint", entrypoint[0]]
    command += [image or chosen["image"], *entrypoint[1:], *arguments]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
        )
    return Container(name, process, log)


def security_options(pod: Mapping[str, Any], container: Mapping[str, Any]) -> list[str]:
    """The options of both security contexts; the container's wins.

    A pod's container cannot gain privileges unless it says so here (Kubernetes' own default is the other way round, but
    the application's pods all say it).
    """
    _reject_others("container", container, _CONTAINER_FIELDS)
    context = {**pod.get("securityContext", {}), **container.get("securityContext", {})}
    _reject_others("securityContext", context, _SECURITY_FIELDS)
    if context.get("privileged"):
        raise ValueError("expected a container without privileges, got privileged: true")
    options = ["--read-only", "--read-only-tmpfs=false"] if context.get("readOnlyRootFilesystem") else []
    if "runAsUser" in context:
        options += ["--user", f"{context['runAsUser']}:{context.get('runAsGroup', 0)}"]
    for capability in context.get("capabilities", {}).get("drop", []):
        options += ["--cap-drop", capability.lower()]
    for capability in context.get("capabilities", {}).get("add", []):
        options += ["--cap-add", capability.lower()]
    if not context.get("allowPrivilegeEscalation", False):
        options += ["--security-opt", "no-new-privileges"]
    return options


def volume_options(pod: Mapping[str, Any], container: Mapping[str, Any], folders: Mapping[str, Path]) -> list[str]:
    """The options of the container's mounts: an emptyDir is a tmpfs of everybody, a claim a folder of this machine."""
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    options: list[str] = []
    for mount in container.get("volumeMounts", []):
        volume, target = volumes[mount["name"]], mount["mountPath"]
        if "emptyDir" in volume:
            size = f",size={to_bytes(volume['emptyDir']['sizeLimit'])}" if "sizeLimit" in volume["emptyDir"] else ""
            options += ["--tmpfs", f"{target}:rw,exec,mode=1777{size}"]
        elif "persistentVolumeClaim" in volume:
            folder = folders[volume["persistentVolumeClaim"]["claimName"]]
            mode = "ro" if mount.get("readOnly") else "rw"
            options += ["--volume", f"{folder}:{target}:{mode}"]
        else:
            raise ValueError(f"expected a volume of kind emptyDir or persistentVolumeClaim, got {volume}")
    return options


def container_environment(container: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """The container's variables, those of its secrets among them."""
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        environment |= secrets[source["secretRef"]["name"]]
    for variable in container.get("env", []):
        if "value" in variable or "valueFrom" not in variable:
            environment[variable["name"]] = variable.get("value", "")
            continue
        reference = variable["valueFrom"].get("secretKeyRef")
        if reference is None:
            raise ValueError(f"expected the value of {variable['name']} or a secretKeyRef, got {variable['valueFrom']}")
        environment[variable["name"]] = secrets[reference["name"]][reference["key"]]
    return environment


def to_bytes(quantity: str | int) -> int:
    """A Kubernetes quantity of memory in bytes: ``512Mi``, ``2G``, ``1000``."""
    text = str(quantity)
    for power, letter in enumerate("KMGT", 1):
        for suffix, base in ((f"{letter}i", 1024), (letter.lower() if letter == "K" else letter, 1000)):
            if text.endswith(suffix):
                return int(float(text.removesuffix(suffix)) * base**power)
    return int(text)


def _resource_options(container: Mapping[str, Any]) -> list[str]:
    limits = container.get("resources", {}).get("limits", {})
    options: list[str] = []
    if "memory" in limits:
        options += ["--memory", str(to_bytes(limits["memory"]))]
    if "cpu" in limits:
        cpu = str(limits["cpu"])
        cores = int(cpu.removesuffix("m")) / 1000 if cpu.endswith("m") else float(cpu)
        options += ["--cpus", str(min(cores, len(os.sched_getaffinity(0))))]
    return options


def _only(containers: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(containers) != 1:
        raise ValueError(f"expected a pod of one container or the choice of one, got {len(containers)}")
    return containers[0]


def _reject_others(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(set(given) - known):
        raise ValueError(f"expected only fields of a {what} that are translated for the engine, got {unknown}")
