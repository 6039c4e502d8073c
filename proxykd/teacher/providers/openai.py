"""The OpenAI chat-completions shape, which vLLM, llama.cpp, Ollama and most routers speak too.

Checked against the API reference ("Chat", "Create chat completion") and the types of OpenAI's Python SDK. Reasoning
tokens are part of ``usage.completion_tokens``, cached ones part of ``usage.prompt_tokens``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message
from proxykd.teacher.providers.base import num_bytes
from proxykd.teacher.replies import (
    CONTENT_FILTER,
    Alternative,
    ApiError,
    Position,
    Reply,
    Verdict,
    alternative,
    as_count,
    as_object,
    as_text,
    dump_logprobs,
    judge_with,
)

MaxTokensParameter = Literal["max_tokens", "max_completion_tokens"]
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})


@dataclass(frozen=True, slots=True)
class OpenAIProvider:
    """Chat completions.

    Attributes:
        max_tokens_parameter: Name under which the endpoint takes ``sampling.max_tokens``.
    """

    max_tokens_parameter: MaxTokensParameter = "max_tokens"

    def url(self, base_url: str, model: str) -> str:
        """Where calls are POSTed."""
        return f"{base_url}/chat/completions"

    def headers(self, secret: str | None) -> dict[str, str]:
        """The key as a bearer token."""
        return {"Authorization": f"Bearer {secret}"} if secret else {}

    def body(self, messages: Sequence[Message], *, model: str, sampling: SamplingSpec, seed: int) -> dict[str, Any]:
        """The JSON object of a call."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.max_tokens_parameter: sampling.max_tokens,
            "seed": seed,
        }
        # What is not asked for is not sent: the keys of requests that never knew of it stay what they were.
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": sampling.top_logprobs}
        if sampling.json_schema is not None:
            schema = {"name": "completion", "schema": sampling.json_schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

    def judge(self, status: int, body: bytes) -> Verdict:
        """What an HTTP response means."""
        return judge_with(status, body, parse=_parse, read_error=_read_error, no_credit=_NO_CREDIT)

    def prompt_tokens_of(self, body: Mapping[str, Any]) -> int:
        """One token a byte of the messages, whose punctuation covers the template's own tokens, and of a schema."""
        return num_bytes(body["messages"]) + (num_bytes(body["response_format"]) if "response_format" in body else 0)

    def max_tokens_of(self, body: Mapping[str, Any]) -> int:
        """The stated bound."""
        limits = [body[name] for name in ("max_tokens", "max_completion_tokens") if name in body]
        if not limits:
            raise ValueError("expected a request with a bound on its completion's tokens")
        return int(max(limits))

    def with_max_tokens(self, body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """The same call with another bound."""
        return {**body, self.max_tokens_parameter: max_tokens}


def _parse(value: Any) -> Reply:
    choice, usage = value["choices"][0], as_object(value.get("usage"))
    message = choice["message"]
    return Reply(
        text=as_text(message.get("content")),
        refusal=as_text(message.get("refusal")),
        finish_reason=as_text(choice.get("finish_reason")),
        prompt_tokens=as_count(usage.get("prompt_tokens")),
        completion_tokens=as_count(usage.get("completion_tokens")),
        model=as_text(value.get("model")),
        cached_tokens=as_count(as_object(usage.get("prompt_tokens_details")).get("cached_tokens")),
        reasoning_tokens=as_count(as_object(usage.get("completion_tokens_details")).get("reasoning_tokens")),
        logprobs=dump_logprobs([_position(one) for one in as_object(choice.get("logprobs")).get("content") or []]),
    )


def _position(value: Any) -> Position:
    return Position(_alternative(value), [_alternative(one) for one in value.get("top_logprobs") or []])


def _alternative(value: Any) -> Alternative:
    return alternative(value["token"], value["logprob"], value.get("bytes"))


def _read_error(value: Any) -> ApiError | None:
    error = value.get("error")
    if isinstance(error, str):
        return ApiError(error, ())
    if not isinstance(error, dict):
        return None
    codes = {str(error.get("code", "")), str(error.get("type", ""))}
    metadata = error.get("metadata")
    if isinstance(metadata, dict) and "flagged_input" in metadata:  # how routers tell a moderated prompt, with 403
        codes.add(CONTENT_FILTER)
    return ApiError(str(error.get("message", "")), codes)
