"""The overlays, rendered once."""

import shutil
from pathlib import Path

import pytest
import yaml

import proxykd
from tests.support.kubectl import Manifest, render

K8S = Path(proxykd.__file__).parents[1] / "k8s"
OVERLAYS = ("local", "staging", "production")


@pytest.fixture(scope="session")
def overlays() -> dict[str, list[Manifest]]:
    """Name -> the objects of an overlay; not to be changed."""
    return {name: render(K8S / "overlays" / name) for name in OVERLAYS}


def render_with(folder: Path, overlay: str, *components: str, **changes: object) -> list[Manifest]:
    """An overlay to which somebody added components of ``k8s/components``; ``folder`` gets a copy of everything.

    Args:
        folder: Without any of these names in it.
        overlay: Its name.
        components: Their names.
        changes: Further fields of its kustomization, each a list that is added to what is there.
    """
    for room in ("base", "components", "trainjob", "overlays"):
        shutil.copytree(K8S / room, folder / room)
    file = folder / "overlays" / overlay / "kustomization.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for field, added in ({"components": [f"../../components/{name}" for name in components]} | changes).items():
        content[field] = [*content.get(field, []), *added]  # type: ignore[misc]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    return render(file.parent)
