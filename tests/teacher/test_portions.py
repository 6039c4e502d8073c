"""Asking in several places at once: each prompt once, nothing paid twice, caps and rates divided."""

import shutil
import sqlite3
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.artifacts import AnswerSet, PromptSet
from proxykd.config.specification import RunSpec
from proxykd.data.portions import Portion
from proxykd.exceptions import BudgetError, ConfigError, InputError
from proxykd.records import Outcome
from proxykd.teacher.archive import verify
from proxykd.teacher.entries import Attempt
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.portions import ANSWERS, ask_portion, gather, narrowed
from proxykd.teacher.query import collect_prompts, look_ahead_all, query_teacher
from tests.support.endpoint import ScriptedEndpoint

Make = Callable[..., RunSpec]
NUM_PROMPTS = 40
ROWS = [{"prompt": f"question {number}"} for number in range(NUM_PROMPTS)]
PRICE = {"input_usd_per_million": 100.0, "output_usd_per_million": 1000.0}
"""10 tokens in and 5 out, as the endpoint answers, are 0.006 USD."""


def asked_run(make_run: Make, endpoint: ScriptedEndpoint, **changes: Any) -> RunSpec:
    return make_run({"kind": "openai", "base_url": endpoint.url, "model": "m", "max_attempts": 2, **changes}, ROWS)


def ask(run: RunSpec, folder: Path, of: int, *, numbers: range | None = None, name: str = "out") -> list[AnswerSet]:
    prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / f"{name}-prompts")
    answers = []
    for number in numbers or range(of):
        portion = Portion(number, of)
        answers.append(
            ask_portion(
                portion.select(prompts, output=folder / f"{name}-{portion}-prompts"),
                run,
                portion,
                journal_path=folder / "journal.sqlite",
                folder=folder / "portions",
                output=folder / f"{name}-{portion}",
            )
        )
    return answers


@given(keys=st.lists(st.text(min_size=1), unique=True, max_size=50), of=st.integers(1, 9))
def test_every_prompt_is_in_one_portion(keys: list[str], of: int) -> None:
    for key in keys:
        assert sum(Portion(number, of).has(key) for number in range(of)) == 1


def test_portions_are_of_like_size_and_keep_the_order(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    run = asked_run(make_run, endpoint)
    prompts = collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts")
    parts = [
        [one.prompt_id for one in Portion(k, 3).select(prompts, output=tmp_path / f"{k}").rows()] for k in range(3)
    ]
    order = [prompt.prompt_id for prompt in prompts.rows()]
    assert sorted(chain.from_iterable(parts)) == sorted(order)
    assert all(part == [one for one in order if one in set(part)] for part in parts)
    assert min(map(len, parts)) > NUM_PROMPTS // 6


@pytest.mark.parametrize("number", [-1, 3])
def test_a_portion_that_does_not_exist_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=r"0\.\.2"):
        Portion(number, 3)


@pytest.mark.parametrize("of", [1, 3])
def test_gathered_answers_are_those_of_asking_in_one_place(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make, of: int
) -> None:
    run = asked_run(make_run, endpoint, sampling={"num_samples": 2})
    gather(ask(run, tmp_path, of), tmp_path / "journal.sqlite")
    assert endpoint.asked.total() == 2 * NUM_PROMPTS
    prompts = PromptSet(tmp_path / "out-prompts")
    gathered = query_teacher(
        prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "gathered", asks=False
    )
    alone = query_teacher(prompts, run, journal_path=tmp_path / "alone.sqlite", output=tmp_path / "alone")
    assert gathered.hash == alone.hash
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert verify(journal).is_intact


def test_a_portion_without_a_prompt_is_empty(tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make) -> None:
    run = make_run({"kind": "openai", "base_url": endpoint.url, "model": "m"}, ROWS[:1])
    gather(ask(run, tmp_path, 3), tmp_path / "journal.sqlite")
    assert endpoint.asked.total() == 1


