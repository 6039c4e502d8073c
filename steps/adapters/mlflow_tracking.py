"""A finished evaluation -> one MLflow run: parameters, metrics, curves, the specification and the documents.

Exactly once: the run carries the hashes of the evaluation and of the specification as tags, and whoever logs the same
pair again gets the run that is there. A run that a crash left half written is found by the same tags and completed;
every write is repeatable, because metrics are stamped with the start of the run, and parameters are those of the
specification.

Where: ``MLFLOW_TRACKING_URI``, else SQLite in the current workspace. Artifacts of a SQLite store go to the folder
``mlartifacts`` beside its file.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.artifacts import Evaluation, batched, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.page.facts import flatten
from proxykd.evaluation.spend import JUDGE, num_tokens, total_usd
from proxykd.exceptions import StorageError, TrackingError
from proxykd.records import hash_json
from proxykd.workspace import Workspace
from steps.adapters.tracking_keys import tracking_key
from steps.adapters.tracking_server import without_userinfo

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

EVALUATION_TAG = "proxykd.evaluation"
"""Run tag: the hash of the evaluation that the run shows."""

SPECIFICATION_TAG = "proxykd.specification"
"""Run tag: the hash of the specification whose values are the run's parameters; MLflow lets none of them change."""

COST_METRIC, TOKENS_METRIC = "spend/cost_usd", "spend/teacher_tokens"
"""Metrics: what teacher and judge cost, and tokens from and to the teacher."""
JUDGE_COST_METRIC, JUDGE_TOKENS_METRIC = "spend/judge_cost_usd", "spend/judge_tokens"
"""Metrics: the judge's part, where a model judged."""

_MAX_METRICS, _MAX_PARAMS, _MAX_PARAM_CHARS = 1000, 100, 5000


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """Where a run is tracked.

    Attributes:
        tracking_uri: MLflow's address, without a user's name and password.
        experiment_id: The experiment, named like the run specification.
        run_id: The run.
        is_new: False if it had been logged completely before.
    """

    tracking_uri: str
    experiment_id: str
    run_id: str
    is_new: bool


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, else SQLite in the current workspace."""
    return os.environ.get("MLFLOW_TRACKING_URI") or Workspace.default().mlflow_uri


@contextmanager
def tracking_errors() -> Iterator[None]:
    """Turn what MLflow raises into one message that names its address; also a decorator.

    Raises:
        TrackingError: if MLflow refused or did not answer, or its artifact store could not be read or written.
    """
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        reason = without_userinfo(str(error)).strip().partition("\n")[0]
        raise TrackingError(
            f"expected MLflow at {without_userinfo(tracking_uri())} to work, got {error.error_code}: {reason}; check "
            "the server, its disk and MLFLOW_TRACKING_URI, then run the same command again: it goes on from here"
        ) from error
    except StorageError:
        raise
    except OSError as error:  # from the artifact store, which the client writes itself where it is a folder
        raise TrackingError(
            f"expected MLflow at {without_userinfo(tracking_uri())} to read and write its artifact store: "
            f"{without_userinfo(str(error))}; check the store, its disk and its permissions, then run the same command "
            "again: it goes on from here"
        ) from error


def connect() -> "MlflowClient":
    """A client of the tracking store and the registry, which are one; the whole process uses them from here on."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow import MlflowClient

    uri = tracking_uri()
    # The SQL registry looks logged models up in the process's store, whatever store the client has.
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if (file := _sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri, uri)


def ensure_experiment(client: "MlflowClient", name: str) -> str:
    """The id of the experiment ``name``, created where it is missing."""
    if (found := client.get_experiment_by_name(name)) is not None:
        return str(found.experiment_id)
    file = _sqlite_file(tracking_uri())
    location = None if file is None else (file.parent / "mlartifacts" / name).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


