"""The embedded server's routes, in this process."""

import asyncio
import json
import math
import random
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from proxykd.teacher.problems import enumerate_completions
from proxykd.teacher.server import MODEL, EmbeddedServer
from proxykd.teacher.stories import draw_problem, render_question

_QUESTION = render_question(draw_problem(random.Random(2)))


async def _post(body: Any, *, seed: int = 0) -> tuple[int, Any, Any]:
    """Status and body of one call, and the statistics after it."""
    async with TestClient(TestServer(EmbeddedServer(seed=seed).app())) as client:
        data = body if isinstance(body, str) else json.dumps(body)
        async with client.post("/v1/chat/completions", data=data) as response:
            answer = response.status, await response.json()
        async with client.get("/stats") as response:
            return *answer, await response.json()


def _body(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}], "seed": 1, **changes}


def test_a_call_is_answered_and_counted() -> None:
    status, answer, stats = asyncio.run(_post(_body()))
    assert status == 200
    assert answer["choices"][0]["message"]["content"] in dict(enumerate_completions(_QUESTION))
    assert stats == {"calls": 1, "answers": 1}


def test_messages_and_seeds_decide_the_text() -> None:
    calls = [(request_seed, seed) for request_seed in range(6) for seed in range(2)]
    first, again = (
        [asyncio.run(_post(_body(seed=request_seed), seed=seed))[1] for request_seed, seed in calls] for _ in range(2)
    )
    assert first == again
    assert len({answer["id"] for answer in first}) == len(calls)


def test_a_cut_text_is_a_prefix_that_says_so() -> None:
    whole, cut = (asyncio.run(_post(_body(**c)))[1]["choices"][0] for c in ({}, {"max_tokens": 5}))
    assert cut["finish_reason"] == "length"
    assert whole["message"]["content"].startswith(cut["message"]["content"])


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("{", 400),
        ([], 400),
        (_body(messages=[{"role": "user"}]), 400),
        (_body(logprobs=True, top_logprobs=21), 400),
        (_body(top_logprobs=2), 400),
        (_body(messages=[{"role": "user", "content": "Hi"}]), 400),
        (_body(top_p=0.5), 400),
        (_body(max_tokens="many"), 400),
        (_body(model="gpt"), 404),
    ],
)
def test_a_bad_call_gets_an_error_body_and_counts_as_a_call(body: Any, status: int) -> None:
    code, answer, stats = asyncio.run(_post(body))
    assert code == status
    assert answer["error"]["message"]
    assert stats == {"calls": 1, "answers": 0}


def test_log_probabilities_are_those_of_the_pieces_and_add_up_to_the_texts_odds() -> None:
    choice = asyncio.run(_post(_body(logprobs=True, top_logprobs=20)))[1]["choices"][0]
    positions, text = choice["logprobs"]["content"], choice["message"]["content"]
    assert b"".join(bytes(one["bytes"]) for one in positions) == text.encode()
    # The chain rule; the text's end is certain once it is written.
    total = sum(one["logprob"] for one in positions)
    assert math.exp(total) == pytest.approx(dict(enumerate_completions(_QUESTION))[text])
    assert all(sum(math.exp(top["logprob"]) for top in one["top_logprobs"]) == pytest.approx(1) for one in positions)
    assert any(len(one["top_logprobs"]) > 1 for one in positions)


def test_no_log_probabilities_unless_they_are_asked_for() -> None:
    assert asyncio.run(_post(_body()))[1]["choices"][0]["logprobs"] is None
    one = asyncio.run(_post(_body(logprobs=True, top_logprobs=1)))[1]["choices"][0]["logprobs"]["content"]
    assert {len(position["top_logprobs"]) for position in one} == {1}
