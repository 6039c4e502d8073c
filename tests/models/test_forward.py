"""Teacher-forced passes: batching changes nothing, and only completions are scored."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.models import LoraSpec
from proxykd.exceptions import ShapeError
from proxykd.models.forward import collate, completion_labels, completion_logits, length_batches, score_corpus
from proxykd.models.loading import attach_lora
from tests.models.tiny import PAD, random_examples, tiny_llama

LENGTHS = [(3, 4), (1, 1), (7, 2), (2, 9)]


def test_completion_logits_are_the_full_forward_gathered():
    model, batch = tiny_llama(), collate(random_examples(LENGTHS), pad_id=PAD)
    full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(completion_logits(model, batch), full[:, :-1][batch.loss_mask[:, 1:]])


def test_completion_logits_see_adapters():
    model, batch = attach_lora(tiny_llama(), LoraSpec(rank=2)), collate(random_examples(LENGTHS), pad_id=PAD)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.constant_(parameter, 0.1)
    full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    gathered = completion_logits(model, batch)
    torch.testing.assert_close(gathered, full[:, :-1][batch.loss_mask[:, 1:]])
    assert not torch.allclose(gathered, completion_logits(tiny_llama(), batch))


def test_labels_are_the_completions_row_after_row():
    examples = random_examples(LENGTHS)
    labels = completion_labels(collate(examples, pad_id=PAD))
    assert labels.tolist() == np.concatenate([example.completion_ids for example in examples]).tolist()


def test_scores_do_not_depend_on_the_batch():
    model, examples = tiny_llama(), random_examples(LENGTHS)
    together = {score.example_idx: score for score in score_corpus(model, examples, pad_id=PAD)}
    alone = {score.example_idx: score for score in score_corpus(model, examples, pad_id=PAD, max_tokens=1)}
    assert sorted(together) == sorted(alone) == list(range(len(examples)))
    for example_idx, score in together.items():
        assert len(score.logprobs) == len(examples[example_idx].completion_ids)
        np.testing.assert_allclose(score.logprobs, alone[example_idx].logprobs, atol=1e-5)
        np.testing.assert_array_equal(score.is_top1, alone[example_idx].is_top1)


def test_scores_sum_to_the_loss_of_the_model_itself():
    model, examples = tiny_llama(), random_examples(LENGTHS)
    batch = collate(examples, pad_id=PAD)
    labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)
    loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    logprobs = np.concatenate([score.logprobs for score in score_corpus(model, examples, pad_id=PAD)])
    assert -logprobs.mean() == pytest.approx(loss.item(), rel=1e-5)


def test_scoring_is_without_dropout_and_leaves_the_mode_alone():
    model = tiny_llama().train()
    model.config.attention_dropout = 0.5
    first, second = (
        [s.logprobs.sum() for s in score_corpus(model, random_examples(LENGTHS), pad_id=PAD)] for _ in "ab"
    )
    assert first == second
    assert model.training


def test_an_empty_prompt_cannot_be_scored():
    with pytest.raises(ShapeError, match="empty prompt"):
        collate(random_examples([(0, 3)]), pad_id=PAD)


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_length_batches_hold_every_index_once_within_the_budget(lengths, max_tokens):
    batches = length_batches(lengths, max_tokens=max_tokens)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= max_tokens
