"""The commands of a documentation page: a shell whose kubectl is the real one and speaks to the API server double."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.conftest import K8S
from tests.k8s.kinds import CORE, KINDS
from tests.k8s.references import EXTERNAL_SECRETS
from tests.k8s.refusals import Refusal
from tests.k8s.workloads import called
from tests.support.beside import beside
from tests.support.kubectl import Manifest, kubectl

SPACE = "proxykd"
REFERENCE = f"registry.example/team/proxykd@sha256:{'7' * 64}"
Status = dict[str, Any]
COMPLETE: Status = {
    "conditions": [{"type": "SuccessCriteriaMet", "status": "True"}, {"type": "Complete", "status": "True"}],
    "succeeded": 1,
}
FAILED: Status = {
    "conditions": [{"type": "FailureTarget", "status": "True"}, {"type": "Failed", "status": "True"}],
    "failed": 5,
}
SERVING: Status = {
    "observedGeneration": 1,
    "replicas": 2,
    "updatedReplicas": 2,
    "readyReplicas": 2,
    "availableReplicas": 2,
}


def page(name: str) -> str:
    """The text of a page of docs/."""
    return (K8S.parent / "docs" / f"{name}.md").read_text(encoding="utf-8")


def blocks(text: str) -> list[str]:
    """Its blocks of commands for a shell."""
    return re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Its commands of the program itself, word by word, in their order."""
    lines = "".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)).splitlines()
    found = [shlex.split(line) for line in lines]
    assert all(words[0] == "proxykd" for words in found)
    return [words[1:] for words in found]


class Cluster:
    """The double, with a shell whose kubectl speaks to it."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self.api, self.folder = api, folder
        # The double has no OpenAPI document for kubectl to validate by; it validates strictly itself.
        plain = 'case " $* " in *" apply "*|*" create -f "*|*" create "*" -f "*) set -- "$@" --validate=false;; esac'
        script = f'#!/bin/sh\n{plain}\nexec {kubectl()} "$@"\n'
        (folder / "kubectl").write_text(script)
        (folder / "kubectl").chmod(0o755)

    def finished(self, block: str, namespace: str = SPACE) -> "subprocess.CompletedProcess[str]":
        """A block that was run up to the first command that failed; ``namespace`` is the kubeconfig's."""
        path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(self.api.kubeconfig(namespace))}
        environment["KUBE_FEATURE_WatchListClient"] = "false"  # nor does it stream lists
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def run(self, block: str, namespace: str = SPACE) -> str:
        """The output of a block, each of whose commands has to succeed."""
        finished = self.finished(block, namespace)
        assert finished.returncode == 0, f"{block}\n{finished.stdout}{finished.stderr}"
        return finished.stdout

    def objects(self) -> dict[str, Manifest]:
        """What is in the namespace."""
        found = [one for kind in KINDS if kind.is_namespaced for one in self.api.store.list(kind, SPACE)]
        return {called(one): one for one in found}

    @contextmanager
    def controlled(self, **ends: Status) -> Iterator[None]:
        """Controllers meanwhile: MLflow's pods become ready, and each Job ends.

        Args:
            ends: How a Job ends, by the start of its name with ``_`` for ``-``; well by default.
        """

        def settle(is_over: threading.Event) -> None:
            while not is_over.wait(0.1):
                for name in self.objects():
                    kind, _, own = name.partition("/")
                    begun = (status for start, status in ends.items() if own.startswith(start.replace("_", "-")))
                    if kind == "Job":
                        self._report(kind, own, next(begun, COMPLETE))
                    elif name == "Deployment/mlflow":
                        self._report(kind, own, SERVING)

        with beside(settle):
            yield

    def _report(self, kind: str, name: str, status: Status) -> None:
        with suppress(Refusal):  # it is gone meanwhile
            self.api.store.change(CORE[kind], SPACE, name, lambda found: found.update(status=copy.deepcopy(status)))


@contextmanager
def checkout(tmp_path: Path) -> Iterator[Cluster]:
    """The double, and a checkout that the page's commands may change, with the user's own files of secrets."""
    shutil.copytree(K8S, tmp_path / "k8s", ignore=shutil.ignore_patterns("schemas"))
    reference = tmp_path / "build" / "image" / "reference"
    reference.parent.mkdir(parents=True)
    reference.write_text(f"{REFERENCE}\n")
    (tmp_path / "registry.json").write_text('{"auths": {}}')
    (tmp_path / "ca.crt").write_text("of the database's authority")
    for name, keys in EXTERNAL_SECRETS.items():
        lines = [f"{key}=value-of-{key}" for key in sorted(keys | {"OPENAI_API_KEY"})]
        (tmp_path / f"{name.removeprefix('proxykd-')}.env").write_text("\n".join(lines))
    with api_server(tmp_path) as api:
        yield Cluster(api, tmp_path)
