"""The Messages API: where system messages go, how replies end, which errors stop a run."""

from typing import Any

import pytest

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message, Outcome
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.replies import outcome_of
from tests.teacher.providers.shapes import anthropic_answer, anthropic_error, as_body

SPENT = {"error_code": "enforced_spend_limit_reached"}
PROVIDER = AnthropicProvider()
TURNS = [Message("system", "Be brief."), Message("user", "Hi"), Message("system", "In verse."), Message("user", "Ho")]


def test_system_messages_stand_beside_the_turns() -> None:
    body = PROVIDER.body(TURNS, model="claude", sampling=SamplingSpec(max_tokens=9), seed=1)
    assert body == {
        "model": "claude",
        "max_tokens": 9,
        "messages": [{"role": "user", "content": "Hi"}, {"role": "user", "content": "Ho"}],
        "system": "Be brief.\n\nIn verse.",
    }


def test_only_settings_that_differ_from_its_defaults_are_sent() -> None:
    body = PROVIDER.body(TURNS[1:2], model="m", sampling=SamplingSpec(temperature=0.5, stop=("X",)), seed=1)
    assert (body["temperature"], body["stop_sequences"]) == (0.5, ["X"])
    assert not {"top_p", "seed", "system", "output_config"} & set(body)


def test_the_address_and_the_headers() -> None:
    assert PROVIDER.url("https://api.anthropic.com/v1", "m") == "https://api.anthropic.com/v1/messages"
    assert PROVIDER.headers("k") == {"anthropic-version": "2023-06-01", "x-api-key": "k"}
    assert PROVIDER.headers(None) == {"anthropic-version": "2023-06-01"}


@pytest.mark.parametrize(
    ("text", "stop_reason", "outcome"),
    [
        ("Hi.", "end_turn", Outcome.OK),
        ("Hi.", "stop_sequence", Outcome.OK),
        ("Hi", "max_tokens", Outcome.TRUNCATED),
        ("", "max_tokens", Outcome.TRUNCATED),
        ("Hi", "model_context_window_exceeded", Outcome.TRUNCATED),
        ("I cannot", "refusal", Outcome.REFUSED),
        ("", "refusal", Outcome.REFUSED),
        ("", "end_turn", Outcome.FAILED),
    ],
)
def test_answers_and_their_outcomes(text: str, stop_reason: str, outcome: Outcome) -> None:
    verdict = PROVIDER.judge(200, as_body(anthropic_answer(text, stop_reason)))
    assert outcome_of(verdict.reply)[0] is outcome
    assert (verdict.is_final, verdict.is_retryable) == (True, False)


@pytest.mark.parametrize(
    ("status", "error", "stops", "is_final", "is_retryable"),
    [
        (400, anthropic_error("invalid_request_error"), "", True, False),
        (400, anthropic_error("invalid_request_error", "Your credit balance is too low to access"), "credit", 0, 0),
        (401, anthropic_error("authentication_error"), "key", False, False),
        (402, anthropic_error("billing_error"), "credit", False, False),
        (403, anthropic_error("permission_error"), "key", False, False),
        (404, anthropic_error("not_found_error"), "", False, False),
        (413, anthropic_error("request_too_large"), "", True, False),
        (429, anthropic_error("rate_limit_error"), "", False, True),
        (429, anthropic_error("rate_limit_error", details=SPENT), "credit", 0, 0),
        (500, anthropic_error("api_error"), "", False, True),
        (529, anthropic_error("overloaded_error"), "", False, True),
    ],
)  # fmt: skip
def test_errors_and_what_comes_of_them(
    status: int, error: dict[str, Any], stops: str, is_final: bool, is_retryable: bool
) -> None:
    verdict = PROVIDER.judge(status, as_body(error))
    assert (verdict.stops, verdict.is_final, verdict.is_retryable) == (stops, bool(is_final), bool(is_retryable))
    assert verdict.reply.error.startswith(f"HTTP {status}: ")