@tracking_errors()
def log_evaluation(evaluation: Evaluation, run: RunSpec, *, documents: Mapping[str, Path] | None = None) -> TrackedRun:
    """Log an evaluation, unless it has been logged.

    Args:
        evaluation: Its report becomes metrics and artifacts.
        run: The whole resolved specification; becomes parameters and ``specification.json``.
        documents: Name -> folder of further artifacts: the data docs, say.

    Raises:
        TrackingError: if MLflow refuses or does not answer.
    """
    client = connect()
    shown, experiment_id = without_userinfo(tracking_uri()), ensure_experiment(client, run.name)
    tags = {EVALUATION_TAG: evaluation.hash, SPECIFICATION_TAG: hash_json(run.model_dump(mode="json"))}
    found = _find(client, experiment_id, tags)
    if found is not None and found.info.status == "FINISHED":
        return TrackedRun(shown, experiment_id, found.info.run_id, is_new=False)
    started = found or client.create_run(experiment_id, tags=tags, run_name=run.name)
    _log_values(client, started, run, read_json(evaluation.path / "report.json"))
    _log_documents(client, started.info.run_id, run, {"report": evaluation.path, **(documents or {})})
    client.set_terminated(started.info.run_id, "FINISHED")
    return TrackedRun(shown, experiment_id, started.info.run_id, is_new=True)


def _find(client: "MlflowClient", experiment_id: str, tags: Mapping[str, str]) -> "Run | None":
    runs = client.search_runs(
        [experiment_id],
        filter_string=" AND ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items()),
        order_by=["attributes.start_time ASC"],
        max_results=1,
    )
    return runs[0] if runs else None


def _log_values(client: "MlflowClient", started: "Run", run: RunSpec, report: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(key, value) for key, value in named_parameters(run.model_dump(mode="json")).items()]
    for some_params in batched(params, _MAX_PARAMS):
        client.log_batch(started.info.run_id, params=some_params)
    for some_metrics in batched(_metrics(report, started.info.start_time), _MAX_METRICS):
        client.log_batch(started.info.run_id, metrics=some_metrics)


def _metrics(report: Mapping[str, Any], timestamp: int) -> "Iterator[Metric]":
    from mlflow.entities import Metric

    for key, step, value in named_values(report):
        yield Metric(key, value, timestamp, step)


def named_parameters(specification: Mapping[str, Any]) -> dict[str, str]:
    """The values of a specification as MLflow key -> text.

    Dots in the user's own names can make two keys one; the last value stands, and ``specification.json`` holds all.
    """
    return {tracking_key(name): value[:_MAX_PARAM_CHARS] for name, value in flatten(specification)}


def named_values(report: Mapping[str, Any]) -> Iterator[tuple[str, int, float]]:
    """Every number of a report as (MLflow key, step, value): arms, differences, spend, curves; absent ones left out."""
    for arm, measures in report["arms"].items():
        for metric, measure in measures.items():
            yield from _ends(f"{arm}/{metric}", measure)
    for found in report["comparisons"]:
        # MLflow's keys allow no "="; a further one is the user's own.
        part = f"/{found['slice'].replace('=', ':', 1)}" if found["slice"] else ""
        yield from _ends(f"{found['arm']}-vs-{found['against']}/{found['metric']}{part}", found, "p_value", "mde")
    if entropy := report["teacher"].get("entropy"):
        yield from _ends("teacher/entropy", entropy)
    yield from ((key, 0, value) for key, value in spend_values(report))
    for name, points in report["facts"].get("curves", {}).items():
        for point in points:
            yield from _at_step(f"curves/{name}", point)


def spend_values(report: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """What was spent as (MLflow key, value); nothing for a report that does not say."""
    if spend := report["facts"].get("spend", {}):
        yield COST_METRIC, total_usd(spend) or 0.0
        yield TOKENS_METRIC, float(num_tokens(spend))
    if judge := spend.get(JUDGE, {}):
        yield JUDGE_COST_METRIC, float(judge["cost_usd"])
        yield JUDGE_TOKENS_METRIC, float(num_tokens(judge))


def _ends(name: str, measure: Mapping[str, Any], *more: str) -> Iterator[tuple[str, int, float]]:
    for part in ("value", "low", "high", *more):
        if measure[part] is not None:
            yield tracking_key(name, "" if part == "value" else f"/{part}"), 0, float(measure[part])


def _at_step(prefix: str, point: Mapping[str, Any]) -> Iterator[tuple[str, int, float]]:
    for key, value in point.items():
        if key != "step" and value is not None:
            yield tracking_key(f"{prefix}/{key}"), int(point["step"]), float(value)


def _log_documents(client: "MlflowClient", run_id: str, run: RunSpec, folders: Mapping[str, Path]) -> None:
    client.log_dict(run_id, run.model_dump(mode="json"), "specification.json")
    for name, folder in folders.items():
        client.log_artifacts(run_id, str(folder), artifact_path=name)


def _sqlite_file(uri: str) -> Path | None:
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).absolute() if uri.startswith(prefix) else None
