"""Verifiers: how a completion is checked against what is known of its prompt."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from proxykd.config.base import Count, InputPath, PositiveFloat, Spec


def _check_pattern(value: str) -> str:
    try:
        num_groups = re.compile(value).groups
    except re.error as error:
        raise ValueError(f"expected a regular expression: {error}") from None
    if num_groups < 1:
        raise ValueError("expected a regular expression with a group around the answer")
    return value


AnswerPattern = Annotated[str, AfterValidator(_check_pattern)]
"""A regular expression with a group around the answer; the last match counts."""

NotNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class SandboxSpec(Spec):
    """What one program may use."""

    wall_s: PositiveFloat = 10.0
    """Most seconds from its start to its end."""
    cpu_s: Count = 5
    """Most seconds of computing."""
    memory_mib: Annotated[int, Field(ge=64)] = 512
    """Most address space, in MiB, the interpreter's own 30 included."""
    file_kib: Annotated[int, Field(ge=64, le=1_048_576)] = 1024
    """Largest file that it may write, in KiB; its standard output is one."""
    folder_mib: Count = 16
    """Most that its folder may hold, in MiB; looked at twenty times a second."""


class ExactVerifierSpec(Spec):
    """The extracted answer equals the prompt's reference but for case, white space and a full stop at the end."""

    kind: Literal["exact"] = "exact"
    """Compare texts."""
    answer_pattern: AnswerPattern
    """Regular expression whose first group is the answer; the last match counts."""


class NumericVerifierSpec(Spec):
    """The extracted number equals the prompt's reference within a tolerance."""

    kind: Literal["numeric"] = "numeric"
    """Compare numbers."""
    answer_pattern: AnswerPattern = r"(-?\$?\d[\d,]*(?:\.\d+)?(?:/[1-9]\d*)?)"
    """Regular expression whose first group is the number; the last match counts. By default the last number."""
    absolute_tolerance: NotNegative = 1e-6
    """Largest difference that counts as equal."""
    relative_tolerance: NotNegative = 0.0
    """Largest difference that counts as equal, as a share of the reference; the larger of the two tolerances counts."""


class ProgramVerifierSpec(Spec):
    """The completion's program, run in the sandbox, arrives at the prompt's reference (EKT, arXiv 2211.16740)."""

    kind: Literal["program"] = "program"
    """Run the last block of Python code, or the whole text where there is no block."""
    read: Literal["stdout", "answer", "solution"] = "stdout"
    """What is compared: all that it prints, its variable answer, or what its function solution() returns."""
    absolute_tolerance: NotNegative = 1e-6
    """Largest difference that counts as equal where both are numbers; other results must be the same text."""
    relative_tolerance: NotNegative = 0.0
    """Largest difference that counts as equal, as a share of the reference; the larger of the two tolerances counts."""
    sandbox: SandboxSpec = SandboxSpec()
    """What each program may use."""


class TestsVerifierSpec(Spec):
    """The completion's program passes the tests that the prompt's reference holds: Python with assert statements."""

    __test__ = False  # not a test case, whatever its name

    kind: Literal["tests"] = "tests"
    """Run the code, then the reference among its names."""
    sandbox: SandboxSpec = SandboxSpec()
    """What each program may use, its tests included."""


class JsonSchemaVerifierSpec(Spec):
    """The completion is one JSON value that a JSON Schema allows."""

    kind: Literal["json_schema"] = "json_schema"
    """Parse and validate."""
    schema_file: InputPath | None = None
    """JSON file of the schema; None = the prompt's reference is the schema, as JSON. References to other documents
    are never fetched."""


VerifierSpec = Annotated[
    ExactVerifierSpec | NumericVerifierSpec | ProgramVerifierSpec | TestsVerifierSpec | JsonSchemaVerifierSpec,
    Field(discriminator="kind"),
]
