"""What is to be done, who may do it, and the one that does it in this process.

Work travels as one JSON file of plain values and paths; what came of it comes back as files: ``result.json`` and
whatever the stage adds, or ``error.json``.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from proxykd import exceptions
from proxykd.exceptions import ModelError, ProxykdError
from proxykd.own_code import code_hash, require_code
from proxykd.records import hash_json

T = TypeVar("T")
JOB, RESULT, ERROR = "job.json", "result.json", "error.json"


@dataclass(frozen=True, slots=True)
class Work(Generic[T]):
    """Work that a launcher may start.

    Attributes:
        name: For people, for example ``student``; lower-case letters.
        module: Its processes run ``python -m MODULE JOB``.
        job: What they are told, in JSON types; the launcher adds ``output``, the folder for what they make.
        inputs: Keys of ``job`` whose values are paths that the processes read; a value may be None.
        identity: Equal for equal work: a launcher may go on with what it started for it before; "" = it may not.
        folder: Where the launcher may leave files.
        advice: What to lower where memory runs out.
        here: The same work in this process.
        collect: Reads what the processes left in a folder.
    """

    name: str
    module: str
    job: Mapping[str, Any]
    inputs: tuple[str, ...]
    identity: str
    folder: Path
    advice: str
    here: Callable[[], T]
    collect: Callable[[Path], T]

    def hashed(self) -> str:
        """16 hex digits of what is to be done, whatever the names of its files."""
        told = {key: value for key, value in self.job.items() if key not in self.inputs}
        return hash_json([self.module, told, self.identity])[:16]


class Launcher(Protocol):
    """Starts work, waits for its end, and brings back what came of it."""

    def launch(self, work: Work[T]) -> T:
        """Do it.

        Raises:
            ProxykdError: the one that a process raised, or a ``ModelError`` or ``ClusterError`` that says why the
                processes ended.
        """
        ...


@dataclass(frozen=True, slots=True)
class InProcess:
    """This process does it alone."""

    def launch(self, work: Work[T]) -> T:
        """Do it here: nothing is written down and nothing read."""
        return work.here()


def write_job(work: Work[Any], output: Path) -> Path:
    """The job's file, in an ``output`` from which an earlier try's result and error are gone."""
    output.mkdir(parents=True, exist_ok=True)
    for left in (RESULT, ERROR):
        (output / left).unlink(missing_ok=True)
    path = output / JOB
    told = {**work.job, "output": str(output), "code": [work.module, code_hash(work.module)]}
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def read_job(path: Path) -> dict[str, Any]:
    """What a job's file tells, with its ``output``."""
    job: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    job.pop("code", None)
    return job


def require_job_code(path: Path) -> None:
    """Refuse a job that was written by other code than this process would do it with.

    Raises:
        CodeError: if it was.
    """
    told = json.loads(path.read_text(encoding="utf-8")).get("code", [__name__, "none"])  # none: of an older version
    require_code(*told)


def told_error(output: Path) -> ProxykdError | None:
    """The error that a process left, if one did."""
    try:
        told = json.loads((output / ERROR).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    kind = getattr(exceptions, told["kind"], ProxykdError)
    error: ProxykdError = kind(told["message"])
    return error


def finish(work: Work[T], output: Path, ended: str) -> T:
    """What the processes made, or the error that one of them left.

    Args:
        work: That ended.
        output: Its folder.
        ended: How, for the message where neither is there.

    Raises:
        ProxykdError: the one that a process raised.
        ModelError: if there is neither a result nor an error.
    """
    if (error := told_error(output)) is not None:
        raise error
    if not (output / RESULT).is_file():
        raise ModelError(f"expected {work.name} to end with a result, but {ended}; lower {work.advice}")
    return work.collect(output)


def read_result(output: Path) -> dict[str, Any]:
    """Content of ``result.json``."""
    result: dict[str, Any] = json.loads((output / RESULT).read_text(encoding="utf-8"))
    return result


def remove(folder: Path) -> None:
    """Remove a folder, if it is there."""
    shutil.rmtree(folder, ignore_errors=True)
