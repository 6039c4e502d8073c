"""What a container would see, on this machine: its environment, its command and its volumes as folders.

The image's checkout and interpreter are this checkout and this interpreter; every volume is a folder, and each text
that begins with a path inside the container gets the path of the folder instead.
"""

import base64
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.k8s.kinds import CORE
from tests.k8s.refusals import Refusal
from tests.k8s.store import Store

Object = dict[str, Any]
CHECKOUT = Path(__file__).parents[2]
INSIDE = Path(__file__).parent / "inside"


class CannotStart(Exception):
    """The container waits, with a reason such as CreateContainerConfigError and a message.

    Attributes:
        reason: The kubelet's word.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Machine:
    """What all containers share.

    Attributes:
        folder: Pods' folders and volumes are below it.
        addresses: Text of the cluster's names (``http://mlflow:5000``) -> the address on loopback.
        passed: Variables of every container besides its own, as the image would set them.
    """

    folder: Path
    addresses: dict[str, str] = field(default_factory=dict)
    passed: dict[str, str] = field(default_factory=dict)

    def claim(self, namespace: str, name: str) -> Path:
        """The folder of a persistent volume claim."""
        return self.folder / "volumes" / namespace / name

    def own(self, pod: Object) -> Path:
        """The folder of a pod."""
        return self.folder / "pods" / str(pod["metadata"]["uid"])


@dataclass(frozen=True)
class Prepared:
    """A container ready to start."""

    command: list[str]
    environment: dict[str, str]
    cwd: Path


def prepare(machine: Machine, store: Store, pod: Object, container: Object, api: tuple[str, str]) -> Prepared:
    """Make the container's folders and environment.

    Args:
        machine: What all containers share.
        store: Where secrets, config maps and claims are.
        pod: The container's pod.
        container: Its entry in the pod's spec.
        api: Port of the API server and folder of the service account's token; the folder is empty without one.

    Raises:
        CannotStart: where a secret, config map, claim or key is not there.
    """
    own = machine.own(pod)
    paths = _paths(machine, store, pod, container, own)
    variables = container_variables(store, pod, container)
    base = {"PATH": os.environ["PATH"], "PYTHONPATH": "/app", "HOME": "/home/double", "TMPDIR": "/tmp"}
    known = {**base, **machine.passed, **variables, "HOSTNAME": pod["metadata"]["name"]}
    environment = {key: _moved(value, paths, machine.addresses) for key, value in known.items()}
    environment["PYTHONPATH"] = os.pathsep.join([str(INSIDE), environment["PYTHONPATH"]])
    environment |= {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": api[0]}
    if api[1]:
        environment["DOUBLE_SERVICE_ACCOUNT_FOLDER"] = api[1]
    words = [*container.get("command", []), *container.get("args", [])]
    words = [_moved(expanded(word, known), paths, machine.addresses) for word in words]
    if not words:
        raise CannotStart("CreateContainerConfigError", "the double needs a command: it has no image to take one from")
    if os.path.basename(words[0]) in ("python", "python3"):
        words[0] = sys.executable
    cwd = Path(_moved(container.get("workingDir", "/work"), {**paths, "/work": str(own / "work")}, {}))
    cwd.mkdir(parents=True, exist_ok=True)
    return Prepared(words, environment, cwd)


def _paths(machine: Machine, store: Store, pod: Object, container: Object, own: Path) -> dict[str, str]:
    volumes = {one["name"]: one for one in pod["spec"].get("volumes") or []}
    paths = {"/app": CHECKOUT, "/opt/venv": Path(sys.prefix), "/home/double": own / "home", "/tmp": own / "tmp"}
    for mount in container.get("volumeMounts") or []:
        folder = volume_folder(machine, store, pod, volumes[mount["name"]]) / mount.get("subPath", "")
        paths[mount["mountPath"].rstrip("/")] = folder
    for folder in paths.values():
        folder.mkdir(parents=True, exist_ok=True)
    # A path that is on this machine already, as a step tells the pods that it makes, stays as it is.
    return {str(machine.folder): str(machine.folder), **{inside: str(folder) for inside, folder in paths.items()}}


def volume_folder(machine: Machine, store: Store, pod: Object, volume: Object) -> Path:
    """The folder that stands in for a volume of a pod; those of secrets and config maps are filled."""
    namespace, folder = str(pod["metadata"]["namespace"]), machine.own(pod) / "volumes" / str(volume["name"])
    if claim := volume.get("persistentVolumeClaim"):
        try:
            store.get(CORE["PersistentVolumeClaim"], namespace, claim["claimName"])
        except Refusal as refusal:
            raise CannotStart("ContainerCreating", str(refusal)) from refusal
        return machine.claim(namespace, claim["claimName"])
    if "emptyDir" in volume:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    if secret := volume.get("secret"):
        data = _data(store, "Secret", namespace, secret["secretName"], is_optional=secret.get("optional", False))
    elif config := volume.get("configMap"):
        data = _data(store, "ConfigMap", namespace, config["name"], is_optional=config.get("optional", False))
    else:
        raise CannotStart("CreateContainerConfigError", f"the double has no volumes of this kind: {volume}")
    for name, value in data.items():
        (folder / name).write_text(value, encoding="utf-8")
    return folder


def _data(store: Store, kind: str, namespace: str, name: str, *, is_optional: bool) -> dict[str, str]:
    try:
        data = store.get(CORE[kind], namespace, name).get("data") or {}
    except Refusal as refusal:
        if is_optional:
            return {}
        raise CannotStart("CreateContainerConfigError", str(refusal)) from refusal
    return {key: base64.b64decode(value).decode() if kind == "Secret" else value for key, value in data.items()}


def container_variables(store: Store, pod: Object, container: Object) -> dict[str, str]:
    """The container's own variables, by value or from secrets, config maps and fields of its pod."""
    namespace, found = pod["metadata"]["namespace"], {}
    for source in container.get("envFrom") or []:
        for key, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
            if reference := source.get(key):
                is_optional = reference.get("optional", False)
                data = _data(store, kind, namespace, reference["name"], is_optional=is_optional)
                found.update({source.get("prefix", "") + name: value for name, value in data.items()})
    for variable in container.get("env") or []:
        if "valueFrom" not in variable:
            found[variable["name"]] = expanded(variable.get("value", ""), found)
        elif (value := _value_from(store, pod, container, variable["valueFrom"])) is not None:
            found[variable["name"]] = value
    return found


