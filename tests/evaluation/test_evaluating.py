"""The stage as a whole, on real tiny models: what is written, and that it can be computed again from its rows."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.bars import CHAMPION_PREDICTIONS, compare_registered, compare_with_champion
from proxykd.evaluation.decision import comparison, decide
from proxykd.evaluation.evaluating import evaluate
from proxykd.evaluation.metrics import metric_of
from proxykd.models.loading import load_model, load_tokenizer, save_model


@pytest.fixture(scope="module")
def report(evaluation: Evaluation) -> dict[str, Any]:
    return read_json(evaluation.path / "report.json")


@pytest.fixture(scope="module")
def rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    return list(pq.read_table(evaluation.path / "predictions.parquet").to_pylist())


def test_artifact_is_sealed_and_knows_what_it_was_made_from(evaluation: Evaluation, validated: ValidatedSet) -> None:
    evaluation.verify()
    assert evaluation.manifest["made_from"]["validated"] == validated.hash
    assert evaluation.manifest["made_from"]["student"] == "ab" * 32


def test_report_can_be_computed_again_from_the_predictions(report: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    for arm, measures in report["arms"].items():
        mine = [row for row in rows if row["arm"] == arm]
        for seed in (3, 4):
            of_seed = [row for row in mine if row["seed"] == seed]
            tokens = sum(row["num_tokens"] for row in of_seed)
            nll = sum(row["nll_sum"] for row in of_seed) / tokens
            assert measures["heldout_nll"]["per_seed"][str(seed)] == pytest.approx(nll)
            assert measures["heldout_nll"]["num_tokens"] == tokens
        per_seed = list(measures["heldout_nll"]["per_seed"].values())
        assert measures["heldout_nll"]["value"] == pytest.approx(np.mean(per_seed))
        assert measures["heldout_nll"]["std_over_seeds"] == pytest.approx(np.std(per_seed, ddof=1))
        assert measures["heldout_nll"]["low"] <= measures["heldout_nll"]["value"] <= measures["heldout_nll"]["high"]
        kl = [row for row in mine if row["kl_sum"] is not None]
        assert measures["exact_kl"]["value"] == pytest.approx(
            sum(row["kl_sum"] for row in kl) / sum(row["num_tokens"] for row in kl)
        )
        assert measures["exact_kl"]["num_prompts"] == 6


def test_untrained_model_is_about_as_far_as_a_uniform_one(report: dict[str, Any], run_spec: RunSpec) -> None:
    uniform = math.log(load_model(run_spec.student.model, seed=0).config.vocab_size)
    entropy = report["teacher"]["entropy"]["value"]
    for measures in report["arms"].values():
        assert measures["heldout_nll"]["value"] == pytest.approx(uniform, rel=0.05)
        assert measures["exact_kl"]["value"] == pytest.approx(uniform - entropy, rel=0.05)
        assert measures["accuracy/sums"]["num_prompts"] == 5


def test_every_arm_has_the_same_prompts(rows: list[dict[str, Any]]) -> None:
    prompts = {key: [] for key in {(row["arm"], row["seed"]) for row in rows}}  # type: ignore[var-annotated]
    for row in rows:
        prompts[row["arm"], row["seed"]].append(row["prompt_id"])
    assert len(prompts) == 4
    assert len({tuple(ids) for ids in prompts.values()}) == 1


def test_generated_answers_are_kept(rows: list[dict[str, Any]]) -> None:
    answered = [row["answers"] for row in rows if row["answers"]]
    assert len(answered) == 4 * 5
    assert answered[0][0].keys() == {"task", "text", "answer", "is_correct", "confidence"}


def test_paired_difference_is_in_the_report(report: dict[str, Any]) -> None:
    found = comparison(report, "heldout_nll", "proxy_kd", "sft")
    assert found is not None
    arms = report["arms"]
    difference = arms["proxy_kd"]["heldout_nll"]["value"] - arms["sft"]["heldout_nll"]["value"]
    assert found["value"] == pytest.approx(difference)
    assert found["low"] <= found["value"] <= found["high"]
    assert set(found["per_seed"]) == {"3", "4"}


def test_the_page_waits_for_the_decision(evaluation: Evaluation) -> None:
    assert not [path.name for path in evaluation.path.iterdir() if path.suffix in (".html", ".png")]


@pytest.mark.integration
def test_same_seed_gives_the_same_report(
    evaluation: Evaluation,
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    run_spec: RunSpec,
    tmp_path: Path,
) -> None:
    facts = json.loads(json.dumps(read_json(evaluation.path / "report.json")["facts"]))
    again = evaluate(
        arms, validated, splits, run_spec, facts=facts, output=tmp_path / "output", scratch=tmp_path / "scratch"
    )
    for name in ("predictions.parquet",):
        assert again.manifest["files"][name] == evaluation.manifest["files"][name]


def test_champion_is_compared_with_the_seed_that_would_be_registered(
    evaluation: Evaluation,
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    run_spec: RunSpec,
    tmp_path: Path,
) -> None:
    def compared(champion: Path) -> dict[str, Any]:
        return compare_with_champion(evaluation, champion, validated, splits, run_spec, scratch=tmp_path)

    itself = compared(arms["proxy_kd"][0])
    found = comparison(itself, "heldout_nll", "registered", "champion")
    assert found is not None
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0, 0, 0), abs=1e-9)
    assert decide(itself, run_spec.gate, {"version": "1"}).outcome != "promote"
    # It is an arm like any other, asked the tasks too: that of the student, which it is.
    for metric, own in itself["arms"]["proxy_kd"].items():
        if metric in itself["arms"]["champion"] and metric != "pass_rate":
            assert itself["arms"]["champion"][metric]["value"] == pytest.approx(own["per_seed"]["3"]), metric
    assert any(metric.startswith("accuracy/") for metric in itself["arms"]["champion"])
    said = pq.read_table(tmp_path / CHAMPION_PREDICTIONS).to_pylist()
    assert any(row["answers"] for row in said)
    other = comparison(compared(arms["sft"][0]), "heldout_nll", "registered", "champion")
    per_seed = {arm: itself["arms"][arm]["heldout_nll"]["per_seed"]["3"] for arm in ("proxy_kd", "sft")}
    assert other is not None
    assert other["value"] == pytest.approx(per_seed["proxy_kd"] - per_seed["sft"])


def test_the_first_version_is_decided_on_the_seed_that_would_be_registered(
    evaluation: Evaluation, report: dict[str, Any], run_spec: RunSpec
) -> None:
    extended = compare_registered(evaluation, run_spec)
    found = comparison(extended, "heldout_nll", "registered", "first_sft")
    means = comparison(extended, "heldout_nll", "proxy_kd", "sft")
    assert found is not None
    assert means is not None
    assert found["value"] == pytest.approx(means["per_seed"]["3"])
    assert found["value"] != pytest.approx(means["value"])
    assert f"{found['value']:+.4f}" in decide(extended, run_spec.gate, None).checks[0].text
    assert decide(report, run_spec.gate, None).outcome == "undecided"


def test_champion_with_another_tokenizer_is_not_compared(
    evaluation: Evaluation,
    validated: ValidatedSet,
    splits: SplitSet,
    run_spec: RunSpec,
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer(run_spec.student.model)
    tokenizer.add_tokens(["pears and apples"])
    save_model(load_model(run_spec.student.model, seed=0), tokenizer, tmp_path / "champion")
    report = compare_with_champion(evaluation, tmp_path / "champion", validated, splits, run_spec, scratch=tmp_path)
    decision = decide(report, run_spec.gate, {"version": "2"})
    assert decision.outcome == "undecided"
    assert "tokenizer" in decision.reasons[0]
    assert "registry.model_name" in decision.reasons[0]
    shown = set(report["arms"]["champion"])
    assert shown
    assert not [metric for metric in shown if metric_of(metric).is_per_token]


def test_metrics_that_are_no_ratio_of_sums_can_guard(
    evaluation: Evaluation,
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    run_spec: RunSpec,
    tmp_path: Path,
) -> None:
    guards = [{"metric": metric, "margin": 0.5} for metric in ("perplexity", "ece/tokens", "length_ratio")]
    gate = run_spec.gate.model_validate({"guards": guards, "min_prompts": 3})
    run = run_spec.model_copy(update={"gate": gate})
    champion = compare_with_champion(evaluation, arms["sft"][0], validated, splits, run, scratch=tmp_path)
    values = {arm: champion["arms"][arm] for arm in ("proxy_kd", "sft")}
    for metric in ("perplexity", "ece/tokens"):
        found = comparison(champion, metric, "registered", "champion")
        assert found is not None
        difference = values["proxy_kd"][metric]["per_seed"]["3"] - values["sft"][metric]["per_seed"]["3"]
        assert found["value"] == pytest.approx(difference)
        assert found["low"] < found["value"] < found["high"]
    checks = {check.name: check for check in decide(champion, gate, {"version": "1"}).checks}
    assert checks["guard ece/tokens against champion"].passed is not None
    refused = checks["guard length_ratio against champion"]
    assert refused.passed is None
    assert "perplexity" in refused.text
    assert "ece/tokens" in refused.text
