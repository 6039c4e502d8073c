"""Every request is handed out once, whoever else asks, and what others claimed is waited for."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxykd.exceptions import InputError
from proxykd.teacher.commits import GroupCommits
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.feed import Feed
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Reply, Request


class ShortClock:
    """Sleeps hardly at all."""

    def now_s(self) -> float:
        return 0.0

    def steady_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0.001)


@asynccontextmanager
async def _feed(journal: Journal, keys: Iterable[str], known: list[str]) -> AsyncIterator[tuple[Feed, GroupCommits]]:
    requests = (Request(key, {}) for key in keys)
    async with GroupCommits(journal) as commits:
        feed = Feed(
            requests,
            commits,
            bound=lambda request: Attempt("", request.key, 0, 0),
            block=4,
            clock=ShortClock(),
            on_known=lambda request: known.append(request.key),
        )
        yield feed, commits
        await feed.close()


async def _work(feed: Feed, commits: GroupCommits, asked: list[str]) -> None:
    while (claimed := await feed.take()) is not None:
        request = claimed.request
        asked.append(request.key)
        await asyncio.sleep(0.02)
        await commits.put(Entry(request.key, Reply(text="x"), True))
        feed.done(request)


def test_a_request_that_occurs_again_is_asked_once(tmp_path: Path) -> None:
    asked: list[str] = []

    async def main() -> None:
        with Journal(tmp_path / "j.sqlite") as journal:
            async with _feed(journal, ["a", "b", "a", "a", "c", "b", "d", "e", "a"], []) as (feed, commits):
                await asyncio.gather(*(_work(feed, commits, asked) for _ in range(3)))

    asyncio.run(main())
    assert sorted(asked) == list("abcde")


def test_two_who_ask_the_same_share_the_work(tmp_path: Path) -> None:
    keys, path = [f"{number:03}" for number in range(200)], tmp_path / "j.sqlite"
    asked: dict[str, list[str]] = {"one": [], "other": []}

    async def main() -> None:
        with Journal(path) as one, Journal(path) as other:
            async with _feed(one, keys, []) as first, _feed(other, keys, []) as second:
                await asyncio.gather(
                    *(_work(*first, asked["one"]) for _ in range(3)),
                    *(_work(*second, asked["other"]) for _ in range(3)),
                )

    asyncio.run(main())
    assert sorted(asked["one"] + asked["other"]) == keys
    assert asked["one"]
    assert asked["other"]


@pytest.mark.parametrize("how", ["answers", "releases", "dies"])
def test_what_another_claimed_is_waited_for(tmp_path: Path, how: str) -> None:
    asked: list[str] = []
    known: list[str] = []
    other = Journal(tmp_path / "j.sqlite")
    other.claim([Attempt("", "b", 0, 0)])

    async def main() -> None:
        with Journal(tmp_path / "j.sqlite") as journal:
            async with _feed(journal, "abc", known) as (feed, commits):
                working = asyncio.create_task(_work(feed, commits, asked))
                while len(asked) < 2:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.02)
                assert not working.done()
                if how == "answers":
                    other.commit([Entry("b", Reply(text="theirs"), True)])
                elif how == "releases":
                    other.release(["b"])
                else:
                    other.__exit__(None, None, None)
                await asyncio.wait_for(working, 10)

    asyncio.run(main())
    if how != "dies":
        other.__exit__(None, None, None)
    assert (sorted(asked), known) == ((["a", "c"], ["b"]) if how == "answers" else (["a", "b", "c"], []))


def test_what_was_claimed_and_not_asked_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        with Journal(tmp_path / "j.sqlite") as journal, Journal(tmp_path / "j.sqlite") as other:
            async with _feed(journal, "abcdefgh", []) as (feed, _):
                await feed.take()
            assert all(other.claim([Attempt("", key, 0, 0) for key in "abcdefgh"]).values())

    asyncio.run(main())


def test_a_stream_that_breaks_is_told_to_who_takes(tmp_path: Path) -> None:
    def broken() -> Iterable[str]:
        yield from "ab"
        raise InputError("line 3")

    async def main() -> None:
        with Journal(tmp_path / "j.sqlite") as journal:
            async with _feed(journal, broken(), []) as (feed, commits):
                with pytest.raises(InputError, match="line 3"):
                    await _work(feed, commits, [])

    asyncio.run(main())


def test_what_is_put_back_is_taken_next_and_given_back_at_the_end(tmp_path: Path) -> None:
    async def main() -> None:
        with Journal(tmp_path / "j.sqlite") as journal, Journal(tmp_path / "j.sqlite") as other:
            async with _feed(journal, "abcd", []) as (feed, commits):
                first = await feed.take()
                assert first is not None
                feed.put_back(first)
                assert await feed.take() == first
                feed.put_back(first)
                await commits.release([])
            assert other.claim([Attempt("", "a", 0, 0)]) == {"a": True}

    asyncio.run(main())
