"""What the kubelet double runs a pod's containers as: processes of this machine, or real containers of a real image.

Both answer like a process. ``Processes`` needs no engine and no image; ``Containers`` keeps what a security context,
a memory limit and a mount mean, for the engine enforces them.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from tests.k8s.containers import CannotStart, Machine, container_variables, expanded, prepare, volume_folder
from tests.k8s.store import Store
from tests.support.containers import Container, run_container

Object = dict[str, Any]
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
"""Where a pod finds its account's token, the API server's certificate and its namespace."""
_SOURCES = {"persistentVolumeClaim": "claimName", "secret": "secretName", "configMap": "name"}


class Started(Protocol):
    """A container that was started."""

    def poll(self) -> int | None:
        """Its status, negative for a signal where it is a process; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """The same, at its end."""

    def send_signal(self, number: int) -> None:
        """Tell it something; nothing happens if it has ended."""

    def is_out_of_memory(self) -> bool:
        """Whether its limit of memory ended it."""

    def remove(self) -> None:
        """End it at once, if it still runs, and leave nothing of it but its log."""


Starter = Callable[[Path], Started]
"""Starts a container that prints into the given file."""


@dataclass(frozen=True)
class Place:
    """Where a pod's containers run.

    Attributes:
        machine: Its folders.
        store: Where secrets, config maps and claims are.
        port: The API server's, on 127.0.0.1.
        account: Folder of the service account's token; None = the pod gets none.
    """

    machine: Machine
    store: Store
    port: int
    account: Path | None


class Runtime(Protocol):
    """Runs containers."""

    def prepare(self, place: Place, pod: Object, container: Object) -> Starter:
        """Make ready all that may be missing.

        Raises:
            CannotStart: where a secret, config map, claim or key is not there.
        """


class Processes:
    """Every container a process group of this machine, with paths and addresses in its texts moved."""

    def prepare(self, place: Place, pod: Object, container: Object) -> Starter:
        """See ``Runtime``."""
        account = "" if place.account is None else str(place.account)
        found = prepare(place.machine, place.store, pod, container, (str(place.port), account))

        def start(log: Path) -> Started:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    found.command,
                    cwd=found.cwd,
                    env=found.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            return ProcessGroup(process)

        return start


@dataclass(frozen=True)
class ProcessGroup:
    """A process and those that it started."""

    process: "subprocess.Popen[bytes]"

    def poll(self) -> int | None:
        """See ``Started``."""
        return self.process.poll()

    def wait(self, timeout: float | None = None) -> int:
        """See ``Started``."""
        return self.process.wait(timeout)

    def send_signal(self, number: int) -> None:
        """See ``Started``."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def is_out_of_memory(self) -> bool:
        """Never: nothing limits it."""
        return False

    def remove(self) -> None:
        """See ``Started``."""
        self.send_signal(signal.SIGKILL)
        self.process.wait(10)


@dataclass
class Containers:
    """Every container a real one, on this machine's network.

    The pod's specification is in force as it stands: its image, user, read-only root, capabilities, limits and mounts.
    Service names are host names; they cannot lead to another port, so a server has to listen on its service's.

    Attributes:
        started: Pod's name -> its container, the ended ones too.
    """

    started: dict[str, Container] = field(default_factory=dict)

    def prepare(self, place: Place, pod: Object, container: Object) -> Starter:
        """See ``Runtime``."""
        server = {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(place.port)}
        known = {**server, **container_variables(place.store, pod, container)}
        resolved = {name: value for name, value in container.items() if name != "envFrom"}
        resolved["env"] = [{"name": name, "value": value} for name, value in known.items()]
        for part in ("command", "args"):
            resolved[part] = [expanded(word, known) for word in container.get(part) or []]
        folders = _folders(place, pod)
        mounts = {} if place.account is None else {ACCOUNT: place.account}
        name = str(pod["metadata"]["name"])
        own = pod["spec"].get("hostname") or name
        hosts = {own[:63]: "127.0.0.1", **host_names(place.machine.addresses)}

        def start(log: Path) -> Started:
            try:
                self.started[name] = run_container(
                    pod["spec"],
                    resolved,
                    log=log,
                    folders=folders,
                    fields={"metadata.name": own},
                    mounts=mounts,
                    hosts=hosts,
                    is_kept=True,
                )
            except ValueError as error:  # it asks for what is not translated
                raise CannotStart("CreateContainerError", str(error)) from error
            return self.started[name]

        return start


def _folders(place: Place, pod: Object) -> dict[str, Path]:
    """Name of each claim, secret and config map of a pod -> its folder, which the pod's group may write if any may."""
    found: dict[str, Path] = {}
    group = (pod["spec"].get("securityContext") or {}).get("fsGroup")
    for volume in pod["spec"].get("volumes") or []:
        source = next((kind for kind in _SOURCES if kind in volume), None)
        if source is None:
            continue
        name, folder = volume[source][_SOURCES[source]], volume_folder(place.machine, place.store, pod, volume)
        if found.setdefault(name, folder) != folder:
            raise CannotStart("CreateContainerConfigError", f"the engine needs one name for one volume, got two {name}")
        if source == "persistentVolumeClaim":
            folder.mkdir(parents=True, exist_ok=True)
            _give_to(folder, group)
    return found


def _give_to(folder: Path, group: int | None) -> None:
    """A new volume is root's; fsGroup makes it the group's, with all that is made in it."""
    if group is None or folder.stat().st_gid == group:
        return
    try:
        os.chown(folder, -1, group)
    except PermissionError:  # without root the engine's users are others than this machine's
        folder.chmod(0o777)
    else:
        folder.chmod(0o2775)


def host_names(addresses: Mapping[str, str]) -> dict[str, str]:
    """Host names -> IP addresses, of names and addresses that may have a scheme and a port.

    Raises:
        ValueError: if a name stands for another port.
    """
    hosts: dict[str, str] = {}
    for name, address in addresses.items():
        wanted, real = (urlsplit(text if "//" in text else f"//{text}") for text in (name, address))
        if wanted.port != real.port or not wanted.hostname or not real.hostname:
            raise ValueError(f"expected a server on the port of its name, got {address} for {name}")
        hosts[wanted.hostname] = real.hostname
    return hosts
