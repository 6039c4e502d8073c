"""A pod's container as a real container: the fields of its specification become podman's (or docker's) options.

``run_container`` takes the same dictionaries as the API server stores, so whoever plays the kubelet can hand a pod's
container here. Only what the application's pods use is translated; anything else that would change what the process
may do or see is an error, and not left out.
"""

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.support.program import CHECKOUT

IMAGE_VARIABLE = "PROXYKD_TEST_IMAGE"
ENGINE_VARIABLE = "PROXYKD_TEST_ENGINE"
IMAGE = os.environ.get(IMAGE_VARIABLE, "localhost/proxykd:test")

_CONTAINER_FIELDS = {
    "name", "image", "command", "args", "workingDir", "env", "envFrom", "volumeMounts", "resources", "securityContext",
    # Of no meaning to one container that runs to its end here:
    "imagePullPolicy", "terminationMessagePath", "terminationMessagePolicy", "ports", "stdin", "tty",
}  # fmt: skip
_VOLUME_SOURCES = {"persistentVolumeClaim": "claimName", "secret": "secretName", "configMap": "name"}
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


def make_image(checkout: Path, image: str) -> None:
    """``make image`` in a checkout, under a name."""
    variables = {**os.environ, "ENGINE": " ".join(engine()), "IMAGE": image}
    subprocess.run(["make", "image"], cwd=checkout, env=variables, check=True, stdout=subprocess.DEVNULL)


@cache
def built_image() -> str:
    """The name of the image to test: the one that is named, else this checkout's, built by the first who asks."""
    if not os.environ.get(IMAGE_VARIABLE):
        make_image(CHECKOUT, IMAGE)
    return IMAGE


@dataclass(frozen=True)
class Container:
    """A container that was started; ``poll``, ``wait`` and ``send_signal`` mean what they mean for a process.

    Attributes:
        name: Its name with the engine.
        client: The engine's process, which ends with the container's status (137 if it was killed or out of memory).
        log: File with what it printed, both streams.
        told: Signals that were sent to it.
    """

    name: str
    client: "subprocess.Popen[bytes]"
    log: Path
    told: list[int] = field(default_factory=list)

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self.client.poll()

    def wait(self, timeout: float | None = None) -> int:
        """The exit status; a container that runs for longer is removed and the time-out raised."""
        try:
            return self.client.wait(timeout)
        except subprocess.TimeoutExpired:
            self.remove()
            raise

    def send_signal(self, number: int) -> None:
        """To the container's first process; a signal to the engine's own process would leave the container running."""
        self.told.append(number)
        subprocess.run([*engine(), "kill", "--signal", str(number), self.name], capture_output=True, check=False)

    def remove(self) -> None:
        """SIGKILL at once; nothing of the container is left afterwards."""
        for _ in range(30):  # one that the engine is only now making is not there to be removed
            self._remove()
            with suppress(subprocess.TimeoutExpired):
                self.client.wait(2)
                break
        else:
            raise TimeoutError(f"the engine's client of {self.name} does not end")
        self._remove()

    def _remove(self) -> None:
        subprocess.run([*engine(), "rm", "--force", self.name], capture_output=True, check=False)

    def inspect(self, *fields: str) -> list[str]:
        """What the engine knows of it, by the templates of fields (``.State.Pid``); empty if it is not there."""
        template = " ".join(f"{{{{{field}}}}}" for field in fields)
        command = [*engine(), "inspect", "--type", "container", "--format", template, self.name]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()

    def is_out_of_memory(self) -> bool:
        """Whether its limit of memory ended it: the engine noticed it, or it was killed and we did not do it."""
        is_noticed = self.inspect(".State.OOMKilled") == ["true"]
        return is_noticed or (self.poll() == 128 + signal.SIGKILL and signal.SIGKILL not in self.told)

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
    fields: Mapping[str, str] | None = None,
    mounts: Mapping[str, Path] | None = None,
    hosts: Mapping[str, str] | None = None,
    image: str | None = None,
    network: str = "host",
    is_kept: bool = False,
) -> Container:
    """Start a container of a pod.

    Args:
        pod: The pod's ``spec`` (V1PodSpec as JSON).
        container: Which one of its containers; None means its only one.
        log: New file for what the container prints; its emptyDirs become folders beside it.
        folders: Name of a claim, secret or configMap -> folder of this machine that stands in for it.
        secrets: Name of a secret -> its keys and values, for ``secretKeyRef`` and ``secretRef``.
        fields: Path of a field -> its value, for ``fieldRef``; ``metadata.name`` is the host's name, too.
        mounts: Path in the container -> folder of this machine that the specification does not name (a token, say).
        hosts: Name of a service -> its address.
        image: Run this one and not the container's.
        network: The engine's network: ``host`` reaches servers on loopback, ``none`` reaches nobody.
        is_kept: The engine keeps the container when it has ended, until ``remove``: how it ended can be asked.

    Raises:
        KeyError: if the specification names a claim, secret or field that is not given.
        ValueError: if the specification has a field that is not translated.
        FileNotFoundError: if this machine has no engine.
    """
    if not engine():
        raise FileNotFoundError(f"expected podman or docker; install one or name it with {ENGINE_VARIABLE}")
    chosen = container or _only(pod["containers"])
    name = f"proxykd-{uuid4().hex[:12]}"
    empty = log.with_suffix(".volumes")
    command = [
        *engine(), "run", *(() if is_kept else ("--rm",)), "--name", name, "--network", network, "--pull", "never",
        *security_options(pod, chosen), *_resource_options(chosen), *volume_options(pod, chosen, folders or {}, empty),
    ]  # fmt: skip
    if "metadata.name" in (fields or {}):
        command += ["--hostname", (fields or {})["metadata.name"][:63]]
    command += [word for host, address in (hosts or {}).items() for word in ("--add-host", f"{host}:{address}")]
    command += [word for path, folder in (mounts or {}).items() for word in ("--volume", f"{folder}:{path}:ro")]
    environment = container_environment(chosen, secrets or {}, fields or {})
    variables = _write_variables(log.with_suffix(".env"), environment)
    command += ["--env-file", str(variables), *_process_options(chosen), image or chosen["image"]]
    command += [*(chosen.get("command") or [])[1:], *(chosen.get("args") or [])]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=log.parent,  # podman's monitor leaves a file there when memory runs out
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return Container(name, process, log)


