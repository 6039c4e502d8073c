"""Sampling: the cache and the padding change nothing, the end token ends, the odds are the model's."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import GPT2Config, GPT2LMHeadModel

from proxykd.config.models import LoraSpec
from proxykd.data.tokenizing import Example
from proxykd.exceptions import ShapeError
from proxykd.models.forward import score_corpus
from proxykd.models.loading import attach_lora, lower_frozen, prune_layers
from proxykd.models.sampling import Mixture, TransformersSampler, sample_examples
from tests.models.tiny import EOS, VOCAB, TinyTokenizer, tiny_llama

PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9], [2, 2], [11, 12, 13, 14]]


def naive_greedy(model, prompt, max_new_tokens):
    """Recompute everything for every token."""
    completion = []
    while len(completion) < max_new_tokens and EOS not in completion:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, -1]
        completion.append(int(logits.argmax()))
    return completion


def tiny_gpt2(num_positions):
    """A model with a learned vector for each position, and none beyond them."""
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=num_positions, n_embd=16, n_layer=1, n_head=2, initializer_range=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return GPT2LMHeadModel(config).eval()


def ending_llama():
    """A model for which the end token is likely enough to end rows at different times."""
    model = tiny_llama(seed=3)
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] *= 1.5
    return model


@pytest.mark.parametrize("max_tokens", [1, 10_000])
@pytest.mark.parametrize("build", [tiny_llama, ending_llama, lambda: attach_lora(tiny_llama(), LoraSpec(rank=2))])
def test_greedy_equals_a_loop_that_recomputes_everything(build, max_tokens):
    model = build()
    sampler = TransformersSampler(model, TinyTokenizer, max_tokens=max_tokens)
    sampled = sampler.sample(PROMPTS, max_new_tokens=12, temperature=0.0, seed=0)
    assert sampled == [naive_greedy(model, prompt, 12) for prompt in PROMPTS]


def test_greedy_of_a_pruned_model_finds_its_own_cache():
    model = tiny_llama(num_layers=5)
    prune_layers(model, 3)
    sampled = TransformersSampler(model, TinyTokenizer).sample(PROMPTS, max_new_tokens=8, temperature=0.0, seed=0)
    assert sampled == [naive_greedy(model, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("max_tokens", [1, 10_000])
def test_no_position_beyond_the_models_table_is_asked_for(max_tokens):
    model, longest = tiny_gpt2(num_positions=12), 12
    drawn = [Example(f"{row:016x}", 0, np.array(prompt), np.array([2])) for row, prompt in enumerate(PROMPTS)]
    sampled = sample_examples(
        drawn,
        TransformersSampler(model, TinyTokenizer, max_tokens=max_tokens),
        max_new_tokens=10,
        max_seq_tokens=longest,
        temperature=0.0,
        seed=0,
    )
    rooms = [min(10, longest - len(prompt)) for prompt in PROMPTS]
    assert min(rooms) < 10
    found = [one.completion_ids.tolist() for one in sampled]
    assert found == [naive_greedy(model, prompt, room) for prompt, room in zip(PROMPTS, rooms, strict=True)]


def test_a_bound_that_no_row_reaches_changes_no_draw():
    sampler = TransformersSampler(ending_llama(), TinyTokenizer)
    how = {"max_new_tokens": 15, "temperature": 1.0, "seed": 0}
    longest = 15 + max(map(len, PROMPTS))
    assert sampler.sample(PROMPTS * 20, **how, max_seq_tokens=longest) == sampler.sample(PROMPTS * 20, **how)


def test_completions_end_with_the_end_token_or_at_the_limit():
    sampled = TransformersSampler(ending_llama(), TinyTokenizer).sample(
        PROMPTS * 20, max_new_tokens=15, temperature=1.0, seed=0
    )
    assert all(EOS not in completion[:-1] for completion in sampled)
    assert all(completion[-1] == EOS or len(completion) == 15 for completion in sampled)
    lengths = {len(completion) for completion in sampled}
    assert len(lengths) > 3, "rows should end at different times for this test to say anything"


def test_the_seed_decides():
    sampler = TransformersSampler(tiny_llama(), TinyTokenizer)
    first, again, other = (sampler.sample(PROMPTS, max_new_tokens=10, temperature=1.0, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_first_tokens_follow_the_tempered_distribution():
    model, temperature, count = tiny_llama(), 2.0, 4000
    sampled = TransformersSampler(model, TinyTokenizer).sample(
        [PROMPTS[0]] * count, max_new_tokens=1, temperature=temperature, seed=0
    )
    expected = (model(input_ids=torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature).softmax(-1)
    observed = torch.bincount(torch.tensor(sampled).squeeze(1), minlength=VOCAB) / count
    # Five standard deviations of a proportion.
    assert ((observed - expected).abs() < 5 * (expected * (1 - expected) / count).sqrt() + 1e-3).all()


def test_bfloat16_samples_a_copy():
    model = tiny_llama()
    sampled = TransformersSampler(model, TinyTokenizer, precision="bfloat16").sample(
        PROMPTS, max_new_tokens=3, temperature=0.0, seed=0
    )
    assert len(sampled) == len(PROMPTS)
    assert model.dtype == torch.float32


def test_an_empty_prompt_cannot_be_continued():
    with pytest.raises(ShapeError, match="at least one token"):
        TransformersSampler(tiny_llama(), TinyTokenizer).sample([[]], max_new_tokens=1, temperature=0.0, seed=0)


def test_a_mixture_draws_first_and_second_tokens_from_both_models():
    first, second, weight, count = tiny_llama(seed=1), ending_llama(), 0.3, 6000
    sampler = TransformersSampler(first, TinyTokenizer, mixture=Mixture(second, weight))
    sampled = sampler.sample([PROMPTS[0]] * count, max_new_tokens=2, temperature=1.0, seed=0)

    def mixed(prompts):
        ids = torch.tensor(prompts)
        with torch.no_grad():
            probs = [model(input_ids=ids).logits[:, -1].double().softmax(-1) for model in (first, second)]
        return (1 - weight) * probs[0] + weight * probs[1]

    start = mixed([PROMPTS[0]])[0]
    start = start / start.sum()
    assert chisquare([[one[0] for one in sampled].count(v) for v in range(VOCAB)], start * count).pvalue > 1e-4
    goes_on = start.clone()
    goes_on[EOS] = 0.0
    then = goes_on @ mixed([[*PROMPTS[0], token] for token in range(VOCAB)])
    seconds = [one[1] for one in sampled if len(one) == 2]
    expected = then / then.sum() * len(seconds)
    assert chisquare([seconds.count(v) for v in range(VOCAB)], expected).pvalue > 1e-4
    alone = TransformersSampler(first, TinyTokenizer).sample(
        [PROMPTS[0]] * count, max_new_tokens=1, temperature=1.0, seed=0
    )
    assert chisquare([[one[0] for one in alone].count(v) for v in range(VOCAB)], start * count).pvalue < 1e-9


def test_a_mixture_of_a_model_with_itself_is_the_model():
    model = tiny_llama()
    mixture = Mixture(tiny_llama(), 0.5)
    plain, mixed = (
        TransformersSampler(model, TinyTokenizer, mixture=one).sample(
            PROMPTS, max_new_tokens=8, temperature=0.0, seed=0
        )
        for one in (None, mixture)
    )
    assert plain == mixed


def test_tokens_outside_the_shared_vocabulary_are_never_drawn():
    sampler = TransformersSampler(tiny_llama(), TinyTokenizer, vocab_size=7)
    sampled = sampler.sample(PROMPTS * 20, max_new_tokens=5, temperature=5.0, seed=0)
    assert {token for completion in sampled for token in completion} == set(range(7))


def test_keys_and_values_are_kept_in_bfloat16_and_every_token_is_the_likeliest_in_it():
    model = attach_lora(tiny_llama(), LoraSpec(rank=2))
    lower_frozen(model, "bfloat16")
    seen = []
    attention = model.get_base_model().model.layers[0].self_attn
    attention.register_forward_pre_hook(lambda _, __, inputs: seen.append(inputs["past_key_values"]), with_kwargs=True)
    sampler = TransformersSampler(model, TinyTokenizer, precision="bfloat16")
    sampled = sampler.sample(PROMPTS[:1], max_new_tokens=8, temperature=0.0, seed=0)
    assert {(one.layers[0].keys.dtype, one.layers[0].values.dtype) for one in seen} == {
        (torch.bfloat16, torch.bfloat16)
    }
    example = Example("0" * 16, 0, np.asarray(PROMPTS[0], np.int32), np.asarray(sampled[0], np.int32))
    (score,) = score_corpus(model, [example], pad_id=0, precision="bfloat16")
    np.testing.assert_allclose(score.logprobs, score.top1_logprobs, atol=0.05)
