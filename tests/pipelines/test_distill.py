"""The main job from end to end: what it leaves, what a second run does again, and what a change makes it redo.

And the same numbers from a run in shards, and from one that is killed and interrupted.
"""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import pytest

from tests.support.program import LIMIT_S, NUM_PROMPTS, PROXYKD, Finished, Home

pytestmark = pytest.mark.integration

STEPS = {
    "query_teacher", "validate_data", "check_drift", "split", "align_proxy", "estimate_distributions",
    "distill_student_sft", "distill_student_proxy_kd", "evaluate_student", "promote_model",
}  # fmt: skip
ARMS = {"none", "sft", "proxy_kd", "proxy"}
CODE_SUFFIXES = {".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt", ".joblib", ".dill", ".npy"}
Run = tuple[Home, Finished]


def tracked(home: Home) -> Any:
    from mlflow import MlflowClient

    uri = home.workspace.mlflow_uri
    return MlflowClient(uri, uri)


def runs_of(client: Any) -> list[Any]:
    return list(client.search_runs([client.get_experiment_by_name("tiny").experiment_id]))


def artifacts_of(client: Any, run_id: str, folder: str | None = None) -> set[str]:
    return {item.path for item in client.list_artifacts(run_id, folder)}


def can_run_code(file: Path) -> bool:
    """Whether a file is a pickle, or an archive, as torch writes around one."""
    with file.open("rb") as opened:
        start = opened.read(2)
    is_pickle = len(start) == 2 and start[0] == 0x80 and start[1] <= 5
    return is_pickle or is_zipfile(file) or file.suffix in CODE_SUFFIXES


def test_every_arm_is_reported_with_intervals(undisturbed: Run) -> None:
    arms = undisturbed[1].report["arms"]
    assert set(arms) == ARMS
    for arm in ARMS:
        for metric in ("exact_kl", "heldout_nll", "top1_agreement", "accuracy/sums"):
            measure = arms[arm][metric]
            assert measure["low"] <= measure["value"] <= measure["high"], (arm, metric)
    # Ten steps are enough to leave the untrained model behind; two seeds say little of others, so intervals are wide.
    kl = {arm: arms[arm]["exact_kl"]["per_seed"].values() for arm in ("proxy_kd", "none")}
    assert max(kl["proxy_kd"]) < min(kl["none"])


def test_student_is_registered_with_its_alias(undisturbed: Run) -> None:
    home, finished = undisturbed
    client = tracked(home)
    versions = client.search_model_versions("name = 'tiny-student'")
    assert [version.version for version in versions] in (["1"], [1])
    aliases = {alias: str(version) for alias, version in client.get_registered_model("tiny-student").aliases.items()}
    assert aliases["challenger"] == "1"
    assert "models:/tiny-student/1" in finished.stdout


def test_the_run_is_tracked_with_parameters_metrics_and_documents(undisturbed: Run) -> None:
    home, finished = undisturbed
    client = tracked(home)
    (run,) = runs_of(client)
    assert run.info.status == "FINISHED"
    assert run.data.params["student.steps"] == "10"
    assert run.data.metrics["proxy_kd/heldout_nll"] == finished.report["arms"]["proxy_kd"]["heldout_nll"]["value"]
    assert {"report", "validation", "specification.json"} <= artifacts_of(client, run.info.run_id)
    documents = {"report/report.json", "report/report.html", "report/report.md", "report/decided.json"}
    assert documents <= artifacts_of(client, run.info.run_id, "report")
    page = (home.workspace.reports / "tiny.html").read_text(encoding="utf-8")
    assert f"<title>tiny: {run.data.tags['proxykd.outcome']}</title>" in page
    assert 'id="checks"' in page
    assert "validation/index.html" in artifacts_of(client, run.info.run_id, "validation")


