"""What a report holds beside sums, on real tiny models with tasks of their own files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from proxykd.artifacts import SplitSet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.config.evaluation import EvaluationSpec
from proxykd.evaluation.evaluating import evaluate
from proxykd.evaluation.measurable import measured_metrics


@pytest.fixture(scope="module")
def asked(run_spec: RunSpec, tmp_path_factory: pytest.TempPathFactory) -> RunSpec:
    """The specification with a multiple-choice task over a file, and free answers."""
    file = tmp_path_factory.mktemp("questions") / "picks.jsonl"
    rows = [
        {"prompt": f"Pick {row}", "choices": ["7", "8", "9"], "answer": row % 3, "level": row % 2} for row in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tasks = [
        {"kind": "exact_match", "name": "sums", "answer_pattern": r"(\d)", "max_new_tokens": 6, "limit": 5},
        {"kind": "multiple_choice", "name": "picks", "file": file, "slice_field": "level"},
    ]
    drift = {"num_prompts": 4, "max_new_tokens": 6, "answer_pattern": r"(\d)"}
    settings = {"tasks": tasks, "drift": drift, "speed": None, "resamples": 100, "calibration_bins": 4}
    return run_spec.model_copy(update={"evaluation": EvaluationSpec.model_validate(settings)})


@pytest.fixture(scope="module")
def output(
    asked: RunSpec,
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    root = tmp_path_factory.mktemp("measured")
    for name in ("first", "again"):
        evaluate(
            {arm: folders[:1] for arm, folders in arms.items()},
            validated,
            splits,
            asked,
            facts={},
            output=root / name,
            scratch=root / f"scratch-{name}",
            journals=root / "journals",
        )
    return root


@pytest.fixture(scope="module")
def report(output: Path) -> dict[str, Any]:
    return read_json(output / "first" / "report.json")


def test_every_answer_is_kept_and_gives_the_metrics_again(output: Path, report: dict[str, Any]) -> None:
    rows = pq.read_table(output / "first" / "answers.parquet").to_pylist()
    assert {row["task"] for row in rows} == {"sums", "picks", "free-answers"}
    for arm, measures in report["arms"].items():
        sums: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            if row["arm"] == arm:
                for one in row["sums"]:
                    sums.setdefault(one["metric"], []).append((one["numerator"], one["denominator"]))
        assert {"accuracy/picks", "accuracy/sums", "refusal_rate", "length_ratio"} <= sums.keys()
        for metric, pairs in sums.items():
            above, below = np.sum(pairs, axis=0)
            assert measures[metric]["value"] == pytest.approx(above / below)
    assert {name for row in rows if row["task"] == "picks" for name in row["slices"]} == {
        "picks/level=0",
        "picks/level=1",
    }


def test_second_evaluation_takes_the_answers_from_the_journal(output: Path) -> None:
    first, again = (pq.read_table(output / name / "answers.parquet") for name in ("first", "again"))
    assert first.equals(again)
    journals = list((output / "journals").glob("*.jsonl"))
    assert len(journals) == 2
    for journal in journals:
        keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
        assert len(keys) == len(set(keys))


def test_calibration_has_an_error_an_interval_and_bins(report: dict[str, Any]) -> None:
    found = report["calibration"]
    assert {"tokens", "picks"} <= set(found) <= {"tokens", "picks", "sums"}
    for arm, measures in report["arms"].items():
        tokens = found["tokens"][arm]
        assert measures["ece/tokens"]["value"] == tokens["value"]
        assert tokens["low"] <= tokens["high"]
        assert sum(one["count"] for one in tokens["bins"]) == tokens["num_outcomes"]
        assert tokens["num_outcomes"] == measures["heldout_nll"]["num_tokens"]
        # How often the first choice is right is the top-1 agreement.
        right = sum(one["count"] * one["outcome"] for one in tokens["bins"])
        assert right / tokens["num_outcomes"] == pytest.approx(measures["top1_agreement"]["value"])


def test_perplexity_is_the_exponential_of_the_nll(report: dict[str, Any]) -> None:
    for measures in report["arms"].values():
        for name in ("value", "low", "high"):
            assert measures["perplexity"][name] == pytest.approx(np.exp(measures["heldout_nll"][name]))


def test_metrics_are_described(report: dict[str, Any]) -> None:
    described = report["metrics"]
    assert described["accuracy/picks"]["is_judgement"]
    assert described["ece/tokens"]["direction"] == described["brier/picks"]["direction"] == "lower"
    assert described["length_ratio"]["direction"] == "none"
    names = {name for measures in report["arms"].values() for name in measures}
    assert set(described) == names


def test_the_names_that_a_gate_may_use_are_those_of_the_report(report: dict[str, Any], asked: RunSpec) -> None:
    # A task whose models never wrote an answer has no confidence, so no ECE.
    assert set(measured_metrics(asked.evaluation)) - set(report["metrics"]) <= {"ece/sums"}
    assert set(report["metrics"]) <= set(measured_metrics(asked.evaluation))


def test_every_measure_has_what_the_others_have(report: dict[str, Any]) -> None:
    for measures in report["arms"].values():
        assert all(measure.keys() == measures["heldout_nll"].keys() for measure in measures.values())


def test_size_stands_among_the_resources(report: dict[str, Any], arms: dict[str, list[Path]]) -> None:
    size = sum(file.stat().st_size for file in arms["proxy_kd"][0].iterdir())
    assert report["facts"]["resources"] == {"size_gb": pytest.approx(size / 1e9)}
