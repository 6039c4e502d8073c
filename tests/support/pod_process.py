"""A container's own command as a process of this machine: its arguments, and no other environment than its own."""

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.kubectl import Manifest

IMAGE_PROGRAMS = "/opt/venv/bin/"
SYSTEM = ("PATH", "LD_LIBRARY_PATH", "LANG")


def container_command(
    container: dict[str, Any], environment: Mapping[str, str], folders: Mapping[str, Path]
) -> list[str]:
    """What Kubernetes would start, with the image's programs found in this environment.

    Args:
        container: Of a manifest.
        environment: Its variables, which replace ``$(NAME)``.
        folders: Path in the container -> where it lies here.
    """
    programs = f"{Path(sys.executable).parent}/"
    words = [*container.get("command", []), *container.get("args", [])]
    # This environment may itself lie below a path that is another one in the container.
    here = [
        word.replace(IMAGE_PROGRAMS, programs) if IMAGE_PROGRAMS in word else _moved(word, folders) for word in words
    ]
    return [re.sub(r"\$\((\w+)\)", lambda found: environment.get(found[1], found[0]), word) for word in here]


def container_environment(
    container: dict[str, Any],
    objects: list[Manifest],
    secrets: Mapping[str, Mapping[str, str]],
    folders: Mapping[str, Path],
) -> dict[str, str]:
    """The variables of a container: settings and secrets looked up, paths moved, and this machine's search paths.

    Raises:
        KeyError: if a setting or secret is not there.
    """
    settings = {found["metadata"]["name"]: found["data"] for found in objects if found["kind"] == "ConfigMap"}
    own = {name: os.environ[name] for name in SYSTEM if name in os.environ}
    for source in container.get("envFrom", []):
        own |= settings[source["configMapRef"]["name"]]
    for variable in container.get("env", []):
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            own[variable["name"]] = secrets[reference["name"]][reference["key"]]
        else:
            own[variable["name"]] = _moved(variable["value"], folders)
    return own


def _moved(text: str, folders: Mapping[str, Path]) -> str:
    option, equals, path = text.partition("=") if text.startswith("--") else ("", "", text)
    for inside, folder in folders.items():
        if path == inside or path.startswith(f"{inside}/"):
            return f"{option}{equals}{folder}{path.removeprefix(inside)}"
    return text
