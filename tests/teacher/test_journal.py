"""The journal keeps what it was given, whoever else writes and whatever breaks."""

import asyncio
import multiprocessing
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.exceptions import BusyError, StorageError
from proxykd.teacher.commits import GroupCommits
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.journal_sql import connect
from proxykd.teacher.replies import Reply

entries = st.builds(
    Entry,
    st.sampled_from(["a", "b", "c"]),
    st.builds(Reply, text=st.text(), error=st.text(max_size=3)),
    st.booleans(),
    st.just(""),
)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(entries, max_size=4), max_size=5))
def test_it_is_a_dictionary_in_which_final_entries_stay(batches: list[list[Entry]]) -> None:
    expected: dict[str, Entry] = {}
    with tempfile.TemporaryDirectory() as folder:
        for batch in batches:
            with Journal(Path(folder) / "j.sqlite") as journal:
                journal.commit(batch)
            for entry in batch:
                if entry.key not in expected or not expected[entry.key].is_final:
                    expected[entry.key] = entry
        with Journal(Path(folder) / "j.sqlite") as journal:
            assert {key: journal.get(key) for key in "abc"} == {key: expected.get(key) for key in "abc"}
            assert all(journal.has_final(key) == (key in expected and expected[key].is_final) for key in "abc")


def test_another_reader_sees_an_entry_as_soon_as_it_counts(tmp_path: Path) -> None:
    async def put_and_read() -> Entry | None:
        with Journal(tmp_path / "j.sqlite") as journal, Journal(tmp_path / "j.sqlite") as reader:
            async with GroupCommits(journal) as commits:
                await commits.put(Entry("k", Reply(text="x"), is_final=True))
                return reader.get("k")

    assert asyncio.run(put_and_read()) == Entry("k", Reply(text="x"), True)


def test_answers_that_arrive_during_a_commit_share_the_next(tmp_path: Path) -> None:
    class Counting(Journal):
        num_commits = 0

        def commit(self, *entries: Any, **attempts: Any) -> None:
            self.num_commits += 1
            super().commit(*entries, **attempts)

    async def put_many(journal: Journal) -> None:
        async with GroupCommits(journal) as commits:
            await asyncio.gather(*(commits.put(Entry(f"{i}", Reply(text="x"), True)) for i in range(100)))

    with Counting(tmp_path / "j.sqlite") as journal:
        asyncio.run(put_many(journal))
        assert all(journal.has_final(f"{i}") for i in range(100))
        assert journal.num_commits <= 3


def test_a_cancelled_waiter_does_not_lose_its_entry(tmp_path: Path) -> None:
    async def put_and_cancel(journal: Journal) -> None:
        async with GroupCommits(journal) as commits:
            waiter = asyncio.ensure_future(commits.put(Entry("k", Reply(text="x"), True)))
            await asyncio.sleep(0)
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)

    with Journal(tmp_path / "j.sqlite") as journal:
        asyncio.run(put_and_cancel(journal))
        assert journal.has_final("k")


def test_answers_that_were_handed_in_are_written_though_the_loop_is_gone(tmp_path: Path) -> None:
    async def put_and_wait(commits: GroupCommits) -> None:
        async with commits:
            for number in range(5):
                commits.put(Entry(f"k{number}", Reply(text="x"), True))
            await asyncio.sleep(60)

    with Journal(tmp_path / "j.sqlite") as journal:
        loop, asking = asyncio.new_event_loop(), put_and_wait(GroupCommits(journal))
        task = loop.create_task(asking)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()  # as a second interrupt does
        with pytest.raises(RuntimeError):  # the coroutine cannot wait any more; its thread is waited for all the same
            asking.close()
        assert all(journal.has_final(f"k{number}") for number in range(5))
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def _fill(path: Path, prefix: str) -> None:
    with Journal(path) as journal:
        for number in range(50):
            journal.commit([Entry(f"{prefix}{number}", Reply(text="x"), True), Entry("both", Reply(text=prefix), True)])


