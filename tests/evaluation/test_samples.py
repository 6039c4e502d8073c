"""The worst regressions come first, with what every arm said."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.evaluation.samples import collect_samples
from proxykd.evaluation.scoring import PREDICTIONS
from tests.support.large_report import write_predictions

Corpus = tuple[ValidatedSet, SplitSet, list[str]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    _, validated, splits = write_predictions(tmp_path_factory.mktemp("corpus"), num_tasks=1, num_prompts=8)
    heldout = [row.prompt_id for row in splits.rows() if row.side == "heldout"]
    return validated, splits, heldout[:4]


def row(arm: str, prompt_id: str, nll: float, right: bool | None, *, seed: int = 0) -> dict[str, Any]:
    answer = {"task": "sums", "text": f"{arm} {seed} says {right}", "answer": "1", "is_correct": right}
    return {
        "arm": arm, "seed": seed, "prompt_id": prompt_id, "nll_sum": 10 * nll, "num_tokens": 10, "num_top1": 1,
        "kl_sum": None, "answers": [] if right is None else [answer],
    }  # fmt: skip


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows, schema=PREDICTIONS), folder / "predictions.parquet")
    return folder / "predictions.parquet"


def test_a_lost_task_comes_before_a_worse_likelihood(corpus: Corpus, tmp_path: Path) -> None:
    validated, splits, (kept, lost, worse, gained) = corpus
    rows = [row("sft", name, 1.0, name != gained) for name in (kept, lost, worse, gained)]
    rows += [row("proxy_kd", kept, 1.0, True), row("proxy_kd", lost, 0.5, False)]
    rows += [row("proxy_kd", worse, 3.0, True), row("proxy_kd", gained, 2.0, True)]
    found = collect_samples([write(tmp_path, rows)], validated, splits, candidate="proxy_kd", against="sft")
    assert [one["prompt_id"] for one in found] == [lost, worse, gained, kept]
    assert found[0]["change"] == {"is_lost": True, "nll": pytest.approx(-0.5)}
    assert not any(one["change"]["is_lost"] for one in found[1:])
    assert {one["arm"]: one["text"] for one in found[0]["answers"]} == {
        "sft": "sft 0 says True",
        "proxy_kd": "proxy_kd 0 says False",
    }
    assert found[0]["teacher"].startswith("It is ")
    assert found[0]["question"].startswith("What is ")


def test_the_first_seed_in_the_file_is_the_one_that_is_shown(corpus: Corpus, tmp_path: Path) -> None:
    validated, splits, (one, *_) = corpus
    rows = [row("proxy_kd", one, 1.0, True, seed=7), row("proxy_kd", one, 9.0, False, seed=3)]
    (found,) = collect_samples([write(tmp_path, rows)], validated, splits, candidate="proxy_kd", against="champion")
    assert found["against"] == ""
    assert found["answers"] == [{"arm": "proxy_kd", "text": "proxy_kd 7 says True", "is_correct": True, "nll": 1.0}]


def test_prompts_without_a_task_are_ranked_by_likelihood(corpus: Corpus, tmp_path: Path) -> None:
    validated, splits, (one, other, *_) = corpus
    rows = [row("sft", name, 1.0, None) for name in (one, other)]
    rows += [row("proxy_kd", one, 1.1, None), row("proxy_kd", other, 1.2, None)]
    found = collect_samples([write(tmp_path, rows)], validated, splits, candidate="proxy_kd", against="sft", limit=1)
    assert [sample["prompt_id"] for sample in found] == [other]
    assert found[0]["task"] == ""
    assert [answer["text"] for answer in found[0]["answers"]] == [None, None]


def test_the_champion_comes_from_a_file_of_its_own(corpus: Corpus, tmp_path: Path) -> None:
    validated, splits, (one, *_) = corpus
    first = write(tmp_path, [row("proxy_kd", one, 2.0, False)])
    (tmp_path / "more").mkdir()
    second = write(tmp_path / "more", [row("champion", one, 1.0, True)])
    (found,) = collect_samples([first, second], validated, splits, candidate="proxy_kd", against="champion")
    assert found["change"] == {"is_lost": True, "nll": pytest.approx(1.0)}
    assert [answer["arm"] for answer in found["answers"]] == ["proxy_kd", "champion"]


def test_a_champion_that_was_not_asked_was_not_right(corpus: Corpus, tmp_path: Path) -> None:
    validated, splits, (one, other, *_) = corpus
    rows = [row("proxy_kd", one, 2.0, False), row("proxy_kd", other, 3.0, True)]
    rows += [row("champion", one, 1.0, None), row("champion", other, 1.0, None)]
    found = collect_samples([write(tmp_path, rows)], validated, splits, candidate="proxy_kd", against="champion")
    assert [sample["change"]["is_lost"] for sample in found] == [False, False]
    assert [sample["prompt_id"] for sample in found] == [one, other], "what is wrong comes before what is right"
