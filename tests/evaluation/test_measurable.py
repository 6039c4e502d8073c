"""The names that a gate may use: what a mistyped one is told, and before anything is paid."""

import copy
from typing import Any

import pytest

from proxykd.config import RunSpec
from proxykd.evaluation.measurable import check_gate, measured_metrics
from proxykd.exceptions import ConfigError
from tests.evaluation.conftest import SPECIFICATION

TASKS = [
    {"kind": "exact_match", "name": "sums", "answer_pattern": r"(\d+)"},
    {"kind": "pass_at_k", "name": "code", "file": "code.jsonl", "k": [1, 5]},
]


def _run(gate: dict[str, Any], **evaluation: Any) -> RunSpec:
    sections = copy.deepcopy(SPECIFICATION)
    sections["evaluation"] |= {"tasks": TASKS, "drift": {}, **evaluation}
    return RunSpec.model_validate({**sections, "gate": gate})


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ({"primary": {"metric": "heldout_nl"}}, r"gate\.primary\.metric: .*'heldout_nl' \(did you mean 'heldout_nll'"),
        ({"guards": [{"metric": "accurcy/*", "margin": 0.1}]}, r"gate\.guards: .*'accurcy/\*' \(did you mean 'accur"),
        ({"guards": [{"metric": "accuracy/sum", "margin": 0.1}]}, "did you mean 'accuracy/sums'"),
        ({"guards": [{"metric": "pass@2/code", "margin": 0.1}]}, "did you mean 'pass@"),
        ({"slices": [{"slice": "task=*", "metric": "acc", "margin": 0.1}]}, r"gate\.slices: .* got 'acc'"),
        ({"limits": [{"name": "usdd", "at_most": 1}]}, r"gate\.limits: .*'usdd' \(did you mean 'usd'"),
        ({"limits": [{"name": "tokens_per_s", "at_least": 1}]}, "got 'tokens_per_s'.* it measures .*size_gb"),
        ({"primary": {"metric": "win_rate/teacher"}}, "or measure it .*judge"),
        ({"primary": {"metric": "length_ratio"}}, "better one way, got 'length_ratio'"),
    ],
)
def test_a_gate_that_names_what_nobody_measures_is_refused(gate: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_gate(_run(gate))


@pytest.mark.parametrize(
    "gate",
    [
        {},
        {"primary": {"metric": "exact_kl"}, "guards": [{"metric": "accuracy/*", "margin": 0.1}]},
        {"guards": [{"metric": "pass@*", "margin": 0.1}], "limits": [{"name": "length_ratio", "at_most": 2}]},
        {"limits": [{"name": "usd", "at_most": 1}, {"name": "heldout_nll", "at_most": 2}]},
    ],
)
def test_a_gate_that_names_what_is_measured_passes(gate: dict[str, Any]) -> None:
    check_gate(_run(gate))


def test_metrics_that_only_the_harness_knows_pass_for_its_tasks_alone() -> None:
    harness = {"tasks": [{"kind": "harness", "name": "arc_easy"}]}
    check_gate(_run({"guards": [{"metric": "f1/arc_easy", "margin": 0.1}]}, **harness))
    with pytest.raises(ConfigError, match="arc_hard"):
        check_gate(_run({"guards": [{"metric": "f1/arc_hard", "margin": 0.1}]}, **harness))


def test_the_win_rate_is_measured_where_a_judge_compares_with_the_teacher() -> None:
    judge = {"teacher": {"kind": "openai", "model": "m"}, "duels": [{"arm": "proxy_kd", "against": "teacher"}]}
    check_gate(_run({"primary": {"metric": "win_rate/teacher"}}, judge=judge))
    for other in ({"duels": [{"arm": "proxy_kd", "against": "sft"}]}, {"kind": "graded"}):
        assert "win_rate/teacher" not in measured_metrics(_run({}, judge={**judge, **other}).evaluation)
