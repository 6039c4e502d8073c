"""What every answer amounts to, and log-probabilities that come back as they went in."""

import json
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.records import Outcome
from proxykd.teacher.budget import Tariff
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import (
    Alternative,
    Position,
    Reply,
    alternative,
    as_count,
    dump_logprobs,
    load_logprobs,
    outcome_of,
    parse_json,
    plain,
)

texts = st.text(st.characters(codec="utf-8"), max_size=5)
alternatives = st.builds(Alternative, texts, st.none() | st.binary(max_size=4), st.floats(-1e4, 0.0))
positions = st.lists(st.builds(Position, alternatives, st.lists(alternatives, max_size=3)), max_size=4)
replies = st.builds(
    Reply,
    text=st.text(max_size=5),
    refusal=st.text(max_size=3),
    finish_reason=st.sampled_from(["", "stop", "length", "content_filter", "tool_calls"]),
    error=st.sampled_from(["", "HTTP 500: oh"]),
)


@given(replies)
def test_outcome_rules_hold_for_every_reply(reply: Reply) -> None:
    outcome, reason = outcome_of(reply)
    assert (reason == "") == (outcome is Outcome.OK)
    if outcome is Outcome.OK:
        assert reply.text.strip()
        assert reply.error == reply.refusal == ""
        assert reply.finish_reason not in ("length", "content_filter")
    assert (outcome is Outcome.FILTERED) == (reply.finish_reason == "content_filter")
    if outcome is Outcome.TRUNCATED:
        assert reply.finish_reason == "length"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": 502, "message": "m"}, 502),
        ({"code": "429", "message": "m"}, 429),
        ({"code": 400, "message": "m"}, 400),
        ({"code": 402, "message": "m"}, 402),
        ({"code": 401, "message": "m"}, 401),
        ({"code": 200, "message": "m"}, 502),
        ({"code": "server_error", "message": "m"}, 502),
        ({"code": "content_filter", "message": "m"}, 502),
        ({"message": "m"}, 502),
        ({"code": None, "message": "m"}, 502),
        ("m", 502),
    ],
)
def test_an_error_with_status_200_means_what_its_code_means_and_tells_no_price(error: object, status: int) -> None:
    body = json.dumps({"error": error}).encode()
    found, plainly = OpenAIProvider().judge(200, body), OpenAIProvider().judge(status, body)
    assert found.reply.error == f"HTTP 200 with an error {status}: m"
    assert found._replace(reply=plainly.reply) == plainly
    assert found.reply.finish_reason == plainly.reply.finish_reason
    assert not Tariff.is_told(200, found.reply)


@pytest.mark.parametrize("body", [{"error": None}, {"choices": []}, [], "error"])
def test_a_body_without_an_error_stays_malformed(body: object) -> None:
    found = OpenAIProvider().judge(200, json.dumps(body).encode())
    assert (found.is_final, found.is_retryable) == (True, True)
    assert "malformed" in found.reply.error


@given(positions)
def test_log_probabilities_come_back_as_they_went_in(said: list[Position]) -> None:
    assert load_logprobs(dump_logprobs(said)) == said


def test_half_a_character_keeps_its_bytes_and_a_whole_one_needs_none() -> None:
    assert alternative("é", -0.5, [0xC3, 0xA9]) == Alternative("é", None, -0.5)
    assert alternative("\ufffd", -1, [0xC3]) == Alternative("\ufffd", b"\xc3", -1.0)
    assert dump_logprobs([Position(alternative("a", -1), [])]) == '[["a",null,-1.0,[]]]'


@pytest.mark.parametrize("value", [True, -1, 1.5, "3", 2**31])
def test_what_is_no_count_of_tokens_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="number of tokens"):
        as_count(value)


def test_a_body_that_nests_too_deeply_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested"):
        parse_json(b"[" * 100_000)


def test_an_endpoints_words_are_plain_and_short() -> None:
    assert plain("a\x1b[2J\n\ud800b") == "a [2J  b"
    assert len(plain("x" * 10_000)) == 300


def test_a_stored_reply_that_knows_fewer_parts_still_loads() -> None:
    stored = '{"text": "Hi", "refusal": "", "finish_reason": "stop", "prompt_tokens": 3, "completion_tokens": 1}'
    reply = Reply(**json.loads(stored))
    assert (reply.cached_tokens, reply.reasoning_tokens, reply.logprobs, reply.is_batched) == (0, 0, "", False)
    assert Reply(**json.loads(json.dumps(asdict(reply)))) == reply
