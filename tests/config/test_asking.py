"""Every step that asks an API is known from the specification alone, with its key's variable and where the API is."""

from typing import Any

import pytest

from proxykd.config.asking import Asking, askings_of

LIVE: dict[str, Any] = {"kind": "openai", "model": "m", "api_key": "${SOME_KEY}"}
JUDGE: dict[str, Any] = {"drift": {}, "judge": {"teacher": {**LIVE, "api_key": "${JUDGES_KEY}"},
                                                "duels": [{"against": "teacher"}]}}  # fmt: skip
PROMPTS = {"kind": "jsonl", "path": "prompts.jsonl"}


def test_recorded_texts_are_asked_for_by_nobody(make_run: Any) -> None:
    assert askings_of(make_run()) == ()


@pytest.mark.parametrize("metric", ["win_rate/teacher", "win_rate/*"])
def test_the_judge_is_asked_by_the_evaluation_and_where_the_gate_names_it_by_the_promotion(
    make_run: Any, metric: str
) -> None:
    without = make_run(prompts=PROMPTS, teacher=LIVE, evaluation=JUDGE)
    asked = (Asking("query_teacher", "SOME_KEY", True), Asking("evaluate_student", "JUDGES_KEY", True))
    assert askings_of(without) == asked
    named = make_run(
        prompts=PROMPTS, teacher=LIVE, evaluation=JUDGE, gate={"guards": [{"metric": metric, "margin": 0.1}]}
    )
    assert askings_of(named) == (*asked, Asking("promote_model", "JUDGES_KEY", True))


@pytest.mark.parametrize(
    ("address", "is_outside"),
    [
        ("https://api.openai.com/v1", True),
        ("https://api.openai.com:443/v1", True),
        ("https://api.example.com:8443/v1", False),
        ("http://api.example.com/v1", False),
        ("http://vllm:8000/v1", False),
        ("https://vllm.models.svc.cluster.local/v1", False),
        ("https://10.1.2.3/v1", False),
        ("https://8.8.8.8/v1", True),
    ],
)
def test_only_what_is_public_lies_behind_the_way_outside(make_run: Any, address: str, is_outside: bool) -> None:
    (asking,) = askings_of(make_run(prompts=PROMPTS, teacher={"kind": "openai", "model": "m", "base_url": address}))
    assert asking == Asking("query_teacher", None, is_outside)
