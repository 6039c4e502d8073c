"""TRL's trainers compute our loss on our tokens: one step of SGD against a slow oracle, and masks left alone."""

import copy

import numpy as np
import pytest
import torch

from proxykd.config.models import LoraSpec, ModelSpec, OptimizerSpec, PreferenceSpec
from proxykd.models.forward import collate, completion_labels, completion_logits, score_corpus
from proxykd.models.loading import attach_lora, load_tokenizer, lower_frozen, save_activation_memory
from proxykd.preferences import preference_loss
from proxykd.proxy.fidelity import measure_preference, sequence_scores
from proxykd.proxy.rounds import PairSet, ReferenceLogprobs
from proxykd.proxy.training import train_nll, train_preference
from tests.models.tiny import EOS, PAD, random_examples, tiny_llama

pytestmark = pytest.mark.integration

LENGTHS = [(3, 4), (5, 2), (2, 6), (4, 3)]
ONE_STEP = OptimizerSpec(learning_rate=1e-3, batch_size=4, warmup_ratio=0.0, schedule="constant")


@pytest.fixture(scope="module")
def tokenizer():
    # The trainers take its pad token only; the tiny models' ids are within its vocabulary.
    return load_tokenizer(ModelSpec(source="embedded:proxy"))


@pytest.fixture
def settings(tmp_path):
    return {"precision": "float32", "seed": 0, "scratch": tmp_path, "description": "training"}


def make_pairs(model, *, cut=True, precision="float32"):
    """Chosen and rejected of different lengths; the first rejected has no end token, as if it were cut."""
    chosen, rejected = random_examples(LENGTHS), random_examples([(p, c + 2) for p, c in LENGTHS], seed=1)
    rejected = [one._replace(completion_ids=two.completion_ids) for one, two in zip(chosen, rejected, strict=True)]
    for example in rejected[cut:]:
        example.completion_ids[-1] = EOS
    scores = (sequence_scores(model, side, pad_id=PAD, precision=precision) for side in (chosen, rejected))
    return PairSet(chosen, rejected, ReferenceLogprobs(*scores), eos_id=EOS)


def token_nll(model, examples):
    batch = collate(examples, pad_id=PAD)
    logprobs = completion_logits(model, batch).log_softmax(-1)
    return -logprobs.gather(-1, completion_labels(batch)[:, None]).mean()


def sums(model, examples):
    return torch.stack([-token_nll(model, [example]) * len(example.completion_ids) for example in examples])


def test_nll_is_the_mean_over_completion_tokens(tokenizer, settings):
    model, examples = tiny_llama(), random_examples(LENGTHS)
    expected = token_nll(model, examples).item()
    facts = train_nll(model, tokenizer, examples, ONE_STEP, **settings)
    assert facts["training_loss"] == pytest.approx(expected, rel=1e-5)
    assert (facts["steps"], facts["num_examples"]) == (1, 4)
    assert [(one["step"], one["loss"]) for one in facts["curve"]] == [(1, pytest.approx(expected, abs=1e-3))]
    assert token_nll(model, examples).item() < expected


def test_a_run_of_warm_up_alone_moves_less_than_one_without(tokenizer, settings):
    examples = random_examples(LENGTHS * 2)

    def distance(warmup_ratio):
        model, start = tiny_llama(), tiny_llama()
        optimizer = ONE_STEP.model_copy(update={"batch_size": 2, "warmup_ratio": warmup_ratio})
        facts = train_nll(model, tokenizer, examples, optimizer, **settings)
        assert facts["steps"] == 4
        both = zip(model.parameters(), start.parameters(), strict=True)
        return max(float((one - two).detach().abs().max()) for one, two in both)

    # Learning rates 0, 1/4, 1/2, 3/4 against 1, 1, 1, 1: 1.5 against 4 at most.
    assert distance(1.0) < 0.6 * distance(0.0)


def test_combined_loss_is_equation_6(tokenizer, settings):
    model = tiny_llama()
    # Scores of another model as the reference, so that the preference term is not just ln 2.
    pairs = make_pairs(tiny_llama(seed=9))
    preference = PreferenceSpec(optimizer=ONE_STEP, beta=0.3, nll_coef=0.5, preference_coef=2.0)
    reference = (torch.from_numpy(side) for side in pairs.reference_logprobs)
    with torch.no_grad():
        term = preference_loss(sums(model, pairs.chosen), sums(model, pairs.rejected), *reference, beta=0.3).mean()
        expected = 0.5 * token_nll(model, pairs.chosen) + 2.0 * term
    facts = train_preference(model, tokenizer, pairs, preference, **settings)
    assert facts["training_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_the_first_step_of_a_round_starts_at_its_reference(tokenizer, settings):
    model = tiny_llama()
    pairs = make_pairs(model)
    preference = PreferenceSpec(optimizer=ONE_STEP, nll_coef=0.0)
    facts = train_preference(model, tokenizer, pairs, preference, **settings)
    assert facts["training_loss"] == pytest.approx(np.log(2), rel=1e-5)


def test_the_gradient_of_a_tie_is_that_of_the_nll_alone(tokenizer, settings, tmp_path):
    chosen = random_examples(LENGTHS)
    one, two = tiny_llama(), tiny_llama()
    scores = sequence_scores(one, chosen, pad_id=PAD, precision="float32")
    ties = PairSet(chosen, chosen, ReferenceLogprobs(scores, scores), eos_id=EOS)
    train_preference(one, tokenizer, ties, PreferenceSpec(optimizer=ONE_STEP), **settings)
    train_nll(two, tokenizer, chosen, ONE_STEP, **{**settings, "description": "alone"})
    for first, second in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4)])
