"""Answers that other tools paid for, put into the journal as answers to a run's own requests.

Each line is one JSON object in one of these shapes; the messages decide which prompt of the run it answers:

    curator's response files          {"generic_request": {"messages": [...]}, "response_message": "...", ...}
    a request beside its response     {"request": {"messages": [...]}, "response": {"choices": [...]}}
    OpenAI fine-tuning files          {"messages": [..., {"role": "assistant", "content": "..."}]}
    a question and a text             {"messages" | "prompt" | "instruction": ..., "completion" | "response" | "output"
                                       | "generation" | "text": "..."}

Tokens are not taken over: this run did not pay for them, and its caps do not count them.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from proxykd.artifacts import PromptSet, batched
from proxykd.data.scratch import scratch_database
from proxykd.exceptions import InputError
from proxykd.records import Message, prompt_id_of
from proxykd.teacher.entries import Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.replies import Reply, as_text

_QUESTIONS = ("messages", "prompt", "instruction")
_TEXTS = ("completion", "response", "output", "generation", "text")
_BATCH = 2000
_COUNT = "SELECT count(*) FROM found WHERE prompt_id = ?"


class Imported(NamedTuple):
    """What came of an import.

    Attributes:
        num_lines: Answers in the file.
        num_known_prompts: Those of them whose messages are those of a prompt of the run.
        num_new: Answers to requests of the run that had none.
        num_missing: Requests of the run that still have none.
    """

    num_lines: int
    num_known_prompts: int
    num_new: int
    num_missing: int


def import_foreign(journal: Journal, path: Path, prompts: PromptSet, teacher: LiveTeacher) -> Imported:
    """Let what another tool wrote answer a run's requests; samples of one prompt are taken in the file's order.

    Args:
        journal: Where the answers go.
        path: JSONL file.
        prompts: The questions of the run.
        teacher: Makes its requests.

    Raises:
        InputError: if the file cannot be read, or a line is of no known shape, naming it.
        StorageError: if the journal cannot be used.
    """
    num_new = num_missing = num_known = 0
    with scratch_database() as database:
        num_lines = _collect(database, path)
        for prompt in prompts.rows():
            (found,) = database.execute(
                "SELECT count(*) FROM found WHERE prompt_id = ?", (prompt.prompt_id,)
            ).fetchone()
            num_known += found

        def entries() -> Iterator[Entry]:
            nonlocal num_missing
            for prompt, _, request in teacher.requests(prompts):
                if journal.has_final(request.key):
                    continue
                if (reply := _next_reply(database, prompt.prompt_id)) is None:
                    num_missing += 1
                else:
                    yield Entry(request.key, reply, is_final=True, request=request.asked)

        for batch in batched(entries(), _BATCH):
            journal.commit(batch)
            num_new += len(batch)
    return Imported(num_lines, num_known, num_new, num_missing)


def parse_answer(value: Any) -> tuple[list[Message], Reply]:
    """The question and the answer in one line of another tool's.

    Raises:
        ValueError, KeyError, TypeError, IndexError: if it is of no known shape.
    """
    if "generic_request" in value:
        reply = _reply(value["response_message"], value.get("finish_reason"), value["generic_request"].get("model"))
        return _messages(value["generic_request"]["messages"]), reply
    if "request" in value and isinstance(value.get("response"), dict):
        choice = value["response"]["choices"][0]
        reply = _reply(choice["message"]["content"], choice.get("finish_reason"), value["response"].get("model"))
        return _messages(value["request"]["messages"]), reply
    messages = _messages(next(value[name] for name in _QUESTIONS if name in value))
    if messages[-1].role == "assistant":
        return messages[:-1], _reply(messages[-1].content, None, value.get("model"))
    text = next(value[name] for name in _TEXTS if name in value)
    return messages, _reply(text, value.get("finish_reason"), value.get("model_name", value.get("model")))


def _messages(value: Any) -> list[Message]:
    if isinstance(value, str):
        return [Message("user", value)]
    return [Message(str(turn["role"]), as_text(turn["content"])) for turn in value]


def _reply(text: object, finish_reason: object, model: object) -> Reply:
    return Reply(text=as_text(text), finish_reason=as_text(finish_reason), model=as_text(model))


def _collect(database: sqlite3.Connection, path: Path) -> int:
    database.execute("CREATE TABLE found (prompt_id TEXT, reply TEXT)")
    database.execute("CREATE INDEX by_prompt ON found (prompt_id)")
    count = 0
    for batch in batched(_answers(path), _BATCH):
        rows = [(prompt_id_of(messages), json.dumps(asdict(reply))) for messages, reply in batch]
        database.executemany("INSERT INTO found VALUES (?, ?)", rows)
        count += len(batch)
    return count


def _answers(path: Path) -> Iterator[tuple[list[Message], Reply]]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _parse_line(path, number, line)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a JSONL file of answers at {path}: {error}") from None


def _parse_line(path: Path, number: int, line: str) -> tuple[list[Message], Reply]:
    try:
        return parse_answer(json.loads(line))
    except (ValueError, LookupError, TypeError, AttributeError, StopIteration, RecursionError):
        raise InputError(
            f"{path}, line {number}: expected an answer in a shape of curator's or of OpenAI's, or with one of "
            f"{', '.join(_QUESTIONS)} and one of {', '.join(_TEXTS)}, found {line.strip()[:80]!r}"
        ) from None


def _next_reply(database: sqlite3.Connection, prompt_id: str) -> Reply | None:
    query = "DELETE FROM found WHERE rowid = (SELECT min(rowid) FROM found WHERE prompt_id = ?) RETURNING reply"
    row = next(iter(database.execute(query, (prompt_id,)).fetchall()), None)
    return None if row is None else _as_reply(json.loads(row[0]))


def _as_reply(values: Mapping[str, Any]) -> Reply:
    return Reply(**values)
