"""generateContent: roles, blocked prompts, thoughts that are billed, errors that hide behind status 400 and 429."""

from typing import Any

import pytest

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message, Outcome
from proxykd.teacher.providers.gemini import GeminiProvider
from proxykd.teacher.replies import Alternative, Position, load_logprobs, outcome_of
from tests.teacher.providers.shapes import as_body, gemini_answer, gemini_blocked, gemini_error

PROVIDER = GeminiProvider()
TURNS = [Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Ho"), Message("user", "He")]
BAD_KEY = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


def _quota(name: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": name}]}


def test_the_shape_of_a_call() -> None:
    sampling = SamplingSpec(temperature=0.5, max_tokens=9, top_logprobs=3, stop=("X",), json_schema={"type": "object"})
    assert PROVIDER.body(TURNS, model="gemini", sampling=sampling, seed=1) == {
        "contents": [
            {"role": "user", "parts": [{"text": "Hi"}]},
            {"role": "model", "parts": [{"text": "Ho"}]},
            {"role": "user", "parts": [{"text": "He"}]},
        ],
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "generationConfig": {
            "temperature": 0.5,
            "topP": 1.0,
            "maxOutputTokens": 9,
            "seed": 1,
            "stopSequences": ["X"],
            "responseLogprobs": True,
            "logprobs": 3,
            "responseMimeType": "application/json",
            "responseJsonSchema": {"type": "object"},
        },
    }


@pytest.mark.parametrize("model", ["gemini-x", "models/gemini-x"])
def test_the_address_holds_the_model_and_never_the_key(model: str) -> None:
    assert PROVIDER.url("https://host/v1beta", model) == "https://host/v1beta/models/gemini-x:generateContent"
    assert PROVIDER.url("https://host/v1beta", "a/../b?key=1") == (
        "https://host/v1beta/models/a%2F..%2Fb%3Fkey%3D1:generateContent"
    )
    assert PROVIDER.headers("k") == {"x-goog-api-key": "k"}


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (gemini_answer(), Outcome.OK),
        (gemini_answer("Hel", "MAX_TOKENS"), Outcome.TRUNCATED),
        (gemini_answer("", "MAX_TOKENS"), Outcome.TRUNCATED),
        (gemini_answer("Hel", "SAFETY"), Outcome.FILTERED),
        (gemini_answer("", "RECITATION"), Outcome.FILTERED),
        (gemini_answer("", "PROHIBITED_CONTENT"), Outcome.FILTERED),
        (gemini_answer("", "OTHER"), Outcome.FAILED),
        (gemini_blocked(), Outcome.FILTERED),
    ],
)
def test_answers_and_their_outcomes(body: dict[str, Any], outcome: Outcome) -> None:
    verdict = PROVIDER.judge(200, as_body(body))
    assert outcome_of(verdict.reply)[0] is outcome
    assert (verdict.is_final, verdict.is_retryable) == (True, False)


def test_a_blocked_prompt_says_why_and_is_billed_for_its_prompt() -> None:
    reply = PROVIDER.judge(200, as_body(gemini_blocked("BLOCKLIST"))).reply
    assert outcome_of(reply) == (Outcome.FILTERED, "the prompt was blocked: BLOCKLIST")
    assert PROVIDER.judge(200, as_body(gemini_blocked("\x1b[2J"))).reply.error == "the prompt was blocked:  [2J"
    assert (reply.prompt_tokens, reply.completion_tokens) == (30, 0)


def test_no_candidate_without_a_reason_is_malformed() -> None:
    verdict = PROVIDER.judge(200, as_body({"usageMetadata": {}}))
    assert verdict.is_retryable
    assert "no candidate" in verdict.reply.error


def test_log_probabilities_are_kept_by_position() -> None:
    hello, dot, hi = Alternative("Hello", None, -0.25), Alternative(".", None, -0.5), Alternative("Hi", None, -2.5)
    reply = PROVIDER.judge(200, as_body(gemini_answer())).reply
    assert load_logprobs(reply.logprobs) == [Position(hello, [hello, hi]), Position(dot, [dot])]


@pytest.mark.parametrize(
    ("status", "error", "stops", "is_final", "is_retryable"),
    [
        (400, gemini_error(400, "INVALID_ARGUMENT"), "", True, False),
        (400, gemini_error(400, "INVALID_ARGUMENT", BAD_KEY), "key", False, False),
        (400, gemini_error(400, "FAILED_PRECONDITION"), "key", False, False),
        (403, gemini_error(403, "PERMISSION_DENIED"), "key", False, False),
        (404, gemini_error(404, "NOT_FOUND"), "", False, False),
        (429, gemini_error(429, "RESOURCE_EXHAUSTED", _quota("GenerateRequestsPerMinute")), "", False, True),
        (
            429,
            gemini_error(429, "RESOURCE_EXHAUSTED", _quota("GenerateRequestsPerDayPerModel")),
            "credit",
            False,
            False,
        ),
        (500, gemini_error(500, "INTERNAL"), "", False, True),
        (503, gemini_error(503, "UNAVAILABLE"), "", False, True),
    ],
)
def test_errors_and_what_comes_of_them(
    status: int, error: dict[str, Any], stops: str, is_final: bool, is_retryable: bool
) -> None:
    verdict = PROVIDER.judge(status, as_body(error))
    assert (verdict.stops, verdict.is_final, verdict.is_retryable) == (stops, is_final, is_retryable)
