"""The engine against a scripted transport: nothing asked twice, nobody harmed by a neighbour, bounded concurrency."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from proxykd.exceptions import TeacherAuthError, TeacherError, TeacherUnreachableError
from proxykd.records import Outcome
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.engine import Engine
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Reply, Request, outcome_of
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.transport import HttpResponse

Answer = Callable[[str, int], HttpResponse]


def _ok(text: str = "fine") -> HttpResponse:
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    return HttpResponse(200, {}, json.dumps(body).encode())


def _error(status: int, **headers: str) -> HttpResponse:
    return HttpResponse(status, {name.replace("_", "-"): value for name, value in headers.items()}, b"no")


class ScriptedTransport:
    """Answers each call as a function of the question and of how often it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer, self.asked = answer, Counter[str]()
        self.in_flight = self.most_in_flight = 0

    async def send(self, request: Request) -> HttpResponse:
        question = request.body["q"]
        self.asked[question] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(0)
            return self.answer(question, self.asked[question])
        finally:
            self.in_flight -= 1


class SteppedClock:
    """Time that passes by being slept through."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now_s(self) -> float:
        return 100.0 + sum(self.slept)

    def steady_s(self) -> float:
        return self.now_s()

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)


def _requests(count: int) -> Iterator[Request]:
    return (Request(f"key-{number}", {"q": f"q{number}"}) for number in range(count))


def _engine(journal: Journal, answer: Answer, *, concurrency: int = 4, max_attempts: int = 3) -> Engine:
    endpoint = Endpoint("http://teacher/v1/chat/completions", "gpt", "${TEACHER_KEY}")
    transport, policy = ScriptedTransport(answer), RetryPolicy(max_attempts)
    return Engine(endpoint, transport, journal, policy, concurrency, clock=SteppedClock(), rng=random.Random(0))


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    with Journal(tmp_path / "journal.sqlite") as opened:
        yield opened


def _impatient(journal: Journal, answer: Answer, *, longest_row: int | None) -> Engine:
    engine = _engine(journal, answer, concurrency=1, max_attempts=2)
    return replace(engine, max_unanswered_in_a_row=longest_row)


def _run(engine: Engine, count: int) -> list[Reply]:
    settled: list[Reply] = []
    asyncio.run(engine.run(_requests(count), on_settled=settled.append))
    return settled


def test_every_request_is_asked_once_and_never_again(journal: Journal) -> None:
    engine = _engine(journal, lambda question, _: _ok(question))
    assert len(_run(engine, 30)) == 30
    assert _run(engine, 40)[0].text == "q30"
    assert set(engine.transport.asked.values()) == {1}  # type: ignore[attr-defined]
    assert [journal.get(f"key-{n}").reply.text for n in range(40)] == [f"q{n}" for n in range(40)]  # type: ignore[union-attr]


def test_calls_in_flight_are_bounded_and_requests_are_taken_as_needed(journal: Journal) -> None:
    taken = 0
    settled = 0
    furthest_ahead = 0

    def stream() -> Iterator[Request]:
        nonlocal taken
        for request in _requests(60):
            taken += 1
            yield request

    def on_settled(_: Reply) -> None:
        nonlocal settled, furthest_ahead
        settled += 1
        furthest_ahead = max(furthest_ahead, taken - settled)

    engine = _engine(journal, lambda *_: _ok(), concurrency=5)
    asyncio.run(engine.run(stream(), on_settled=on_settled))
    assert engine.transport.most_in_flight == 5  # type: ignore[attr-defined]
    assert settled == 60
    assert furthest_ahead <= 5 + 2 * 5  # in flight, and claimed ahead


def test_a_slow_answer_holds_up_one_worker_only(journal: Journal) -> None:
    release = asyncio.Event()

    class SlowFirst(ScriptedTransport):
        async def send(self, request: Request) -> HttpResponse:
            if request.body["q"] == "q0":
                await release.wait()
            return await super().send(request)

    settled: list[Reply] = []

    def on_settled(reply: Reply) -> None:
        settled.append(reply)
        if len(settled) == 19:
            release.set()

    engine = _engine(journal, lambda question, _: _ok(question))
    slow = SlowFirst(engine.transport.answer)  # type: ignore[attr-defined]
    engine = Engine(engine.endpoint, slow, journal, engine.policy, 2)
    asyncio.run(engine.run(_requests(20), on_settled=on_settled))
    assert settled[-1].text == "q0"


def test_failures_that_pass_are_retried_and_the_servers_wish_is_honoured(journal: Journal) -> None:
    script = [_error(429, retry_after="7"), _error(503, retry_after="Thu, 01 Jan 1970 00:02:00 GMT"), _ok()]
    engine = _engine(journal, lambda _, time: script[time - 1])
    assert [outcome_of(reply)[0] for reply in _run(engine, 1)] == [Outcome.OK]
    first_s, second_s = engine.clock.slept  # type: ignore[attr-defined]
    assert 7.0 <= first_s <= 7.5
    # 120 s on the clock, which stood at 100 and slept.
    assert 20.0 - first_s <= second_s <= 20.5 - first_s


def test_a_dropped_connection_is_retried(journal: Journal) -> None:
    def answer(_: str, time: int) -> HttpResponse:
        if time == 1:
            raise TeacherUnreachableError("connection reset")
        return _ok()

    assert [outcome_of(reply)[0] for reply in _run(_engine(journal, answer), 3)] == [Outcome.OK] * 3


def test_what_was_not_paid_for_fails_this_run_and_is_asked_by_the_next(journal: Journal) -> None:
    engine = _engine(journal, lambda *_: _error(500))
    assert outcome_of(_run(engine, 1)[0]) == (Outcome.FAILED, "HTTP 500: no")
    assert engine.transport.asked["q0"] == 3  # type: ignore[attr-defined]
    assert not journal.has_final("key-0")
    assert outcome_of(_run(_engine(journal, lambda *_: _ok()), 1)[0])[0] is Outcome.OK
    assert journal.has_final("key-0")


def test_a_malformed_body_is_asked_once_more_and_then_final(journal: Journal) -> None:
    engine = _engine(journal, lambda *_: HttpResponse(200, {}, b"<html>"))
    reply = _run(engine, 1)[0]
    assert outcome_of(reply)[0] is Outcome.FAILED
    assert "malformed body" in reply.error
    assert engine.transport.asked["q0"] == 2  # type: ignore[attr-defined]
    assert journal.has_final("key-0")


def test_an_error_with_status_200_is_asked_again_like_the_status_it_names(journal: Journal) -> None:
    passing = HttpResponse(200, {}, b'{"error": {"code": 502, "message": "Provider returned error"}}')
    engine = _engine(journal, lambda *_: passing)
    assert _run(engine, 1)[0].error == "HTTP 200 with an error 502: Provider returned error"
    assert engine.transport.asked["q0"] == 3  # type: ignore[attr-defined]
    assert not journal.has_final("key-0")
    assert outcome_of(_run(_engine(journal, lambda *_: _ok()), 1)[0])[0] is Outcome.OK


def test_one_bad_row_harms_no_neighbour(journal: Journal) -> None:
    bad = {"q3": _error(400), "q5": HttpResponse(200, {}, b"?"), "q7": _error(500)}
    replies = _run(_engine(journal, lambda question, _: bad.get(question, _ok())), 12)
    outcomes = Counter(outcome_of(reply)[0] for reply in replies)
    assert outcomes == {Outcome.OK: 9, Outcome.FAILED: 3}
    assert [journal.has_final(f"key-{n}") for n in (3, 5, 7)] == [True, True, False]


@pytest.mark.parametrize(
    ("status", "error"), [(401, TeacherAuthError), (403, TeacherAuthError), (404, TeacherError), (301, TeacherError)]
)
def test_a_probe_stops_at_an_unusable_endpoint(journal: Journal, status: int, error: type[TeacherError]) -> None:
    engine = _engine(journal, lambda *_: _error(status))
    with pytest.raises(error, match="http://teacher/v1/chat/completions"):
        asyncio.run(engine.probe(next(_requests(1))))
    assert engine.transport.asked.total() == 1  # type: ignore[attr-defined]


def test_a_refused_key_is_named_by_its_variable(journal: Journal) -> None:
    with pytest.raises(TeacherAuthError, match="environment variable TEACHER_KEY"):
        asyncio.run(_engine(journal, lambda *_: _error(401)).probe(next(_requests(1))))


def test_a_probe_says_when_nothing_answers(journal: Journal) -> None:
    def answer(*_: object) -> HttpResponse:
        raise TeacherUnreachableError("connection refused")

    with pytest.raises(TeacherUnreachableError, match=r"check teacher\.base_url"):
        asyncio.run(_engine(journal, answer).probe(next(_requests(1))))


def test_a_probe_stops_where_a_parameter_is_not_supported(journal: Journal) -> None:
    body = b'{"error": {"message": "Unsupported parameter: use max_completion_tokens", "param": "max_tokens"}}'
    engine = _engine(journal, lambda *_: HttpResponse(400, {}, body))
    with pytest.raises(TeacherError, match=r"teacher\.max_tokens_parameter=max_completion_tokens"):
        asyncio.run(engine.probe(next(_requests(1))))
    assert journal.get("key-0") is None


def test_a_probe_says_that_there_is_no_credit(journal: Journal) -> None:
    with pytest.raises(TeacherError, match=r"HTTP 402 .*no credit or quota left.*run the same command again"):
        asyncio.run(_engine(journal, lambda *_: _error(402)).probe(next(_requests(1))))


@pytest.mark.parametrize("status", [429, 500])
def test_a_probe_lets_pass_what_may_pass(journal: Journal, status: int) -> None:
    asyncio.run(_engine(journal, lambda *_: _error(status)).probe(next(_requests(1))))
    assert journal.get("key-0") is None


def test_a_key_that_is_refused_on_the_way_stops_the_run(journal: Journal) -> None:
    engine = _engine(journal, lambda question, _: _error(401) if question == "q9" else _ok())
    with pytest.raises(TeacherAuthError):
        _run(engine, 1000)
    assert engine.transport.asked.total() < 20  # type: ignore[attr-defined]
    assert journal.has_final("key-0")


def test_a_row_of_requests_without_an_answer_stops_the_run(journal: Journal) -> None:
    engine = _impatient(journal, lambda *_: _error(503), longest_row=7)
    with pytest.raises(TeacherError, match=r"no answer to 7 requests in a row \(last reason: HTTP 503: no\)"):
        _run(engine, 1000)
    assert engine.transport.asked.total() == 7 * 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("answered", [_ok(), _error(400), HttpResponse(200, {}, b"?")])
def test_any_final_answer_starts_the_count_anew(journal: Journal, answered: HttpResponse) -> None:
    engine = _impatient(
        journal, lambda question, _: answered if int(question[1:]) % 7 == 6 else _error(503), longest_row=7
    )
    unanswered = asyncio.run(engine.run(_requests(70), on_settled=lambda _: None))
    assert unanswered == (60, "HTTP 503: no")


def test_without_a_bound_everything_is_asked(journal: Journal) -> None:
    assert len(_run(_impatient(journal, lambda *_: _error(503), longest_row=None), 100)) == 100


def test_trouble_is_told_before_a_request_is_tried_again(journal: Journal) -> None:
    told: list[str] = []
    engine = _engine(journal, lambda _, time: _error(503) if time < 3 else _ok(), concurrency=1)
    unanswered = asyncio.run(engine.run(_requests(2), on_settled=lambda _: None, on_trouble=told.append))
    assert told == ["HTTP 503: no"] * 4
    assert unanswered == (0, "")


def test_cancelling_keeps_what_has_arrived(journal: Journal) -> None:
    async def cancel_midway() -> None:
        engine = _engine(journal, lambda *_: _ok())
        settled: list[Reply] = []
        task = asyncio.create_task(engine.run(_requests(100_000), on_settled=settled.append))
        while len(settled) < 20:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        known = sum(journal.has_final(f"key-{n}") for n in range(engine.transport.asked.total()))  # type: ignore[attr-defined]
        assert known >= max(20, engine.transport.asked.total() - 4)  # type: ignore[attr-defined]

    asyncio.run(cancel_midway())
