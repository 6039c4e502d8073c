"""What becomes of a completion that ended at its limit: at most one further call, with a key of its own.

    keep      none
    retry     the same request with a larger limit; its text takes the place of the first
    continue  the conversation so far, the first text and the request to go on; both texts together

A further call is journaled and budgeted like any other, so it is never bought twice; if it gets no answer, or an error,
the first text stays, as truncated. A continued text is not a sample of the teacher's distribution at its seam.
"""

import json
from dataclasses import replace
from typing import Any

from proxykd.config.sampling import SamplingSpec
from proxykd.config.teacher import ApiTeacherSpec
from proxykd.records import Message, Prompt
from proxykd.teacher.providers.base import Provider, request_of
from proxykd.teacher.replies import LENGTH, Reply, Request

GO_ON = "Go on exactly where your last message stopped. Repeat nothing of it, and add no remark."
"""What is asked of a teacher that is to continue."""


def is_truncated(reply: Reply) -> bool:
    """Whether a reply holds a text that its limit cut off."""
    return reply.finish_reason == LENGTH and not reply.error and not reply.refusal


def follow_up(spec: ApiTeacherSpec, provider: Provider, prompt: Prompt, first: Request, reply: Reply) -> Request | None:
    """The further call that a truncated reply asks for; None = there is none to make.

    Args:
        spec: The policy.
        provider: The API's shape.
        prompt: What was asked.
        first: The call that was cut off.
        reply: What it gave.
    """
    if spec.on_truncated == "keep" or not is_truncated(reply):
        return None
    if spec.on_truncated == "retry":
        return _with_body(
            first, provider.with_max_tokens(first.body, spec.truncated_max_tokens or 2 * spec.sampling.max_tokens)
        )
    if not reply.text.strip():
        return None
    messages = [*prompt.messages, Message("assistant", reply.text), Message("user", GO_ON)]
    return _with_body(first, provider.body(messages, model=spec.model, sampling=_rest(spec), seed=_seed_of(first)))


def join(spec: ApiTeacherSpec, first: Reply, further: Reply) -> Reply:
    """Both replies as one: the texts as the policy says, the tokens of both."""
    if further.error or further.refusal or not further.text:
        kept = first
    elif spec.on_truncated == "retry":
        kept = further
    else:
        kept = replace(first, text=first.text + further.text, finish_reason=further.finish_reason, logprobs="")
    return replace(
        kept,
        prompt_tokens=first.prompt_tokens + further.prompt_tokens,
        completion_tokens=first.completion_tokens + further.completion_tokens,
        cached_tokens=first.cached_tokens + further.cached_tokens,
        reasoning_tokens=first.reasoning_tokens + further.reasoning_tokens,
    )


def _rest(spec: ApiTeacherSpec) -> SamplingSpec:
    """How the rest of a text is asked for: not under a schema, which only the whole can fulfil."""
    max_tokens = spec.truncated_max_tokens or spec.sampling.max_tokens
    return spec.sampling.model_copy(update={"max_tokens": max_tokens, "json_schema": None, "top_logprobs": 0})


def _seed_of(request: Request) -> int:
    asked = json.loads(request.asked)
    return int(asked.get("seed", request.body.get("seed", 0)))


def _with_body(first: Request, body: dict[str, Any]) -> Request:
    identity = {name: value for name, value in json.loads(first.asked).items() if name != "request"}
    return request_of(body, {**identity, "follows": first.key})
