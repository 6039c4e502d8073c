"""Which texts a round sees, and what becomes of the proxy's own samples."""

import math
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxykd.models.sampling import sample_examples
from proxykd.proxy.rounds import PairSet, ReferenceLogprobs, round_indices
from tests.models.tiny import EOS, random_examples


class ScriptedSampler:
    """Answers every prompt with the same completion and remembers what it was asked."""

    def __init__(self, completion):
        self.completion, self.asked = completion, []

    def sample(self, prompts, *, max_new_tokens, temperature, seed, max_seq_tokens):
        self.asked.append((max_new_tokens, temperature, seed))
        return [list(self.completion) for _ in prompts]


@given(st.integers(1, 40), st.floats(0.1, 3.0), st.integers(1, 6), st.integers(0, 5))
def test_rounds_lay_the_passes_end_to_end(num_examples, epochs, rounds, seed):
    parts = round_indices(num_examples, epochs=epochs, rounds=rounds, seed=seed)
    again = round_indices(num_examples, epochs=epochs, rounds=rounds, seed=seed)
    assert all(np.array_equal(one, two) for one, two in zip(parts, again, strict=True))
    assert len(parts) == rounds
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    whole = np.concatenate(parts).tolist()
    assert len(whole) == math.ceil(num_examples * epochs)
    counts = Counter(whole)
    assert set(counts) <= set(range(num_examples))
    assert max(counts.values()) - min(counts[idx] for idx in range(num_examples)) <= 1


def test_samples_keep_their_prompt_and_are_cut_to_the_room():
    chosen, sampler = random_examples([(3, 2), (6, 2)]), ScriptedSampler([5, 6, 7, EOS])
    rejected = sample_examples(chosen, sampler, max_new_tokens=9, max_seq_tokens=8, temperature=0.7, seed=4)
    assert sampler.asked == [(9, 0.7, 4)]
    assert [example.completion_ids.tolist() for example in rejected] == [[5, 6, 7, EOS], [5, 6]]
    for one, two in zip(chosen, rejected, strict=True):
        assert (one.prompt_id, one.prompt_ids.tolist()) == (two.prompt_id, two.prompt_ids.tolist())


def test_pairs_count_ties_and_unfinished_samples():
    chosen = random_examples([(3, 2), (4, 3)])
    rejected = [chosen[0], chosen[1]._replace(completion_ids=np.array([5, EOS], np.int32))]
    pairs = PairSet(chosen, rejected, ReferenceLogprobs(np.zeros(2, np.float32), np.ones(2, np.float32)), eos_id=EOS)
    assert [pairs.is_tie(idx) for idx in range(2)] == [True, False]
    assert pairs.summary() == {
        "num_pairs": 2,
        "num_ties": 1,
        "num_unfinished": 1,
        "mean_chosen_tokens": 2.5,
        "mean_rejected_tokens": 2.0,
    }
    row = list(pairs.rows())[1]
    assert row["prompt_ids"] == chosen[1].prompt_ids.tolist()
    assert (row["rejected_ids"], row["ref_chosen_logps"], row["ref_rejected_logps"]) == ([5, EOS], 0.0, 1.0)
