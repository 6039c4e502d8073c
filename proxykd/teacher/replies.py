"""What an answer amounts to, whatever API it came from: its parts, what they mean for the asking, and its outcome.

Outcome rules, first match wins:
    finish_reason content_filter (or an error whose code says so)   filtered
    any other error                                                 failed
    a refusal                                                       refused
    finish_reason length                                            truncated
    no text but white space                                         failed
    otherwise                                                       ok

Each API's own words are put into these by its adapter (``proxykd.teacher.providers``). The helpers here read JSON that
nobody vouches for: they raise ``ValueError`` or ``TypeError``, and ``judge_with`` turns those into a verdict.
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from proxykd.records import Outcome
from proxykd.teacher.retry import is_retryable_status

CONTENT_FILTER = "content_filter"
LENGTH = "length"
_FINAL_ERRORS = (400, 413, 422)
_KEY_REFUSED = (401, 403)
_PAYMENT_REQUIRED, _BAD_GATEWAY = 402, 502
LONGEST_REASON = 300
_MALFORMED = (ValueError, KeyError, IndexError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True)
class Reply:
    """The parts of a response that are kept, in one shape for all APIs.

    Attributes:
        text: The model's text; "" if there was none.
        refusal: Its refusal, where the API tells one from a text; "" if there was none.
        finish_reason: ``content_filter`` and ``length`` mean what they say; any other is the API's own word; "" if it
            never said one.
        prompt_tokens: All tokens that were billed as input, cached ones included; 0 if it said nothing.
        completion_tokens: All tokens that were billed as output, reasoning included; 0 if it said nothing.
        model: As the API said it; "" if it never did.
        error: Why there is no completion; "" if there is one.
        cached_tokens: Those of ``prompt_tokens`` that were read from a cache, which is cheaper.
        reasoning_tokens: Those of ``completion_tokens`` that the text does not show.
        logprobs: What ``dump_logprobs`` made of the log-probabilities; "" if there are none.
        is_batched: Whether it came through a batch API, at the price of one.
    """

    text: str = ""
    refusal: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    error: str = ""
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    logprobs: str = ""
    is_batched: bool = False


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
        key: Hash of ``asked``: the journal's key.
        body: The JSON object to send.
        payload: The same as canonical JSON.
        asked: The body, the sample's index and the endpoint, as canonical JSON; knows no secret. "" = the journal does
            not keep what was asked.
    """

    key: str
    body: Mapping[str, Any]
    payload: str = ""
    asked: str = ""


class ApiError(NamedTuple):
    """What an error body says.

    Attributes:
        message: In words.
        codes: In codes, types and statuses.
    """

    message: str
    codes: Collection[str]


class Alternative(NamedTuple):
    """A token that could stand at a position.

    Attributes:
        token: As text; bytes that are no UTF-8 on their own are replaced in it.
        bytes: What it stands for; None = the text's own UTF-8 bytes.
        logprob: Its log-probability, nats; some APIs say -9999 for one that is too small to tell.
    """

    token: str
    bytes: bytes | None
    logprob: float


class Position(NamedTuple):
    """What an API says about one position of a completion.

    Attributes:
        chosen: The token that stands there.
        top: The likeliest ones, in the API's order; the chosen one may be missing.
    """

    chosen: Alternative
    top: Sequence[Alternative]


def outcome_of(reply: Reply) -> tuple[Outcome, str]:
    """The outcome and, unless it is ok, the reason."""
    if reply.finish_reason == CONTENT_FILTER:
        return Outcome.FILTERED, reply.error or "finish_reason=content_filter"
    if reply.error:
        return Outcome.FAILED, reply.error
    if reply.refusal:
        return Outcome.REFUSED, reply.refusal[:LONGEST_REASON]
    if reply.finish_reason == LENGTH:
        return Outcome.TRUNCATED, "finish_reason=length"
    if not reply.text.strip():
        return Outcome.FAILED, f"empty text, finish_reason={reply.finish_reason!r}"
    return Outcome.OK, ""


def judge_with(
    status: int,
    body: bytes,
    *,
    parse: Callable[[Any], Reply],
    read_error: Callable[[Any], ApiError | None],
    no_credit: Collection[str],
    bad_key: Collection[str] = (),
) -> Verdict:
    """What an HTTP response means, given how its API writes answers and errors.

    A malformed body with status 200 has been paid for: it is tried again, and final if it stays malformed. One that has
    an error instead, as routers send whose own provider failed, means what a status of the error's code means: 502
    where that is no number from 400 to 599.

    Args:
        status: HTTP status.
        body: Raw body.
        parse: The reply in a parsed body; may raise ``ValueError`` and its like.
        read_error: The error in a parsed body; None = it is of another shape.
        no_credit: Codes of errors that say that the account has no credit or quota left.
        bad_key: Codes of errors that say that the key is refused, beside the statuses 401 and 403.
    """
    if status == 200:
        try:
            return Verdict(parse(parse_json(body)), is_final=True, is_retryable=False)
        except _MALFORMED as error:
            said = _read_error(body, read_error)
            if said is None:
                reason = plain(f"malformed body: {type(error).__name__}: {error}; got {body[:100]!r}")
                return Verdict(Reply(error=reason), is_final=True, is_retryable=True)
            code = _code_of(body)
            return _judge_error(code, said, f"HTTP 200 with an error {code}", no_credit, bad_key)
    said = _read_error(body, read_error) or ApiError(body[:200].decode("utf-8", "replace"), ())
    return _judge_error(status, said, f"HTTP {status}", no_credit, bad_key)


