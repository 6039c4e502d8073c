"""Held-out sums: added up by prompt, whatever the order in which examples are scored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.data.splits import select_rows
from proxykd.data.tokenizing import Example
from proxykd.evaluation.heldout import index_prompts, score_heldout, sum_by_prompt
from proxykd.evaluation.scoring import HeldoutSets, score_model
from proxykd.models.forward import ExampleScores
from proxykd.models.loading import load_model, load_tokenizer
from proxykd.records import Side


def _example(prompt_id: str) -> Example:
    return Example(prompt_id, 0, np.array([1], np.int32), np.array([2], np.int32))


def test_samples_of_a_prompt_are_added_up_by_hand() -> None:
    index = index_prompts([_example("a"), _example("b"), _example("a")])
    assert index.prompt_ids == ("a", "b")
    scores = [
        ExampleScores(
            2, np.array([-1.0, -2.0], np.float32), np.array([True, False]), np.array([-1.0, -0.5], np.float32)
        ),
        ExampleScores(0, np.array([-0.5], np.float32), np.array([True]), np.array([-0.5], np.float32)),
    ]
    found = sum_by_prompt(iter(scores), index)
    assert found.nll_sum.tolist() == [3.5, 0.0]
    assert found.num_tokens.tolist() == [3, 0]
    assert found.num_top1.tolist() == [2, 0]
    # Confidences e^-1 = 0.37 (right) and e^-0.5 = 0.61 (once wrong, once right), in 15 bins: the 6th and the 10th.
    assert found.reliability[0, 5] == pytest.approx([1, np.exp(-1), 1])
    assert found.reliability[0, 9] == pytest.approx([2, 2 * np.exp(-0.5), 1])
    assert found.reliability.sum(axis=(0, 1))[0] == 3


def test_scores_equal_the_loss_of_the_model_itself(
    validated: ValidatedSet, splits: SplitSet, run_spec: RunSpec, tmp_path: Path
) -> None:
    tokenizer, model = load_tokenizer(run_spec.student.model), load_model(run_spec.student.model, seed=1)
    heldout = HeldoutSets(validated, splits, run_spec, tmp_path, with_truth=False).for_tokenizer(tokenizer)
    found = score_heldout(model, heldout.corpus, heldout.index, pad_id=tokenizer.pad_token_id)
    first = [heldout.corpus[row] for row in np.flatnonzero(heldout.index.prompt_idx == 0).tolist()]
    expected = 0.0
    for example in first:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]], dtype=torch.long)
        labels = ids.clone()
        labels[:, : len(example.prompt_ids)] = -100
        with torch.no_grad():
            expected += float(model(input_ids=ids, labels=labels).loss) * len(example.completion_ids)
    assert found.nll_sum[0] == pytest.approx(expected, rel=1e-5)
    assert found.num_tokens.sum() == heldout.corpus.completion_lengths.sum()


def test_every_heldout_prompt_is_scored_and_no_other(
    arms: dict[str, list[Path]], validated: ValidatedSet, splits: SplitSet, run_spec: RunSpec, tmp_path: Path
) -> None:
    sets = HeldoutSets(validated, splits, run_spec, tmp_path, with_truth=False)
    texts_alone = run_spec.evaluation.model_copy(update={"tasks": (), "drift": None})
    scores = score_model(arms["sft"][0], sets, run_spec.model_copy(update={"evaluation": texts_alone}))
    expected = {row.prompt_id for row in select_rows(validated, splits, {Side.HELDOUT})}
    assert set(scores.prompt_ids) == expected
    assert set(scores.sums()) == {"heldout_nll", "top1_agreement", "ece/tokens"}