@pytest.mark.integration
def test_two_processes_may_share_it(tmp_path: Path) -> None:
    path, context = tmp_path / "j.sqlite", multiprocessing.get_context("spawn")
    writers = [context.Process(target=_fill, args=(path, prefix)) for prefix in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(timeout=30)
        assert writer.exitcode == 0
    with Journal(path) as journal:
        assert all(journal.has_final(f"{prefix}{number}") for prefix in "ab" for number in range(50))


def test_a_new_journal_waits_for_another_that_is_being_made(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    first = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    first.execute("BEGIN IMMEDIATE")  # SQLite refuses the write-ahead log at once, whatever its timeout
    release = threading.Timer(0.1, first.execute, ["COMMIT"])
    release.start()
    with Journal(path) as journal:
        journal.commit([Entry("k", Reply(text="x"), True)])
        assert journal.has_final("k")
    release.join()
    first.close()


def _small_disk(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.execute("PRAGMA max_page_count=9")
    return connection


def test_a_full_disk_is_told_and_what_was_written_stays(tmp_path: Path) -> None:
    async def put_until_full(journal: Journal) -> None:
        async with GroupCommits(journal) as commits:
            for number in range(1000):
                await commits.put(Entry(f"{number}", Reply(text="x" * 1000), True))

    with Journal(tmp_path / "j.sqlite", open_connection=_small_disk) as journal:
        with pytest.raises(StorageError, match="free space on its disk and run the same command again"):
            asyncio.run(put_until_full(journal))
        assert journal.has_final("0")


def test_what_is_no_journal_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be read as one" * 40)
    with pytest.raises(StorageError, match=r"expected a journal at .* do not delete it"):
        Journal(path)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="expected a journal at"):
        Journal(tmp_path / "file" / "j.sqlite")


def _filled(path: Path) -> list[str]:
    keys = [f"{number:04}" for number in range(500)]
    with Journal(path) as journal:
        journal.commit(Entry(key, Reply(text="x" * 200), True) for key in keys)
    return keys


def test_a_damaged_journal_is_told_and_must_not_be_deleted(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    keys = _filled(path)
    with path.open("r+b") as file:  # the first page, which holds the schema, stays
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))
    for read in (Journal.get, Journal.has_final):
        with (
            Journal(path) as journal,
            pytest.raises(StorageError, match=r"damaged .*restore a copy .*\.recover.*do not delete it"),
        ):
            [read(journal, key) for key in keys]


@pytest.mark.parametrize("reply", ["'{'", "reply || ' '", "CAST(x'ff' AS TEXT)"])
def test_a_damaged_reply_is_told(tmp_path: Path, reply: str) -> None:
    path = tmp_path / "j.sqlite"
    keys = _filled(path)
    connection = connect(path)
    connection.execute(f"UPDATE answers SET reply = {reply}")
    connection.close()
    with (
        Journal(path) as journal,
        pytest.raises(StorageError, match=r"damaged: the checksum of row 1 .*do not delete it"),
    ):
        journal.get(keys[0])


def _impatient(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    connection.execute("PRAGMA busy_timeout=1")
    return connection


def test_a_locked_journal_is_told_apart_from_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path, open_connection=_impatient) as journal:
        other = connect(path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageError, match="another run uses this workspace") as caught:
            journal.commit([Entry("k", Reply(text="x"), True)])
        other.close()
        assert "space on its disk" not in str(caught.value)
        journal.commit([Entry("k", Reply(text="x"), True)])
        assert journal.has_final("k")


def test_a_torn_last_record_is_dropped_and_the_rest_stays(tmp_path: Path) -> None:
    path, wal = tmp_path / "j.sqlite", tmp_path / "j.sqlite-wal"
    with Journal(path) as journal:
        for number in range(20):
            journal.commit([Entry(f"{number}", Reply(text="x" * 300), True)])
        files = {file: (tmp_path / file).read_bytes() for file in ("j.sqlite", "j.sqlite-wal")}
    lengths = set()
    for num_lost in range(1, 9000, 700):  # a power cut in the middle of any of the last writes
        path.write_bytes(files["j.sqlite"])
        wal.write_bytes(files["j.sqlite-wal"][:-num_lost])
        with Journal(path) as journal:
            rows = list(journal.rows())
            assert journal.damage() == []
        assert [row.key for row in rows] == [f"{number}" for number in range(len(rows))]
        assert all(row.is_intact for row in rows)
        lengths.add(len(rows))
    assert len(lengths) > 1
    assert max(lengths) == 19


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_a_flipped_bit_is_never_read_as_an_answer(position: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "j.sqlite"
        keys = _filled(path)
        content = bytearray(path.read_bytes())
        position = 8192 + position * 16 % (len(content) - 8192)
        content[position] ^= 0x10
        path.write_bytes(content)
        with Journal(path) as journal:
            for key in keys:
                try:
                    entry = journal.get(key)
                except StorageError:
                    continue
                # Where the index is hit, a request may look as if it had never been asked.
                assert entry is None or entry == Entry(key, Reply(text="x" * 200), True)


def calls(keys: str) -> list[Attempt]:
    return [Attempt("", key, 100, 10) for key in keys]


def test_a_claim_holds_until_its_owner_answers_releases_or_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(path) as other:
        with Journal(path) as first:
            assert first.claim(calls("abc")) == {"a": True, "b": True, "c": True}
            assert other.claim(calls("abd")) == {"a": False, "b": False, "d": True}
            first.commit([Entry("a", Reply(text="x"), True)])
            first.release(["b", "d"])
            assert other.claim(calls("abc")) == {"b": True, "c": False}
            assert first.claim(calls("d")) == {"d": False}
        assert other.claim(calls("c")) == {"c": True}


_CLAIM_AND_WAIT = """
import sys, time
from pathlib import Path
from proxykd.teacher.entries import Attempt
from proxykd.teacher.journal import Journal
with Journal(Path(sys.argv[1])) as journal:
    print(journal.claim([Attempt("", "a", 100, 10)]), flush=True)
    time.sleep(60)
"""


@pytest.mark.integration
def test_a_claim_of_a_killed_process_is_void_at_once(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with (
        subprocess.Popen([sys.executable, "-c", _CLAIM_AND_WAIT, str(path)], stdout=subprocess.PIPE) as owner,
        Journal(path) as journal,
    ):
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"{'a': True}\n"
        assert journal.claim(calls("a")) == {"a": False}
        owner.kill()
        owner.wait()
        assert [one[1:] for one in journal.open_attempts()] == [("a", 100, 10)]
        assert journal.claim(calls("a")) == {"a": True}
        # The call may have left: it counts for ever, and our own does not yet.
        assert [one[1:] for one in journal.open_attempts()] == [("a", 100, 10)]


def test_one_process_at_a_time_spends_under_a_cap(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as one, Journal(tmp_path / "j.sqlite") as other:
        with one.spending(), pytest.raises(BusyError, match="alone in spending"), other.spending():
            pass
        with other.spending():
            pass


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("j.sqlite*") if file.is_file())


def test_compacting_keeps_what_counts(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    failed, answered = Reply(error="HTTP 500"), Reply(text="x")
    with Journal(path) as journal:
        for number in range(200):
            journal.commit([Entry("a", failed, False), Entry("b", Reply(error=f"{number}"), False)])
        journal.commit([Entry("a", answered, True)])
        before, size = {key: journal.get(key) for key in "ab"}, _size(tmp_path)
        journal.compact()
        assert {key: journal.get(key) for key in "ab"} == before
        assert [(row.key, row.is_final) for row in journal.rows()] == [("b", 0), ("a", 1)]
        assert _size(tmp_path) < size / 4


def test_a_journal_of_another_form_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    connection = connect(path)
    connection.execute("CREATE TABLE answers (key TEXT)")
    connection.close()
    with pytest.raises(StorageError, match="an earlier release of proxykd wrote it; move it away"):
        Journal(path)
