"""Every response amounts to exactly one outcome, and a request's key is what was asked, nothing else."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message, Outcome, Prompt
from proxykd.teacher.providers.base import build_request
from proxykd.teacher.providers.openai import MaxTokensParameter, OpenAIProvider
from proxykd.teacher.replies import Alternative, Position, Request, load_logprobs, outcome_of
from tests.teacher.providers.shapes import as_body, openai_answer

judge = OpenAIProvider().judge
_PROMPT = Prompt.build([Message("user", "Hi")])


def _body(text: Any = "Hello.", finish_reason: Any = "stop", **message: Any) -> bytes:
    choice = {"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 2}
    return json.dumps({"model": "m", "choices": [choice], "usage": usage}).encode()


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (_body(), Outcome.OK),
        (_body([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo."}]), Outcome.OK),
        (_body("Hel", "length"), Outcome.TRUNCATED),
        (_body("", "length"), Outcome.TRUNCATED),
        (_body(None, "content_filter"), Outcome.FILTERED),
        (_body(None, refusal="I cannot."), Outcome.REFUSED),
        (_body(" \n"), Outcome.FAILED),
        (_body(None), Outcome.FAILED),
    ],
)
def test_answers_and_their_outcomes(body: bytes, outcome: Outcome) -> None:
    verdict = judge(200, body)
    assert outcome_of(verdict.reply)[0] is outcome
    assert verdict.is_final
    assert not verdict.is_retryable


def test_usage_and_model_are_kept() -> None:
    reply = judge(200, _body()).reply
    assert (reply.prompt_tokens, reply.completion_tokens, reply.model) == (3, 2, "m")


@given(st.binary(max_size=60))
def test_any_bytes_are_judged(body: bytes) -> None:
    verdict = judge(200, body)
    assert outcome_of(verdict.reply)[0] is Outcome.FAILED
    assert verdict.is_final
    assert verdict.is_retryable


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["choices", "message", "content", "usage", "finish_reason", "error"]), inner, max_size=3
            )
        ),
    ),
    st.sampled_from([200, 400, 500]),
)
def test_any_json_is_judged(value: Any, status: int) -> None:
    assert outcome_of(judge(status, json.dumps(value).encode()).reply)[0] in Outcome


def test_a_lone_surrogate_cannot_harm_what_is_stored() -> None:
    reply = judge(200, _body("a\ud800b")).reply
    assert reply.text == "a?b"


@pytest.mark.parametrize(
    ("status", "is_final", "is_retryable"),
    [(400, True, False), (422, True, False), (404, False, False), (429, False, True), (503, False, True)],
)
def test_errors_and_what_comes_of_them(status: int, is_final: bool, is_retryable: bool) -> None:
    verdict = judge(status, b'{"error": {"message": "no", "code": "bad"}}')
    assert (verdict.is_final, verdict.is_retryable) == (is_final, is_retryable)
    assert outcome_of(verdict.reply) == (Outcome.FAILED, f"HTTP {status}: no")


def test_a_filter_that_answers_with_an_error_is_filtered() -> None:
    verdict = judge(400, b'{"error": {"message": "policy", "code": "content_filter"}}')
    assert outcome_of(verdict.reply) == (Outcome.FILTERED, "HTTP 400: policy")


@pytest.mark.parametrize("status", [400, 403, 429, 500])
def test_a_filter_is_final_and_stops_nobody_whatever_its_status(status: int) -> None:
    verdict = judge(status, b'{"error": {"message": "policy", "code": "content_filter"}}')
    assert (verdict.is_final, verdict.is_retryable, verdict.stops) == (True, False, "")


@pytest.mark.parametrize(
    ("status", "error", "stops"),
    [
        (401, {}, "key"),
        (403, {}, "key"),
        (402, {}, "credit"),
        (429, {"code": "insufficient_quota"}, "credit"),
        (429, {"type": "insufficient_quota"}, "credit"),
        (400, {"code": "billing_hard_limit_reached"}, "credit"),
        (429, {"code": "rate_limit_exceeded"}, ""),
        (400, {}, ""),
        (404, {}, ""),
        (500, {}, ""),
    ],
)
def test_what_no_other_request_would_fare_better_with(status: int, error: dict[str, str], stops: str) -> None:
    verdict = judge(status, json.dumps({"error": {"message": "no", **error}}).encode())
    assert verdict.stops == stops
    assert not (stops and (verdict.is_final or verdict.is_retryable))


def test_an_endpoints_words_cannot_steer_a_terminal() -> None:
    verdict = judge(500, json.dumps({"error": {"message": "a\x1b[2Jb\nc"}}).encode())
    assert verdict.reply.error == "HTTP 500: a [2Jb c"


def test_keys_differ_by_all_that_is_asked_and_by_the_sample() -> None:
    def key(
        prompt: Prompt = _PROMPT, idx: int = 0, model: str = "m", seed: int = 0, endpoint: str = "", **sampling: Any
    ) -> str:
        return build_request(
            prompt,
            idx,
            provider=OpenAIProvider(),
            model=model,
            sampling=SamplingSpec(**sampling),
            seed=seed,
            endpoint=endpoint,
        ).key

    keys = [
        key(),
        key(Prompt.build([Message("user", "Ho")])),
        key(idx=1),
        key(model="n"),
        key(seed=1),
        key(endpoint="api.example.com/v1"),
        key(temperature=0.5),
        key(top_p=0.5),
        key(max_tokens=5),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    assert key(num_samples=4) == keys[0]


def test_the_longest_completion_goes_under_the_name_that_the_endpoint_takes() -> None:
    def ask(name: MaxTokensParameter = "max_tokens") -> Request:
        provider = OpenAIProvider(name)
        return build_request(_PROMPT, 0, provider=provider, model="m", sampling=SamplingSpec(max_tokens=7), seed=0)

    assert (ask().body["max_tokens"], "max_completion_tokens" in ask().body) == (7, False)
    renamed = ask("max_completion_tokens").body
    assert (renamed["max_completion_tokens"], "max_tokens" in renamed) == (7, False)
    assert ask("max_tokens") == ask()


def test_keys_of_requests_stay_what_they_were() -> None:
    """Another key would pay again for every answer in every journal that exists."""
    prompt = Prompt.build([Message("system", "Be brief."), Message("user", "Hé")])
    sampling = SamplingSpec(temperature=0.7, top_p=0.9, max_tokens=64, num_samples=3)
    first = build_request(
        prompt,
        1,
        provider=OpenAIProvider(),
        model="gpt-4o-mini",
        sampling=sampling,
        seed=7,
        endpoint="api.openai.com/v1",
    )
    renaming = OpenAIProvider("max_completion_tokens")
    second = build_request(prompt, 0, provider=renaming, model="m", sampling=SamplingSpec(), seed=0)
    assert first.key == "55a913481cc8670863e6ab8cd8a4353816567537e6833711ebea9d509cf8edf5"
    assert second.key == "2cc81c1222f93be64f4503f21ebe4fa523403804e2bdc3ea598a75a32156c31d"


def test_cached_and_reasoning_tokens_are_kept() -> None:
    body = json.loads(_body())
    body["usage"] = {
        "prompt_tokens": 30,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 16},
        "completion_tokens_details": {"reasoning_tokens": 9},
    }
    reply = judge(200, json.dumps(body).encode()).reply
    assert (reply.prompt_tokens, reply.cached_tokens) == (30, 16)
    assert (reply.completion_tokens, reply.reasoning_tokens) == (20, 9)


@pytest.mark.parametrize("provider", [OpenAIProvider(), OpenAIProvider("max_completion_tokens")])
def test_the_bound_of_a_call_can_be_read_and_raised(provider: OpenAIProvider) -> None:
    body = provider.body(_PROMPT.messages, model="m", sampling=SamplingSpec(max_tokens=7), seed=0)
    assert provider.max_tokens_of(body) == 7
    raised = provider.with_max_tokens(body, 70)
    assert (provider.max_tokens_of(raised), provider.max_tokens_of(body)) == (70, 7)
    assert {**raised, **body} == body
    with pytest.raises(ValueError, match="bound"):
        provider.max_tokens_of({"messages": []})


def test_what_is_asked_beyond_a_text() -> None:
    sampling = SamplingSpec(top_logprobs=3, stop=("X",), json_schema={"type": "object"})
    body = OpenAIProvider().body(_PROMPT.messages, model="m", sampling=sampling, seed=0)
    assert (body["logprobs"], body["top_logprobs"], body["stop"]) == (True, 3, ["X"])
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "completion", "schema": {"type": "object"}, "strict": True},
    }


def test_log_probabilities_are_kept_with_their_bytes() -> None:
    reply = judge(200, as_body(openai_answer())).reply
    hello = Alternative("Hello", None, -0.25)
    assert load_logprobs(reply.logprobs) == [
        Position(hello, [hello, Alternative("\ufffd", b"\xf0\x9f", -2.5)]),
        Position(Alternative(".", None, 0.0), []),
    ]
