"""A schedule: a run that a cluster starts again and again, and the file that describes one.

A file names the run's specification, the stack and the times; ``proxykd schedule apply FILE`` makes the cluster's
CronJob say the same. Times are those of a zone, so that 3 o'clock stays 3 o'clock when the clocks change.
"""

import re
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, Field, ValidationInfo

from proxykd.config.base import Count, InputPath, Spec, resolve_path
from proxykd.config.loading import load_model, read_yaml

WHAT, HELP = "a schedule", "docs/schedules.md"
MACROS = ("@hourly", "@daily", "@midnight", "@weekly", "@monthly", "@yearly", "@annually")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_FIELDS: tuple[tuple[str, int, int, list[str]], ...] = (
    ("minute", 0, 59, []),
    ("hour", 0, 23, []),
    ("day of the month", 1, 31, []),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_PART = re.compile(r"(?:\*|(?P<first>\w+)(?:-(?P<last>\w+))?)(?:/(?P<step>\d+))?")


def _check_cron(value: str) -> str:
    text = " ".join(value.split())
    if text in MACROS:
        return text
    parts = text.split(" ")
    if len(parts) != len(_FIELDS):
        raise ValueError(
            "expected five fields (minute, hour, day of the month, month, day of the week), '0 3 * * 1-5' say, or one "
            f"of {', '.join(MACROS)}"
        )
    for part, (name, least, most, words) in zip(parts, _FIELDS, strict=True):
        if not all(_fits(one, least, most, words) for one in part.split(",")):
            raise ValueError(
                f"the {name} {part!r} is none; expected {least} to {most}, *, a-b, */n, or several with commas"
            )
    return text


def _fits(part: str, least: int, most: int, words: list[str]) -> bool:
    if (match := _PART.fullmatch(part)) is None or match["step"] == "0":
        return False
    bounds = [_number(word, least, words) for word in (match["first"], match["last"]) if word is not None]
    return all(least <= number <= most for number in bounds) and bounds == sorted(bounds)


def _number(word: str, least: int, words: list[str]) -> int:
    """A bound as a number; -1 = it is none."""
    if word.isdecimal():
        return int(word)
    return words.index(word.lower()) + least if word.lower() in words else -1


def _check_zone(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("expected a time zone of the IANA database, Europe/Berlin say") from None
    return value


def _resolve_stack(value: str, info: ValidationInfo) -> str:
    return str(resolve_path(Path(value), info)) if value.endswith((".yaml", ".yml")) else value


class ScheduleSpec(Spec):
    """When a run is started, and what happens if the last one is still under way."""

    cron: Annotated[str, AfterValidator(_check_cron), Field(examples=["0 3 * * 1-5"])]
    """Five fields: minute, hour, day of the month, month, day of the week; or @daily and its like."""
    time_zone: Annotated[str, AfterValidator(_check_zone)] = "Etc/UTC"
    """Zone of those times, by its IANA name. UTC by default: it is the same on every cluster."""
    concurrency: Literal["Forbid", "Allow", "Replace"] = "Forbid"
    """If the last run is still under way: Forbid = leave this one out, Replace = stop that one, Allow = both. Forbid by
    default, because two runs of one specification ask and pay for the same answers."""
    starting_deadline_s: Count | None = 3600
    """Seconds after its time within which a run may still start, after an outage of the cluster, say; None = any."""
    suspend: bool = False
    """Whether nothing is started for now."""


class ScheduleFileSpec(Spec):
    """A schedule's file: what is run, where, and when."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=44)
    """Name of the schedule; at most 44 characters, because Kubernetes makes names of Jobs from it."""
    run: InputPath
    """The run specification."""
    overrides: tuple[str, ...] = ()
    """KEY=VALUE each, as after `proxykd run --set`."""
    anew: tuple[str, ...] = ()
    """Steps that every run does again although they are finished, as after `proxykd run --anew`: otherwise a run whose
    inputs are those of the last one finds everything done."""
    stack: Annotated[str, AfterValidator(_resolve_stack)]
    """A stack's file, or NAME for k8s/stacks/NAME.yaml."""
    schedule: ScheduleSpec
    """When."""


def load_schedule(path: Path) -> ScheduleFileSpec:
    """Read and validate a schedule.

    Raises:
        ConfigError: naming every key that is unknown, with the nearest known one, missing or out of bounds.
    """
    values = read_yaml(path, what=WHAT, example="k8s/schedules/weekly.yaml")
    found: ScheduleFileSpec = load_model(path, ScheduleFileSpec, values, what=WHAT, help_text=HELP)
    return found
