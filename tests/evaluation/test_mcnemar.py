"""McNemar's exact test, its power and the effect that it would find."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from proxykd.evaluation.mcnemar import mcnemar_mde, mcnemar_p_value, mcnemar_power

COUNTS = st.integers(0, 60)


@given(COUNTS, COUNTS)
def test_p_is_the_upper_tail_of_a_fair_coin(wins: int, losses: int) -> None:
    assert mcnemar_p_value(wins, losses) == pytest.approx(float(stats.binom.sf(wins - 1, wins + losses, 0.5)))


@given(COUNTS, COUNTS)
def test_a_further_win_never_raises_p(wins: int, losses: int) -> None:
    assert mcnemar_p_value(wins + 1, losses) <= mcnemar_p_value(wins, losses)
    assert mcnemar_p_value(wins, losses + 1) >= mcnemar_p_value(wins, losses)


def test_without_an_effect_the_power_is_at_most_the_level() -> None:
    for num_questions in (10, 30, 100, 1000):
        assert 0 <= mcnemar_power(0.0, num_questions=num_questions, discordance=0.2, level=0.05) <= 0.05


def test_power_is_what_a_simulation_finds() -> None:
    rng = np.random.default_rng(0)
    wins, losses = rng.multinomial(120, [0.22, 0.1, 0.68], size=4000).T[:2]
    found = np.mean([mcnemar_p_value(int(won), int(lost)) <= 0.05 for won, lost in zip(wins, losses, strict=True)])
    # 4,000 evaluations: standard error at most 0.008.
    assert mcnemar_power(0.12, num_questions=120, discordance=0.32, level=0.05) == pytest.approx(found, abs=0.025)


def test_the_effect_that_would_be_found_is_found_with_the_power() -> None:
    mde = mcnemar_mde(38, 200, level=0.05, power=0.8)
    assert mcnemar_power(mde, num_questions=200, discordance=40 / 202, level=0.05) == pytest.approx(0.8, abs=0.01)
    assert mcnemar_mde(380, 2000, level=0.05, power=0.8) < mde


def test_too_few_questions_find_nothing() -> None:
    # Four questions: even four wins have p = 1/16.
    assert math.isnan(mcnemar_mde(4, 4, level=0.05, power=0.8))


@pytest.mark.parametrize(
    ("effect", "count", "discordance", "level"), [(0.1, 40, 0.3, 0.05), (0.3, 25, 0.3, 0.025), (0.02, 60, 0.1, 0.05)]
)
def test_power_is_the_sum_over_every_outcome(effect: float, count: int, discordance: float, level: float) -> None:
    share = (1 + effect / discordance) / 2
    slow = sum(
        stats.binom.pmf(differing, count, discordance) * stats.binom.pmf(wins, differing, share)
        for differing in range(count + 1)
        for wins in range(differing + 1)
        if stats.binom.sf(wins - 1, differing, 0.5) <= level
    )
    fast = mcnemar_power(effect, num_questions=count, discordance=discordance, level=level)
    assert fast == pytest.approx(slow, rel=1e-9)
