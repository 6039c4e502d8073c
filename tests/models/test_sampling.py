"""Sampling: the cache and the padding change nothing, the end token ends, the odds are the model's."""

import pytest
import torch

from proxykd.config.models import LoraSpec
from proxykd.exceptions import ShapeError
from proxykd.models.loading import attach_lora, prune_layers
from proxykd.models.sampling import TransformersSampler
from tests.models.tiny import EOS, VOCAB, TinyTokenizer, tiny_llama

PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9], [2, 2], [11, 12, 13, 14]]


def naive_greedy(model, prompt, max_new_tokens):
    """Recompute everything for every token."""
    completion = []
    while len(completion) < max_new_tokens and EOS not in completion:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, -1]
        completion.append(int(logits.argmax()))
    return completion


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
