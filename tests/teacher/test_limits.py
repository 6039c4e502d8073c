"""Rates hold in every window, refusals cut and time restores, and processes share one state."""

import math
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.teacher import LimitsSpec
from proxykd.teacher.limits import (
    BURST_S,
    LOWEST_FACTOR,
    RECOVERY_S,
    TOGETHER_S,
    LimitState,
    OwnState,
    SharedState,
    Tokens,
    correct,
    cut,
    pause,
    shared_path,
    take,
)

arrivals = st.lists(st.floats(0.0, 30.0), min_size=1, max_size=80).map(sorted)


@given(arrivals, st.floats(6.0, 6000.0), st.floats(0.05, 1.0), st.floats(0.1, 60.0))
def test_no_window_holds_more_calls_than_the_rate_allows(
    arrivals: list[float], limit: float, share: float, window_s: float
) -> None:
    spec, state, leaves = LimitsSpec(requests_per_minute=limit, share=share), LimitState(), []
    for now_s in arrivals:
        state, leaves_s, num_calls = take(state, spec, Tokens(1, 1), now_s)
        assert leaves_s >= now_s
        leaves += [leaves_s] * num_calls
    assert leaves == sorted(leaves)
    rate = limit * share / 60.0
    for start_s in leaves:
        inside = sum(start_s <= leaves_s <= start_s + window_s for leaves_s in leaves)
        assert inside <= rate * (window_s + BURST_S) + max(1.0, rate * TOGETHER_S) + 1e-6


@given(arrivals, st.lists(st.floats(1.0, 4000.0), min_size=80, max_size=80))
def test_no_window_holds_more_tokens_than_the_rate_allows(arrivals: list[float], costs: list[float]) -> None:
    spec, state, leaves = LimitsSpec(tokens_per_minute=60_000.0), LimitState(), []
    for now_s, cost in zip(arrivals, costs, strict=False):
        state, leaves_s, num_calls = take(state, spec, Tokens(cost / 2, cost / 2), now_s)
        leaves.append((leaves_s, cost * num_calls))
    for start_s, _ in leaves:
        inside = [cost for leaves_s, cost in leaves if start_s <= leaves_s <= start_s + 10.0]
        assert sum(inside) <= 1000.0 * (10.0 + BURST_S) + inside[-1] + 1e-6


def test_the_tightest_of_stated_and_told_limits_counts() -> None:
    spec = LimitsSpec(requests_per_minute=600, input_tokens_per_minute=6000)
    state = LimitState(told_calls=60)
    state, first_s, _ = take(state, spec, Tokens(10, 10), 100.0)
    state, second_s, _ = take(state, spec, Tokens(10, 10), 100.0)
    state, third_s, _ = take(state, spec, Tokens(10, 10), 100.0)
    # One call a second, of which one second's worth may go at once.
    assert (first_s, second_s, third_s) == (100.0, 100.0, 101.0)
    state, *_ = take(state, spec, Tokens(1000, 10), 102.0)
    assert state.input_tokens == pytest.approx(102.0 + 1000 / 100)


def test_without_limits_nothing_waits_but_for_a_pause() -> None:
    assert take(LimitState(), LimitsSpec(), Tokens(1e9, 1e9), 5.0) == (LimitState(), 5.0, 1)
    assert take(pause(LimitState(), 9.0), LimitsSpec(), Tokens(1, 1), 5.0).leaves_s == 9.0
    assert pause(pause(LimitState(), 9.0), 7.0).paused_until == 9.0


@given(st.floats(-500, 500), st.floats(-500, 500))
def test_an_estimate_that_is_corrected_leaves_the_state_of_the_truth(first: float, second: float) -> None:
    spec, now_s = LimitsSpec(tokens_per_minute=6000, output_tokens_per_minute=600), 50.0
    estimated = take(LimitState(), spec, Tokens(1000, 1000), now_s).state
    true = take(LimitState(), spec, Tokens(1000 + first, 1000 + second), now_s).state
    corrected = correct(estimated, spec, Tokens(first, second), now_s)
    assert corrected.tokens == pytest.approx(true.tokens)
    assert corrected.output_tokens == pytest.approx(true.output_tokens)


@given(st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(0.0, 1.0)), max_size=30))
def test_refusals_cut_and_time_restores(cuts: list[tuple[float, float]]) -> None:
    state, now_s = LimitState(), 0.0
    for gap_s, share in cuts:
        now_s += gap_s
        before = state.factor_at(now_s)
        state = cut(state, share=share, now_s=now_s)
        assert state.factor_at(now_s) == pytest.approx(max(LOWEST_FACTOR, before * (1 - share / 2)))
        assert state.factor_at(now_s + 1.0) == pytest.approx(min(1.0, state.factor + 1 / RECOVERY_S))
    assert state.factor_at(now_s + RECOVERY_S) == 1.0


def _take_many(path: Path, count: int) -> None:
    store, spec = SharedState(path), LimitsSpec(requests_per_minute=60)
    for _ in range(count):
        store.update(lambda state: take(state, spec, Tokens(1, 1), 0.0)[0])
    store.close()


@pytest.mark.integration
def test_two_processes_share_one_limit(tmp_path: Path) -> None:
    path, context = tmp_path / "limits" / "account", multiprocessing.get_context("spawn")
    takers = [context.Process(target=_take_many, args=(path, 300)) for _ in range(2)]
    for taker in takers:
        taker.start()
    for taker in takers:
        taker.join(timeout=30)
        assert taker.exitcode == 0
    store = SharedState(path)
    assert store.read().calls == pytest.approx(600.0)
    store.close()


def test_a_shared_state_is_what_an_own_one_is(tmp_path: Path) -> None:
    shared, own = SharedState(tmp_path / "s"), OwnState()
    assert shared.read() == own.read() == LimitState()
    for store in (shared, own):
        store.update(lambda state: state._replace(calls=7.5, told_output_tokens=3.0))
    assert shared.read() == own.read()
    again = SharedState(tmp_path / "s")
    assert again.read() == own.read()
    again.close()
    shared.close()


@pytest.mark.parametrize("content", [LimitState(calls=math.nan), LimitState(cut_at=math.inf), b"short"])
def test_a_state_that_is_none_is_begun_anew(tmp_path: Path, content: LimitState | bytes) -> None:
    store = SharedState(tmp_path / "s")
    if isinstance(content, LimitState):
        store.update(lambda _: content)
    store.close()
    if isinstance(content, bytes):
        (tmp_path / "s").write_bytes(content)
    store = SharedState(tmp_path / "s")
    assert store.read() == LimitState()
    store.close()


def test_accounts_have_files_of_their_own_that_no_other_user_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    paths = {
        shared_path("https://a/v1", "m", "${A}"),
        shared_path("https://a/v1", "m", "${B}"),
        shared_path("b", "m", ""),
    }
    assert len(paths) == 3
    path = paths.pop()
    SharedState(path).close()
    assert path.stat().st_mode & 0o077 == path.parent.stat().st_mode & 0o077 == 0
