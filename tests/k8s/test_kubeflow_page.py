"""docs/kubeflow.md: its commands for the cluster, run with the real kubectl, and the ports that it names."""

import re
from pathlib import Path

import pytest
import yaml

from tests.k8s.conftest import K8S
from tests.k8s.pages import SPACE, blocks, checkout, page
from tests.k8s.rbac import granted
from tests.support.kubectl import Manifest

PAGE = page("kubeflow")


@pytest.mark.integration
def test_the_account_of_a_run_may_make_trainings_in_the_namespace(
    overlays: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    (account,) = blocks(PAGE)
    with checkout(tmp_path) as cluster:
        cluster.run(
            "kubectl apply -k k8s/overlays/production\nkubectl config set-context --current --namespace=default"
        )
        cluster.run(account)
        found = cluster.objects()
    assert {"ServiceAccount/proxykd-kubeflow", "RoleBinding/proxykd-kubeflow"} <= found.keys()
    assert granted([*found.values()], "proxykd-kubeflow") == granted(overlays["production"], "proxykd-trainer")
    assert found["RoleBinding/proxykd-kubeflow"]["subjects"][0]["namespace"] == SPACE


def test_every_command_for_the_cluster_names_its_namespace_and_is_run() -> None:
    called = re.findall(r"kubectl [^|`\n]*", PAGE)
    assert called
    assert called == [each for block in blocks(PAGE) for each in re.findall(r"kubectl [^|\n]*", block)]
    assert all(each.startswith(f"kubectl -n {SPACE} ") for each in called)


def test_the_page_names_the_ports_that_the_component_opens() -> None:
    file = K8S / "components" / "kubeflow" / "network.yaml"
    found = next(one for one in yaml.safe_load_all(file.read_text()) if "pipelines" in one["metadata"]["name"])
    opened = [", ".join(str(port["port"]) for port in rule["ports"]) for rule in found["spec"]["egress"]]
    rows = [
        line.split("|")[2].strip() for line in PAGE.splitlines() if line.startswith("| `") and " drivers and " in line
    ]
    assert rows == opened
