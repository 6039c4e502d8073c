"""The embedded teacher over HTTP: the shape, the errors, and that it never outlives its parent."""

import json
import random
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from proxykd.exceptions import TeacherUnreachableError
from proxykd.teacher.problems import enumerate_completions
from proxykd.teacher.server import MODEL
from proxykd.teacher.serving import _read_port, embedded_teacher
from proxykd.teacher.stories import draw_problem, render_question

pytestmark = pytest.mark.integration
_QUESTION = render_question(draw_problem(random.Random(1)))


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    with embedded_teacher(seed=0, max_seconds=60) as url:
        yield url


def _call(url: str, body: Any = None) -> tuple[int, Any]:
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=data), timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def _ask(base_url: str, **changes: Any) -> tuple[int, Any]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": _QUESTION}], "seed": 3, **changes}
    return _call(f"{base_url}/chat/completions", body)


def test_an_answer_has_the_shape_and_is_one_of_the_teachers(base_url: str) -> None:
    status, answer = _ask(base_url)
    assert status == 200
    (choice,) = answer["choices"]
    assert choice["message"]["content"] in dict(enumerate_completions(_QUESTION))
    assert choice["finish_reason"] == "stop"
    assert answer["model"] == MODEL
    assert answer["usage"]["total_tokens"] == sum(answer["usage"][k] for k in ("prompt_tokens", "completion_tokens"))


def test_the_seed_decides_the_text_in_every_process(base_url: str) -> None:
    texts = [_ask(base_url, seed=seed)[1] for seed in range(12)]
    assert len({text["choices"][0]["message"]["content"] for text in texts}) > 1
    with embedded_teacher(seed=0, max_seconds=30) as second:
        assert [_ask(second, seed=seed)[1] for seed in range(12)] == texts


def test_max_tokens_cuts_and_says_so(base_url: str) -> None:
    whole = _ask(base_url)[1]["choices"][0]["message"]["content"]
    answer = _ask(base_url, max_tokens=4)[1]
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 4
    assert whole.startswith(answer["choices"][0]["message"]["content"])


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"model": "gpt"}, 404),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": "Who are you?"}]}, 400),
        ({"temperature": 0.5}, 400),
        ({"n": 2}, 400),
        ({"max_tokens": 0}, 400),
    ],
)
def test_what_it_cannot_do_gets_an_error_body(base_url: str, changes: dict[str, Any], status: int) -> None:
    code, body = _ask(base_url, **changes)
    assert code == status
    assert body["error"]["message"]


def test_other_paths_and_bodies_get_error_bodies_too(base_url: str) -> None:
    assert _call(f"{base_url}/chat/completions", b"{")[0] == 400
    assert _call(f"{base_url}/nothing")[0] == 404
    assert _call(f"{base_url}/models")[1]["data"][0]["id"] == MODEL


def test_it_counts_its_calls(base_url: str) -> None:
    stats = base_url.removesuffix("/v1") + "/stats"
    before = _call(stats)[1]["calls"]
    _ask(base_url)
    assert _call(stats)[1]["calls"] == before + 1


def _start(*arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "proxykd.teacher.server", *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_it_ends_when_its_parent_is_gone() -> None:
    with _start("--max-seconds", "30") as server:
        assert server.stdout is not None
        assert server.stdin is not None
        assert json.loads(server.stdout.readline())["port"] > 0
        server.stdin.close()
        assert server.wait(timeout=10) == 0


def test_it_ends_when_its_time_is_up() -> None:
    with _start("--max-seconds", "0.2") as server:
        assert server.wait(timeout=10) == 0


def test_a_server_that_does_not_start_is_told() -> None:
    with pytest.raises(TeacherUnreachableError, match="print its port"):
        _read_port("")
