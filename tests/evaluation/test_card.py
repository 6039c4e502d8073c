"""The model card says what, how good and from what."""

from proxykd.artifacts import Evaluation, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.card import model_card
from proxykd.evaluation.report import spend_line


def test_card_has_numbers_lineage_and_teacher(evaluation: Evaluation, run_spec: RunSpec) -> None:
    card = model_card(read_json(evaluation.path / "report.json"), run_spec)
    assert card.startswith("# tiny\n")
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
    card = model_card(report, RunSpec.model_validate({**sections, **changes}))
    assert "distilled from `cheap`, then `better` through" in card
    assert "1. `cheap`: 20 completions of 20 prompts, USD 0.50" in card
    assert "2. `better`: 10 completions of 10 prompts, USD 1.00" in card
    assert spend_line(report).endswith("1.50 USD; cheap: 20, 0.50 USD; better: 10, 1.00 USD")
