"""What holds for every API's shape: nothing that arrives can harm, nothing secret is in what leaves."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message, Outcome, Prompt
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.providers.base import Provider, build_request
from proxykd.teacher.providers.gemini import GeminiProvider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Reply, load_logprobs, outcome_of
from tests.teacher.providers.shapes import anthropic_answer, as_body, gemini_answer, gemini_blocked, openai_answer

PROVIDERS: list[Provider] = [OpenAIProvider(), AnthropicProvider(), GeminiProvider()]
ANSWERS: list[Callable[..., dict[str, Any]]] = [openai_answer, anthropic_answer, gemini_answer]
PROMPT = Prompt.build([Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Ho"),
                       Message("user", "Hé")])  # fmt: skip
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
every_provider = pytest.mark.parametrize("provider", PROVIDERS, ids=lambda one: type(one).__name__)
both = pytest.mark.parametrize(
    ("provider", "answer"), list(zip(PROVIDERS, ANSWERS, strict=True)), ids=["openai", "anthropic", "gemini"]
)
statuses = st.sampled_from([200, 301, 400, 401, 402, 403, 404, 408, 413, 429, 500, 503, 529])
junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def _ask(provider: Provider, *, prompt: Prompt = PROMPT, idx: int = 0, model: str = "m", seed: int = 0,
         endpoint: str = "", **sampling: Any) -> Any:  # fmt: skip
    spec = SamplingSpec(**sampling)
    return build_request(prompt, idx, provider=provider, model=model, sampling=spec, seed=seed, endpoint=endpoint)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside ``value``."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, one in items for inner in _places(one, (*path, key)))]


def _with(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _with(value[path[0]], path[1:], new)
    return copy


def _is_sound(reply: Reply) -> None:
    assert outcome_of(reply)[0] in Outcome
    for text in (reply.text, reply.refusal, reply.error, reply.finish_reason, reply.model, reply.logprobs):
        text.encode()
    assert reply.error.isprintable()
    assert min(reply.prompt_tokens, reply.completion_tokens, reply.cached_tokens, reply.reasoning_tokens) >= 0
    load_logprobs(reply.logprobs)


@every_provider
@given(status=statuses, body=st.binary(max_size=60))
def test_any_bytes_are_judged(provider: Provider, status: int, body: bytes) -> None:
    verdict = provider.judge(status, body)
    _is_sound(verdict.reply)
    assert outcome_of(verdict.reply)[0] is Outcome.FAILED
    assert (verdict.is_final and verdict.is_retryable) == (status == 200)


@every_provider
@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"choices": ' * 5_000, b"9" * 10_000, b"\xff\xfe", b""])
def test_hostile_bodies_are_judged(provider: Provider, body: bytes) -> None:
    for status in (200, 400):
        _is_sound(provider.judge(status, body).reply)


@both
@given(data=st.data(), status=statuses, new=junk)
def test_an_answer_with_anything_in_any_place_is_judged(
    provider: Provider, answer: Callable[..., dict[str, Any]], data: st.DataObject, status: int, new: Any
) -> None:
    value = data.draw(st.sampled_from([answer(), gemini_blocked(), {"error": {"message": "no", "details": [{}]}}]))
    body = as_body(_with(value, data.draw(st.sampled_from(_places(value))), new))
    _is_sound(provider.judge(status, body).reply)


@both
def test_usage_is_kept_in_one_shape(provider: Provider, answer: Callable[..., dict[str, Any]]) -> None:
    reply = provider.judge(200, as_body(answer())).reply
    assert (reply.text, reply.refusal, reply.error, reply.finish_reason) == ("Hello.", "", "", "stop")
    assert (reply.prompt_tokens, reply.cached_tokens) == (30, 16)
    assert (reply.completion_tokens, reply.reasoning_tokens) == (20, 9)
    assert reply.model.endswith(("-2026", "-001"))


@every_provider
def test_a_body_holds_what_is_asked_and_no_secret(provider: Provider) -> None:
    request = _ask(provider, temperature=0.5, max_tokens=7, stop=("END",), json_schema=SCHEMA)
    text = json.dumps(request.body, ensure_ascii=False)
    for part in ("Be brief.", "Hi", "Ho", "Hé", "0.5", "7", "END", '"integer"'):
        assert part in text
    assert "sk-secret" in " ".join(provider.headers("sk-secret").values())
    assert "sk-secret" not in text + provider.url("https://api.example.com/v1", "m")
    assert not any(value is None for value in provider.headers(None).values())


@every_provider
def test_keys_differ_by_all_that_decides_an_answer(provider: Provider) -> None:
    keys = [
        _ask(provider).key,
        _ask(provider, prompt=Prompt.build([Message("user", "Ho")])).key,
        _ask(provider, idx=1).key,
        _ask(provider, model="n").key,
        _ask(provider, seed=1).key,
        _ask(provider, endpoint="api.example.com/v1").key,
        _ask(provider, temperature=0.5).key,
        _ask(provider, top_p=0.5).key,
        _ask(provider, max_tokens=5).key,
        _ask(provider, stop=("x",)).key,
        _ask(provider, json_schema=SCHEMA).key,
    ]
    assert len(set(keys)) == len(keys)
    assert _ask(provider, num_samples=4).key == keys[0]


@every_provider
def test_the_bound_of_a_call_can_be_read_and_raised(provider: Provider) -> None:
    body = _ask(provider, max_tokens=7).body
    raised = provider.with_max_tokens(body, 70)
    assert (provider.max_tokens_of(raised), provider.max_tokens_of(body)) == (70, 7)
    assert provider.with_max_tokens(raised, 7) == body
    with pytest.raises(ValueError, match="bound"):
        provider.max_tokens_of({"messages": [], "contents": []})


@every_provider
@given(text=st.text(max_size=30))
def test_the_bound_of_a_prompt_is_no_less_than_its_bytes(provider: Provider, text: str) -> None:
    body = _ask(provider, prompt=Prompt.build([Message("system", text), Message("user", "Hi " + text)])).body
    assert provider.prompt_tokens_of(body) >= 2 * len(text.encode("utf-8", "replace")) + 3
    longer = _ask(provider, json_schema=SCHEMA).body
    assert provider.prompt_tokens_of(longer) >= provider.prompt_tokens_of(_ask(provider).body) + len(json.dumps(SCHEMA))
