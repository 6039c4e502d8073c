"""The names of the pipeline's steps, which placements and commands speak of without loading any engine."""

from collections.abc import Mapping

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

DIVISIBLE = ("query_teacher", "estimate_distributions")
"""The steps whose prompts can be worked on in portions (``run --shards``), each portion a step of its own."""


def portion_name(step: str, number: int, of: int) -> str:
    """The name of one portion's step, counted from 1: ``query_teacher_3-of-8``."""
    return f"{step}_{number + 1}-of-{of}"


def step_names(shards: Mapping[str, int]) -> tuple[str, ...]:
    """The names of all steps of a run.

    Args:
        shards: One of ``DIVISIBLE`` -> in how many portions it is worked on; those left out are one.
    """
    portions = (portion_name(step, number, of) for step, of in shards.items() if of > 1 for number in range(of))
    return (*STEPS, *portions)
