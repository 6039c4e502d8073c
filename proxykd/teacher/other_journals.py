"""What other journals know of a run's calls -> the journal that the run asks through, so that nothing is paid twice.

    final answers         copied, with their checksums
    calls that were lost  copied, so that a cap counts them; the same one under the same name, however often
    open batches          settled through the journal that submitted them, by a run that is alone; else refused

SQLite's files are for one machine: portions of a run, which may be on several, only read the journals of others.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from proxykd.artifacts import PromptSet
from proxykd.config.teacher import AnthropicTeacherSpec, OpenAITeacherSpec
from proxykd.exceptions import ConfigError
from proxykd.progress import stage
from proxykd.teacher.batches.asker import Listener, address_of
from proxykd.teacher.batches.asking import ask_in_batches
from proxykd.teacher.batches.chunks import requests_in_batches
from proxykd.teacher.budget import NOTHING
from proxykd.teacher.entries import Attempt
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher

PORTIONS = "*-of-*.sqlite"
"""Names of the journals of portions."""
_KEYS_AT_ONCE = 2000


def bring(teacher: LiveTeacher, prompts: PromptSet, journal: Journal, path: Path, *, may_settle: bool) -> None:
    """Put what another journal knows of the calls about some prompts into ours.

    Args:
        teacher: Who is asked.
        prompts: The questions.
        journal: Ours.
        path: The other one; exists.
        may_settle: Whether open batches are settled, which writes into the other journal.

    Raises:
        ConfigError: if open batches of the other journal hold calls that ours lacks, and it may not settle them.
        TeacherError, BusyError: if it cannot settle them.
        StorageError: if a journal cannot be used.
    """
    with Journal(path) as other:
        _copy(teacher, prompts, journal, other)
        if held := _held(teacher, prompts, journal, path):
            if not may_settle:
                raise ConfigError(_advice(path, len(held)))
            _settle(teacher, other)
            _copy(teacher, prompts, journal, other)
        _copy_lost(teacher, prompts, journal, other)


def keys_of(teacher: LiveTeacher, prompts: PromptSet, journal: Journal) -> Iterator[Sequence[str]]:
    """The keys of all calls about some prompts, then of those that follow the cut answers in the journal."""
    for calls in teacher.calls(prompts):
        yield calls.keys
    pending: list[str] = []
    for request in teacher.furthers(prompts, journal):
        pending.append(request.key)
        if len(pending) == _KEYS_AT_ONCE:
            yield pending
            pending = []
    yield pending


def _copy(teacher: LiveTeacher, prompts: PromptSet, journal: Journal, other: Journal) -> None:
    for keys in keys_of(teacher, prompts, journal):
        known = journal.finals_among(keys)
        rows = other.rows_among([key for key in keys if key not in known])
        journal.add_rows(row for row in rows.values() if row.is_intact)


def _copy_lost(teacher: LiveTeacher, prompts: PromptSet, journal: Journal, other: Journal) -> None:
    lost: dict[str, list[Attempt]] = {}
    for attempt in other.lost_attempts():
        lost.setdefault(attempt.key, []).append(attempt)
    for keys in keys_of(teacher, prompts, journal) if lost else ():
        journal.add_rows((), lost=[attempt for key in keys for attempt in lost.get(key, ())])


def _held(teacher: LiveTeacher, prompts: PromptSet, journal: Journal, path: Path) -> set[str]:
    """Calls without an answer that are in open batches of another journal; batches that are given up hold none."""
    if not isinstance(teacher.spec, OpenAITeacherSpec | AnthropicTeacherSpec):  # nobody else's batches are used
        return set()
    given_up = teacher.spec.batch.give_up if teacher.spec.batch else ()
    batched, held = requests_in_batches(path, address_of(teacher), besides=given_up), set[str]()
    for keys in keys_of(teacher, prompts, journal) if batched else ():
        held |= batched.intersection(keys) - journal.finals_among(keys)
    return held


def _settle(teacher: LiveTeacher, other: Journal) -> None:
    with stage(f"Waiting for the batches of {other.path.name}", unit="answer") as progress:
        listener = Listener(progress, lambda _: progress.advance(), lambda _: None)
        ask_in_batches(teacher, lambda: iter(()), other, listener, spent=lambda: NOTHING, only_settles=True)


def _advice(path: Path, num_held: int) -> str:
    number, _, of = path.stem.partition("-of-")
    earlier = f"with --shards query_teacher={of}" if of and number.isdigit() else "without --shards"
    return (
        f"expected no open batches of an earlier run with this shard's calls, found {num_held} in {path}; run once "
        f"{earlier} as before, or in one place, without --shards: either takes up those batches, and then any number "
        "of shards may ask what is left; or set teacher.batch.give_up to let their answers go"
    )
