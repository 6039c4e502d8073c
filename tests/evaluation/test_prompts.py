"""Clusters and slices of the held-out prompts."""

from dataclasses import replace
from pathlib import Path

from proxykd.evaluation.prompts import PromptTable
from proxykd.records import Message, Outcome, ValidatedRow

ROW = ValidatedRow(
    prompt_id="a",
    sample_idx=0,
    messages=(Message("user", "?"),),
    text="!",
    task="sums",
    reference=None,
    outcome=Outcome.OK,
    verdict="keep",
    request_hash="",
)


def test_samples_share_their_prompt_and_prompts_their_group(tmp_path: Path) -> None:
    twice = replace(ROW, messages=(Message("user", "?"), Message("assistant", "!"), Message("user", "??")))
    rows = [
        ROW,
        replace(ROW, sample_idx=1),
        replace(twice, prompt_id="b", group="g", task=""),
        replace(ROW, prompt_id="c", group="g"),
    ]
    table = PromptTable.of_rows(rows)
    assert table.clusters == {"a": "a", "b": "g", "c": "g"}
    assert table.counts() == {"task=sums": 2, "turns=one": 2, "turns=several": 1}
    table.write(tmp_path / "prompts.parquet")
    assert PromptTable.read(tmp_path / "prompts.parquet") == table
    assert table.only(["b"]) == PromptTable({"b": "g"}, {"turns=several": frozenset({"b"})})
