"""Stacks and schedules on the command line: what is refused before any engine is loaded, and killed runs are closed."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from proxykd.commands.stack import confirm
from proxykd.commands.submit import refuse_missing
from proxykd.exceptions import ConfigError
from tests.support.program import CHECKOUT, Home


def refused(ended: Any, *words: str) -> None:
    assert ended.status == 2, ended
    assert all(word in ended.err for word in words), ended.err
    assert "Traceback" not in ended.err


def test_a_stack_with_an_unknown_key_is_refused_by_every_command(proxykd: Any, write: Any, tmp_path: Path) -> None:
    stack = tmp_path / "stack.yaml"
    stack.write_text("kind: local\nname: mine\nartifact_stor: {kind: folder}\n")
    for words in (["stack", "apply"], ["stack", "doctor"], ["gc", "--stack"], ["run", write(), "--stack"]):
        refused(proxykd(*words, str(stack)), "artifact_stor", "did you mean 'artifact_store'?")


def test_a_stack_is_not_registered_without_its_placement(proxykd: Any, tmp_path: Path) -> None:
    stack = tmp_path / "stack.yaml"
    content = (CHECKOUT / "k8s/stacks/kubernetes.yaml").read_text(encoding="utf-8")
    stack.write_text(content.replace("../placements/gpu.yaml", "nowhere.yaml"), encoding="utf-8")
    refused(proxykd("stack", "apply", str(stack), "--yes"), "nowhere.yaml")
    (tmp_path / "nowhere.yaml").write_text("poools: {}\n", encoding="utf-8")
    refused(proxykd("stack", "apply", str(stack), "--yes"), "poools")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "pools.yaml",
            "gpu.yaml",
            "expected `pipelines_service_account` in the stack kubeflow, as step distill_student",
        ),
        ("  proxykd-zenml: [", "  another: [", "expected the keys of the Secret proxykd-zenml"),
        ("  proxykd-teacher: [", "  another: [", "expected the keys of the Secret proxykd-teacher"),
    ],
    ids=["account", "Secret of all pods", "Secret of a step"],
)
def test_what_kubeflow_pipelines_cannot_give_is_refused_by_every_command(
    proxykd: Any, write: Any, tmp_path: Path, old: str, new: str, told: str
) -> None:
    content = (CHECKOUT / "k8s/stacks/kubeflow.yaml").read_text(encoding="utf-8").replace(old, new)
    stack = tmp_path / "stack.yaml"
    stack.write_text(content.replace("../placements", str(CHECKOUT / "k8s/placements")), encoding="utf-8")
    for words in (
        ["stack", "apply", "--yes"],
        ["stack", "doctor"],
        ["plan", write(), "--stack"],
        ["run", write(), "--stack"],
    ):
        refused(proxykd(*words, str(stack)), told)


@pytest.mark.parametrize("words", [["run"], ["plan"]])
def test_a_stack_that_is_not_there(proxykd: Any, write: Any, words: list[str]) -> None:
    refused(proxykd(*words, write(), "--stack", "nowhere"), "'nowhere'", "kubeflow, kubernetes, local")


@pytest.mark.parametrize("words", [["run"], ["plan"]])
def test_several_processes_that_the_placement_would_not_start(proxykd: Any, write: Any, words: list[str]) -> None:
    told = ("proxy.processes=1, as align_proxy has a launcher of kind process", "got 2", "kind: torchrun")
    refused(proxykd(*words, write(), "--stack", "kubernetes", "--set", "proxy.processes=2"), *told)


def test_to_detach_takes_a_cluster(proxykd: Any, write: Any) -> None:
    refused(proxykd("run", write(), "--detach"), "--stack of a cluster")


@pytest.mark.parametrize(("kind", "instead"), [("local", "cron"), ("kubeflow", "Kubeflow Pipelines")])
@pytest.mark.parametrize("words", [["apply"], ["list"], ["pause", "x"], ["resume", "x"], ["delete", "x", "--yes"]])
def test_a_stack_without_a_scheduler_says_so(
    proxykd: Any, write: Any, kind: str, instead: str, words: list[str]
) -> None:
    more = [write(), "--cron", "@daily"] if words == ["apply"] else []
    refused(proxykd("schedule", *words, *more, "--stack", kind), "kind kubernetes", f"of kind {kind}", instead)


def test_a_specification_alone_is_no_schedule(proxykd: Any, write: Any) -> None:
    refused(proxykd("schedule", "apply", write()), "--stack and --cron")
    refused(proxykd("schedule", "apply", write(), "--stack", "kubernetes", "--cron", "* *"), "expected five fields")


def test_nothing_is_changed_where_nobody_can_be_asked() -> None:
    confirm("Remove it?", yes=True)
    with pytest.raises(ConfigError, match="--yes"):
        confirm("Remove it?", yes=False)


def test_whatever_is_missing_is_one_message() -> None:
    class Found:
        def __init__(self, state: str, what: str) -> None:
            self.state, self.what, self.found, self.remedy = state, what, "there is none", "make it"

    refuse_missing("mine", [Found("ok", "a"), Found("unchecked", "b")])
    with pytest.raises(ConfigError) as told:
        refuse_missing("mine", [Found("missing", "queue a"), Found("ok", "b"), Found("missing", "secret c")])
    assert "queue a: there is none; make it\n  secret c: there is none; make it" in str(told.value)
    assert "nothing was submitted" in str(told.value)


@pytest.mark.integration
def test_a_run_that_was_killed_is_closed_and_one_under_way_is_not(tmp_path: Path) -> None:
    home = Home.create(tmp_path / "killed")

    def types(*words: str) -> str:
        command = [sys.executable, "-m", "proxykd", *words]
        environment = home.environment(PYTHONPATH=str(CHECKOUT), COLUMNS="200")
        done = subprocess.run(command, cwd=home.folder, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    with home.start() as started:
        while not home.num_answers():
            assert started.process.poll() is None, started.stderr
        assert "not looked at" in types("gc", "--yes")
        os.killpg(started.process.pid, signal.SIGKILL)
        started.process.wait()
    planned = types("gc")
    assert "would close Run tiny-" in planned
    assert "it was killed" in planned
    assert "running" in types("runs")
    assert "closed Run tiny-" in types("gc", "--yes")
    assert "nothing to remove" in types("gc", "--yes")
    listed = types("runs")
    assert "failed" in listed
    assert "running" not in listed
    name = next(word for word in planned.split() if word.startswith("tiny-")).rstrip(":")
    shown = types("runs", name)
    assert f"{name} on default: failed" in shown
    assert "running" not in shown  # nor a step, if one was under way
