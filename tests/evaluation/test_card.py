"""The model card says what, how good and from what."""

from typing import Any

import pytest
from huggingface_hub import ModelCard

from proxykd.artifacts import Evaluation, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.card import model_card
from proxykd.evaluation.lineage import build_lineage
from proxykd.evaluation.report import spend_line


def _card(report: dict[str, Any], run: RunSpec) -> str:
    journal = {
        "root": "c" * 64,
        "stages": [{"stage": 0, "first_answer_at": "2026-01-02", "last_answer_at": "2026-01-03"}],
    }
    artifacts = report["facts"]["made_from"]
    return model_card(report, run, build_lineage(report, run, journal=journal, artifacts=artifacts, inputs=None))


def test_card_has_numbers_lineage_and_teacher(evaluation: Evaluation, run_spec: RunSpec) -> None:
    card = _card(read_json(evaluation.path / "report.json"), run_spec)
    assert "\n# tiny\n" in card
    assert "the embedded teacher" in card
    assert "| Proxy-KD |" in card
    assert "seed 3" in card
    assert "ab" * 32 in card
    assert "100 completions, USD 0.25" in card


def test_the_card_of_a_staged_run_names_every_teacher(evaluation: Evaluation, run_spec: RunSpec) -> None:
    sections = run_spec.model_dump(mode="json", exclude={"evaluation"})
    cheap = {"kind": "openai", "model": "cheap"}
    changes = {
        "prompts": {"kind": "jsonl", "path": "rows.jsonl"},
        "teacher": {"kind": "openai", "model": "better"},
        "staging": {"earlier": [{"teacher": cheap}]},
    }
    spend = {
        "num_completions": 30,
        "cost_usd": 1.5,
        "teachers": [
            {"model": "cheap", "num_prompts": 20, "outcomes": {"ok": 19, "failed": 1}, "cost_usd": 0.5},
            {"model": "better", "num_prompts": 10, "outcomes": {"ok": 10}, "cost_usd": 1.0},
        ],
    }
    report = read_json(evaluation.path / "report.json")
    report["facts"]["spend"] = spend
    card = _card(report, RunSpec.model_validate({**sections, **changes}))
    assert "distilled from `cheap`, then `better` through" in card
    assert "1. `cheap`: 20 completions of 20 prompts, USD 0.50" in card
    assert "2. `better`: 10 completions of 10 prompts, USD 1.00" in card
    assert spend_line(report).endswith("1.50 USD; cheap: 20, 0.50 USD; better: 10, 1.00 USD")


def test_the_hub_reads_the_head_of_the_card(evaluation: Evaluation, run_spec: RunSpec) -> None:
    report = read_json(evaluation.path / "report.json")
    read = ModelCard(_card(report, run_spec), ignore_metadata_errors=False)
    data = read.data
    assert (data.license, data.pipeline_tag, data.library_name) == ("unknown", "text-generation", "transformers")
    assert data.model_name == "tiny"
    assert (data.base_model, data.datasets, data.language) == (None, None, None)
    results = {one.metric_type: one for one in data.eval_results}
    measured = report["arms"]["proxy_kd"]
    assert {name: one.metric_value for name, one in results.items()} == {
        name: measure["value"] for name, measure in measured.items() if measure["value"] is not None
    }
    assert results["heldout_nll"].metric_args["low"] == measured["heldout_nll"]["low"]
    # The parser's own output is the same card again.
    assert ModelCard(str(read)).data.to_dict() == data.to_dict()


def test_the_hub_names_what_it_has_and_no_folder_of_the_user(evaluation: Evaluation, run_spec: RunSpec) -> None:
    sections = run_spec.model_dump(mode="json", exclude={"evaluation"})
    sections |= {
        "prompts": {"kind": "huggingface", "source": "owner/data", "terms": {"licence": "CC-BY-4.0"}},
        "teacher": {"kind": "recorded", "model": "gpt", "terms": {"licence": "OpenAI terms", "allows_training": False}},
        "registry": {"model_name": "tiny", "licence": "Apache-2.0", "language": ["en", "de"]},
    }
    sections["student"]["model"]["source"] = "owner/base"
    report = read_json(evaluation.path / "report.json")
    card = _card(report, RunSpec.model_validate(sections))
    data = ModelCard(card).data
    assert (data.license, data.base_model, data.datasets) == ("apache-2.0", "owner/base", ["owner/data"])
    assert data.language == ["en", "de"]
    assert "| answers of `gpt`, 2026-01-02 to 2026-01-03 | OpenAI terms | no | unknown | unknown |" in card
    assert "| prompts | CC-BY-4.0 | unknown | unknown | unknown |" in card
    sections["prompts"]["source"] = "/home/someone/secret-project"
    assert "secret-project" not in _card(report, RunSpec.model_validate(sections))


@pytest.mark.parametrize(("stated", "shown"), [("MIT", ("mit", None)), ("Our own terms", ("other", "Our own terms"))])
def test_a_licence_without_an_identifier_goes_by_its_name(
    evaluation: Evaluation, run_spec: RunSpec, stated: str, shown: tuple[str, str | None]
) -> None:
    registry = run_spec.registry.model_copy(update={"licence": stated})
    run = run_spec.model_copy(update={"registry": registry})
    data = ModelCard(_card(read_json(evaluation.path / "report.json"), run)).data
    assert (data.license, data.license_name) == shown
