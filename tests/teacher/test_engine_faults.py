"""What breaks between two steps of the engine: nothing that was paid for is forgotten, nothing is passed over."""

import asyncio
import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.prices import PriceSpec
from proxykd.config.teacher import BudgetSpec
from proxykd.exceptions import InputError, StorageError, TeacherError, TeacherUnreachableError
from proxykd.teacher.budget import Cost, Ledger, Tariff, spent_on
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.engine import Engine
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Request
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.transport import HttpResponse

TARIFF = Tariff(PriceSpec(input_usd_per_million=1e6, output_usd_per_million=1e6))
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
OK = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": USAGE}


class Answers:
    """Gives the same answer to every call after a moment, or raises."""

    def __init__(self, answer: HttpResponse | Exception, latency_s: float = 0.001) -> None:
        self.answer, self.latency_s, self.num_calls = answer, latency_s, 0

    async def send(self, request: Request) -> HttpResponse:
        self.num_calls += 1
        await asyncio.sleep(self.latency_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def response(status: int = 200, value: Any = OK) -> HttpResponse:
    return HttpResponse(status, {}, json.dumps(value).encode())


def requests(count: int) -> list[Request]:
    body = {"max_tokens": 7, "messages": [{"role": "user", "content": "ask"}]}
    return [Request(f"key-{number}", body) for number in range(count)]


def engine(journal: Journal, answers: Answers, *, concurrency: int = 4, caps: BudgetSpec | None = None) -> Engine:
    policy, caps = RetryPolicy(1), caps or BudgetSpec(requests=1000)
    return Engine(Endpoint("http://t", "m", None), answers, journal, policy, concurrency, Ledger(caps, TARIFF, Cost()))


def run(journal: Journal, answers: Answers, asked: Iterable[Request], **how: Any) -> int:
    settled: list[object] = []
    asyncio.run(engine(journal, answers, **how).run(asked, on_settled=settled.append))
    return len(settled)


def counted(path: Path, asked: list[Request]) -> int:
    """Calls that a later run knows of."""
    with Journal(path) as journal:
        attempts, keys = journal.open_attempts(), [request.key for request in asked]
        return spent_on(keys, tariff=TARIFF, get_many=journal.get_many, open_attempts=attempts).requests


def test_a_claim_ahead_of_need_that_fails_ends_the_run(tmp_path: Path) -> None:
    class FailsOnce(Journal):
        num_claims = 0

        def claim(self, *wanted: Any, **settled: Any) -> dict[str, bool]:
            self.num_claims += 1
            if self.num_claims == 3:
                raise StorageError("locked for too long")
            return super().claim(*wanted, **settled)

    with FailsOnce(tmp_path / "j.sqlite") as journal, pytest.raises(StorageError, match="locked for too long"):
        run(journal, Answers(response()), requests(60))


@pytest.mark.parametrize("num_before", [1, 4, 9, 30])
def test_a_stream_that_breaks_ends_the_run(tmp_path: Path, num_before: int) -> None:
    def broken() -> Iterator[Request]:
        yield from requests(num_before)
        raise InputError("line 31")

    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(InputError, match="line 31"):
        run(journal, Answers(response(), latency_s=0.01), broken())


class FullDisk(Journal):
    """Takes claims and no answers."""

    def commit(self, *_: Any, **__: Any) -> None:
        raise StorageError("the disk is full")


@pytest.mark.parametrize(
    "answer",
    [
        response(),
        HttpResponse(200, {}, b"<html>"),
        response(504, {}),
        TeacherUnreachableError("dropped"),
    ],
    ids=["an answer", "unreadable", "time-out", "dropped"],
)
def test_on_a_full_disk_every_call_that_left_is_counted(tmp_path: Path, answer: HttpResponse | Exception) -> None:
    answers, asked, path = Answers(answer, latency_s=0.02), requests(40), tmp_path / "j.sqlite"
    with FullDisk(path) as journal, pytest.raises(StorageError, match="the disk is full"):
        run(journal, answers, asked)
    assert answers.num_calls == 4
    assert counted(path, asked) == 4
    with Journal(path) as journal:
        assert len(list(journal.rows())) == (0 if isinstance(answer, Exception) else 4)


def test_what_the_room_cannot_hold_stays_claimed(tmp_path: Path) -> None:
    class NoRoom(FullDisk):
        def spill(self, *_: Any) -> None:
            raise StorageError("no room either")

    answers, asked = Answers(response(), latency_s=0.02), requests(40)
    with NoRoom(tmp_path / "j.sqlite") as journal, pytest.raises(StorageError):
        run(journal, answers, asked)
    assert counted(tmp_path / "j.sqlite", asked) >= answers.num_calls == 4


def test_who_is_at_work_takes_in_what_another_could_not_write(tmp_path: Path) -> None:
    asked = requests(3)
    with Journal(tmp_path / "j.sqlite") as at_work:
        with FullDisk(tmp_path / "j.sqlite") as journal, pytest.raises(StorageError):
            run(journal, Answers(response(), latency_s=0.02), asked)
        assert at_work.claim([Attempt("", request.key, 100, 10) for request in asked]) == {}
    assert counted(tmp_path / "j.sqlite", asked) == 3


def test_a_spill_that_is_damaged_gives_what_is_intact_and_is_kept(tmp_path: Path) -> None:
    asked = requests(8)
    with FullDisk(tmp_path / "j.sqlite") as journal, pytest.raises(StorageError):
        run(journal, Answers(response(), latency_s=0.02), asked, concurrency=3)
    (spill,) = (tmp_path / "j.sqlite-owners").glob("*.spill")
    lines = spill.read_bytes().rstrip(b"\0").split(b"\n")
    spill.write_bytes(b"\n".join([lines[0], lines[1][:40], *lines[2:]]))
    with Journal(tmp_path / "j.sqlite") as journal:
        assert sum(journal.has_final(request.key) for request in asked) == 2
        assert list(spill.parent.glob("*.damaged"))
    assert counted(tmp_path / "j.sqlite", asked) >= 3


@pytest.mark.parametrize("num_cancels", [1, 3])
def test_a_claim_goes_only_when_its_answer_is_durable(tmp_path: Path, num_cancels: int) -> None:
    order: list[tuple[str, list[str]]] = []

    class Slow(Journal):
        def commit(self, entries: Iterable[Entry] = (), **attempts: Any) -> None:
            time.sleep(0.03)
            entries = list(entries)
            super().commit(entries, **attempts)
            order.append(("commit", [entry.key for entry in entries]))

        def release(self, keys: Iterable[str]) -> None:
            keys = list(keys)
            order.append(("release", keys))
            super().release(keys)

    answers, asked = Answers(response()), requests(200)

    async def cancel_midway(journal: Journal) -> int:
        task = asyncio.create_task(engine(journal, answers).run(asked, on_settled=lambda _: None))
        while answers.num_calls < 10:
            await asyncio.sleep(0.001)
        for _ in range(num_cancels):
            task.cancel()
            await asyncio.sleep(0.004)
        with pytest.raises(asyncio.CancelledError):
            await task
        return answers.num_calls

    with Slow(tmp_path / "j.sqlite") as journal:
        num_calls = asyncio.run(cancel_midway(journal))
    committed = [key for what, keys in order if what == "commit" for key in keys]
    assert [what for what, _ in order].index("release") == len(order) - 1 if num_cancels == 1 else True
    assert counted(tmp_path / "j.sqlite", asked) >= num_calls
    assert len(committed) >= num_calls - 4


def test_an_error_that_ends_the_run_is_counted_if_it_may_have_been_paid_for(tmp_path: Path) -> None:
    error = {"error": {"message": "no quota", "code": "insufficient_quota"}}
    answers, asked = Answers(response(500, error)), requests(1)
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(TeacherError, match="no credit"):
        run(journal, answers, asked)
    assert counted(tmp_path / "j.sqlite", asked) == answers.num_calls == 1


def test_rows_that_are_dropped_stay_counted(tmp_path: Path) -> None:
    asked = requests(5)
    with Journal(tmp_path / "j.sqlite") as journal:
        run(journal, Answers(response()), asked)
        journal.drop(list(journal.rows())[:2])
        assert sum(journal.has_final(request.key) for request in asked) == 3
    assert counted(tmp_path / "j.sqlite", asked) == 5
