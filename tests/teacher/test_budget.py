"""The caps hold at every moment: whatever arrives in whatever order, whatever is lost, whoever was killed before."""

import asyncio
import json
import random
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from proxykd.config.prices import PriceSpec, price_list_date
from proxykd.config.specification import RunSpec
from proxykd.config.teacher import BudgetSpec, OpenAITeacherSpec
from proxykd.exceptions import BudgetError, TeacherUnreachableError
from proxykd.records import Outcome
from proxykd.teacher.budget import Cost, Ledger, Tariff, spent_on, worst_case
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.engine import Engine
from proxykd.teacher.journal import Journal
from proxykd.teacher.query import collect_prompts, look_ahead_all, query_teacher
from proxykd.teacher.replies import Reply, Request
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.transport import HttpResponse
from tests.support.endpoint import ScriptedEndpoint

PRICE = PriceSpec(input_usd_per_million=1e6, output_usd_per_million=3e6)  # 1 and 3 USD a token: whole numbers
TARIFF = Tariff(PRICE)
MAX_TOKENS = 20
MakeRun = Callable[..., RunSpec]


def _requests(count: int) -> list[Request]:
    body = {"max_tokens": MAX_TOKENS, "messages": [{"role": "user", "content": "ask"}]}
    return [Request(f"key-{number}", body) for number in range(count)]


WORST = TARIFF.of_attempt(worst_case(_requests(1)[0]))


class BillingTransport:
    """Bills what it answers, and what it loses on the way back; refuses and breaks some."""

    def __init__(self, seed: int, *, fault_rate: float) -> None:
        self.billed = Cost()
        self._rng, self._fault_rate = random.Random(seed), fault_rate

    async def send(self, request: Request) -> HttpResponse:
        await asyncio.sleep(self._rng.random() * 0.002)
        prompt, completion = self._rng.randint(1, 30), self._rng.randint(0, MAX_TOKENS)
        cost = Cost(1, prompt + completion, TARIFF.usd(prompt, completion))
        fault = self._rng.random() / self._fault_rate if self._fault_rate else 1.0
        if fault < 0.3:
            return HttpResponse(429, {}, b"later")
        self.billed += cost
        if fault < 0.4:
            return HttpResponse(504, {}, b"the answer came too late")
        if fault < 0.7:
            raise TeacherUnreachableError("the answer was lost")
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
        return HttpResponse(200, {}, b"<html>" if fault < 1.0 else json.dumps(answer).encode())


class NoClock:
    """Time that does not pass."""

    def now_s(self) -> float:
        return 0.0

    def steady_s(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(0)


def _run(journal: Journal, transport: Any, caps: BudgetSpec, requests: list[Request], *, concurrency: int) -> Ledger:
    """One run, as a process would make it: what was spent before is read from the journal."""
    attempts = journal.open_attempts()
    keys = (request.key for request in requests)
    ledger = Ledger(caps, TARIFF, spent_on(keys, tariff=TARIFF, get_many=journal.get_many, open_attempts=attempts))
    endpoint, policy = Endpoint("http://teacher", "m", None), RetryPolicy(3)
    engine = Engine(endpoint, transport, journal, policy, concurrency, ledger, clock=NoClock(), rng=random.Random(0))
    asyncio.run(engine.run(requests, on_settled=lambda _: None))
    return ledger


@settings(max_examples=30, deadline=None)
@given(
    usd=st.integers(0, 900),
    seed=st.integers(0, 1000),
    concurrency=st.sampled_from([1, 4, 16]),
    fault_rate=st.sampled_from([0.0, 0.3, 0.9]),
)
def test_what_is_billed_is_never_above_the_cap(usd: int, seed: int, concurrency: int, fault_rate: float) -> None:
    transport, requests = BillingTransport(seed, fault_rate=fault_rate), _requests(12)
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "j.sqlite") as journal:
        for cap in (usd + 1, 2 * usd + 1):  # raised, and the run goes on
            ledger = _run(journal, transport, BudgetSpec(usd=cap), requests, concurrency=concurrency)
            assert transport.billed.usd <= ledger.spent.usd <= cap
            again = spent_on(
                (r.key for r in requests),
                tariff=TARIFF,
                get_many=journal.get_many,
                open_attempts=journal.open_attempts(),
            )
            assert again == ledger.spent
            if ledger.is_exhausted:
                assert ledger.spent.usd + WORST.usd > cap  # nothing more would have fitted


