"""Wishes about single steps are checked by name, and portions have names of their own."""

import re
from typing import Any

import pytest

from proxykd.config.steps import DIVISIBLE, STEPS, check_anew, check_shards, step_names
from proxykd.exceptions import ConfigError


def test_every_step_can_be_done_again() -> None:
    check_anew(STEPS)
    check_anew([])
    with pytest.raises(ConfigError, match=r"got 'align_prxy'; did you mean 'align_proxy'\?"):
        check_anew([*STEPS, "align_prxy"])


def test_only_a_teacher_that_is_asked_has_prompts_to_divide(make_run: Any) -> None:
    recorded = make_run(prompts={"kind": "jsonl", "path": "rows.jsonl"}, teacher={"kind": "recorded"})
    asked = make_run(prompts={"kind": "embedded", "count": 100}, teacher={"kind": "embedded"})
    check_shards(asked, dict.fromkeys(DIVISIBLE, 3))
    check_shards(recorded, {"query_teacher": 1, "estimate_distributions": 3})
    with pytest.raises(ConfigError, match="found recorded texts: they need no shards of query_teacher"):
        check_shards(recorded, {"query_teacher": 2})
    with pytest.raises(
        ConfigError, match=re.escape("got 'estimate_distribution'; did you mean 'estimate_distributions'?")
    ):
        check_shards(asked, {"estimate_distribution": 2})
    with pytest.raises(ConfigError, match="expected 1 shard of query_teacher or more, got 0"):
        check_shards(asked, {"query_teacher": 0})


def test_the_steps_of_a_divided_run_are_all_and_the_portions() -> None:
    assert step_names({}) == STEPS == step_names({"query_teacher": 1})
    assert step_names({"query_teacher": 2})[len(STEPS) :] == ("query_teacher_1-of-2", "query_teacher_2-of-2")


def test_the_names_of_some_steps_have_their_own_portions_alone() -> None:
    shards = {"query_teacher": 2, "estimate_distributions": 1}
    assert step_names(shards, []) == ()
    assert step_names(shards, ["split", "estimate_distributions"]) == ("split", "estimate_distributions")
    portions = ("query_teacher_1-of-2", "query_teacher_2-of-2")
    assert step_names(shards, ["query_teacher", "split"]) == ("query_teacher", "split", *portions)
