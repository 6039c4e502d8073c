"""A pipeline of many steps side by side, which only its submission is measured by."""

from zenml import pipeline, step


@step(enable_cache=False, enable_step_logs=False)
def query_teacher(number: int) -> int:
    """The number."""
    return number


@pipeline(enable_cache=False, enable_step_logs=False)
def many(num_steps: int) -> None:
    """As many steps as asked for, none waiting for another."""
    for number, name in enumerate(names(num_steps)):
        query_teacher(number, id=name)


def names(num_steps: int) -> tuple[str, ...]:
    """Their names."""
    return tuple(f"query_teacher_{number}" for number in range(num_steps))
