"""What checks out and why not, for every kind of verifier; many at once, in order, without reading far ahead."""

import json
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from proxykd.config.verifiers import VerifierSpec
from proxykd.data.verifiers import NO_REFERENCE, PASSED, Check, Verifier, build_verifier, verify_many
from proxykd.exceptions import ConfigError
from proxykd.records import Message, Prompt

ADAPTER: TypeAdapter[VerifierSpec] = TypeAdapter(VerifierSpec)
KINDS: list[dict[str, Any]] = [
    {"kind": "exact", "answer_pattern": "Answer: (.*)"},
    {"kind": "numeric"},
    {"kind": "program"},
    {"kind": "tests"},
    {"kind": "json_schema"},
]
FENCED = "It goes like this:\n```python\n{}\n```\nThat is all."


def verifier_of(kind: str, **settings: Any) -> Verifier:
    return built(json.dumps({"kind": kind, **settings}))


@cache
def built(settings: str) -> Verifier:
    """One verifier, with its sandbox, for all tests of the same settings."""
    return build_verifier(ADAPTER.validate_json(settings))


def prompt_of(reference: str | None) -> Prompt:
    return Prompt.build([Message("user", "q")], reference=reference)


def code_of(kind: str, reference: str | None, text: str, **settings: Any) -> str:
    """The code of the reason; "" = it checked out."""
    check = verifier_of(kind, **settings).verify(prompt_of(reference), text)
    assert check.passed == (not check.reason)
    assert len(check.reason) <= 200
    return check.code


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec["kind"])
def test_where_nothing_is_known_nothing_passes(spec: dict[str, Any]) -> None:
    verifier = verifier_of(**spec)
    assert verifier.verify(prompt_of(None), "Answer: 1") == Check(False, NO_REFERENCE)


@pytest.mark.parametrize("spec", KINDS, ids=lambda spec: spec["kind"])
@pytest.mark.parametrize("text", ["", "\0", "\ud800", "(" * 100_000, "[" * 100_000, "9" * 10_000, "```python"])
def test_no_text_breaks_a_verifier(spec: dict[str, Any], text: str) -> None:
    verifier = verifier_of(**spec)
    reference = "false" if spec["kind"] == "json_schema" else "assert False"
    assert not verifier.verify(prompt_of(reference), text).passed


@pytest.mark.parametrize(
    ("text", "code"),
    [("Answer: PARIS.", ""), ("Answer: Lyon\nAnswer: Paris", ""), ("Answer: Lyon", "wrong"), ("Paris", "no_answer")],
)
def test_exact(text: str, code: str) -> None:
    assert code_of("exact", " Paris", text, answer_pattern="Answer: (.*)") == code


@pytest.mark.parametrize(
    ("reference", "text", "code"),
    [
        ("1,234", "first 7, in the end $1234.00.", ""),
        ("0.3333333", "1/3", ""),
        ("1235", "1234", "wrong"),
        ("ten", "10", "not_a_number"),
        ("10", "ten", "no_answer"),
    ],
)
def test_numeric(reference: str, text: str, code: str) -> None:
    assert code_of("numeric", reference, text) == code


def test_numeric_tolerances() -> None:
    assert code_of("numeric", "200", "201") == "wrong"
    assert code_of("numeric", "200", "201", relative_tolerance=0.005) == ""
    assert code_of("numeric", "200", "201", absolute_tolerance=1.0) == ""


@pytest.mark.parametrize(
    ("read", "code", "reason"),
    [
        ("stdout", "print(6 * 7)", ""),
        ("stdout", "print('42.0')", ""),
        ("stdout", "print(41)", "wrong"),
        ("stdout", "print(1)\nprint(42)", "wrong"),
        ("stdout", "pass", "wrong"),
        ("stdout", "1 / 0", "error"),
        ("answer", "answer = 42", ""),
        ("answer", "result = 42", "error"),
        ("solution", "def solution():\n    return 84 / 2", ""),
        ("solution", "def solution(x):\n    return x", "error"),
        ("solution", "import socket\ndef solution():\n    return socket.socket()", "error"),
    ],
)
def test_program(read: str, code: str, reason: str) -> None:
    assert code_of("program", "42", FENCED.format(code), read=read) == reason
    assert code_of("program", "42", code, read=read) == reason


def test_a_program_may_arrive_at_a_text() -> None:
    assert code_of("program", "Ada Lovelace", "print('ada  lovelace')") == ""
    assert code_of("program", "Ada Lovelace", "print(1815)") == "wrong"


