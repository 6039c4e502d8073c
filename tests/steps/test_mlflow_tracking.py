"""One MLflow run for an evaluation, however often it is logged."""

from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import Evaluation, seal, write_json
from proxykd.config import RunSpec
from proxykd.exceptions import TrackingError
from proxykd.records import hash_json
from steps.adapters.mlflow_tracking import (
    EVALUATION_TAG,
    SPECIFICATION_TAG,
    connect,
    ensure_experiment,
    log_evaluation,
    named_values,
)

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

INTERVAL = {"value": 0.5, "low": 0.25, "high": None}
REPORT: dict[str, Any] = {
    "arms": {"sft": {"heldout_nll": INTERVAL, "accuracy/sums": {"value": None, "low": None, "high": None}}},
    "comparisons": [
        {
            "metric": "heldout_nll",
            "arm": "proxy_kd",
            "against": "sft",
            "slice": None,
            **INTERVAL,
            "p_value": 0.01,
            "mde": None,
        }
    ],
    "teacher": {"entropy": INTERVAL},
    "facts": {
        "spend": {"cost_usd": 1.5, "prompt_tokens": 30, "completion_tokens": 12},
        "curves": {"sft/seed-0": [{"step": 1, "loss": 2.0, "kl": None}, {"step": 2, "loss": 1.0, "kl": 0.5}]},
    },
}


@pytest.fixture
def run_spec() -> RunSpec:
    return RunSpec.model_validate(
        {
            "name": "tiny",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "tiny"},
        }
    )


@pytest.fixture
def evaluation(mlflow_store: Path, tmp_path: Path) -> Evaluation:
    found = Evaluation(tmp_path / "evaluation")
    write_json(found.path / "report.json", REPORT)
    seal(found)
    return found


def test_named_values_leave_out_what_was_not_measured() -> None:
    assert list(named_values(REPORT)) == [
        ("sft/heldout_nll", 0, 0.5),
        ("sft/heldout_nll/low", 0, 0.25),
        ("proxy_kd-vs-sft/heldout_nll", 0, 0.5),
        ("proxy_kd-vs-sft/heldout_nll/low", 0, 0.25),
        ("proxy_kd-vs-sft/heldout_nll/p_value", 0, 0.01),
        ("teacher/entropy", 0, 0.5),
        ("teacher/entropy/low", 0, 0.25),
        ("spend/cost_usd", 0, 1.5),
        ("spend/teacher_tokens", 0, 42.0),
        ("curves/sft/seed-0/loss", 1, 2.0),
        ("curves/sft/seed-0/loss", 2, 1.0),
        ("curves/sft/seed-0/kl", 2, 0.5),
    ]


def test_run_has_parameters_metrics_curves_and_documents(
    evaluation: Evaluation, run_spec: RunSpec, tmp_path: Path
) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.html").write_text("<p>docs</p>", encoding="utf-8")
    tracked = log_evaluation(evaluation, run_spec, documents={"data_docs": docs})
    client = connect()
    run = client.get_run(tracked.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["student.model.source"] == "embedded:student"
    assert run.data.metrics["sft/heldout_nll"] == 0.5
    history = client.get_metric_history(tracked.run_id, "curves/sft/seed-0/loss")
    assert [(point.step, point.value) for point in history] == [(1, 2.0), (2, 1.0)]
    names = {
        item.path for folder in ("", "report", "data_docs") for item in client.list_artifacts(tracked.run_id, folder)
    }
    assert {"specification.json", "report/report.json", "data_docs/index.html"} <= names
    assert (tmp_path / "mlartifacts").is_dir()


def test_slices_and_schemas_of_any_name_are_logged(mlflow_store: Path, run_spec: RunSpec, tmp_path: Path) -> None:
    sliced = [{**REPORT["comparisons"][0], "slice": name} for name in ("task=c++", "source=my data (v2).jsonl")]
    strange = Evaluation(tmp_path / "strange")
    write_json(strange.path / "report.json", {**REPORT, "comparisons": sliced})
    seal(strange)
    inner = {"a": {"$ref": "#/$defs/A"}}
    schema = {"type": "object", "$defs": {"A": {"type": "object"}}, "properties": inner}
    sampling = {"json_schema": schema}
    teacher = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "m", "sampling": sampling}
    plain = run_spec.model_dump(mode="json", exclude={"teacher"})
    plain["evaluation"]["exact_kl"] = False
    plain["prompts"] = {"kind": "jsonl", "path": "p.jsonl"}
    run = connect().get_run(log_evaluation(strange, RunSpec.model_validate({**plain, "teacher": teacher})).run_id)
    assert run.info.status == "FINISHED"
    assert [key for key in run.data.metrics if "/task:c__-" in key]
    assert [key for key in run.data.params if "_defs.A.type-" in key]


def test_same_evaluation_is_logged_once(evaluation: Evaluation, run_spec: RunSpec) -> None:
    first, again = log_evaluation(evaluation, run_spec), log_evaluation(evaluation, run_spec)
    assert (first.is_new, again.is_new) == (True, False)
    assert first.run_id == again.run_id
    assert len(connect().search_runs([first.experiment_id])) == 1


def start_run(evaluation: Evaluation, run_spec: RunSpec) -> Any:
    """A run as a crash leaves it: started, some values logged."""
    client, specification = connect(), run_spec.model_dump(mode="json")
    tags = {EVALUATION_TAG: evaluation.hash, SPECIFICATION_TAG: hash_json(specification)}
    started = client.create_run(ensure_experiment(client, "tiny"), tags=tags)
    client.log_metric(started.info.run_id, "sft/heldout_nll", 0.5, timestamp=started.info.start_time, step=0)
    client.log_param(started.info.run_id, "registry.model_name", "tiny")
    return started


def test_run_that_was_interrupted_is_completed(evaluation: Evaluation, run_spec: RunSpec) -> None:
    started, client = start_run(evaluation, run_spec), connect()
    tracked = log_evaluation(evaluation, run_spec)
    assert (tracked.run_id, tracked.is_new) == (started.info.run_id, True)
    assert client.get_run(tracked.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(tracked.run_id, "sft/heldout_nll")) == 1


def test_another_specification_of_the_same_evaluation_is_another_run(evaluation: Evaluation, run_spec: RunSpec) -> None:
    started = start_run(evaluation, run_spec)
    registry = run_spec.registry.model_copy(update={"model_name": "other"})
    tracked = log_evaluation(evaluation, run_spec.model_copy(update={"registry": registry}))
    assert tracked.run_id != started.info.run_id
    assert connect().get_run(tracked.run_id).data.params["registry.model_name"] == "other"


def test_a_server_that_does_not_answer_is_named_without_its_key(
    evaluation: Evaluation, run_spec: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:very-secret@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"expected MLflow at http://127.0.0.1:9 .*same command") as raised:
        log_evaluation(evaluation, run_spec)
    assert "very-secret" not in str(raised.value)


def test_an_artifact_store_that_cannot_be_written_is_said_and_completed_later(
    evaluation: Evaluation, run_spec: RunSpec, tmp_path: Path
) -> None:
    blocked = tmp_path / "store"
    blocked.write_text("a file where the store's folder should be")
    connect().create_experiment(run_spec.name, artifact_location=(blocked / "artifacts").as_uri())
    with pytest.raises(TrackingError, match=r"store: .* its disk and its permissions, then run the same command again"):
        log_evaluation(evaluation, run_spec)
    blocked.unlink()
    assert log_evaluation(evaluation, run_spec).is_new
    assert not log_evaluation(evaluation, run_spec).is_new
