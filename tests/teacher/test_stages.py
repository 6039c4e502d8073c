"""A run with two teachers: each is asked its share, every row has a fate, nothing is paid twice."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import PromptSet, read_json
from proxykd.config.specification import RunSpec
from proxykd.data.shares import Share
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.exceptions import BudgetError, TeacherAuthError
from proxykd.records import Completion, Outcome
from proxykd.teacher.query import SUMMARY, collect_prompts, look_ahead_all, probe_teacher, query_teacher
from tests.support.endpoint import ScriptedEndpoint, scripted_endpoint

Make = Callable[..., RunSpec]
NUM_PROMPTS = 60
ROWS = [{"prompt": f"question {number}"} for number in range(NUM_PROMPTS)]
PRICE = {"input_usd_per_million": 100.0, "output_usd_per_million": 1000.0}
"""10 tokens in and 5 out, as the endpoints answer, are 0.006 USD."""


@pytest.fixture
def cheap() -> Iterator[ScriptedEndpoint]:
    """The earlier teacher's endpoint; ``endpoint`` is the main one's."""
    with scripted_endpoint() as script:
        script.answer = lambda question: (200, script.chat(f"cheap {question}"))
        yield script


def staged(
    make_run: Make, cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, *, fraction: float = 0.25, **changes: Any
) -> RunSpec:
    earlier = {"kind": "openai", "base_url": cheap.url, "model": "small", "max_attempts": 2, **changes}
    main = {"kind": "openai", "base_url": endpoint.url, "model": "large", "max_attempts": 2, "price": PRICE}
    sampling = {"num_samples": 2}
    return make_run(
        {**main, "sampling": sampling}, ROWS, staging={"earlier": [{"teacher": earlier}], "fraction": fraction}
    )


def query(run: RunSpec, folder: Path, name: str = "completions") -> tuple[PromptSet, Any]:
    prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / f"{name}-prompts")
    return prompts, query_teacher(prompts, run, journal_path=folder / "journal.sqlite", output=folder / name)


def test_each_teacher_is_asked_its_share_and_rows_stand_in_order(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    run = staged(make_run, cheap, endpoint)
    prompts, completions = query(run, tmp_path)
    main = Share(0.25, is_main=True, split=run.split)
    expected = []
    for prompt in prompts.rows():
        if side_of(prompt.split_key, run.split) in TRAINING_SIDES:
            expected.append((prompt.prompt_id, 0, 0, f"cheap {prompt.messages[-1].content}"))
        if main.has(prompt.split_key):
            text = prompt.messages[-1].content.upper()
            # The one sample of the earlier teacher comes before them, whether it was asked or not.
            expected += [(prompt.prompt_id, 1, 1, text), (prompt.prompt_id, 2, 1, text)]
    rows: list[Completion] = list(completions.rows())
    assert [(row.prompt_id, row.sample_idx, row.stage, row.text) for row in rows] == expected
    assert {row.prompt_id for row in rows} == {prompt.prompt_id for prompt in prompts.rows()}
    assert cheap.asked.total() + endpoint.asked.total() == len(rows)
    assert {body["model"] for body in cheap.bodies} == {"small"}


def test_counts_add_up_for_each_teacher_and_in_all(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    cheap.answer = lambda question: (200, cheap.chat(None, refusal="No.") if "7" in question else cheap.chat("yes"))
    _, completions = query(staged(make_run, cheap, endpoint), tmp_path)
    rows, summary = list(completions.rows()), read_json(completions.path / SUMMARY)
    assert [one["model"] for one in summary["stages"]] == ["small", "large"]
    for stage, one in enumerate(summary["stages"]):
        mine = [row for row in rows if row.stage == stage]
        assert sum(one["outcomes"].values()) == len(mine) == one["num_prompts"] * one["num_samples"]
        assert one["outcomes"]["refused"] == sum(row.outcome is Outcome.REFUSED for row in mine)
        assert one["cost_usd"] == pytest.approx(0.006 * len(mine) * stage)
    assert summary["stages"][0]["outcomes"]["refused"] > 0
    assert sum(summary["outcomes"].values()) == len(rows)
    assert summary["completion_tokens"] == 5 * len(rows)


def test_a_rerun_asks_nothing_and_a_larger_share_only_what_is_new(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    run = staged(make_run, cheap, endpoint)
    _, first = query(run, tmp_path)
    _, again = query(run, tmp_path, "again")
    assert again.hash == first.hash
    assert max(cheap.asked.values()) == 1
    before = set(endpoint.asked)
    _, larger = query(staged(make_run, cheap, endpoint, fraction=1.0), tmp_path, "larger")
    assert before < set(endpoint.asked)
    assert set(endpoint.asked.values()) == {2}
    assert max(cheap.asked.values()) == 1
    assert larger.manifest["made_from"]["teacher"] != first.manifest["made_from"]["teacher"]


def test_staging_pays_for_nothing_that_the_run_without_it_has_asked(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    run = staged(make_run, cheap, endpoint)
    _, alone = query(run.model_copy(update={"staging": None}), tmp_path, "alone")
    assert endpoint.asked.total() == 2 * NUM_PROMPTS
    assert {(row.stage, row.sample_idx) for row in alone.rows()} == {(0, 0), (0, 1)}
    assert "stages" not in read_json(alone.path / SUMMARY)
    query(run, tmp_path)
    assert endpoint.asked.total() == 2 * NUM_PROMPTS


def test_each_teacher_has_a_budget_of_its_own(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    run = staged(make_run, cheap, endpoint, budget={"requests": 10}, concurrency=1)
    with pytest.raises(BudgetError, match=r"asking small: its settings are in staging\.earlier\[0\]\.teacher"):
        query(run, tmp_path)
    assert (cheap.asked.total(), endpoint.asked.total()) == (10, 0)
    rest = staged(make_run, cheap, endpoint, budget={"requests": 10}, concurrency=1, on_unanswered="fail_rows")
    _, completions = query(rest, tmp_path)
    assert cheap.asked.total() == 10
    by_stage = {stage: [row.outcome for row in completions.rows() if row.stage == stage] for stage in (0, 1)}
    assert by_stage[0].count(Outcome.OK) == 10
    assert set(by_stage[0]) == {Outcome.OK, Outcome.FAILED}
    assert set(by_stage[1]) == {Outcome.OK}


def test_what_is_left_and_what_is_probed_is_known_for_each_teacher(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    run, journal = staged(make_run, cheap, endpoint), tmp_path / "journal.sqlite"
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "prompts")
    before = look_ahead_all(prompts, run, journal_path=journal)
    assert [one.num_known for one in before] == [0, 0]
    for stage, one in enumerate(before):
        assert one.first_unknown is not None
        probe_teacher(run, journal_path=journal, prompt=one.first_unknown[0], stage=stage)
    assert (cheap.asked.total(), endpoint.asked.total()) == (1, 1)
    assert [one.num_known for one in look_ahead_all(prompts, run, journal_path=journal)] == [1, 1]
    query(run, tmp_path)
    after = look_ahead_all(prompts, run, journal_path=journal)
    assert [(one.num_known, one.first_unknown) for one in after] == [(one.num_requests, None) for one in before]
    assert [one.num_requests for one in before] == [cheap.asked.total(), endpoint.asked.total()]


def test_a_refused_key_names_the_teacher_that_refused_it(
    cheap: ScriptedEndpoint, endpoint: ScriptedEndpoint, make_run: Make, tmp_path: Path
) -> None:
    cheap.answer = lambda question: (401, {"error": {"message": "bad key"}})
    run = staged(make_run, cheap, endpoint)
    with pytest.raises(TeacherAuthError, match=r"asking small"):
        probe_teacher(run, journal_path=tmp_path / "journal.sqlite", stage=0)
    probe_teacher(run, journal_path=tmp_path / "journal.sqlite")
