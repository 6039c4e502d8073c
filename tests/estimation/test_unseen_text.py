"""Fitted weights through the step: what they are fitted to, what they never see, and what happens without it."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from proxykd.artifacts import ProxyModel, SplitSet, Targets, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits
from proxykd.data.tokenizing import Example
from proxykd.estimation.estimating import estimate_distributions
from proxykd.estimation.unseen_text import _Prefixes
from proxykd.exceptions import GateError
from proxykd.models.loading import load_model, load_tokenizer, save_model
from proxykd.records import Outcome, Side, ValidatedRow
from proxykd.teacher.problems import generate_prompts, sample_completion

MakeRun = Callable[..., RunSpec]
SPLIT = {"mode": "shared", "heldout": 0.2, "development": 0.2, "min_heldout": 1}


class Home(NamedTuple):
    """Two completions of every prompt, and a proxy with random weights."""

    validated: ValidatedSet
    splits: SplitSet
    proxy: ProxyModel


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> Home:
    """What the stages before left."""
    folder, run, rng = tmp_path_factory.mktemp("home"), make_run(split=SPLIT), random.Random(0)
    validated = ValidatedSet(folder / "validated")
    validated.write(
        ValidatedRow(
            one.prompt_id, idx, one.messages, sample_completion(one.messages[-1].content, rng), "", None,
            Outcome.OK, "keep", "",
        )
        for one in generate_prompts(40, 1)
        for idx in range(2)
    )  # fmt: skip
    seal(validated)
    spec = run.proxy.model
    save_model(load_model(spec, seed=0), load_tokenizer(spec), folder / "proxy" / "model")
    seal(ProxyModel(folder / "proxy"))
    return Home(validated, build_splits(validated, run.split, output=folder / "splits"), ProxyModel(folder / "proxy"))


@pytest.fixture
def estimate(home: Home, make_run: MakeRun, tmp_path: Path) -> Callable[..., Targets]:
    """Targets of the posterior; ``changed`` makes another corpus of the rows."""

    def make(
        name: str,
        changed: Callable[[ValidatedRow], ValidatedRow | None] = lambda row: row,
        split: dict[str, Any] = SPLIT,
        **estimator: Any,
    ) -> Targets:
        run = make_run(split=split, targets={"estimator": {"kind": "posterior", **estimator}})
        validated = ValidatedSet(tmp_path / name / "validated")
        validated.write(row for row in map(changed, home.validated.rows()) if row is not None)
        seal(validated)
        splits = build_splits(validated, run.split, output=tmp_path / name / "splits")
        return estimate_distributions(
            None, validated, splits, home.proxy, run, output=tmp_path / name / "targets", scratch=tmp_path / name
        )

    return make


def side_changer(home: Home, side: Side, change: Callable[[ValidatedRow], ValidatedRow | None]) -> Any:
    """Changes the rows of one side alone."""
    chosen = {row.prompt_id for row in home.splits.rows() if row.side == side}
    assert len(chosen) > 2
    return lambda row: change(row) if row.prompt_id in chosen else row


def shards(targets: Targets) -> list[str]:
    return [digest for name, digest in targets.manifest["files"].items() if name.endswith(".shard")]


@pytest.mark.integration
def test_heldout_texts_change_nothing_and_development_texts_change_the_fit(home: Home, estimate: Any) -> None:
    def garbled(row: ValidatedRow) -> ValidatedRow:
        return replace(row, text="We subtract: 9 - 4 = 5. " * (1 + row.sample_idx))

    plain = estimate("plain")
    fitted = read_json(plain.path / "targets.json")["fitted"]
    assert fitted["num_repeated_prefixes"] > 20
    assert fitted["num_positions"] > 200
    # Random weights say nothing of the teacher, the counts do.
    assert fitted["counts_share"] > 0.5
    heldout = estimate("heldout", side_changer(home, Side.HELDOUT, garbled))
    assert shards(heldout) == shards(plain)
    assert read_json(heldout.path / "targets.json")["fitted"] == fitted
    development = estimate("development", side_changer(home, Side.DEVELOPMENT, garbled))
    assert shards(development) != shards(plain)
    assert read_json(development.path / "targets.json")["fitted"]["worth"] != fitted["worth"]


@pytest.mark.integration
def test_one_completion_a_prompt_leaves_gamma_at_two(home: Home, estimate: Any, capsys: Any) -> None:
    first = side_changer(home, Side.DEVELOPMENT, lambda row: None if row.sample_idx else row)
    found = estimate("once", first)
    fitted = read_json(found.path / "targets.json")["fitted"]
    assert (fitted["num_repeated_prefixes"], fitted["gamma"]) == (0, 2.0)
    assert shards(found) == shards(estimate("given", first, prior={"gamma": 2}))


@pytest.mark.integration
def test_without_development_text_kappa_must_be_given(estimate: Any) -> None:
    split = SPLIT | {"development": 0.0}
    with pytest.raises(GateError, match=r"split\.development or give kappa a number"):
        estimate("none", split=split)
    assert estimate("number", split=split, kappa=8)


def test_prefixes_are_one_only_where_prompt_and_all_tokens_are() -> None:
    def example(prompt_id: str, *tokens: int) -> Example:
        return Example(prompt_id, 0, np.zeros(1, np.int32), np.array(tokens, np.int32))

    prefixes = _Prefixes()
    one, other, third = (
        prefixes.numbers_of(each) for each in (example("a", 5, 6, 7), example("a", 5, 9, 7), example("b", 5, 6, 7))
    )
    assert (one == other).tolist() == [True, True, False]
    assert not set(one) & set(third)
    assert len({*one, *other, *third}) == 7