@pytest.mark.parametrize(("caps", "most"), [(BudgetSpec(requests=5), 5), (BudgetSpec(tokens=5 * WORST.tokens), 40)])
def test_caps_on_requests_and_tokens(tmp_path: Path, caps: BudgetSpec, most: int) -> None:
    transport = BillingTransport(0, fault_rate=0.0)
    with Journal(tmp_path / "j.sqlite") as journal:
        ledger = _run(journal, transport, caps, _requests(40), concurrency=8)
    assert ledger.is_exhausted
    assert 5 <= ledger.spent.requests <= most
    assert ledger.spent == transport.billed


def test_a_call_in_flight_at_a_kill_counts_as_its_worst_case(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    class Dies:
        async def send(self, request: Request) -> HttpResponse:
            raise Killed

    requests = _requests(3)
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(Killed):
        _run(journal, Dies(), BudgetSpec(requests=10), requests, concurrency=1)
    with Journal(tmp_path / "j.sqlite") as journal:
        keys = (request.key for request in requests)
        spent = spent_on(keys, tariff=TARIFF, get_many=journal.get_many, open_attempts=journal.open_attempts())
        assert spent == WORST
        others = spent_on(["another"], tariff=TARIFF, get_many=journal.get_many, open_attempts=journal.open_attempts())
        assert others == Cost()


def test_without_caps_no_attempt_is_written(tmp_path: Path) -> None:
    with Journal(tmp_path / "j.sqlite") as journal:
        ledger = _run(journal, BillingTransport(0, fault_rate=0.9), BudgetSpec(), _requests(20), concurrency=4)
        assert journal.open_attempts() == []
    assert not ledger.is_exhausted


def test_an_endpoint_that_counts_more_than_bytes_raises_the_worst_case(tmp_path: Path) -> None:
    class Greedy:
        num_calls = 0

        async def send(self, request: Request) -> HttpResponse:
            self.num_calls += 1
            usage = {"prompt_tokens": 1000, "completion_tokens": 1}
            answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
            return HttpResponse(200, {}, json.dumps(answer).encode())

    transport = Greedy()
    with Journal(tmp_path / "j.sqlite") as journal:
        ledger = _run(journal, transport, BudgetSpec(tokens=2500), _requests(9), concurrency=1)
    assert (transport.num_calls, ledger.spent.tokens) == (2, 2002)


@pytest.mark.parametrize(("was_sent", "lost"), [(True, 6), (False, 0)])
def test_a_call_that_never_left_costs_nothing(tmp_path: Path, was_sent: bool, lost: int) -> None:
    class Down:
        async def send(self, request: Request) -> HttpResponse:
            error = TeacherUnreachableError("nobody there")
            error.was_sent = was_sent
            raise error

    with Journal(tmp_path / "j.sqlite") as journal:
        ledger = _run(journal, Down(), BudgetSpec(requests=50), _requests(2), concurrency=2)
        assert (ledger.spent.requests, len(journal.open_attempts())) == (lost, lost)


@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_surplus_is_the_largest_and_not_the_sum(tmp_path: Path, concurrency: int) -> None:
    class Greedy:
        async def send(self, request: Request) -> HttpResponse:
            await asyncio.sleep(0.001)
            usage = {"prompt_tokens": 100, "completion_tokens": 1}
            answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
            return HttpResponse(200, {}, json.dumps(answer).encode())

    with Journal(tmp_path / "j.sqlite") as journal:
        ledger = _run(journal, Greedy(), BudgetSpec(tokens=5000), _requests(48), concurrency=concurrency)
    assert (ledger.is_exhausted, ledger.spent.tokens) == (False, 48 * 101)


def test_a_cap_in_usd_needs_a_price() -> None:
    with pytest.raises(ValidationError, match=r"budget\.usd=5 needs the price of a token.*set teacher\.price"):
        OpenAITeacherSpec(model="m", budget=BudgetSpec(usd=5.0))


def test_a_stated_price_beats_the_listed_one_which_is_the_hosts_own() -> None:
    listed = OpenAITeacherSpec(model="gpt-4o-mini", budget=BudgetSpec(usd=5.0))
    assert listed.known_price == PriceSpec(input_usd_per_million=0.15, output_usd_per_million=0.6)
    assert OpenAITeacherSpec(model="gpt-4o-mini", price=PRICE).known_price == PRICE
    assert OpenAITeacherSpec(model="gpt-4o-mini", base_url="https://elsewhere.example/v1").known_price is None
    assert date.fromisoformat(price_list_date()) <= date.today()


@pytest.fixture
def ask(endpoint: ScriptedEndpoint, make_run: MakeRun, tmp_path: Path) -> Callable[..., dict[str, Outcome]]:
    """Asks eight questions under a cap on requests; returns how each of them ended."""
    rows = [{"prompt": f"question {number}"} for number in range(8)]

    def call(cap: int, **changes: Any) -> dict[str, Outcome]:
        teacher = {"kind": "openai", "base_url": endpoint.url, "model": "m", "budget": {"requests": cap}, **changes}
        run = make_run(teacher, rows)
        prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / f"prompts-{cap}")
        output, journal = tmp_path / f"completions-{cap}", tmp_path / "journal.sqlite"
        found = query_teacher(prompts, run, journal_path=journal, output=output)
        assert look_ahead_all(prompts, run, journal_path=journal)[-1].spent.requests == len(endpoint.asked)
        return {row.prompt_id: row.outcome for row in found.rows()}

    return call


