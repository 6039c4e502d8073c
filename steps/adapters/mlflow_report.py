"""The report for people in MLflow: written once a decision, kept with the run, and earlier runs to compare with.

``log_evaluation`` has logged the numbers before anything is decided, and ``log_basis`` logs what a decision rests on
before it is acted on; the page is logged when the decision has been applied, so that it never says what did not happen.
A run that was interrupted in between gets the same page on the next try.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.artifacts import read_json, write_json
from proxykd.evaluation.basis import Basis
from proxykd.evaluation.decision import Decision
from proxykd.evaluation.page.rendering import PageData, write_page
from proxykd.exceptions import ArtifactError
from steps.adapters.mlflow_tracking import (
    COST_METRIC,
    TOKENS_METRIC,
    TrackedRun,
    connect,
    spend_values,
    tracking_errors,
)
from steps.adapters.tracking_keys import tracking_key
from steps.settings import scratch_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

FOLDER = "report"
"""Artifact folder of the run that holds the report."""

FILES = ("report.html", "report.md", "decided.json")
"""The page, its summary, and ``report.json`` with the comparisons that the decision was made on."""

BASIS_FILE = "basis.json"
"""What the decision was made on, as ``Basis.to_json`` gives it; there before the decision is acted on."""

OUTCOME_TAG = "proxykd.outcome"
"""Run tag, written when the page has been logged: promote, keep or undecided."""

MAX_RUNS = 100
"""Most earlier runs on the plot of cost against quality, the newest ones."""


@tracking_errors()
def find_report(tracked: TrackedRun, destination: Path) -> bool:
    """Fetch the report that was logged with a run; False if there is none yet, or none any more.

    Args:
        tracked: The run.
        destination: Folder for the files.
    """
    from mlflow.artifacts import download_artifacts

    client = connect()
    kept = {item.path for item in client.list_artifacts(tracked.run_id, FOLDER)}
    paths = {name: f"{FOLDER}/{name}" for name in FILES}
    if OUTCOME_TAG not in client.get_run(tracked.run_id).data.tags or not kept.issuperset(paths.values()):
        return False
    for name, path in paths.items():
        downloaded = download_artifacts(run_id=tracked.run_id, artifact_path=path, tracking_uri=client.tracking_uri)
        (destination / name).write_bytes(Path(downloaded).read_bytes())
    return True


@tracking_errors()
def log_basis(tracked: TrackedRun, basis: Basis) -> None:
    """Keep what a decision rests on with its run, in place of an earlier one's; the run's cost is brought up to it.

    Args:
        tracked: The run.
        basis: The decision is not acted on yet.
    """
    client = connect()
    with scratch_folder() as folder:
        write_json(folder / BASIS_FILE, basis.to_json())
        client.log_artifact(tracked.run_id, str(folder / BASIS_FILE), artifact_path=FOLDER)
    started = client.get_run(tracked.run_id).info.start_time
    for key, value in spend_values(basis.report):
        client.log_metric(tracked.run_id, key, value, timestamp=started, step=0)


@tracking_errors()
def find_basis(tracked: TrackedRun, decision: Decision) -> Basis | None:
    """What a decision that has been acted on rests on; None if it was not kept, or belongs to another decision.

    Args:
        tracked: The run.
        decision: As the registry has it.
    """
    from mlflow.artifacts import download_artifacts

    client, path = connect(), f"{FOLDER}/{BASIS_FILE}"
    if path not in {item.path for item in client.list_artifacts(tracked.run_id, FOLDER)}:
        return None
    kept = download_artifacts(run_id=tracked.run_id, artifact_path=path, tracking_uri=client.tracking_uri)
    try:
        found = Basis.of_json(read_json(Path(kept)))
    except (ArtifactError, KeyError, TypeError):  # half written
        return None
    return found if found.decision == decision else None


@tracking_errors()
def log_report(tracked: TrackedRun, data: PageData, destination: Path) -> None:
    """Write the report into a folder and log it with its run.

    Args:
        tracked: The run.
        data: What the page shows; its decision has been applied.
        destination: Folder for the files.
    """
    client = connect()
    write_page(data, destination)
    write_json(destination / "decided.json", data.report)
    for name in FILES:
        client.log_artifact(tracked.run_id, str(destination / name), artifact_path=FOLDER)
    client.set_tag(tracked.run_id, OUTCOME_TAG, str((data.decision or {}).get("outcome", "")))


@tracking_errors()
def tracked_runs(tracked: TrackedRun, *, metric: str, outcome: str, arm: str = "proxy_kd") -> list[dict[str, Any]]:
    """Cost and quality of this run and of those before it in its experiment, the oldest first.

    Args:
        tracked: This run.
        metric: What quality is.
        outcome: What was decided on this run.
        arm: Whose quality.

    Returns:
        One mapping a run: ``label`` (its start, UTC), ``cost_usd``, ``teacher_tokens``, ``value``, ``low``, ``high``
        (None where they were not logged), ``outcome`` ("" = not known) and ``is_this``.
    """
    client = connect()
    found = client.search_runs(
        [tracked.experiment_id],
        filter_string="attributes.status = 'FINISHED'",
        order_by=["attributes.start_time DESC"],
        max_results=MAX_RUNS,
    )
    if all(run.info.run_id != tracked.run_id for run in found):
        found = [client.get_run(tracked.run_id), *found]
    started = next(run.info.start_time for run in found if run.info.run_id == tracked.run_id)
    earlier = [run for run in found if run.info.start_time <= started]
    return [_point(run, f"{arm}/{metric}", tracked.run_id, outcome) for run in reversed(earlier)]


def _point(run: "Run", name: str, this: str, outcome: str) -> dict[str, Any]:
    metrics: Mapping[str, float] = run.data.metrics
    is_this = run.info.run_id == this
    return {
        "label": f"{datetime.fromtimestamp(run.info.start_time / 1000, UTC):%Y-%m-%d %H:%M}",
        "cost_usd": metrics.get(COST_METRIC),
        "teacher_tokens": metrics.get(TOKENS_METRIC),
        "value": metrics.get(tracking_key(name)),
        "low": metrics.get(tracking_key(name, "/low")),
        "high": metrics.get(tracking_key(name, "/high")),
        "outcome": outcome if is_this else run.data.tags.get(OUTCOME_TAG, ""),
        "is_this": is_this,
    }
