"""Bodies in the shapes that the APIs document, made small."""

import json
from typing import Any


def openai_answer(text: str | None = "Hello.", finish_reason: str = "stop", **message: Any) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-x-2026",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, "refusal": None, **message},
                "logprobs": {
                    "content": [
                        {
                            "token": "Hello",
                            "bytes": [72, 101, 108, 108, 111],
                            "logprob": -0.25,
                            "top_logprobs": [
                                {"token": "Hello", "bytes": [72, 101, 108, 108, 111], "logprob": -0.25},
                                {"token": "\ufffd", "bytes": [240, 159], "logprob": -2.5},
                            ],
                        },
                        {"token": ".", "bytes": [46], "logprob": 0, "top_logprobs": []},
                    ],
                    "refusal": None,
                },
                "finish_reason": finish_reason,
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 20,
            "total_tokens": 50,
            "prompt_tokens_details": {"cached_tokens": 16, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 9, "audio_tokens": 0},
        },
    }


def anthropic_answer(text: str = "Hello.", stop_reason: str = "end_turn") -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x-2026",
        "content": [
            {"type": "thinking", "thinking": "Say hello.", "signature": "c2ln"},
            *([{"type": "text", "text": text, "citations": None}] if text else []),
        ],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": 10,
            "cache_creation_input_tokens": 4,
            "cache_read_input_tokens": 16,
            "output_tokens": 20,
            "output_tokens_details": {"thinking_tokens": 9},
            "service_tier": "standard",
        },
    }


def anthropic_error(kind: str, message: str = "no", **error: Any) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message, **error}, "request_id": "req_1"}


def gemini_answer(text: str = "Hello.", finish_reason: str = "STOP") -> dict[str, Any]:
    parts = [{"text": "Say hello.", "thought": True}, *([{"text": text}] if text else [])]
    chosen = [
        {"token": "Hello", "tokenId": 1, "logProbability": -0.25},
        {"token": ".", "tokenId": 2, "logProbability": -0.5},
    ]
    return {
        "candidates": [
            {
                "content": {"role": "model", "parts": parts},
                "finishReason": finish_reason,
                "avgLogprobs": -0.375,
                "logprobsResult": {
                    "chosenCandidates": chosen,
                    "topCandidates": [
                        {"candidates": [chosen[0], {"token": "Hi", "tokenId": 3, "logProbability": -2.5}]},
                        {"candidates": [chosen[1]]},
                    ],
                },
                "index": 0,
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 30,
            "cachedContentTokenCount": 16,
            "candidatesTokenCount": 11,
            "thoughtsTokenCount": 9,
            "totalTokenCount": 50,
        },
        "modelVersion": "gemini-x-001",
        "responseId": "r1",
    }


def gemini_blocked(reason: str = "SAFETY") -> dict[str, Any]:
    usage = {"promptTokenCount": 30, "totalTokenCount": 30}
    return {"promptFeedback": {"blockReason": reason, "safetyRatings": []}, "usageMetadata": usage}


def gemini_error(code: int, status: str, *details: dict[str, Any], message: str = "no") -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


def as_body(value: Any) -> bytes:
    return json.dumps(value).encode()
