"""Which steps of a run ask an API, where it is, and which variable holds its key: what their pods must have.

A step that lacks the key, or the way outside, would fail only once it is reached, after hours that were paid for.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from proxykd.config.judge import WIN_RATE
from proxykd.config.specification import RunSpec
from proxykd.config.teacher import ApiTeacherSpec, TeacherSpec

HTTPS = 443


class Asking(NamedTuple):
    """A step that asks an API.

    Attributes:
        step: Its name.
        variable: Environment variable of the key; None = a file holds it, or none is asked for.
        is_outside: Whether the API lies on the public Internet, behind port 443.
    """

    step: str
    variable: str | None
    is_outside: bool


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
        yield Asking(step, variable, _is_outside(teacher.base_url))


def _is_outside(base_url: str) -> bool:
    """Names of a cluster, and private addresses, are reached by policies of the cluster's own."""
    address = urlsplit(base_url)
    host, port = address.hostname or "", address.port or (HTTPS if address.scheme == "https" else 80)
    try:
        is_public = ip_address(host).is_global
    except ValueError:
        is_public = "." in host and not host.endswith((".svc", ".local", ".internal"))
    return is_public and port == HTTPS
