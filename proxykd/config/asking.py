"""Which steps of a run ask an API, where it is, and which variable holds its key: what their pods must have.

A step that lacks the key, or the way outside, would fail only once it is reached, after hours that were paid for.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from typing import NamedTuple

from proxykd.config.addresses import Way, endpoint, way_to
from proxykd.config.judge import WIN_RATE
from proxykd.config.specification import RunSpec
from proxykd.config.teacher import ApiTeacherSpec, TeacherSpec


class Asking(NamedTuple):
    """A step that asks an API.

    Attributes:
        step: Its name.
        variable: Environment variable of the key; None = a file holds it, or none is asked for.
        address: Host and port of the API.
        way: Where it lies.
    """

    step: str
    variable: str | None
    address: str
    way: Way


def askings_of(run: RunSpec) -> tuple[Asking, ...]:
    """All steps that ask, each once for every API; none where all texts are recorded or embedded."""
    return tuple(dict.fromkeys(_askings(run)))


def _askings(run: RunSpec) -> Iterator[Asking]:
    earlier = () if run.staging is None else run.staging.earlier
    for teacher in (*(one.teacher for one in earlier), run.teacher):
        yield from _asking("query_teacher", teacher)
    if (judge := run.evaluation.judge) is not None:
        yield from _asking("evaluate_student", judge.teacher)
        if _judges_champion(run):
            yield from _asking("promote_model", judge.teacher)


def _judges_champion(run: RunSpec) -> bool:
    gate = run.gate
    named = [gate.primary.metric, *(one.metric for one in gate.guards), *(one.metric or "" for one in gate.slices)]
    return any(fnmatchcase(WIN_RATE, pattern) for pattern in named)


def _asking(step: str, teacher: TeacherSpec) -> Iterator[Asking]:
    if isinstance(teacher, ApiTeacherSpec):
        variable = teacher.api_key and teacher.api_key.removeprefix("${").removesuffix("}")
        host, port = endpoint(teacher.base_url)
        yield Asking(step, variable, f"[{host}]:{port}" if ":" in host else f"{host}:{port}", way_to(teacher.base_url))
