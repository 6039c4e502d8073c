"""Every step that asks an API is known from the specification alone, with its key's variable and where the API is."""

from typing import Any

import pytest

from proxykd.config.addresses import Way
from proxykd.config.asking import Asking, askings_of

LIVE: dict[str, Any] = {"kind": "openai", "model": "m", "api_key": "${SOME_KEY}"}
JUDGE: dict[str, Any] = {"drift": {}, "judge": {"teacher": {**LIVE, "api_key": "${JUDGES_KEY}"},
                                                "duels": [{"against": "teacher"}]}}  # fmt: skip
OPENAI: tuple[str, Way] = ("api.openai.com:443", "internet")
PROMPTS = {"kind": "jsonl", "path": "prompts.jsonl"}


def test_recorded_texts_are_asked_for_by_nobody(make_run: Any) -> None:
    assert askings_of(make_run()) == ()


@pytest.mark.parametrize("metric", ["win_rate/teacher", "win_rate/*"])
def test_the_judge_is_asked_by_the_evaluation_and_where_the_gate_names_it_by_the_promotion(
    make_run: Any, metric: str
) -> None:
    without = make_run(prompts=PROMPTS, teacher=LIVE, evaluation=JUDGE)
    asked = (Asking("query_teacher", "SOME_KEY", *OPENAI), Asking("evaluate_student", "JUDGES_KEY", *OPENAI))
    assert askings_of(without) == asked
    named = make_run(
        prompts=PROMPTS, teacher=LIVE, evaluation=JUDGE, gate={"guards": [{"metric": metric, "margin": 0.1}]}
    )
    assert askings_of(named) == (*asked, Asking("promote_model", "JUDGES_KEY", *OPENAI))


def test_where_it_asks_is_told_with_the_port(make_run: Any) -> None:
    def asked(address: str) -> Asking:
        teacher = {"kind": "openai", "model": "m", "base_url": address}
        (asking,) = askings_of(make_run(prompts=PROMPTS, teacher=teacher))
        return asking

    assert asked("http://localhost:8000/v1") == Asking("query_teacher", None, "localhost:8000", "loopback")
    assert asked("https://[fd00::1]/v1") == Asking("query_teacher", None, "[fd00::1]:443", "elsewhere")
