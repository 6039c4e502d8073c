"""The Gemini API's generateContent.

Checked against its reference ("Generating content": GenerateContentRequest, GenerationConfig, Candidate,
GenerateContentResponse) and the types of Google's Gen AI SDKs. What differs from the others:

- The model is in the address and not in the body; the key goes into a header, never into the address.
- The assistant is called ``model``, and system messages stand beside the turns.
- A blocked prompt is a response with status 200 and no candidate.
- ``thoughtsTokenCount`` is billed as output and is not part of ``candidatesTokenCount``. ``maxOutputTokens`` has been
  seen to bound both together, but the documentation does not promise it: the ledger adds what a call is billed beyond
  its bound to the worst case of later ones.
- A key that does not exist is told with status 400, and a daily quota that is spent with status 429.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message
from proxykd.teacher.providers.base import num_bytes
from proxykd.teacher.replies import (
    CONTENT_FILTER,
    LENGTH,
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
    plain,
)

_FILTERED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII"})
_FINISH_REASONS = {"STOP": "stop", "MAX_TOKENS": LENGTH, **dict.fromkeys(_FILTERED, CONTENT_FILTER)}
_BAD_KEY = frozenset({"API_KEY_INVALID", "UNAUTHENTICATED", "PERMISSION_DENIED", "FAILED_PRECONDITION"})
_QUOTA_SPENT = "quota of a day is spent"


@dataclass(frozen=True, slots=True)
class GeminiProvider:
    """generateContent."""

    def url(self, base_url: str, model: str) -> str:
        """Where calls are POSTed; the model's name may begin with ``models/``."""
        return f"{base_url}/models/{quote(model.removeprefix('models/'), safe='')}:generateContent"

    def headers(self, secret: str | None) -> dict[str, str]:
        """The key."""
        return {"x-goog-api-key": secret} if secret else {}

    def body(self, messages: Sequence[Message], *, model: str, sampling: SamplingSpec, seed: int) -> dict[str, Any]:
        """The JSON object of a call; the model is not part of it."""
        config: dict[str, Any] = {
            "temperature": sampling.temperature,
            "topP": sampling.top_p,
            "maxOutputTokens": sampling.max_tokens,
            "seed": seed,
        }
        if sampling.stop:
            config["stopSequences"] = list(sampling.stop)
        if sampling.top_logprobs:
            config |= {"responseLogprobs": True, "logprobs": sampling.top_logprobs}
        if sampling.json_schema is not None:
            config |= {"responseMimeType": "application/json", "responseJsonSchema": sampling.json_schema}
        turns = [message for message in messages if message.role != "system"]
        contents = [
            {"role": "model" if message.role == "assistant" else message.role, "parts": [{"text": message.content}]}
            for message in turns
        ]
        body: dict[str, Any] = {"contents": contents, "generationConfig": config}
        if system := [{"text": message.content} for message in messages if message.role == "system"]:
            body["systemInstruction"] = {"parts": system}
        return body

    def judge(self, status: int, body: bytes) -> Verdict:
        """What an HTTP response means."""
        return judge_with(
            status, body, parse=_parse, read_error=_read_error, no_credit={_QUOTA_SPENT}, bad_key=_BAD_KEY
        )

    def prompt_tokens_of(self, body: Mapping[str, Any]) -> int:
        """One token a byte of all texts and of a schema."""
        asked = [body.get("systemInstruction"), body["contents"], body["generationConfig"].get("responseJsonSchema")]
        return sum(num_bytes(part) for part in asked if part)

    def max_tokens_of(self, body: Mapping[str, Any]) -> int:
        """The stated bound; whether hidden thoughts count towards it is not promised (see the module)."""
        if "maxOutputTokens" not in (config := as_object(body.get("generationConfig"))):
            raise ValueError("expected a request with a bound on its completion's tokens")
        return int(config["maxOutputTokens"])

    def with_max_tokens(self, body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """The same call with another bound."""
        return {**body, "generationConfig": {**body["generationConfig"], "maxOutputTokens": max_tokens}}


def _parse(value: Any) -> Reply:
    usage, candidates = as_object(value.get("usageMetadata")), value.get("candidates") or []
    blocked = as_text(as_object(value.get("promptFeedback")).get("blockReason"))
    if not candidates and not blocked:
        raise ValueError("no candidate and no reason why")
    candidate = as_object(candidates[0]) if candidates else {}
    reason, thoughts = as_text(candidate.get("finishReason")), as_count(usage.get("thoughtsTokenCount"))
    parts = [as_object(part) for part in as_object(candidate.get("content")).get("parts") or []]
    return Reply(
        text="".join(as_text(part.get("text")) for part in parts if not part.get("thought")),
        finish_reason=CONTENT_FILTER if not candidates else _FINISH_REASONS.get(reason, reason),
        error=plain(f"the prompt was blocked: {blocked}") if not candidates else "",
        prompt_tokens=as_count(usage.get("promptTokenCount")) + as_count(usage.get("toolUsePromptTokenCount")),
        completion_tokens=as_count(usage.get("candidatesTokenCount")) + thoughts,
        model=as_text(value.get("modelVersion")),
        cached_tokens=as_count(usage.get("cachedContentTokenCount")),
        reasoning_tokens=thoughts,
        logprobs=dump_logprobs(_positions(as_object(candidate.get("logprobsResult")))),
    )


def _positions(result: Mapping[str, Any]) -> list[Position]:
    chosen, top = result.get("chosenCandidates") or [], result.get("topCandidates") or []
    tops = [[_alternative(one) for one in at.get("candidates") or []] for at in top]
    tops += [[]] * (len(chosen) - len(tops))
    return [Position(_alternative(one), at) for one, at in zip(chosen, tops, strict=True)]


def _alternative(value: Any) -> Alternative:
    return alternative(value.get("token"), value["logProbability"])


def _read_error(value: Any) -> ApiError | None:
    error = value.get("error")
    if not isinstance(error, dict):
        return None
    details = [one for one in error.get("details") or [] if isinstance(one, dict)]
    codes = {str(error.get("status", "")), *(str(one.get("reason", "")) for one in details)}
    quotas = [str(as_object(quota).get("quotaId", "")) for one in details for quota in one.get("violations") or []]
    if error.get("code") == 429 and any("PerDay" in quota for quota in quotas):
        codes.add(_QUOTA_SPENT)
    return ApiError(str(error.get("message", "")), codes)
