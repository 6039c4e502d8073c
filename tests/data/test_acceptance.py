"""Accept rates: pass@k against counting, and the counts of a corpus."""

from itertools import combinations, groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.data.acceptance import Acceptance, measure_acceptance, pass_at_k
from proxykd.data.verifiers import PASSED, Check

CASES = st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n)))


@given(case=CASES)
def test_pass_at_k_is_the_share_of_choices_that_hold_a_pass(case: tuple[int, int, int]) -> None:
    n, c, k = case
    choices = list(combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@given(case=CASES)
def test_pass_at_k_grows_with_passes_and_with_k(case: tuple[int, int, int]) -> None:
    n, c, k = case
    assert 0.0 <= pass_at_k(n, c, k) <= 1.0
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    assert pass_at_k(n, c, n) == (c > 0)
    if k < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1) + 1e-12
    if c < n:
        assert pass_at_k(n, c, k) <= pass_at_k(n, c + 1, k) + 1e-12


def test_pass_at_k_by_hand() -> None:
    # 1 - C(8, 5) / C(10, 5) = 1 - 56 / 252
    assert pass_at_k(10, 2, 5) == pytest.approx(1 - 56 / 252)


@pytest.mark.parametrize(("n", "c", "k"), [(0, 0, 1), (3, 4, 1), (3, -1, 1), (3, 1, 4), (3, 1, 0)])
def test_numbers_that_do_not_fit_are_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 1 <= k"):
        pass_at_k(n, c, k)


def test_a_corpus_by_hand() -> None:
    wrong, crashed = Check(False, "wrong: 13"), Check(False, "error: ZeroDivisionError")
    checks = [("a", PASSED), ("a", wrong), ("b", Check(False, "wrong: 9")), ("b", crashed), ("c", PASSED)]
    assert measure_acceptance(checks, ks=(1, 2, 3)) == Acceptance(
        num_prompts=3,
        num_rows=5,
        num_passed=2,
        num_prompts_passed=2,
        # pass@1: (1/2 + 0 + 1) / 3; pass@2 over a and b: (1 + 0) / 2; no prompt has 3 rows.
        pass_at_k={1: 0.5, 2: 0.5},
        reasons={"wrong": 2, "error": 1},
    )
    assert measure_acceptance([]).to_dict() == {
        "num_prompts": 0,
        "num_rows": 0,
        "num_passed": 0,
        "num_prompts_passed": 0,
        "pass_at_k": {},
        "reasons": {},
    }


@given(passed=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=20))
def test_counts_add_up(passed: list[tuple[str, bool]]) -> None:
    checks = sorted(((prompt_id, Check(is_right, "" if is_right else "wrong")) for prompt_id, is_right in passed))
    found = measure_acceptance(checks)
    assert found.num_passed + sum(found.reasons.values()) == found.num_rows == len(passed)
    assert found.num_prompts == len(list(groupby(checks, key=lambda pair: pair[0])))
    assert found.num_prompts_passed <= min(found.num_prompts, found.num_passed)