def test_the_quarantine_of_the_run_can_be_listed(undisturbed: Run) -> None:
    home, _ = undisturbed
    command = [PROXYKD, "quarantine", "list", "tiny.yaml"]
    listed = subprocess.run(command, cwd=home.folder, env=home.environment(), capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    *_, counts, page = listed.stdout.splitlines()
    assert counts == "nothing in quarantine"
    assert Path(page.removeprefix("page: ")).is_file()


def test_nothing_that_was_stored_can_run_code(undisturbed: Run) -> None:
    root = undisturbed[0].workspace.root
    files = [path for path in root.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert any("mlartifacts" in path.parts for path in files)
    assert not [path for path in files if can_run_code(path)]


def test_steps_leave_no_temporary_files(undisturbed: Run) -> None:
    home = undisturbed[0]
    assert not list((home.folder / "tmp").glob("proxykd-*"))
    assert not list(home.workspace.tmp.iterdir())


def test_second_run_does_nothing_twice_and_a_change_redoes_what_depends_on_it(undisturbed: Run) -> None:
    home, first = undisturbed
    # Another hash seed: the order of sets must not reach a cache key.
    second = home.run(PYTHONHASHSEED="2")
    assert second.status == 0, second.stderr
    assert home.statuses() == {
        **dict.fromkeys(STEPS, "cached"),
        "check_drift": "completed",
        "promote_model": "completed",
    }
    assert "Asking the teacher" not in second.stderr
    assert home.num_answers() == NUM_PROMPTS
    assert second.report == first.report
    assert len(runs_of(tracked(home))) == 1

    changed = home.run("--set", "evaluation.confidence=0.8")
    assert changed.status == 0, changed.stderr
    redone = {step for step, status in home.statuses().items() if status == "completed"}
    # The second run's baseline was the first: the same as the third's.
    assert redone == {"evaluate_student", "promote_model"}
    assert changed.report["confidence"] == 0.8
    assert len(runs_of(tracked(home))) == 2
    # The same student, judged at another level: still one version.
    assert len(tracked(home).search_model_versions("name = 'tiny-student'")) == 1


def test_a_damaged_store_is_refused_and_made_anew_on_request(undisturbed: Run) -> None:
    """The cache would hand out the damaged one for ever."""
    home, _ = undisturbed
    (shard,) = home.workspace.root.glob("zenml/**/estimate_distributions/**/*.shard")
    change = ("--set", "student.steps=2")
    shard.write_bytes(shard.read_bytes()[:-1])
    refused = home.run(*change)
    assert refused.status == 2
    assert "--anew estimate_distributions" in refused.stderr
    mended = home.run(*change, "--anew", "estimate_distributions")
    assert mended.status == 0, mended.stderr
    assert home.statuses()["estimate_distributions"] == "completed"
    assert home.statuses()["align_proxy"] == "cached"
    unknown = home.run("--anew", "estimating")
    assert unknown.status == 2
    assert "estimate_distributions" in unknown.stderr


@pytest.mark.long  # pods do so in test_kubernetes.py
def test_a_run_in_shards_is_the_run_in_one_piece(undisturbed: Run, tmp_path: Path) -> None:
    """Querying and estimation divided among steps of their own, as pods do it on a cluster."""
    home = Home.create(tmp_path / "shards")
    divided = ("--shards", "query_teacher=3", "--shards", "estimate_distributions=2")
    finished = home.run(*divided)
    assert finished.status == 0, finished.stderr
    statuses, whole = home.statuses(), undisturbed[1].report
    assert [name for name in statuses if "-of-" in name] == [
        "query_teacher_1-of-3",
        "query_teacher_2-of-3",
        "query_teacher_3-of-3",
        "estimate_distributions_1-of-2",
        "estimate_distributions_2-of-2",
    ]
    assert home.num_answers() == undisturbed[0].num_answers()
    report = finished.report
    assert report["arms"]["sft"] == whole["arms"]["sft"]
    # Batches are cut otherwise: the proxy's scores, and what is learnt from them, differ by rounding.
    for metric, measured in whole["arms"]["proxy_kd"].items():
        if isinstance(measured, dict) and "value" in measured:
            found = report["arms"]["proxy_kd"][metric]["value"]
            assert found == pytest.approx(measured["value"], abs=2e-3), metric
    again = home.run(*divided, "--anew", "estimate_distributions")
    assert again.status == 0, again.stderr
    redone = {step for step, status in home.statuses().items() if status == "completed"}
    estimates = {name for name in statuses if name.startswith("estimate_distributions")}
    assert redone == {*estimates, "check_drift", "promote_model"}  # the first run is the second's baseline


def disturb(home: Home, wanted: signal.Signals, is_time: Callable[[str], bool]) -> Finished:
    """Send a signal to a run's process group as soon as ``is_time(stderr so far)``; how the run ended."""
    deadline = time.monotonic() + LIMIT_S
    with home.start() as started:
        while not is_time(started.stderr):
            assert started.process.poll() is None, started.stderr
            assert time.monotonic() < deadline
            time.sleep(0.002)
        started.signal(wanted)
        return started.finish()


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_numbers(undisturbed: Run, tmp_path: Path) -> None:
    """The same command goes on and pays for nothing twice."""
    home = Home.create(tmp_path / "disturbed")
    killed = disturb(home, signal.SIGKILL, lambda _: home.num_answers() >= 10)
    assert killed.status == -signal.SIGKILL
    paid = home.num_answers()
    assert 10 <= paid < NUM_PROMPTS
    assert home.has_no_server_soon()

    interrupted = disturb(home, signal.SIGINT, lambda printed: "proxy warm-up:" in printed)
    assert interrupted.status == 130
    assert f"{paid} of {NUM_PROMPTS} answers were in the journal" in interrupted.stderr
    assert home.num_answers() == NUM_PROMPTS
    *_, last = interrupted.stderr.splitlines()
    assert last.startswith("proxykd: interrupted; ")
    # An interrupt that comes while an object is being freed is told by Python, and goes on being one.
    told = re.sub(r"Exception ignored in: .*?\nKeyboardInterrupt[^\n]*\n", "", interrupted.stderr, flags=re.DOTALL)
    assert "Traceback" not in told + interrupted.stdout

    killed = disturb(home, signal.SIGKILL, lambda printed: "estimate distributions:" in printed)
    assert killed.status == -signal.SIGKILL
    assert "Asking the teacher" not in killed.stderr

    finished = home.run()
    assert finished.status == 0, finished.stderr
    assert "Asking the teacher" not in finished.stderr
    assert "proxy warm-up" not in finished.stderr
    assert home.num_answers() == NUM_PROMPTS
    assert finished.report["arms"] == undisturbed[1].report["arms"]
    assert home.has_no_server_soon()