def test_rounds_move_the_margin_from_zero_upwards_and_leave_the_model_clean(tokenizer, settings, lora):
    model = tiny_llama() if lora is None else attach_lora(tiny_llama(), lora)
    scoring = {"pad_id": PAD, "precision": "float32"}
    preference = PreferenceSpec(optimizer=ONE_STEP.model_copy(update={"learning_rate": 1e-2}))
    for round_idx in range(2):
        pairs = make_pairs(model)
        assert measure_preference(model, pairs, beta=0.1, **scoring)["reward_margin"] == pytest.approx(0.0, abs=1e-5)
        train_preference(model, tokenizer, pairs, preference, **{**settings, "description": f"round {round_idx}"})
        moved = measure_preference(model, pairs, beta=0.1, **scoring)
        assert moved["reward_margin"] > 0.0
        assert moved["preference_loss"] < np.log(2)
        assert "forward" not in vars(model)
        assert set(getattr(model, "peft_config", {"default": None})) == {"default"}


def test_a_trained_model_can_be_copied_and_scored(tokenizer, settings):
    model, examples = tiny_llama(), random_examples(LENGTHS)
    train_nll(model, tokenizer, examples, ONE_STEP, **{**settings, "precision": "bfloat16"})
    twin = copy.deepcopy(model)
    with torch.no_grad():
        model.get_input_embeddings().weight.zero_()
    first, second = (next(iter(score_corpus(one, examples, pad_id=PAD))).logprobs for one in (model, twin))
    assert not np.array_equal(first, second)
    assert model.dtype == torch.float32


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4)])
def test_trainings_compute_activations_again_where_memory_is_saved(tokenizer, settings, lora):
    model, seen = tiny_llama(), []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: seen.append(1))
    model = model if lora is None else attach_lora(model, lora)
    pairs = make_pairs(model)
    save_activation_memory(model)
    seen.clear()
    train_nll(model, tokenizer, random_examples(LENGTHS), ONE_STEP, **settings)
    train_preference(model, tokenizer, pairs, PreferenceSpec(optimizer=ONE_STEP), **{**settings, "description": "two"})
    assert len(seen) == 4


def test_adapters_learn_the_same_to_the_bit_over_layers_that_are_held_in_bfloat16(tokenizer, settings):
    def trained(name, is_low):
        model = attach_lora(tiny_llama(), LoraSpec(rank=4, dropout=0.0))
        with torch.no_grad():
            for part, value in model.named_parameters():
                if "lora_" in part:
                    value.copy_(torch.linspace(-0.1, 0.1, value.numel()).view_as(value))
        if is_low:
            lower_frozen(model, "bfloat16")
        bfloat16 = {**settings, "precision": "bfloat16", "description": name}
        train_nll(model, tokenizer, random_examples(LENGTHS), ONE_STEP, **bfloat16)
        pairs = make_pairs(model, precision="bfloat16")
        preference = PreferenceSpec(optimizer=ONE_STEP)
        train_preference(model, tokenizer, pairs, preference, **{**bfloat16, "description": f"{name} 2"})
        return [value.detach() for part, value in model.named_parameters() if "lora_" in part]

    for full, low in zip(trained("full", is_low=False), trained("low", is_low=True), strict=True):
        assert torch.equal(full, low)


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4)])
def test_every_training_of_a_model_has_the_precision_that_was_asked_for(tokenizer, settings, lora):
    model, examples = tiny_llama(), random_examples(LENGTHS)
    seen = []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *found: seen.append(found[-1].dtype))
    model = model if lora is None else attach_lora(model, lora)
    pairs, bfloat16 = make_pairs(model), {**settings, "precision": "bfloat16"}
    seen.clear()
    train_nll(model, tokenizer, examples, ONE_STEP, **bfloat16)
    train_preference(model, tokenizer, pairs, PreferenceSpec(optimizer=ONE_STEP), **{**bfloat16, "description": "two"})
    train_nll(model, tokenizer, examples, ONE_STEP, **{**bfloat16, "description": "three"})
    assert seen == [torch.bfloat16] * 3
