"""Every API's shape through the whole stage: the right address and headers, one outcome a prompt, prices, odds."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.specification import RunSpec
from proxykd.exceptions import ConfigError, TeacherAuthError, TeacherError
from proxykd.records import Completion, Outcome
from proxykd.teacher.query import collect_prompts, query_teacher
from tests.support.endpoint import ScriptedEndpoint
from tests.teacher.providers.shapes import (
    anthropic_answer,
    anthropic_error,
    gemini_answer,
    gemini_blocked,
    gemini_error,
    openai_answer,
)

MakeRun = Callable[..., RunSpec]
KINDS: dict[str, tuple[Callable[..., dict[str, Any]], str, str]] = {
    "openai": (openai_answer, "/v1/chat/completions", "authorization"),
    "anthropic": (anthropic_answer, "/v1/messages", "x-api-key"),
    "gemini": (gemini_answer, "/v1/models/m-1:generateContent", "x-goog-api-key"),
}
PRICE = {
    "input_usd_per_million": 100.0,
    "output_usd_per_million": 1000.0,
    "cached_input_usd_per_million": 10.0,
}


@pytest.fixture
def ask(endpoint: ScriptedEndpoint, make_run: MakeRun, tmp_path: Path) -> Callable[..., list[Completion]]:
    """Asks six questions in the shape of a kind of teacher."""

    def call(kind: str, **changes: Any) -> list[Completion]:
        teacher = {"kind": kind, "base_url": endpoint.url, "model": "m-1", "concurrency": 2, **changes}
        run = make_run(teacher, [{"prompt": f"question {number}"} for number in range(6)])
        number = len(list(tmp_path.glob("prompts-*")))
        prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / f"prompts-{number}")
        output = tmp_path / f"completions-{number}"
        return list(query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=output).rows())

    return call


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_in_every_shape(
    endpoint: ScriptedEndpoint, ask: Callable[..., list[Completion]], tmp_path: Path, kind: str
) -> None:
    answer, path, header = KINDS[kind]
    endpoint.answer = lambda question: (200, answer(question.upper()))
    (tmp_path / "key").write_text("sk-in-a-file\n")
    rows = ask(kind, api_key_file=str(tmp_path / "key"), price=PRICE)
    assert [(row.text, row.outcome) for row in rows] == [(f"QUESTION {n}", Outcome.OK) for n in range(6)]
    assert {(row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.reasoning_tokens) for row in rows} == {
        (30, 16, 20, 9)
    }
    # 14 tokens in at 100, 16 cached at 10 and 20 out at 1000 USD a million.
    assert rows[0].cost_usd == pytest.approx((14 * 100 + 16 * 10 + 20 * 1000) / 1e6)
    assert endpoint.paths == {path}
    assert endpoint.headers[header].endswith("sk-in-a-file")
    assert ask(kind, price=PRICE) == rows
    assert endpoint.asked.total() == 6


@pytest.mark.parametrize("kind", ["openai", "gemini"])
def test_odds_are_kept_as_columns(endpoint: ScriptedEndpoint, ask: Callable[..., list[Completion]], kind: str) -> None:
    endpoint.answer = lambda question: (200, KINDS[kind][0]())
    logprobs = ask(kind, sampling={"top_logprobs": 2})[0].logprobs
    assert logprobs is not None
    assert [(one["token"], one["bytes"], len(one["top"])) for one in logprobs] in (
        [("Hello", b"Hello", 2), (".", b".", 0)],
        [("Hello", b"Hello", 2), (".", b".", 1)],
    )
    assert logprobs[0]["logprob"] == logprobs[0]["top"][0]["logprob"] == -0.25


def test_completions_that_are_not_valid_under_their_schema_are_failed(
    endpoint: ScriptedEndpoint, ask: Callable[..., list[Completion]]
) -> None:
    texts = {"question 0": '{"a": 1}', "question 1": '{"a": "1"}', "question 2": "one"}
    endpoint.answer = lambda question: (200, openai_answer(texts.get(question, '{"a": 1}')))
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    rows = ask("openai", sampling={"json_schema": schema})
    assert [row.outcome.value for row in rows] == ["ok", "failed", "failed", "ok", "ok", "ok"]
    assert "not valid under the schema: '1' is not of type 'integer' at $.a" in rows[1].reason
    ask("openai", sampling={"json_schema": schema})
    assert endpoint.asked.total() == 6  # paid for once: a failed row is data


def test_a_blocked_prompt_is_filtered_and_harms_no_neighbour(
    endpoint: ScriptedEndpoint, ask: Callable[..., list[Completion]]
) -> None:
    endpoint.answer = lambda question: (200, gemini_blocked() if question == "question 3" else gemini_answer())
    assert [row.outcome.value for row in ask("gemini")] == ["ok"] * 3 + ["filtered"] + ["ok"] * 2


@pytest.mark.parametrize(
    ("kind", "status", "body", "error"),
    [
        ("anthropic", 401, anthropic_error("authentication_error"), TeacherAuthError),
        ("anthropic", 400, anthropic_error("invalid_request_error", "Your credit balance is too low"), TeacherError),
        ("gemini", 400, gemini_error(400, "INVALID_ARGUMENT", {"reason": "API_KEY_INVALID"}), TeacherAuthError),
        ("openai", 400, {"error": {"message": "logprobs are not supported"}}, TeacherError),
    ],
)
def test_an_unusable_endpoint_costs_one_call(
    endpoint: ScriptedEndpoint,
    ask: Callable[..., list[Completion]],
    kind: str,
    status: int,
    body: dict[str, Any],
    error: type[TeacherError],
) -> None:
    endpoint.answer = lambda _: (status, body)
    with pytest.raises(error):
        ask(kind)
    assert endpoint.asked.total() == 1


def test_a_key_file_that_is_not_there_is_told_before_any_call(
    endpoint: ScriptedEndpoint, ask: Callable[..., list[Completion]]
) -> None:
    with pytest.raises(ConfigError, match=r"/nowhere/key"):
        ask("gemini", api_key_file="/nowhere/key")
    assert endpoint.asked.total() == 0


def test_a_refused_key_is_named_by_its_file(
    endpoint: ScriptedEndpoint, ask: Callable[..., list[Completion]], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("sk-1")
    endpoint.answer = lambda _: (401, json.dumps(anthropic_error("authentication_error", "bad sk-1")).encode())
    with pytest.raises(TeacherAuthError, match=rf"check the key in the file {tmp_path}/key"):
        ask("anthropic", api_key_file=str(tmp_path / "key"))
