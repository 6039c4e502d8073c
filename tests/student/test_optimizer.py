"""The course of the learning rate."""

import pytest

from proxykd.config.models import OptimizerSpec
from proxykd.student.optimizer import learning_rate_factor


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_learning_rate_rises_to_its_peak_and_never_rises_again(schedule: str) -> None:
    spec = OptimizerSpec(warmup_ratio=0.2, schedule=schedule)
    factors = [learning_rate_factor(step, num_steps=20, spec=spec) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert (factors[-1] == 1.0) == (schedule == "constant")


def test_a_run_of_warm_up_alone_and_one_without() -> None:
    assert learning_rate_factor(3, num_steps=4, spec=OptimizerSpec(warmup_ratio=1.0)) == 1.0
    assert learning_rate_factor(0, num_steps=4, spec=OptimizerSpec(warmup_ratio=0.0)) == 1.0
