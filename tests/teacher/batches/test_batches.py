"""Batches: every request submitted once whatever breaks, at half the price, under the cap, settled like calls."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from proxykd.artifacts import read_json
from proxykd.config.specification import RunSpec
from proxykd.exceptions import BudgetError, TeacherAuthError, TeacherError
from proxykd.records import Completion, Outcome
from proxykd.teacher.batches.anthropic import AnthropicBatches
from proxykd.teacher.batches.openai import OpenAIBatches
from proxykd.teacher.journal import Journal
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.query import collect_prompts, query_teacher
from tests.teacher.batches.conftest import EXPIRED, MISSING, Answer, BatchServer

MakeRun = Callable[..., RunSpec]
Ask = Callable[..., list[Completion]]
COUNT = 25
PRICE = {"input_usd_per_million": 100.0, "output_usd_per_million": 1000.0}
kinds = pytest.mark.parametrize("kind", ["openai", "anthropic"])


@pytest.fixture
def ask(server: BatchServer, make_run: MakeRun, tmp_path: Path) -> Ask:
    """Asks 25 questions in batches of ten; the completions, and their summary as ``ask.summary``."""

    def call(kind: str, *, batch: dict[str, Any] | str | None = "small", **changes: Any) -> list[Completion]:
        sizes = {"max_requests": 10, "poll_s": 0.02} if batch == "small" else batch
        teacher = {"kind": kind, "base_url": server.url, "model": "m", "price": PRICE, "batch": sizes}
        run = make_run({**teacher, **changes}, [{"prompt": f"question {number}"} for number in range(COUNT)])
        number = len(list(tmp_path.glob("prompts-*")))
        prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / f"prompts-{number}")
        output = tmp_path / f"completions-{number}"
        return list(query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=output).rows())

    return call


def _open_attempts(folder: Path) -> int:
    with Journal(folder / "journal.sqlite") as journal:
        return len(journal.open_attempts())


def _open_chunks(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        batches, requests = (
            connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("batches", "batch_requests")
        )
        assert (batches == 0) == (requests == 0)
        return int(batches)


@kinds
def test_answers_are_those_of_calls_at_half_the_price(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCH_KEY", "sk-batch")
    rows = ask(kind, api_key="${BATCH_KEY}")
    assert [(row.text, row.outcome) for row in rows] == [(f"QUESTION {n}", Outcome.OK) for n in range(COUNT)]
    # 30 tokens in at 100 and 20 out at 1000 USD a million, half of it.
    assert {row.cost_usd for row in rows} == {0.5 * (30 * 100 + 20 * 1000) / 1e6}
    assert [len(batch["requests"]) for batch in server.batches.values()] == [10, 10, 5]
    assert "sk-batch" in server.headers["authorization" if kind == "openai" else "x-api-key"]
    assert (_open_chunks(tmp_path), _open_attempts(tmp_path)) == (0, 0)
    assert ask(kind) == rows
    assert set(server.asked.values()) == {1}
    with Journal(tmp_path / "journal.sqlite") as journal:
        entry = journal.get(rows[3].request_hash)
    assert entry is not None
    assert "question 3" in entry.request
    assert entry.reply.is_batched


@kinds
def test_what_failed_in_passing_is_asked_again_and_what_is_final_is_not(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str
) -> None:
    passing = {"question 1": EXPIRED, "question 2": (500, "oh"), "question 3": (429, "later"), "question 4": MISSING}

    def answer(question: str, time: int) -> Answer:
        if question == "question 7":
            return 400, "too long"
        return passing[question] if question in passing and time == 1 else (200, question.upper())

    server.answer = answer
    rows = ask(kind, budget={"requests": 1000})
    assert {row.outcome for row in rows[:7] + rows[8:]} == {Outcome.OK}
    assert (rows[7].outcome, rows[7].reason) == (Outcome.FAILED, "HTTP 400: too long")
    assert {question for question, count in server.asked.items() if count == 2} == set(passing)
    assert server.asked["question 7"] == 1
    # An error of the server's may have been paid for: its worst case stays.
    assert _open_attempts(tmp_path) == 1


@kinds
def test_a_batch_whose_id_was_lost_is_found_and_not_submitted_again(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str
) -> None:
    server.after_making = lambda number: web.Response(status=502) if number in (0, 2) else None
    rows = ask(kind)
    assert {row.outcome for row in rows} == {Outcome.OK}
    assert (len(server.batches), set(server.asked.values())) == (3, {1})
    assert _open_chunks(tmp_path) == 0


@kinds
def test_a_batch_that_was_never_made_is_submitted_again(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str
) -> None:
    fates = iter([web.Response(status=502), None, web.Response(status=429), None, None])
    server.before_making = lambda _: next(fates, None)
    rows = ask(kind, budget={"requests": COUNT})
    assert {row.outcome for row in rows} == {Outcome.OK}
    assert set(server.asked.values()) == {1}
    assert (_open_chunks(tmp_path), _open_attempts(tmp_path)) == (0, 0)


@kinds
def test_a_run_that_stops_while_batches_run_goes_on_with_them(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str
) -> None:
    server.refusal = web.json_response({"error": {"type": "authentication_error"}}, status=401)
    with pytest.raises(TeacherAuthError, match="run the same command again"):
        ask(kind)
    assert (_open_chunks(tmp_path), len(server.batches)) == (3, 3)
    server.refusal = None
    assert {row.outcome for row in ask(kind)} == {Outcome.OK}
    assert (len(server.batches), set(server.asked.values())) == (3, {1})


def test_a_run_without_batches_first_settles_those_that_are_open(server: BatchServer, ask: Ask, tmp_path: Path) -> None:
    server.refusal = web.json_response({}, status=401)
    with pytest.raises(TeacherAuthError):
        ask("openai")
    server.refusal, server.works_s = None, 0.0  # the first look finds it done
    server.answer = lambda question, _: EXPIRED if question == "question 3" else (200, "batch")
    rows = ask("openai", batch=None)
    assert [row.text for row in rows[2:5]] == ["batch", "QUESTION 3", "batch"]
    assert server.called == {"question 3": 1}


@kinds
@pytest.mark.parametrize("cap", [{"requests": 12}, {"usd": 12 * 0.5 * (37 * 100 + 512 * 1000) / 1e6}])
def test_what_is_submitted_stays_under_the_cap(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str, cap: dict[str, float]
) -> None:
    server.works_s = 0.0
    if "requests" in cap:
        with pytest.raises(BudgetError, match=r"teacher\.budget\.requests=12 \(12 spent\).* 13 of 25 requests"):
            ask(kind, budget=cap)
        assert [len(batch["requests"]) for batch in server.batches.values()] == [10, 2]
        assert server.asked.total() == 12
    # Settled batches make room: what was billed is far below the worst case.
    rows = ask(kind, budget={"requests": COUNT} if "requests" in cap else cap)
    assert {row.outcome for row in rows} == {Outcome.OK}
    assert set(server.asked.values()) == {1}
    assert _open_attempts(tmp_path) == 0


def test_a_batch_that_fails_as_a_whole_stops_the_run_and_holds_nothing(
    server: BatchServer, ask: Ask, tmp_path: Path
) -> None:
    server.failure = ("model_not_found", "there is no model m")
    with pytest.raises(TeacherError, match=r"did not take up a batch: there is no model m"):
        ask("openai", batch={"poll_s": 0.02}, budget={"requests": COUNT})
    assert (_open_chunks(tmp_path), _open_attempts(tmp_path)) == (0, 0)
    server.failure = None
    assert {row.outcome for row in ask("openai")} == {Outcome.OK}


def test_a_full_queue_is_waited_for(server: BatchServer, ask: Ask) -> None:
    server.failure = ("token_limit_exceeded", "the queue is full")

    def heal(number: int) -> None:
        if number == 3:
            server.failure = None

    server.after_making = heal
    assert {row.outcome for row in ask("openai")} == {Outcome.OK}


@kinds
def test_a_batch_that_is_gone_is_told_and_can_be_given_up(
    server: BatchServer, ask: Ask, tmp_path: Path, kind: str
) -> None:
    server.refusal = web.json_response({"error": {"message": "no such batch", "type": "not_found_error"}}, status=404)
    sizes = {"poll_s": 0.02}
    with pytest.raises(TeacherError, match=r"batch_0: HTTP 404: no such batch.*teacher\.batch\.give_up=\[batch_0\]"):
        ask(kind, batch=sizes, budget={"requests": 60})
    server.refusal = None
    rows = ask(kind, batch={**sizes, "give_up": ["batch_0"]}, budget={"requests": 60})
    assert {row.outcome for row in rows} == {Outcome.OK}
    assert set(server.asked.values()) == {2}
    assert _open_attempts(tmp_path) == COUNT  # it may have been paid for


def test_rows_that_never_get_an_answer_end_the_rounds(server: BatchServer, ask: Ask, tmp_path: Path) -> None:
    server.answer = lambda question, _: EXPIRED if question == "question 3" else (200, "fine")
    with pytest.raises(TeacherError, match=r"1 of 25 requests got no answer \(last reason: batch_expired: not exec"):
        ask("openai", max_attempts=3)
    assert server.asked["question 3"] == 2  # the second round brought nothing
    assert ask("openai", max_attempts=1, on_unanswered="fail_rows")[3].outcome is Outcome.FAILED
    summary = read_json(sorted(tmp_path.glob("completions-*"))[-1] / "summary.json")
    assert summary["outcomes"] == {"ok": 24, "refused": 0, "truncated": 0, "filtered": 0, "failed": 1}


def test_a_batch_is_no_larger_than_its_bound(server: BatchServer, ask: Ask) -> None:
    ask("openai", batch={"poll_s": 0.02, "max_megabytes": 0.001})
    inputs = [file for file in server.files.values() if b'"method"' in file]
    assert len(inputs) > 5
    assert all(len(file) <= 1000 for file in inputs)


@given(st.binary(max_size=40) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["succeeded", "errored", "k"]),
    lambda inner: st.dictionaries(
        st.sampled_from(["custom_id", "result", "type", "message", "error", "response", "status_code", "body"]), inner
    ),
    max_leaves=8,
).map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_any_line_of_results_is_read_or_left(line: bytes) -> None:
    apis = (
        OpenAIBatches("http://x", None, OpenAIProvider()),  # type: ignore[arg-type]
        AnthropicBatches("http://x", None, AnthropicProvider()),  # type: ignore[arg-type]
    )
    for api in apis:
        found = api.result(line)
        assert found is None or isinstance(found.key, str)
