"""The page in MLflow: logged once a decision, found again, and the runs before it."""

from pathlib import Path
from typing import Any

import pytest

from proxykd.evaluation.page.rendering import PageData
from steps.adapters.mlflow_report import FILES, OUTCOME_TAG, find_report, log_report, tracked_runs
from steps.adapters.mlflow_tracking import TrackedRun, connect, ensure_experiment
from tests.support.large_report import large_page

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]


def start(values: dict[str, float], *, at: int, is_finished: bool = True) -> TrackedRun:
    """A run that began at ``at`` seconds."""
    client = connect()
    experiment = ensure_experiment(client, "tiny")
    run = client.create_run(experiment, start_time=1000 * at)
    for name, value in values.items():
        client.log_metric(run.info.run_id, name, value)
    if is_finished:
        client.set_terminated(run.info.run_id, "FINISHED")
    return TrackedRun("", experiment, run.info.run_id, is_new=True)


@pytest.fixture
def data() -> PageData:
    return large_page(num_tasks=1, num_prompts=10)


def test_report_is_found_as_it_was_logged(mlflow_store: Path, data: PageData, tmp_path: Path) -> None:
    run, first, again = start({}, at=1), tmp_path / "first", tmp_path / "again"
    again.mkdir()
    assert not find_report(run, again)
    log_report(run, data, first)
    assert find_report(run, again)
    assert {path.name for path in again.iterdir()} == set(FILES)
    assert all((again / name).read_bytes() == (first / name).read_bytes() for name in FILES)
    assert connect().get_run(run.run_id).data.tags[OUTCOME_TAG] == "undecided"


def test_report_that_was_half_logged_is_written_again(mlflow_store: Path, data: PageData, tmp_path: Path) -> None:
    run = start({}, at=1)
    log_report(run, data, tmp_path / "first")
    connect().delete_tag(run.run_id, OUTCOME_TAG)
    assert not find_report(run, tmp_path)
    log_report(run, data, tmp_path / "second")
    assert find_report(run, tmp_path)


def test_report_that_somebody_deleted_is_missing(mlflow_store: Path, data: PageData, tmp_path: Path) -> None:
    run = start({}, at=1)
    log_report(run, data, tmp_path / "first")
    (page,) = (tmp_path / "mlartifacts").rglob("report.html")
    page.unlink()
    assert not find_report(run, tmp_path)


def test_runs_are_this_one_and_those_before_it(mlflow_store: Path) -> None:
    key = "proxy_kd/heldout_nll"
    old = start({key: 0.5, f"{key}/low": 0.4, f"{key}/high": 0.6, "spend/cost_usd": 2.0}, at=10)
    connect().set_tag(old.run_id, OUTCOME_TAG, "promote")
    start({key: 0.1}, at=15, is_finished=False)
    this = start({key: 0.3, "spend/teacher_tokens": 7.0}, at=20)
    start({key: 0.2}, at=30)
    found: list[dict[str, Any]] = tracked_runs(this, metric="heldout_nll", outcome="keep")
    assert [(one["value"], one["outcome"], one["is_this"]) for one in found] == [
        (0.5, "promote", False),
        (0.3, "keep", True),
    ]
    assert (found[0]["low"], found[0]["high"], found[0]["cost_usd"]) == (0.4, 0.6, 2.0)
    assert (found[1]["cost_usd"], found[1]["teacher_tokens"], found[1]["low"]) == (None, 7.0, None)
    assert found[0]["label"] == "1970-01-01 00:00"