def security_options(pod: Mapping[str, Any], container: Mapping[str, Any]) -> list[str]:
    """The options of both security contexts; the container's wins.

    A pod's container cannot gain privileges unless it says so here (Kubernetes' own default is the other way round, but
    the application's pods all say it).
    """
    _reject_others("container", container, _CONTAINER_FIELDS)
    context = {**(pod.get("securityContext") or {}), **(container.get("securityContext") or {})}
    _reject_others("securityContext", context, _SECURITY_FIELDS)
    if context.get("privileged"):
        raise ValueError("expected a container without privileges, got privileged: true")
    capabilities = context.get("capabilities") or {}
    options = ["--read-only", "--read-only-tmpfs=false"] if context.get("readOnlyRootFilesystem") else []
    if "runAsUser" in context:
        options += ["--user", f"{context['runAsUser']}:{context.get('runAsGroup', 0)}"]
    for capability in capabilities.get("drop") or []:
        options += ["--cap-drop", capability.lower()]
    for capability in capabilities.get("add") or []:
        options += ["--cap-add", capability.lower()]
    if not context.get("allowPrivilegeEscalation", False):
        options += ["--security-opt", "no-new-privileges"]
    return options


def volume_options(
    pod: Mapping[str, Any], container: Mapping[str, Any], folders: Mapping[str, Path], empty: Path
) -> list[str]:
    """The options of the container's mounts, as the kubelet makes them.

    An emptyDir is a folder of everybody on the node's disk, below ``empty`` here, and shared by the pod's containers;
    one of memory is a tmpfs of its size.
    """
    volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
    options: list[str] = []
    for mount in container.get("volumeMounts", []):
        volume, target = volumes[mount["name"]], mount["mountPath"]
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            size = to_bytes(volume["emptyDir"]["sizeLimit"])
            is_shared_memory = target == "/dev/shm"
            options += ["--shm-size", str(size)] if is_shared_memory else ["--tmpfs", f"{target}:rw,size={size}"]
            continue
        if "emptyDir" in volume:
            folder = empty / mount["name"]
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o777)
        else:
            source = next((kind for kind in _VOLUME_SOURCES if kind in volume), None)
            if source is None:
                raise ValueError(f"expected a volume that is empty, a claim, a secret or a configMap, got {volume}")
            folder = folders[volume[source][_VOLUME_SOURCES[source]]]
        is_writable = "emptyDir" in volume or "persistentVolumeClaim" in volume
        mode = "rw" if is_writable and not mount.get("readOnly") else "ro"
        options += ["--volume", f"{folder / mount.get('subPath', '')}:{target}:{mode}"]
    return options


def container_environment(
    container: Mapping[str, Any], secrets: Mapping[str, Mapping[str, str]], fields: Mapping[str, str]
) -> dict[str, str]:
    """The container's variables, those of its secrets and of its pod's fields among them."""
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        environment |= secrets[source["secretRef"]["name"]]
    for variable in container.get("env", []):
        reference = variable.get("valueFrom") or {"value": variable.get("value") or ""}
        match reference:
            case {"value": value}:
                environment[variable["name"]] = value
            case {"secretKeyRef": {"name": name, "key": key}}:
                environment[variable["name"]] = secrets[name][key]
            case {"fieldRef": {"fieldPath": path}}:
                environment[variable["name"]] = fields[path]
            case _:
                raise ValueError(f"expected {variable['name']} by value, secretKeyRef or fieldRef, got {reference}")
    return environment


def to_bytes(quantity: str | int) -> int:
    """A Kubernetes quantity of memory in bytes: ``512Mi``, ``2G``, ``1000``."""
    text = str(quantity)
    for power, letter in enumerate("KMGT", 1):
        for suffix, base in ((f"{letter}i", 1024), (letter.lower() if letter == "K" else letter, 1000)):
            if text.endswith(suffix):
                return int(float(text.removesuffix(suffix)) * base**power)
    return int(text)


def _write_variables(file: Path, environment: Mapping[str, str]) -> Path:
    """A file of this user alone: every user of the machine can read a command line."""
    if of_more_lines := sorted(key for key, value in environment.items() if "\n" in value):
        raise ValueError(f"expected variables of one line each, got line breaks in {of_more_lines}")
    file.touch(mode=0o600)
    file.write_text("".join(f"{key}={value}\n" for key, value in environment.items()), encoding="utf-8")
    return file


def _process_options(container: Mapping[str, Any]) -> list[str]:
    options = ["--workdir", container["workingDir"]] if container.get("workingDir") else []
    return options + (["--entrypoint", container["command"][0]] if container.get("command") else [])


def _resource_options(container: Mapping[str, Any]) -> list[str]:
    limits = (container.get("resources") or {}).get("limits") or {}
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