def test_a_run_stops_at_its_cap_says_what_is_missing_and_goes_on_when_it_is_raised(
    endpoint: ScriptedEndpoint, ask: Callable[..., dict[str, Outcome]]
) -> None:
    with pytest.raises(BudgetError, match=r"teacher\.budget\.requests=3 \(3 spent\).* 5 of 8 requests.*raise the cap"):
        ask(3)
    assert len(endpoint.asked) == 3
    with pytest.raises(BudgetError, match="5 of 8 requests"):
        ask(3)  # nothing is left, not even for a probe
    assert set(ask(8).values()) == {Outcome.OK}
    assert set(endpoint.asked.values()) == {1}


def test_a_run_may_go_on_with_what_its_cap_allowed(ask: Callable[..., dict[str, Outcome]]) -> None:
    outcomes = list(ask(3, on_unanswered="fail_rows").values())
    assert (outcomes.count(Outcome.OK), outcomes.count(Outcome.FAILED)) == (3, 5)


def test_what_a_call_is_billed_beyond_its_bound_counts_for_later_ones(tmp_path: Path) -> None:
    class Thinks:
        num_calls = 0

        async def send(self, request: Request) -> HttpResponse:
            self.num_calls += 1
            usage = {"prompt_tokens": 1, "completion_tokens": 1000}
            answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "usage": usage}
            return HttpResponse(200, {}, json.dumps(answer).encode())

    transport = Thinks()
    with Journal(tmp_path / "j.sqlite") as journal:
        ledger = _run(journal, transport, BudgetSpec(tokens=2500), _requests(9), concurrency=1)
    assert (transport.num_calls, ledger.spent.tokens) == (2, 2002)


def test_cached_and_batched_tokens_are_cheaper() -> None:
    price = PriceSpec(
        input_usd_per_million=1e6, output_usd_per_million=3e6, cached_input_usd_per_million=0.5e6, batch_discount=0.25
    )
    # 4 in, 6 cached at a half, 2 out at 3; a quarter off in a batch.
    assert Tariff(price).usd(10, 2, cached_tokens=6) == 4 + 3 + 6
    assert Tariff(price).usd(10, 2, cached_tokens=6, is_batched=True) == 0.75 * 13
    assert Tariff(PRICE).usd(10, 2, cached_tokens=6) == 16
    reply = Reply("x", prompt_tokens=10, completion_tokens=2, cached_tokens=6, is_batched=True)
    assert Tariff(price).of_reply(reply) == Cost(1, 12, 0.75 * 13)
    attempt = worst_case(_requests(1)[0], attempt_id="batch-1")
    assert Tariff(price).of_attempt(attempt).usd == 0.75 * Tariff(price).usd(attempt.prompt_tokens, MAX_TOKENS)
