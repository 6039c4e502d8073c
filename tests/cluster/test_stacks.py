"""Stacks through ZenML's own client, in a workspace of their own: registered, changed in place, removed."""

import re
import sqlite3
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.stacks import ANONYMOUS, Component, components_of
from proxykd.config.stack import STACKS, load_stack
from tests.support.program import CHECKOUT, Home

TRACKED = """
import sys
from zenml import pipeline, step
from zenml.client import Client

@step(experiment_tracker="mine-proxykd-mlflow", enable_cache=False)
def train() -> int:
    import mlflow
    mlflow.log_metric("loss", 0.5)
    return 1

@pipeline(enable_cache=False)
def follow() -> None:
    train()

if __name__ == "__main__":
    Client().activate_stack("mine")
    Client().active_stack
    assert "mlflow" not in sys.modules, "a process that tracks nothing has no need of it"
    follow()
    Client().activate_stack("default")
"""


def settings(components: tuple[Component, ...]) -> dict[str, dict[str, Any]]:
    return {one.kind: {"flavor": one.flavor, **one.configuration} for one in components}


@pytest.mark.parametrize("name", [file.stem for file in STACKS.glob("*.yaml")])
def test_no_component_holds_a_credential(name: str) -> None:
    told = repr(components_of(load_stack(name)))
    assert not any(word in told for word in ("password", "'key'", "'secret'"))


def test_a_cluster_stack_has_all_five_components_and_keeps_zenml_from_its_defaults() -> None:
    found = settings(components_of(load_stack("kubernetes")))
    assert set(found) == {"orchestrator", "artifact_store", "container_registry", "image_builder", "experiment_tracker"}
    orchestrator = found["orchestrator"]
    assert orchestrator["pass_zenml_token_as_secret"] is True  # else it stands in the pods' environment
    assert orchestrator["service_account_name"] == "proxykd-orchestrator"  # else ZenML binds the ClusterRole edit
    assert orchestrator["incluster"] is False
    assert found["artifact_store"] == {
        "flavor": "s3", "path": "s3://proxykd/artifacts", "client_kwargs": {"region_name": "eu-central-1"}
    }  # fmt: skip
    assert found["experiment_tracker"]["tracking_token"] == ANONYMOUS


def test_without_a_context_the_pods_own_account_is_used() -> None:
    stack = load_stack("kubernetes").model_copy(update={"context": None})
    orchestrator = settings(components_of(stack))["orchestrator"]
    assert orchestrator["incluster"] is True
    assert "kubernetes_context" not in orchestrator


def typed(home: Home, *words: str, status: int = 0) -> str:
    """What ``proxykd stack`` prints."""
    command = [sys.executable, "-m", "proxykd", "stack", *words]
    environment = home.environment(PYTHONPATH=str(CHECKOUT), COLUMNS="200")
    done = subprocess.run(command, cwd=home.folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.mark.integration
def test_the_stacks_of_the_checkout_are_registered_as_they_stand(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "home")
    for name, flavor in (("kubeflow", "proxykd-kubeflow"), ("local-cluster", "proxykd-kubernetes")):
        told = typed(home, "apply", name, "--yes")
        assert f"+ stack.name: {name}" in told
        assert re.search(rf"\+ stack\.orchestrator: \S+{flavor}", told), told
        assert typed(home, "apply", name) == f"{name}: nothing to change\n"


@pytest.mark.integration
def test_a_stack_is_registered_changed_and_removed_and_leaves_nothing(tmp_path: Path) -> None:
    home, file = Home.create(tmp_path / "home"), tmp_path / "mine.yaml"
    types = partial(typed, home)

    def components() -> set[str]:
        store = home.workspace.root / "zenml" / "local_stores" / "default_zen_store" / "zenml.db"
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as database:
            rows = database.execute("SELECT type, name FROM stack_component WHERE name LIKE 'mine-%'")
            return {f"{kind} {name}" for kind, name in rows}

    stack: dict[str, Any] = {"kind": "local", "name": "mine"}
    file.write_text(yaml.safe_dump(stack), encoding="utf-8")
    assert "+ stack.name: mine" in types("apply", str(file), "--yes")
    assert types("apply", str(file)) == "mine: nothing to change\n"
    assert components() == {
        "orchestrator mine-local",
        "artifact_store mine-local",
        "experiment_tracker mine-proxykd-mlflow",
    }
    (home.folder / "tracked.py").write_text(TRACKED, encoding="utf-8")
    environment = home.environment(PYTHONPATH=str(CHECKOUT))
    subprocess.run([sys.executable, "tracked.py"], cwd=home.folder, env=environment, check=True, timeout=300)
    with sqlite3.connect(home.workspace.mlflow_database) as database:
        assert database.execute("SELECT key, value FROM metrics").fetchall() == [("loss", 0.5)]

    place = {"kind": "s3", "path": "s3://bucket/one"}
    file.write_text(yaml.safe_dump({**stack, "artifact_store": place}), encoding="utf-8")
    assert "~ stack.artifact_store: mine-local -> mine-s3" in types("apply", str(file), "--yes")
    assert "artifact_store mine-local" not in components()
    file.write_text(yaml.safe_dump({**stack, "artifact_store": {**place, "path": "s3://bucket/two"}}), encoding="utf-8")
    assert "~ artifact_store.path: s3://bucket/one -> s3://bucket/two\nmine: 1 changes" in types(
        "apply", str(file), "-y"
    )

    assert "s3://bucket/two" in types("show", "mine")
    assert "not made by `proxykd stack apply`" in types("delete", "default", "--yes", status=2)
    assert types("delete", "mine", "--yes") == "mine: removed\n"
    assert not components()
    assert "`proxykd stack list` names them" in types("show", "mine", status=2)
