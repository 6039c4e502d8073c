"""Batches that a portion submitted: settled in one place or by the same division, refused by another."""

from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web

from proxykd.config.specification import RunSpec
from proxykd.data.portions import Portion
from proxykd.exceptions import ConfigError, TeacherError
from proxykd.records import Outcome
from proxykd.teacher.portions import ask_portion
from proxykd.teacher.query import collect_prompts, query_teacher
from tests.teacher.batches.conftest import BatchServer

COUNT = 25
ROWS = [{"prompt": f"question {number}"} for number in range(COUNT)]
Run = Callable[..., None]


@pytest.fixture
def in_portions(server: BatchServer, make_run: Callable[..., RunSpec], tmp_path: Path) -> Run:
    """Asks in so many portions; 0 = in one place, where every row must be answered."""

    def ask(of: int, *, one: int | None = None, caps: dict[str, int] | None = None) -> None:
        batch = {"max_requests": 5, "poll_s": 0.02}
        teacher = {"kind": "openai", "base_url": server.url, "model": "m", "batch": batch, "budget": caps or {}}
        run, folder = make_run(teacher, ROWS), tmp_path / str(len(list(tmp_path.iterdir())))
        prompts = collect_prompts(run.prompts, seed=0, output=folder / "prompts")
        places = {"journal_path": tmp_path / "journal.sqlite"}
        for portion in [Portion(number, of) for number in range(of) if one in (None, number)]:
            asked = portion.select(prompts, output=folder / f"prompts-{portion}")
            ask_portion(asked, run, portion, folder=tmp_path / "portions", output=folder / f"{portion}", **places)
        if of == 0:
            found = query_teacher(prompts, run, output=folder / "all", portions=tmp_path / "portions", **places)
            assert {row.outcome for row in found.rows()} == {Outcome.OK}

    return ask


@pytest.fixture
def left_open(server: BatchServer, in_portions: Run) -> int:
    """The first of two portions has submitted its first batches and died; how many calls they hold."""
    server.refusal = web.json_response({"error": {"message": "no"}}, status=400)
    with pytest.raises(TeacherError, match="says of the batch"):
        in_portions(2, one=0)
    server.refusal = None
    return server.asked.total()


@pytest.mark.parametrize("caps", [{}, {"requests": COUNT}])
def test_a_run_in_one_place_settles_what_a_portion_left_in_batches(
    server: BatchServer, in_portions: Run, left_open: int, caps: dict[str, int]
) -> None:
    assert 0 < left_open < COUNT
    in_portions(0, caps=caps)
    assert set(server.asked.values()) == {1}
    assert server.asked.total() == COUNT


def test_another_division_is_refused_until_the_batches_are_settled(
    server: BatchServer, in_portions: Run, left_open: int
) -> None:
    with pytest.raises(ConfigError, match=r"1-of-2\.sqlite; run once with --shards query_teacher=2 as before"):
        in_portions(3)
    in_portions(2)
    in_portions(3)
    assert set(server.asked.values()) == {1}
    assert server.asked.total() == COUNT
