"""The true KL: zero for the truth itself, log V - H for a uniform model, and a case by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.data.tokenizing import Example
from proxykd.evaluation.exact_kl import (
    TrueCorpus,
    TrueOdds,
    entropy_by_prompt,
    exact_kl,
    flatten,
    kl_by_prompt,
    true_corpus,
)
from proxykd.evaluation.heldout import index_prompts
from proxykd.evaluation.scoring import HeldoutSet, HeldoutSets
from proxykd.models.loading import load_model, load_tokenizer
from proxykd.teacher.problems import enumerate_completions, generate_prompts
from proxykd.teacher.truth import NextToken


@pytest.fixture(scope="module")
def heldout(
    validated: ValidatedSet, splits: SplitSet, run_spec: RunSpec, tmp_path_factory: pytest.TempPathFactory
) -> HeldoutSet:
    scratch: Path = tmp_path_factory.mktemp("scratch")
    return HeldoutSets(validated, splits, run_spec, scratch).for_tokenizer(load_tokenizer(run_spec.student.model))


@pytest.fixture(scope="module")
def corpus(heldout: HeldoutSet) -> TrueCorpus:
    assert heldout.truth is not None
    return heldout.truth


def _logprobs_of(odds: TrueOdds, num_positions: int, vocab: int) -> torch.Tensor:
    probs = torch.zeros(num_positions, vocab, dtype=torch.float64)
    probs[torch.from_numpy(odds.position), torch.from_numpy(odds.token_ids)] = torch.from_numpy(odds.probs)
    return probs.log()


def test_kl_by_hand() -> None:
    # p = (3/4, 1/4) on tokens 5 and 2; the model says 1/2 and 1/8:
    # 3/4 log(3/2) + 1/4 log 2 = 0.304099 + 0.173287 = 0.477386
    odds = flatten([NextToken(np.array([5, 2], np.int32), np.array([0.75, 0.25]))])
    model = torch.tensor([[0.125, 0.125, 0.125, 0.0625, 0.0625, 0.5]], dtype=torch.float64).log()
    assert exact_kl(odds, model) == pytest.approx([0.477386], abs=1e-6)


def test_kl_of_the_truth_with_itself_is_zero(corpus: TrueCorpus) -> None:
    for odds, example in zip(corpus.odds, corpus.examples, strict=True):
        truth = _logprobs_of(odds, len(example.completion_ids), 1024)
        assert np.abs(exact_kl(odds, truth)).max() < 1e-12


def test_kl_is_never_negative_and_infinite_where_the_model_excludes_the_teacher(corpus: TrueCorpus) -> None:
    odds, num_positions = corpus.odds[0], len(corpus.examples[0].completion_ids)
    noise = torch.randn(num_positions, 1024, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    assert exact_kl(odds, noise).min() > 0
    noise[0, int(odds.token_ids[0])] = -torch.inf
    assert exact_kl(odds, noise)[0] == math.inf


def test_uniform_model_is_log_vocabulary_minus_entropy_away(
    corpus: TrueCorpus, heldout: HeldoutSet, run_spec: RunSpec
) -> None:
    model = load_model(run_spec.student.model, seed=0)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    num_prompts = len(heldout.index.prompt_ids)
    kl = kl_by_prompt(model, corpus, num_prompts, pad_id=0)
    entropy, tokens = entropy_by_prompt(corpus, num_prompts)
    assert kl == pytest.approx(tokens * math.log(model.config.vocab_size) - entropy, rel=1e-5)


def test_only_so_many_prompts_are_asked_for(corpus: TrueCorpus, run_spec: RunSpec) -> None:
    assert len(set(corpus.prompt_idx.tolist())) == run_spec.evaluation.exact_kl_prompts
    assert len(corpus.examples) == 2 * run_spec.evaluation.exact_kl_prompts  # two texts each


def test_entropy_along_every_text_adds_up_to_the_entropy_over_texts(run_spec: RunSpec) -> None:
    # Chain rule: sum_y P(y) sum_t H_t = - sum_y P(y) log P(y), over all that the teacher can write.
    tokenizer = load_tokenizer(run_spec.student.model)
    question = next(generate_prompts(1, 0)).messages[-1].content
    texts = enumerate_completions(question)
    ids = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text, _ in texts]
    examples = [Example("a", idx, np.zeros(1, np.int32), np.array(one, np.int32)) for idx, one in enumerate(ids)]
    found = true_corpus(examples, index_prompts(examples), {"a": question}, tokenizer, num_prompts=1)
    single = [
        entropy_by_prompt(TrueCorpus([e], [o], np.zeros(1, np.int64)), 1)[0][0] for e, o, _ in zip(*found, strict=True)
    ]
    probs = np.array([prob for _, prob in texts])
    assert len(texts) > 5
    assert probs @ np.array(single) == pytest.approx(-float(probs @ np.log(probs)), rel=1e-9)