def test_a_program_that_does_not_end_is_out_of_time() -> None:
    assert code_of("program", "42", "while True: pass", sandbox={"wall_s": 0.3}) == "timeout"


TESTS = "assert double(2) == 4\nassert double(-1) == -2, 'negative'"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def double(x):\n    return 2 * x", ""),
        ("def double(x):\n    return 2 * abs(x)", "error"),
        ("def triple(x):\n    return 3 * x", "error"),
        ("raise SystemExit(0)", "error"),
        ("import os\nos._exit(0)", "error"),
        ("import sys\nresult = 'passed'\nsys.exit()", "error"),
        ("def double(x):\n    return 2 * x\nif __name__ == '__main__':\n    print(double(4))", ""),
    ],
)
def test_tests(code: str, reason: str) -> None:
    assert code_of("tests", TESTS, FENCED.format(code)) == reason


def test_the_reason_names_the_test_that_failed() -> None:
    check = verifier_of("tests").verify(prompt_of(TESTS), "def double(x): return 2 * abs(x)")
    assert check == Check(False, "error: AssertionError: negative")


SCHEMA = {"type": "object", "required": ["name"], "properties": {"age": {"type": "integer", "minimum": 0}}}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('{"name": "Ada", "age": 36}', ""),
        ('{"age": 36}', "schema"),
        ('{"name": "Ada", "age": -1}', "schema"),
        ('Sure: {"name": "Ada"}', "not_json"),
        ('{"name": NaN}', "not_json"),
        ('{"name": 1} {"name": 2}', "not_json"),
    ],
)
def test_json_schema_from_a_file_or_from_the_reference(tmp_path: Path, text: str, code: str) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert code_of("json_schema", None, text, schema_file=str(file)) == code
    assert code_of("json_schema", json.dumps(SCHEMA), text) == code


def test_a_schema_that_cannot_be_used_is_an_error_or_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    with pytest.raises(ConfigError, match="expected a JSON Schema"):
        verifier_of("json_schema", schema_file=str(file))
    file.write_text('{"type": "no such type"}')
    with pytest.raises(ConfigError, match="not a schema"):
        verifier_of("json_schema", schema_file=str(file))
    assert code_of("json_schema", "no JSON", "{}") == "bad_schema"
    # Nothing is fetched, whatever address a schema names.
    assert code_of("json_schema", '{"$ref": "http://127.0.0.1:1/schema"}', "{}") == "bad_schema"


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "exact"},
        {"kind": "exact", "answer_pattern": "no group"},
        {"kind": "exact", "answer_pattern": "("},
        {"kind": "numeric", "absolute_tolerance": float("nan")},
        {"kind": "program", "read": "stderr"},
        {"kind": "program", "sandbox": {"memory_mib": 1}},
        {"kind": "other"},
    ],
)
def test_what_cannot_be_a_verifier_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(settings)


class Slow:
    """Passes texts that say so, later ones sooner, and counts how many it has at a time."""

    def __init__(self) -> None:
        self.lock, self.num_now, self.most = threading.Lock(), 0, 0

    def verify(self, prompt: Prompt, text: str) -> Check:
        with self.lock:
            self.num_now += 1
            self.most = max(self.most, self.num_now)
        time.sleep(0.02 if int(text) % 5 == 0 else 0.0)
        with self.lock:
            self.num_now -= 1
        return PASSED if int(text) % 2 else Check(False, text)


@pytest.mark.parametrize("workers", [1, 4])
def test_many_come_in_order_and_few_are_read_ahead(workers: int) -> None:
    verifier, num_read = Slow(), 0

    def pairs() -> Iterator[tuple[Prompt, str]]:
        nonlocal num_read
        for number in range(60):
            num_read += 1
            yield prompt_of(None), str(number)

    for number, check in enumerate(verify_many(pairs(), verifier, workers=workers)):
        assert check == (PASSED if number % 2 else Check(False, str(number)))
        assert num_read <= number + 1 + 4 * workers
    assert num_read == 60
    assert verifier.most == (1 if workers == 1 else workers)


def test_an_error_of_a_verifier_passes_on() -> None:
    pairs = [(prompt_of(None), text) for text in ("1", "x", "3")]
    checks = verify_many(pairs, Slow(), workers=2)
    assert next(checks) == PASSED
    with pytest.raises(ValueError, match="invalid literal"):
        list(checks)
