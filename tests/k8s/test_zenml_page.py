"""docs/zenml.md: the chart is of the client's version, and its key opens a real server."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.k8s.conftest import K8S
from tests.support.program import PROXYKD
from tests.support.zenml_server import PASSWORD, zenml_server

PAGE = (K8S.parent / "docs" / "zenml.md").read_text(encoding="utf-8")


def test_zenmls_chart_has_the_version_of_the_client() -> None:
    constraints = (K8S.parent / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(r"^zenml==(\S+)$", constraints, re.MULTILINE)
    assert f"helm install zenml oci://public.ecr.aws/zenml/zenml --version {version} --namespace zenml " in PAGE


@pytest.mark.integration
def test_the_key_that_is_made_opens_the_server(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    with zenml_server(tmp_path) as server:
        lines = block.replace("http://127.0.0.1:8080", server.address)
        plain = {name: value for name, value in os.environ.items() if not name.startswith("ZENML_")}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        home = {"PATH": path, "HOME": str(tmp_path), "ZENML_CONFIG_PATH": str(tmp_path / "new")}
        # An administrator who has logged in makes the key; then nothing is known but what the lines export.
        login = {"ZENML_STORE_URL": server.address, "ZENML_STORE_USERNAME": "default", "ZENML_STORE_PASSWORD": PASSWORD}
        forgotten = f"unset ZENML_STORE_USERNAME ZENML_STORE_PASSWORD; export ZENML_CONFIG_PATH={tmp_path / 'other'}"
        script = f"set -e\n{lines}{forgotten}\n{PROXYKD} stack list\n"
        done = subprocess.run(
            ["bash", "-c", script],
            env={**plain, **home, **login, "ZENML_ANALYTICS_OPT_IN": "false"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "default" in done.stdout
        key = (tmp_path / "zenml.key").read_text(encoding="utf-8").strip()
        assert key.startswith("ZENKEY_")
        assert key != server.key
        unknown = {"ZENML_STORE_URL": server.address, "ZENML_STORE_API_KEY": f"{key[:-4]}AAAA"}
        done = subprocess.run(
            [PROXYKD, "stack", "doctor", "local"],
            env={**plain, **home, **unknown},
            cwd=K8S.parent,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 2
        assert "it does not know this login" in " ".join(done.stdout.split())
