"""Keys without requests are the keys of the requests, whatever is asked of whom; only what is missing is built."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.artifacts import PromptSet
from proxykd.config.loading import load_query
from proxykd.config.sampling import SamplingSpec
from proxykd.config.specification import DataSplitSpec
from proxykd.config.teacher import OpenAITeacherSpec
from proxykd.data.shares import Share
from proxykd.exceptions import TeacherError
from proxykd.records import Message, Prompt
from proxykd.teacher.calls import CALLS_AT_ONCE, Calls, RequestKeys, escape
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.providers.base import Provider, build_request
from proxykd.teacher.providers.gemini import GeminiProvider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Request

PROVIDERS: list[Provider] = [
    OpenAIProvider(),
    OpenAIProvider("max_completion_tokens"),
    AnthropicProvider(),
    GeminiProvider(),
]
SCHEMA = {"type": "object", "properties": {"%s": {"enum": ['"', "\n", "é", 0.1, 10**20, None]}}, "additional%": False}
surrogates = st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF, categories=("Cs",))
plain = (
    st.characters(exclude_categories=("Cs",))
    | st.characters(max_codepoint=0x7F)
    | st.sampled_from('%"\\/<>{}\x7f\u2028')
)
storable = st.text(plain, max_size=20)
texts = st.text(plain | surrogates, max_size=20)
roles = st.sampled_from(["system", "user", "assistant", "tool %"])
samplings = st.builds(
    SamplingSpec,
    temperature=st.floats(0.0, 2.0),
    top_p=st.floats(0.0, 1.0, exclude_min=True),
    max_tokens=st.integers(1, 2**40),
    top_logprobs=st.integers(0, 20),
    json_schema=st.none() | st.just(SCHEMA),
    stop=st.lists(storable.filter(len), max_size=4).map(tuple),
)


def prompts_of(contents: st.SearchStrategy[str]) -> st.SearchStrategy[Prompt]:
    return st.lists(st.builds(Message, roles, contents), max_size=5).map(Prompt.build)


def key_of(keys: RequestKeys, prompt: Prompt, sample_idx: int) -> str:
    contents = [escape(turn.content) for turn in prompt.messages]
    return keys.of(prompt.prompt_id, tuple(turn.role for turn in prompt.messages), contents, sample_idx)


@given(
    provider=st.sampled_from(PROVIDERS),
    prompts=st.lists(prompts_of(texts), min_size=1, max_size=4),
    sampling=samplings,
    model=storable,
    seed=st.integers(0, 2**63),
    endpoint=st.just("") | storable,
    sample_idx=st.integers(0, 10**6),
)
def test_a_key_is_that_of_the_request(
    provider: Provider,
    prompts: list[Prompt],
    sampling: SamplingSpec,
    model: str,
    seed: int,
    endpoint: str,
    sample_idx: int,
) -> None:
    about: dict[str, Any] = {"provider": provider, "model": model, "sampling": sampling, "seed": seed}
    keys = RequestKeys(**about, endpoint=endpoint)
    for prompt in prompts:
        request = build_request(prompt, sample_idx, **about, endpoint=endpoint)
        assert key_of(keys, prompt, sample_idx) == request.key
        assert request.key == hashlib.sha256(request.asked.encode("utf-8", "surrogateescape")).hexdigest()


def test_the_key_of_a_request_is_for_ever() -> None:
    # {"provider":...,"request":{...},"sample_idx":1} with sorted keys; its seed is the hash of [7,"<prompt id>",1].
    prompt = Prompt.build([Message("system", "Be brief."), Message("user", 'Say "é"\n')])
    number = int(hashlib.sha256(f'[7,"{prompt.prompt_id}",1]'.encode()).hexdigest()[:8], 16) % 2**31
    messages = [{"content": "Be brief.", "role": "system"}, {"content": 'Say "é"\n', "role": "user"}]
    body = {"max_tokens": 512, "messages": messages, "model": "m", "seed": number, "temperature": 1.0, "top_p": 1.0}
    asked = {"provider": "api.example.com/v1", "request": body, "sample_idx": 1}
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    keys = RequestKeys(
        provider=OpenAIProvider(), model="m", sampling=SamplingSpec(), seed=7, endpoint="api.example.com/v1"
    )
    assert key_of(keys, prompt, 1) == hashlib.sha256(text.encode()).hexdigest()
    assert key_of(keys, prompt, 1) == "053f0607007dfaf226d70b43217be083b1da5ca0acaef1093b3dddd2c8f570a5"


def _teacher(num_samples: int) -> LiveTeacher:
    teacher = {"kind": "openai", "base_url": "http://localhost:1/v1", "model": "m"}
    run = load_query(
        {
            "seed": 3,
            "prompts": {"kind": "jsonl", "path": "questions"},
            "teacher": {**teacher, "sampling": {"num_samples": num_samples}},
        }
    )
    assert isinstance(run.teacher, OpenAITeacherSpec)
    return LiveTeacher.of(run, run.teacher)


def _calls(prompts: Sequence[Prompt], num_samples: int, *, start: int = 0) -> Calls:
    batch = Prompt.to_batch(prompts)[start:]
    return _teacher(num_samples).calls_about(batch)


@given(prompts=st.lists(prompts_of(storable), max_size=6), num_samples=st.integers(1, 3), data=st.data())
def test_calls_are_those_of_the_prompts_in_their_order(
    prompts: list[Prompt], num_samples: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(prompts)))
    calls, teacher = _calls(prompts, num_samples, start=start), _teacher(num_samples)
    expected = [(prompt, *call) for prompt in prompts[start:] for call in teacher.requests_of(prompt)]
    assert calls.keys == [request.key for *_, request in expected]
    assert list(calls.select(range(len(calls.keys)))) == expected
    known = set(data.draw(st.lists(st.sampled_from(calls.keys)))) if calls.keys else set()
    missing = [(prompt, idx, request) for prompt, idx, request in expected if request.key not in known]
    assert list(calls.select(calls.without(known))) == missing
    found = calls.look_up(lambda keys: known.intersection(keys))
    assert found.num_missing == len(missing)
    assert list(found.missing) == [request for *_, request in missing]
    assert list(found.known) == [key for key in calls.keys if key in known]


@pytest.mark.parametrize("share", [None, Share(0.5, is_main=True, split=DataSplitSpec())])
def test_calls_of_a_whole_artifact_are_those_of_its_rows(tmp_path: Path, share: Share | None) -> None:
    prompts, teacher = PromptSet(tmp_path / "prompts"), replace(_teacher(2), share=share)
    turns = [Message("user", "One"), Message("assistant", "Two"), Message("user", "%s")]
    prompts.write(Prompt.build([Message("user", f"Question {n}"), *turns[: n % 3]]) for n in range(3000))
    found = [key for calls in teacher.calls(prompts) for key in calls.keys]
    assert found == [request.key for *_, request in teacher.requests(prompts)]
    assert len(found) == teacher.num_requests(prompts) <= 6000
    assert (len(found) < 6000) == (share is not None)
    assert max(len(calls.keys) for calls in teacher.calls(prompts)) <= CALLS_AT_ONCE


def test_of_calls_that_are_known_no_request_is_built() -> None:
    def build(prompt: Prompt, sample_idx: int) -> Request:
        raise AssertionError(prompt)

    calls = _calls([Prompt.build([Message("user", f"Question {n}")]) for n in range(3)], 2)
    unbuilt = replace(calls, build=build)
    assert unbuilt.look_up(set).num_missing == 0
    assert not list(unbuilt.look_up(set).missing)
    _, missing, *_ = calls.keys
    found = unbuilt.look_up(lambda keys: set(keys) - {missing})
    assert found.num_missing == 1
    with pytest.raises(AssertionError, match="Question 0"):
        next(found.missing)


def test_a_request_whose_key_is_another_is_never_sent() -> None:
    calls = _calls([Prompt.build([Message("user", "Hi")])], 1)
    other = replace(calls, build=lambda prompt, idx: Request("0" * 64, {}))
    with pytest.raises(TeacherError, match="report this"):
        list(other.select([0]))