def _value_from(store: Store, pod: Object, container: Object, source: Object) -> str | None:
    namespace = pod["metadata"]["namespace"]
    if reference := source.get("fieldRef"):
        return _field(pod, reference["fieldPath"])
    if reference := source.get("resourceFieldRef"):
        part, name = reference["resource"].split(".", 1)
        return str(container.get("resources", {}).get(part, {}).get(name, "0"))
    for key, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
        if reference := source.get(key):
            is_optional = reference.get("optional", False)
            data = _data(store, kind, namespace, reference["name"], is_optional=is_optional)
            if reference["key"] not in data and not is_optional:
                told = f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}"
                raise CannotStart("CreateContainerConfigError", told)
            return data.get(reference["key"])
    raise CannotStart("CreateContainerConfigError", f"the double knows no such source of a variable: {source}")


def _field(pod: Object, path: str) -> str:
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['([^']+)'\]", path):
        return str((pod["metadata"].get(match[1]) or {}).get(match[2], ""))
    if path in ("status.podIP", "status.hostIP"):
        return "127.0.0.1"
    found: Any = pod
    for part in path.split("."):
        found = found.get(part, "")
    return str(found)


def expanded(text: str, known: Mapping[str, str]) -> str:
    """``$(NAME)`` replaced where the name is known, as the kubelet does."""
    return re.sub(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", lambda match: known.get(match[1], match[0]), text)


def _moved(text: str, paths: Mapping[str, str], addresses: Mapping[str, str]) -> str:
    for name, address in addresses.items():
        text = text.replace(name, address)
    inside = sorted(map(re.escape, paths), key=len, reverse=True)
    return re.sub(rf"(?<![\w./-])({'|'.join(inside)})(?=$|[/:\"',\s])", lambda match: paths[match[1]], text)