def test_a_portion_done_again_and_another_number_of_portions_pay_nothing_twice(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    run = asked_run(make_run, endpoint)
    ask(run, tmp_path, 4)
    ask(run, tmp_path, 4, numbers=range(2, 3), name="again")
    gather(ask(run, tmp_path, 3, name="other"), tmp_path / "journal.sqlite")
    assert endpoint.asked.total() == NUM_PROMPTS
    # What one place has paid for is known to portions, too.
    shutil.rmtree(tmp_path / "portions")
    ask(run, tmp_path, 2, name="fresh")
    assert endpoint.asked.total() == NUM_PROMPTS


def test_a_run_in_one_place_takes_over_what_portions_were_answered(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    run = asked_run(make_run, endpoint)
    ask(run, tmp_path, 4, numbers=range(3))  # the fourth died: nothing is gathered
    num_asked, prompts = endpoint.asked.total(), PromptSet(tmp_path / "out-prompts")
    places = {"journal_path": tmp_path / "journal.sqlite", "portions": tmp_path / "portions"}
    (outlook,) = look_ahead_all(prompts, run, **places)
    assert (outlook.num_known, outlook.num_requests) == (num_asked, NUM_PROMPTS)
    assert outlook.first_unknown is not None
    assert outlook.first_unknown[0].messages[-1].content not in endpoint.asked
    rows = query_teacher(prompts, run, output=tmp_path / "whole", **places).rows()
    assert {row.outcome for row in rows} == {Outcome.OK}
    assert 0 < num_asked < endpoint.asked.total() == NUM_PROMPTS


def test_calls_that_a_portion_lost_count_once_wherever_their_questions_are_asked(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    run = asked_run(make_run, endpoint, budget={"requests": NUM_PROMPTS})
    prompts = collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts")
    (keys,) = (calls.keys for calls in LiveTeacher.of(run, run.teacher).calls(prompts))  # type: ignore[arg-type]
    with Journal(tmp_path / "portions" / "1-of-4.sqlite") as journal:
        journal.commit(opened=[Attempt("lost", keys[0], 1, 1), Attempt("of another run", "0" * 64, 1, 1)])
    for name in ("once", "again"):
        with pytest.raises(BudgetError, match=r"requests=40 \(40 spent\).* 1 of 40 requests"):
            query_teacher(
                prompts,
                run,
                journal_path=tmp_path / "journal.sqlite",
                output=tmp_path / name,
                portions=tmp_path / "portions",
            )
    with Journal(tmp_path / "journal.sqlite") as journal:
        assert [one.attempt_id for one in journal.open_attempts()] == ["lost"]
    assert endpoint.asked.total() == NUM_PROMPTS - 1


def test_only_what_a_process_that_is_gone_had_in_flight_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    with Journal(path) as alive:
        alive.claim([Attempt("", "a", 1, 1)])
        with Journal(path) as other:
            assert other.lost_attempts() == []
            assert len(other.open_attempts()) == 1
    with Journal(path) as other:
        (lost,) = other.lost_attempts()
        other.claim([lost._replace(key="a")])
        assert other.lost_attempts() == other.open_attempts() == [lost], "the name stays when the claim is taken over"


def test_only_the_portion_that_failed_is_asked_again(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    run = asked_run(make_run, endpoint, budget={"requests": 16})
    with pytest.raises(BudgetError, match="requests"):
        ask(run, tmp_path, 4)  # four for each, and some portion has more prompts
    assert all(count == 1 for count in endpoint.asked.values())
    num_asked, more = endpoint.asked.total(), asked_run(make_run, endpoint)
    ask(more, tmp_path, 4, name="again")
    assert num_asked < endpoint.asked.total() == NUM_PROMPTS


def test_caps_and_rates_are_divided(endpoint: ScriptedEndpoint, make_run: Make) -> None:
    run = asked_run(
        make_run,
        endpoint,
        budget={"usd": 3.0, "tokens": 100, "requests": 30},
        price=PRICE,
        concurrency=10,
        limits={"requests_per_minute": 60, "share": 0.5},
    )
    teacher = narrowed(run, Portion(0, 3)).teacher
    assert teacher.budget.model_dump() == {"usd": 1.0, "tokens": 33, "requests": 10}  # type: ignore[union-attr]
    assert (teacher.concurrency, teacher.limits.share) == (3, pytest.approx(0.5 / 3))  # type: ignore[union-attr]
    assert narrowed(run, Portion(0, 30)).teacher.concurrency == 1  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="requests=30"):
        narrowed(run, Portion(0, 31))


def test_a_row_that_was_changed_on_the_way_is_refused(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    (answers,) = ask(asked_run(make_run, endpoint), tmp_path, 1)
    data = (answers.path / ANSWERS).read_bytes()
    (answers.path / ANSWERS).write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=ANSWERS):
        gather([answers], tmp_path / "journal.sqlite")


def test_cut_answers_and_what_followed_them_travel_together(
    tmp_path: Path, endpoint: ScriptedEndpoint, make_run: Make
) -> None:
    endpoint.answer = lambda question: (
        200,
        endpoint.chat(f"{question[:4]} first", finish_reason="length" if "question" in question else "stop"),
    )
    run = asked_run(make_run, endpoint, on_truncated="continue")
    gather(ask(run, tmp_path, 2), tmp_path / "journal.sqlite")
    with sqlite3.connect(tmp_path / "journal.sqlite") as database:
        (num_rows,) = database.execute("SELECT count(DISTINCT key) FROM answers").fetchone()
    assert num_rows == endpoint.asked.total() > NUM_PROMPTS