def _judge_error(
    status: int, said: ApiError, what: str, no_credit: Collection[str], bad_key: Collection[str]
) -> Verdict:
    codes, reason = set(said.codes), plain(f"{what}: {said.message}")
    if CONTENT_FILTER in codes:
        return Verdict(Reply(error=reason, finish_reason=CONTENT_FILTER), is_final=True, is_retryable=False)
    if status == _PAYMENT_REQUIRED or not codes.isdisjoint(no_credit):
        return Verdict(Reply(error=reason), is_final=False, is_retryable=False, stops="credit")
    if status in _KEY_REFUSED or not codes.isdisjoint(bad_key):
        return Verdict(Reply(error=reason), is_final=False, is_retryable=False, stops="key")
    return Verdict(Reply(error=reason), is_final=status in _FINAL_ERRORS, is_retryable=is_retryable_status(status))


def _read_error(body: bytes, read_error: Callable[[Any], ApiError | None]) -> ApiError | None:
    """What an error body says; None = it is of another shape."""
    try:
        return read_error(parse_json(body))
    except _MALFORMED:
        return None


def _code_of(body: bytes) -> int:
    """The status that the error in a body stands for."""
    try:
        code = int(parse_json(body)["error"]["code"])
    except _MALFORMED:
        code = 0
    return code if 400 <= code <= 599 else _BAD_GATEWAY


def parse_json(body: bytes) -> Any:
    """The JSON value in ``body``.

    Raises:
        ValueError: if it is none, or is nested too deeply.
    """
    try:
        return json.loads(body)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def plain(text: str) -> str:
    """An endpoint's words, short, without a line break or escape sequence that could steer a terminal."""
    shown = "".join(character if character.isprintable() else " " for character in text[: 2 * LONGEST_REASON])
    return shown[:LONGEST_REASON].encode("utf-8", "replace").decode()


def as_text(value: object) -> str:
    """A text, or the texts of a list of parts joined; None = "".

    Raises:
        TypeError: if it is neither.
    """
    if value is None:
        return ""
    if isinstance(value, list):
        value = "".join(part["text"] for part in value if part.get("type") == "text")
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r:.50}")
    # A lone surrogate cannot be stored as UTF-8.
    return value.encode("utf-8", "replace").decode()


def as_count(value: object) -> int:
    """A number of tokens; None = 0.

    Raises:
        TypeError: if it is no count.
    """
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise TypeError(f"expected a number of tokens, got {value!r:.50}")
    return value


def as_object(value: object) -> Mapping[str, Any]:
    """A JSON object; None = {}.

    Raises:
        TypeError: if it is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"expected an object, got {value!r:.50}")
    return value


def alternative(token: object, logprob: object, data: object = None) -> Alternative:
    """A token with its log-probability, as an API wrote it.

    Args:
        token: Text.
        logprob: Number.
        data: Its bytes as a list of numbers; None = the text's own.

    Raises:
        ValueError, TypeError: if it is none.
    """
    text = as_text(token)
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise TypeError(f"expected a log-probability, got {logprob!r:.50}")
    found = bytes(data) if isinstance(data, list) else None
    return Alternative(text, None if found == text.encode() else found, float(logprob))


def dump_logprobs(positions: Sequence[Position]) -> str:
    """Positions as compact JSON: ``[[token, bytes or null, logprob, [[token, bytes or null, logprob], ...]], ...]``.

    Bytes are hexadecimal, and null where they are the token's own UTF-8. "" if there are no positions.
    """
    rows = [[*_plain_row(chosen), [_plain_row(one) for one in top]] for chosen, top in positions]
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")) if rows else ""


def load_logprobs(text: str) -> list[Position]:
    """The inverse of ``dump_logprobs``; [] for ""."""
    rows = json.loads(text) if text else []
    return [Position(_from_row(*row[:3]), [_from_row(*one) for one in row[3]]) for row in rows]


def token_logprobs(position: Position) -> dict[str, Any]:
    """A position as a row of ``Completion.logprobs``, all bytes filled in."""
    return {**_as_row(position.chosen), "top": [_as_row(one) for one in position.top]}


def _as_row(one: Alternative) -> dict[str, Any]:
    data = one.token.encode() if one.bytes is None else one.bytes
    return {"token": one.token, "bytes": data, "logprob": one.logprob}


def _plain_row(one: Alternative) -> list[Any]:
    return [one.token, None if one.bytes is None else one.bytes.hex(), one.logprob]


def _from_row(token: str, data: str | None, logprob: float) -> Alternative:
    return Alternative(token, None if data is None else bytes.fromhex(data), float(logprob))
