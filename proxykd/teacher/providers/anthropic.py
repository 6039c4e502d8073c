"""The Anthropic Messages API.

Checked against its reference ("Create a Message", "Errors", "Handling stop reasons", "Structured outputs") and the
types of Anthropic's Python SDK. What differs from the others:

- System messages stand beside the turns, joined by blank lines.
- It takes no seed and tells no log-probabilities. Newer models refuse a temperature and a top_p together, so that
  values of 1, its own defaults, are not sent.
- ``input_tokens`` leaves out what was read from or written to a cache; ``output_tokens`` holds hidden thinking, which
  ``max_tokens`` bounds too.
- An account without credit may be told as an error 400 in words, or as a rate limit with a code of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message
from proxykd.teacher.providers.base import num_bytes
from proxykd.teacher.replies import (
    LENGTH,
    ApiError,
    Reply,
    Verdict,
    as_count,
    as_object,
    as_text,
    judge_with,
)

VERSION = "2023-06-01"
_NO_CREDIT = frozenset({"billing_error", "enforced_spend_limit_reached"})
_BAD_KEY = frozenset({"authentication_error", "permission_error"})
_STOP_REASONS = {"max_tokens": LENGTH, "model_context_window_exceeded": LENGTH, "end_turn": "stop"}
_SCHEMA_TOKENS = 1000
"""Upper bound on what the API itself says to the model about a schema."""


@dataclass(frozen=True, slots=True)
class AnthropicProvider:
    """Messages."""

    def url(self, base_url: str, model: str) -> str:
        """Where calls are POSTed."""
        return f"{base_url}/messages"

    def headers(self, secret: str | None) -> dict[str, str]:
        """The key and the version of the API."""
        return {"anthropic-version": VERSION, **({"x-api-key": secret} if secret else {})}

    def body(self, messages: Sequence[Message], *, model: str, sampling: SamplingSpec, seed: int) -> dict[str, Any]:
        """The JSON object of a call; the seed is not part of it."""
        turns = [{"role": turn.role, "content": turn.content} for turn in messages if turn.role != "system"]
        body: dict[str, Any] = {"model": model, "max_tokens": sampling.max_tokens, "messages": turns}
        if system := [message.content for message in messages if message.role == "system"]:
            body["system"] = "\n\n".join(system)
        if sampling.temperature != 1.0:
            body["temperature"] = sampling.temperature
        if sampling.top_p != 1.0:
            body["top_p"] = sampling.top_p
        if sampling.stop:
            body["stop_sequences"] = list(sampling.stop)
        if sampling.json_schema is not None:
            body["output_config"] = {"format": {"type": "json_schema", "schema": sampling.json_schema}}
        return body

    def judge(self, status: int, body: bytes) -> Verdict:
        """What an HTTP response means."""
        return judge_with(status, body, parse=_parse, read_error=_read_error, no_credit=_NO_CREDIT, bad_key=_BAD_KEY)

    def prompt_tokens_of(self, body: Mapping[str, Any]) -> int:
        """One token a byte of the messages, whose punctuation covers the template's own tokens, and of a schema."""
        schema = num_bytes(body["output_config"]) + _SCHEMA_TOKENS if "output_config" in body else 0
        return num_bytes([body.get("system"), body["messages"]]) + schema

    def max_tokens_of(self, body: Mapping[str, Any]) -> int:
        """The stated bound, which the API requires; hidden thinking counts towards it."""
        if "max_tokens" not in body:
            raise ValueError("expected a request with a bound on its completion's tokens")
        return int(body["max_tokens"])

    def with_max_tokens(self, body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """The same call with another bound."""
        return {**body, "max_tokens": max_tokens}


def _parse(value: Any) -> Reply:
    usage, text, reason = as_object(value.get("usage")), as_text(value["content"]), as_text(value.get("stop_reason"))
    cached = as_count(usage.get("cache_read_input_tokens"))
    written = as_count(usage.get("cache_creation_input_tokens"))
    has_refused = reason == "refusal"
    return Reply(
        text="" if has_refused else text,
        refusal=(text or "stop_reason=refusal") if has_refused else "",
        finish_reason=_STOP_REASONS.get(reason, reason),
        prompt_tokens=as_count(usage.get("input_tokens")) + cached + written,
        completion_tokens=as_count(usage.get("output_tokens")),
        model=as_text(value.get("model")),
        cached_tokens=cached,
        reasoning_tokens=as_count(as_object(usage.get("output_tokens_details")).get("thinking_tokens")),
    )


def _read_error(value: Any) -> ApiError | None:
    error = value.get("error")
    if not isinstance(error, dict):
        return None
    message = str(error.get("message", ""))
    codes = {str(error.get("type", "")), str(as_object(error.get("details")).get("error_code", ""))}
    if "credit balance is too low" in message:  # told as an invalid_request_error with status 400
        codes.add("billing_error")
    return ApiError(message, codes)
