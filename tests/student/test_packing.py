"""Packed texts are those same texts: they do not see each other, and a step on them is the same step."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from proxykd.config import RunSpec
from proxykd.exceptions import ModelError
from proxykd.models.forward import collate, collate_packed, completion_labels, completion_logits
from proxykd.models.loading import load_trainable, save_activation_memory
from proxykd.student.inputs import TrainingData
from proxykd.student.loop import train_step
from proxykd.student.module import StudentModule, check_packing
from proxykd.student.order import pack_rows, share_out

MakeRun = Callable[..., RunSpec]
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@given(lengths, st.integers(1, 80))
def test_every_example_has_one_place_and_no_row_is_too_long(sizes: list[int], row_tokens: int) -> None:
    rows = pack_rows(range(len(sizes)), np.array(sizes, np.int32), row_tokens=row_tokens)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(len(row) == 1 or sum(sizes[index] for index in row) <= row_tokens for row in rows)


@given(lengths, st.integers(1, 6))
def test_every_example_is_dealt_once_and_no_share_is_far_above_another(sizes: list[int], num_shares: int) -> None:
    shares = share_out(range(len(sizes)), np.array(sizes, np.int32), num_shares)
    tokens = [sum(sizes[index] for index in share) for share in shares]
    assert sorted(index for share in shares for index in share) == list(range(len(sizes)))
    assert max(tokens) - min(tokens) <= max(sizes)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_logits_of_packed_texts_are_those_of_the_texts_alone(
    training_data: TrainingData, student_run: MakeRun, attention: str
) -> None:
    corpus, pad_id = training_data.corpus, training_data.pad_id
    model = load_trainable(student_run(model={"attention": attention}).student.model, seed=0).eval()
    part = list(range(8))
    rows = pack_rows(part, corpus.lengths, row_tokens=2 * int(corpus.lengths[part].max()))
    assert len(rows) < len(part)
    packed = collate_packed([[corpus[index] for index in row] for row in rows], pad_id=pad_id)
    alone = collate([corpus[index] for row in rows for index in row], pad_id=pad_id)
    assert torch.equal(completion_labels(packed), completion_labels(alone))
    with torch.no_grad():
        torch.testing.assert_close(completion_logits(model, packed), completion_logits(model, alone))


@pytest.mark.parametrize("option", ["packing", "gradient_checkpointing"])
def test_a_step_is_the_same_with_it(training_data: TrainingData, student_run: MakeRun, option: str) -> None:
    def gradients(run: RunSpec) -> list[torch.Tensor]:
        module = StudentModule(load_trainable(run.student.model, seed=0), run.student, alpha=1.0).train()
        if option == "gradient_checkpointing" and run.student.gradient_checkpointing:
            save_activation_memory(module.model)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
        train_step(module, optimizer, training_data, list(range(6)), run.student, learning_rate=0.0)
        return [value.grad for value in module.parameters() if value.grad is not None]

    plain, other = (
        gradients(student_run(**{option: value, "optimizer": {"max_grad_norm": 1e9}})) for value in (False, True)
    )
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-6)


def test_a_model_that_mixes_neighbours_is_refused(student_run: MakeRun) -> None:
    class Leaky(GPT2LMHeadModel):
        """Its texts see the token before them, whatever the mask says."""

    model = Leaky(GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=1, n_head=2)).eval()
    check_packing(model)
    embed = model.get_decoder().wte.forward
    model.get_decoder().wte.forward = lambda ids: embed(ids) + embed(ids.roll(1, dims=1))
    with pytest.raises(ModelError, match=r"student\.packing=false"):
        check_packing(model)
