"""The judge within an evaluation: free answers of real tiny models, judged over a real endpoint, decided on."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.bars import Journals, compare_registered, compare_with_champion
from proxykd.evaluation.decision import comparison, decide
from proxykd.evaluation.evaluating import evaluate
from proxykd.evaluation.report import spend_line
from proxykd.exceptions import BudgetError, ConfigError
from tests.evaluation.conftest import FACTS, SPECIFICATION
from tests.evaluation.test_judge import prefers_the_longer

DUELS = [
    {"arm": "proxy_kd", "against": "sft"},
    {"arm": "proxy_kd", "against": "teacher"},
    {"arm": "sft", "against": "teacher"},
]
Evaluate = Callable[..., Evaluation]


@pytest.fixture
def judged_spec(endpoint: Any) -> RunSpec:
    """Two arms are judged against the teacher and against each other; the win rate decides."""
    endpoint.answer = lambda request: (200, endpoint.chat(prefers_the_longer(request)))
    sections = copy.deepcopy(SPECIFICATION)
    sections["student"]["seeds"] = [3]
    sections["evaluation"] |= {
        "exact_kl": False,
        "tasks": [],
        "drift": {"num_prompts": 6, "max_new_tokens": 8},
        "judge": {"teacher": {"kind": "openai", "base_url": endpoint.url, "model": "referee"}, "duels": DUELS},
    }
    sections["gate"] = {"primary": {"metric": "win_rate/teacher"}, "guards": [], "min_prompts": 3}
    return RunSpec.model_validate(sections)


@pytest.fixture
def evaluated(
    arms: dict[str, list[Path]], validated: ValidatedSet, splits: SplitSet, judged_spec: RunSpec, tmp_path: Path
) -> Evaluate:
    first = {arm: folders[:1] for arm, folders in arms.items()}

    def run(name: str = "one", **changes: Any) -> Evaluation:
        scratch = tmp_path / f"{name}-scratch"
        scratch.mkdir()
        paid = {"journal_path": tmp_path / "journal.sqlite", **changes}
        return evaluate(
            first, validated, splits, judged_spec, facts=FACTS, output=tmp_path / name, scratch=scratch, **paid
        )

    return run


def test_verdicts_are_in_the_report_and_decide(
    evaluated: Evaluate,
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    judged_spec: RunSpec,
    endpoint: Any,
    tmp_path: Path,
) -> None:
    evaluation = evaluated()
    report = read_json(evaluation.path / "report.json")
    assert [(duel["arm"], duel["against"]) for duel in report["judge"]["duels"]] == [
        (duel["arm"], duel["against"]) for duel in DUELS
    ]
    # 6 prompts, 3 duels, both orders; equal requests are asked once.
    assert 0 < report["judge"]["fates"]["scored"] <= 36
    rates = {duel["arm"]: duel["win_rate"]["value"] for duel in report["judge"]["duels"][1:]}
    assert {arm: report["arms"][arm]["win_rate/teacher"]["value"] for arm in rates} == rates
    assert comparison(report, "win_rate/teacher", "proxy_kd", "sft") is not None
    verdicts = pq.read_table(evaluation.path / "verdicts.parquet").to_pylist()
    assert len(verdicts) == 18
    assert decide(compare_registered(evaluation, judged_spec), judged_spec.gate, None).outcome != "promote"
    asked = endpoint.asked.total()
    assert read_json(evaluated("again").path / "report.json")["judge"] == report["judge"]
    assert endpoint.asked.total() == asked

    champion = compare_with_champion(
        evaluation,
        arms["proxy_kd"][0],
        validated,
        splits,
        judged_spec,
        scratch=tmp_path,
        journals=Journals(paid=tmp_path / "journal.sqlite"),
    )
    found = comparison(champion, "win_rate/teacher", "registered", "champion")
    assert found is not None
    assert found["value"] == 0.0
    assert endpoint.asked.total() == asked, "the champion is the same model: its answers were judged before"


def test_without_a_journal_nobody_judges_for_money(evaluated: Evaluate, endpoint: Any) -> None:
    with pytest.raises(ConfigError, match="journal"):
        evaluated(journal_path=None)
    assert not endpoint.asked


def test_a_judge_needs_something_to_read(judged_spec: RunSpec) -> None:
    sections = judged_spec.model_dump(mode="json")
    sections["evaluation"]["drift"] = None
    with pytest.raises(ValidationError, match=r"evaluation\.drift"):
        RunSpec.model_validate(sections)


def test_the_same_request_is_counted_once_and_the_spend_is_the_sum(evaluated: Evaluate, judged_spec: RunSpec) -> None:
    spent = FACTS["spend"]["cost_usd"]
    report = read_json(evaluated().path / "report.json")
    judge = report["facts"]["spend"]["judge"]
    assert judge["requests"] == report["judge"]["requests"] <= 36
    assert judge["completion_tokens"] == report["judge"]["completion_tokens"] > 0
    assert report["resources"]["usd"] == pytest.approx(spent + judge["cost_usd"])
    assert "judge: " in spend_line(report)


@pytest.mark.parametrize("num_left", [0, 1])
def test_the_caps_hold_for_the_arms_and_the_champion_together(
    evaluated: Evaluate,
    arms: dict[str, list[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    judged_spec: RunSpec,
    endpoint: Any,
    tmp_path: Path,
    num_left: int,
) -> None:
    evaluation = evaluated()
    cap, sections = endpoint.asked.total() + num_left, judged_spec.model_dump(mode="json")
    sections["evaluation"]["judge"]["teacher"]["budget"] = {"requests": cap}

    def compare() -> dict[str, Any]:
        return compare_with_champion(
            evaluation,
            arms["sft"][1],
            validated,
            splits,
            RunSpec.model_validate(sections),
            scratch=tmp_path,
            journals=Journals(paid=tmp_path / "journal.sqlite"),
        )

    with pytest.raises(BudgetError, match="allows no further call"):
        compare()
    assert endpoint.asked.total() == cap
    sections["evaluation"]["judge"]["teacher"]["budget"] = {"requests": cap + 12}
    spend = compare()["facts"]["spend"]["judge"]
    assert spend["requests"] == endpoint.asked.total() <= cap + 12
