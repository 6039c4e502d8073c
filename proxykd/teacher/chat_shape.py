"""The OpenAI chat-completions shape: request bodies out, replies in, and the outcome that each reply amounts to.

Outcome rules, first match wins:
    finish_reason content_filter (or an error whose code says so)   filtered
    any other error                                                 failed
    message.refusal                                                 refused
    finish_reason length                                            truncated
    no text but white space                                         failed
    otherwise                                                       ok
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from proxykd.config.teacher import SamplingSpec
from proxykd.records import Message, Outcome, Prompt, hash_json
from proxykd.teacher.retry import is_retryable_status

CONTENT_FILTER = "content_filter"
_FINAL_ERRORS = (400, 413, 422)
_KEY_REFUSED = (401, 403)
_PAYMENT_REQUIRED = 402
_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Reply:
    """The parts of a response that are kept.

    Attributes:
        text: message.content; "" if there was none.
        refusal: message.refusal; "" if there was none.
        finish_reason: As the API said it; "" if it never did.
        prompt_tokens: usage.prompt_tokens; 0 if it said nothing.
        completion_tokens: usage.completion_tokens; 0 if it said nothing.
        model: As the API said it; "" if it never did.
        error: Why there is no completion; "" if there is one.
    """

    text: str = ""
    refusal: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    error: str = ""


class Verdict(NamedTuple):
    """What a response means.

    Attributes:
        reply: Its parts.
        is_final: Asking again, now or in a later run, would be paid for or would change nothing.
        is_retryable: The same request may get a usable response if it is sent again in this run.
        stops: Why no other request would fare better: the key is refused, or the account has no credit or quota left;
            "" = others may.
    """

    reply: Reply
    is_final: bool
    is_retryable: bool
    stops: Literal["", "key", "credit"] = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One call to make.

    Attributes:
        key: Hash of the body, the sample's index and the provider's name: the journal's key. It knows no secret.
        body: The JSON object to send.
    """

    key: str
    body: Mapping[str, Any]


def build_request(
    prompt: Prompt,
    sample_idx: int,
    *,
    model: str,
    sampling: SamplingSpec,
    seed: int,
    max_tokens_parameter: str = "max_tokens",
    provider: str = "",
) -> Request:
    """The request for one sample of one prompt.

    Args:
        prompt: The prompt.
        sample_idx: 0 .. num_samples - 1.
        model: Model name as the endpoint knows it.
        sampling: How the teacher is asked to generate.
        seed: Seed of the run; each sample of each prompt gets a seed of its own from it.
        max_tokens_parameter: Name under which the endpoint takes ``sampling.max_tokens``.
        provider: Who answers; tells models of one name apart in the journal. "" = the name is enough.
    """
    body = chat_body(prompt.messages, model=model, sampling=sampling)
    body[max_tokens_parameter] = body.pop("max_tokens")
    body["seed"] = int(hash_json([seed, prompt.prompt_id, sample_idx], length=8), 16) % 2**31
    identity = {"provider": provider} if provider else {}
    return Request(hash_json({"request": body, "sample_idx": sample_idx, **identity}), body)


def chat_body(messages: Sequence[Message], *, model: str, sampling: SamplingSpec) -> dict[str, Any]:
    """The request body without a seed."""
    return {
        "model": model,
        "messages": [asdict(message) for message in messages],
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
    }


def judge(status: int, body: bytes) -> Verdict:
    """What an HTTP response means.

    A malformed body with status 200 has been paid for: it is tried again, and final if it stays malformed.

    Args:
        status: HTTP status.
        body: Raw body.
    """
    if status == 200:
        try:
            return Verdict(_parse_reply(body), is_final=True, is_retryable=False)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            reason = f"malformed body: {type(error).__name__}: {error}; got {body[:100]!r}"
            return Verdict(Reply(error=reason[:_LONGEST_REASON]), is_final=True, is_retryable=True)
    message, codes = _read_error(body)
    # The words are the endpoint's: no line break or escape sequence of theirs reaches a terminal.
    plain = "".join(character if character.isprintable() else " " for character in message)
    reason = f"HTTP {status}: {plain}"[:_LONGEST_REASON]
    if CONTENT_FILTER in codes:
        return Verdict(Reply(error=reason, finish_reason=CONTENT_FILTER), is_final=True, is_retryable=False)
    if status == _PAYMENT_REQUIRED or codes & _NO_CREDIT:
        return Verdict(Reply(error=reason), is_final=False, is_retryable=False, stops="credit")
    if status in _KEY_REFUSED:
        return Verdict(Reply(error=reason), is_final=False, is_retryable=False, stops="key")
    return Verdict(Reply(error=reason), is_final=status in _FINAL_ERRORS, is_retryable=is_retryable_status(status))


def outcome_of(reply: Reply) -> tuple[Outcome, str]:
    """The outcome and, unless it is ok, the reason."""
    if reply.finish_reason == CONTENT_FILTER:
        return Outcome.FILTERED, reply.error or "finish_reason=content_filter"
    if reply.error:
        return Outcome.FAILED, reply.error
    if reply.refusal:
        return Outcome.REFUSED, reply.refusal[:_LONGEST_REASON]
    if reply.finish_reason == "length":
        return Outcome.TRUNCATED, "finish_reason=length"
    if not reply.text.strip():
        return Outcome.FAILED, f"empty text, finish_reason={reply.finish_reason!r}"
    return Outcome.OK, ""


def _parse_reply(body: bytes) -> Reply:
    value = json.loads(body)
    choice, usage = value["choices"][0], value.get("usage") or {}
    message = choice["message"]
    return Reply(
        text=_as_text(message.get("content")),
        refusal=_as_text(message.get("refusal")),
        finish_reason=_as_text(choice.get("finish_reason")),
        prompt_tokens=_as_count(usage.get("prompt_tokens")),
        completion_tokens=_as_count(usage.get("completion_tokens")),
        model=_as_text(value.get("model")),
    )


def _as_text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return "".join(part["text"] for part in value if part.get("type") == "text")
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.50}")
    # A lone surrogate cannot be stored as UTF-8.
    return value.encode("utf-8", "replace").decode()


def _as_count(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or not 0 <= value < 2**31:
        raise TypeError(f"expected a number of tokens, got {value!r:.50}")
    return value


def _read_error(body: bytes) -> tuple[str, set[str]]:
    """Message, and code and type, of an error body, or its first bytes if it is of another shape."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict):
        codes = {str(error.get("code", "")), str(error.get("type", ""))}
        metadata = error.get("metadata")
        if isinstance(metadata, dict) and "flagged_input" in metadata:  # how routers tell a moderated prompt, with 403
            codes.add(CONTENT_FILTER)
        return str(error.get("message", "")), codes
    return (error if isinstance(error, str) else body[:200].decode("utf-8", "replace")), set()
