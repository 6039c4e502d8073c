"""The names of the pipeline's steps, which placements and commands speak of without loading any engine."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from proxykd.exceptions import ConfigError

if TYPE_CHECKING:
    from proxykd.config.specification import RunSpec

STEPS = (
    "query_teacher",
    "validate_data",
    "check_drift",
    "split",
    "align_proxy",
    "estimate_distributions",
    "distill_student_sft",
    "distill_student_proxy_kd",
    "evaluate_student",
    "promote_model",
)
"""The steps by the names under which ZenML keeps them."""

TRAINING = ("align_proxy", "distill_student_sft", "distill_student_proxy_kd")
"""The steps that train, whose processes a launcher starts."""

DIVISIBLE = ("query_teacher", "estimate_distributions")
"""The steps whose prompts can be worked on in portions (``run --shards``), each portion a step of its own."""


def portion_name(step: str, number: int, of: int) -> str:
    """The name of one portion's step, counted from 1: ``query_teacher_3-of-8``."""
    return f"{step}_{number + 1}-of-{of}"


def step_names(shards: Mapping[str, int], steps: Sequence[str] = STEPS) -> tuple[str, ...]:
    """The names of steps of a run, those of their portions behind them.

    Args:
        shards: One of ``DIVISIBLE`` -> in how many portions it is worked on; those left out are one.
        steps: Some of ``STEPS``; by default all of them.
    """
    divided = {step: of for step, of in shards.items() if step in steps and of > 1}
    return (*steps, *(portion_name(step, number, of) for step, of in divided.items() for number in range(of)))


def check_anew(steps: Iterable[str]) -> None:
    """Check that the steps that are to be done again are some of ``STEPS``.

    Raises:
        ConfigError: naming one that is not, and the nearest that is.
    """
    for step in steps:
        if step not in STEPS:
            raise ConfigError(f"expected a step of the pipeline after --anew, got {step!r}{_nearest(step, STEPS)}")


def can_be_divided(run: "RunSpec", step: str) -> bool:
    """Whether a step of ``DIVISIBLE`` has prompts to work on apart: recorded texts are read, not asked for."""
    return step != "query_teacher" or run.teacher.kind != "recorded"


def check_shards(run: "RunSpec", shards: Mapping[str, int]) -> None:
    """Check that steps can be divided as is wished.

    Args:
        run: The specification.
        shards: Step -> in how many parts its prompts are to be worked on.

    Raises:
        ConfigError: naming one that cannot.
    """
    for step, count in shards.items():
        if step not in DIVISIBLE:
            raise ConfigError(f"expected shards of a step with prompts, got {step!r}{_nearest(step, DIVISIBLE)}")
        if count < 1:
            raise ConfigError(f"expected 1 shard of {step} or more, got {count}; leave it out where it stays whole")
        if count > 1 and not can_be_divided(run, step):
            raise ConfigError(
                f"expected a teacher that is asked, found recorded texts: they need no shards of {step}; remove them"
            )


def _nearest(step: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(step, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; choose among {', '.join(known)}"
