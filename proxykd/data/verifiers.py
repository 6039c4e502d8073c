"""Checks a completion against what is known of its prompt: the right answer, tests, a schema.

Expert knowledge transfer keeps, of several samples a prompt, those that check out; the only supervision is the
answer (EKT, arXiv 2211.16740). A verifier says yes or no with a reason; it never repairs and never guesses. A prompt
without a reference passes nothing, because nothing is known of it.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from proxykd.config.verifiers import (
    ExactVerifierSpec,
    JsonSchemaVerifierSpec,
    NumericVerifierSpec,
    ProgramVerifierSpec,
    TestsVerifierSpec,
    VerifierSpec,
)
from proxykd.data.answers import find_answer, find_code, normalise_answer, numbers_agree
from proxykd.data.sandbox import ProgramRun, RunEnd, Sandbox
from proxykd.exceptions import ConfigError
from proxykd.records import Prompt

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

_AHEAD = 4
_LONGEST_REASON = 200
NO_REFERENCE = "no_reference"


class Check(NamedTuple):
    """A verifier's word on a completion.

    Attributes:
        passed: Whether it checks out.
        reason: Why not, as ``code: detail`` (at most 200 characters); "" if it passed.
    """

    passed: bool
    reason: str = ""

    @property
    def code(self) -> str:
        """The reason without its detail, fit for counting: no_reference, no_answer, wrong, error, timeout, ..."""
        return self.reason.partition(":")[0]


PASSED = Check(True)


class Verifier(Protocol):
    """Checks completions; ``verify`` may be called from several threads at once."""

    def verify(self, prompt: Prompt, text: str) -> Check:
        """Whether ``text`` is a right completion of ``prompt``."""
        ...


def build_verifier(spec: VerifierSpec) -> Verifier:
    """The verifier that ``spec`` describes.

    Raises:
        SandboxError: if it runs programs and this machine cannot hold them in.
        ConfigError: if its schema cannot be used, or the package that reads schemas is missing.
    """
    if isinstance(spec, ExactVerifierSpec):
        return ExactVerifier(spec)
    if isinstance(spec, NumericVerifierSpec):
        return NumericVerifier(spec)
    if isinstance(spec, ProgramVerifierSpec):
        return ProgramVerifier(spec, Sandbox(spec.sandbox))
    if isinstance(spec, TestsVerifierSpec):
        return TestsVerifier(Sandbox(spec.sandbox))
    return JsonSchemaVerifier(spec)


def verify_many(pairs: Iterable[tuple[Prompt, str]], verifier: Verifier, *, workers: int = 1) -> Iterator[Check]:
    """A check for each pair, in their order; at most ``4 * workers`` pairs are read ahead.

    Threads pay only where a verifier waits for processes (program, tests); 1 runs in the caller's thread.

    Args:
        pairs: Prompts and their completions.
        verifier: Of ``build_verifier``.
        workers: Most checks at a time, >= 1.
    """
    if workers <= 1:
        yield from (verifier.verify(prompt, text) for prompt, text in pairs)
        return
    waiting: deque[Future[Check]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="verify") as pool:
        try:
            for prompt, text in pairs:
                waiting.append(pool.submit(verifier.verify, prompt, text))
                if len(waiting) >= _AHEAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True, slots=True)
class ExactVerifier:
    """The answer is the reference."""

    spec: ExactVerifierSpec

    def verify(self, prompt: Prompt, text: str) -> Check:
        """Whether the extracted answer and the reference are the same text once normalised."""
        if prompt.reference is None:
            return _failed(NO_REFERENCE)
        if (answer := find_answer(self.spec.answer_pattern, text)) is None:
            return _failed("no_answer")
        return PASSED if normalise_answer(answer) == normalise_answer(prompt.reference) else _failed("wrong", answer)


@dataclass(frozen=True, slots=True)
class NumericVerifier:
    """The number is the reference, or near enough."""

    spec: NumericVerifierSpec

    def verify(self, prompt: Prompt, text: str) -> Check:
        """Whether the extracted number lies within the tolerance; texts that are no numbers fail."""
        if prompt.reference is None:
            return _failed(NO_REFERENCE)
        if (answer := find_answer(self.spec.answer_pattern, text)) is None:
            return _failed("no_answer")
        agree = numbers_agree(
            answer,
            prompt.reference,
            relative=self.spec.relative_tolerance,
            absolute=self.spec.absolute_tolerance,
        )
        if agree is None:
            return _failed("not_a_number", f"{answer} or the reference {prompt.reference}")
        return PASSED if agree else _failed("wrong", answer)


@dataclass(frozen=True, slots=True)
class ProgramVerifier:
    """The program arrives at the reference."""

    spec: ProgramVerifierSpec
    sandbox: Sandbox

    def verify(self, prompt: Prompt, text: str) -> Check:
        """Whether what the program prints, calls answer, or returns from solution() agrees with the reference.

        Raises:
            SandboxError: if the machine could not hold the program in.
        """
        if prompt.reference is None:
            return _failed(NO_REFERENCE)
        checks = {"stdout": "", "answer": "result = answer", "solution": "result = solution()"}
        run = self.sandbox.run(find_code(text), checks[self.spec.read])
        if run.end is not RunEnd.DONE:
            return _not_done(run)
        found = (run.stdout if self.spec.read == "stdout" else run.value).strip()
        agree = numbers_agree(
            found,
            prompt.reference,
            relative=self.spec.relative_tolerance,
            absolute=self.spec.absolute_tolerance,
        )
        is_same = normalise_answer(found) == normalise_answer(prompt.reference) if agree is None else agree
        return PASSED if is_same else _failed("wrong", found)


@dataclass(frozen=True, slots=True)
class TestsVerifier:
    """The program passes the tests."""

    __test__ = False  # not a test case, whatever its name

    sandbox: Sandbox

    def verify(self, prompt: Prompt, text: str) -> Check:
        """Whether the reference's tests, run among the program's names, come to their end.

        Raises:
            SandboxError: if the machine could not hold the program in.
        """
        if prompt.reference is None:
            return _failed(NO_REFERENCE)
        run = self.sandbox.run(find_code(text), f"{prompt.reference}\nresult = 'passed'")
        return PASSED if run.end is RunEnd.DONE and run.value == "passed" else _not_done(run)


class JsonSchemaVerifier:
    """The text is JSON that a schema allows.

    Args:
        spec: Where the schema is.

    Raises:
        ConfigError: if the schema cannot be used, or jsonschema is not installed.
    """

    def __init__(self, spec: JsonSchemaVerifierSpec) -> None:
        self._fixed = None if spec.schema_file is None else _read_schema(spec.schema_file)

    def verify(self, prompt: Prompt, text: str) -> Check:
        """Whether the whole text is one JSON value (no NaN, no infinity) that the schema allows."""
        if (validator := self._fixed) is None:
            if prompt.reference is None:
                return _failed(NO_REFERENCE)
            try:
                validator = _validator_of(_parse_json(prompt.reference))
            except ValueError as error:
                return _failed("bad_schema", str(error))
        try:
            value = _parse_json(text)
        except ValueError as error:
            return _failed("not_json", str(error))
        return _first_error(validator, value)


def _failed(code: str, detail: str = "") -> Check:
    return Check(False, f"{code}: {detail}"[:_LONGEST_REASON] if detail else code)


def _not_done(run: ProgramRun) -> Check:
    """The failed check of a program that did not come to its end: how it ended and the last line of its traceback."""
    lines = run.stderr.strip().splitlines()
    return _failed(run.end.value, lines[-1] if lines and run.end is RunEnd.ERROR else "")


def _parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError if it is none, or nested too deeply to be read."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _read_schema(path: Path) -> "Validator":
    try:
        return _validator_of(_parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ConfigError(f"expected a JSON Schema in {path}: {error}") from error


def _validator_of(schema: Any) -> "Validator":
    """A validator that fetches nothing; ValueError if the schema is none, ConfigError without its library."""
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
    except ImportError as error:
        raise ConfigError("verifier.kind=json_schema needs the package jsonschema: pip install jsonschema") from error
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"not a schema: {error.message}") from None
    return kind(schema, registry=Registry())


def _first_error(validator: "Validator", value: Any) -> Check:
    from referencing.exceptions import Unresolvable

    try:
        error = next(iter(validator.iter_errors(value)), None)
    except Unresolvable as missing:
        return _failed("bad_schema", f"nothing is fetched: {missing}")
    except RecursionError:
        return _failed("not_json", "nested too deeply")
    return PASSED if error is None else _failed("schema", f"{error.json_path}: {error.message}")
