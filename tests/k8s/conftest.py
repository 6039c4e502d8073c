"""The overlays, rendered once."""

from pathlib import Path

import pytest

import proxykd
from tests.support.kubectl import Manifest, render

K8S = Path(proxykd.__file__).parents[1] / "k8s"
OVERLAYS = ("local", "staging", "production")


@pytest.fixture(scope="session")
def overlays() -> dict[str, list[Manifest]]:
    """Name -> the objects of an overlay; not to be changed."""
    return {name: render(K8S / "overlays" / name) for name in OVERLAYS}
