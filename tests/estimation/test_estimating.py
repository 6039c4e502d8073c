"""Targets of a tiny proxy against what plain transformers says about the same texts."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits, select_rows, sides_for
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.estimation.estimating import estimate_distributions
from proxykd.exceptions import GateError, ModelError
from proxykd.models.loading import load_model, load_saved, load_tokenizer, save_model
from proxykd.targets.reader import TargetReader

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, make_run: MakeRun) -> ProxyModel:
    """A saved proxy with random weights."""
    folder, spec = tmp_path_factory.mktemp("proxy"), make_run().proxy.model
    save_model(load_model(spec, seed=0), load_tokenizer(spec), folder / "model")
    seal(ProxyModel(folder))
    return ProxyModel(folder)


def test_targets_are_the_proxys_top_tokens_and_the_mass_of_all_others(
    corpus: Corpus, proxy: ProxyModel, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(targets={"reduction": {"kind": "top_k", "k": 5}})
    targets = estimate_distributions(
        None, *corpus, proxy, run, output=tmp_path / "targets", scratch=tmp_path / "scratch"
    )
    targets.verify()
    reader, (model, tokenizer) = TargetReader(targets.path), load_saved(proxy.path / "model")
    rows = select_rows(*corpus, sides_for("distillation", run.split))
    examples = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=160, path=tmp_path / "rows.arrow")
    assert len(reader) == len(examples) > 10
    for example in examples[:4]:
        ids = torch.tensor(np.concatenate([example.prompt_ids, example.completion_ids])[None]).long()
        with torch.no_grad():
            logprobs = model(ids).logits[0, len(example.prompt_ids) - 1 : -1].double().log_softmax(-1)
        expected, _ = logprobs.topk(5)
        found = reader.get(example.prompt_id, example.sample_idx)
        assert len(found.token_ids) == len(example.completion_ids)
        np.testing.assert_allclose(found.logprobs, expected.numpy(), atol=1e-5)
        np.testing.assert_allclose(np.exp(found.tail_logprob), 1 - expected.exp().sum(-1).numpy(), atol=1e-5)
        np.testing.assert_allclose(
            logprobs.gather(1, torch.from_numpy(found.token_ids).long()).numpy(), found.logprobs, atol=1e-5
        )


def test_a_temperature_is_applied_before_tokens_are_kept_and_told_to_the_student(
    corpus: Corpus, proxy: ProxyModel, make_run: MakeRun, tmp_path: Path
) -> None:
    stores = []
    for temperature in (1.0, 3.0):
        run = make_run(targets={"reduction": {"kind": "top_k", "k": 5}, "temperature": temperature})
        folder = tmp_path / str(temperature)
        stores.append(
            TargetReader(estimate_distributions(None, *corpus, proxy, run, output=folder, scratch=tmp_path).path)
        )
    plain, warm = stores
    assert (plain.description["temperature"], warm.description["temperature"]) == (1.0, 3.0)
    row, (model, tokenizer) = (
        next(select_rows(*corpus, sides_for("distillation", run.split))),
        load_saved(proxy.path / "model"),
    )
    example = next(iter(TokenizedCorpus.build([row], tokenizer, max_seq_tokens=160, path=tmp_path / "row.arrow")))
    ids = torch.tensor(np.concatenate([example.prompt_ids, example.completion_ids])[None]).long()
    with torch.no_grad():
        scores = model(ids).logits[0, len(example.prompt_ids) - 1 : -1].double()
    expected = (scores / 3.0).log_softmax(-1).topk(5).values
    found = warm.get(row.prompt_id, row.sample_idx)
    np.testing.assert_allclose(np.sort(found.logprobs)[:, ::-1], expected.numpy(), atol=2e-2)
    np.testing.assert_allclose(np.exp(found.tail_logprob), 1 - expected.exp().sum(-1).numpy(), atol=2e-2)
    # The weight is the proxy's likelihood of the text, which has no temperature.
    assert found.weight == plain.get(row.prompt_id, row.sample_idx).weight


def test_likelihoods_weights_and_statistics_belong_to_the_teachers_text(
    corpus: Corpus, proxy: ProxyModel, make_run: MakeRun, tmp_path: Path
) -> None:
    targets = estimate_distributions(
        None, *corpus, proxy, make_run(), output=tmp_path / "targets", scratch=tmp_path / "scratch"
    )
    description = read_json(targets.path / "targets.json")
    reader, statistics = TargetReader(targets.path), description["statistics"]
    rows = list(select_rows(*corpus, sides_for("distillation", make_run().split)))
    weights = [reader.get(row.prompt_id, row.sample_idx).weight for row in rows]
    assert all(0.0 < weight < 1.0 for weight in weights)
    assert np.mean(weights) == pytest.approx(statistics["weight_mean"], abs=1e-6)
    # Random weights: about log(vocabulary) nats a token.
    assert statistics["likelihood_mean"] == pytest.approx(-np.log(description["vocab_size"]), rel=0.2)
    assert 0.0 < description["tail_prob_mean"] < 1.0


def test_without_weighting_all_weigh_one_and_the_whole_vocabulary_has_no_tail(
    corpus: Corpus, proxy: ProxyModel, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(targets={"weighting": "none", "reduction": {"kind": "top_k", "k": 1024}})
    targets = estimate_distributions(
        None, *corpus, proxy, run, output=tmp_path / "targets", scratch=tmp_path / "scratch"
    )
    reader = TargetReader(targets.path)
    row = next(select_rows(*corpus, sides_for("distillation", run.split)))
    found = reader.get(row.prompt_id, row.sample_idx)
    assert found.weight == 1.0
    assert reader.description["top_k"] == reader.description["vocab_size"] <= 1024
    assert (found.tail_logprob == -np.inf).all()
    np.testing.assert_allclose(np.exp(found.logprobs).sum(-1), 1.0, rtol=1e-5)


def test_only_the_distillation_side_gets_targets(
    corpus: Corpus, proxy: ProxyModel, make_run: MakeRun, tmp_path: Path
) -> None:
    # Shared mode: all three training sides; development and held-out prompts never.
    targets = estimate_distributions(
        None, *corpus, proxy, make_run(), output=tmp_path / "targets", scratch=tmp_path / "scratch"
    )
    training = list(select_rows(*corpus, sides_for("sft", make_run().split)))
    assert len(TargetReader(targets.path)) == len(training) < corpus[0].num_rows


def test_no_rows_close_the_gate(corpus: Corpus, proxy: ProxyModel, make_run: MakeRun, tmp_path: Path) -> None:
    empty = ValidatedSet(tmp_path / "validated")
    empty.write([])
    seal(empty)
    with pytest.raises(GateError, match="distillation side"):
        estimate_distributions(
            None, empty, corpus[1], proxy, make_run(), output=tmp_path / "targets", scratch=tmp_path / "scratch"
        )


def test_a_proxy_that_diverged_is_refused(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    spec = make_run().proxy.model
    model = load_model(spec, seed=0)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(torch.nan)
    save_model(model, load_tokenizer(spec), tmp_path / "proxy" / "model")
    seal(ProxyModel(tmp_path / "proxy"))
    with pytest.raises(ModelError, match=r"nan for a token of prompt [0-9a-f]{16}; its training diverged"):
        estimate_distributions(
            None,
            *corpus,
            ProxyModel(tmp_path / "proxy"),
            make_run(),
            output=tmp_path / "targets",
            scratch=tmp_path / "scratch",
        )


def test_what_cannot_teach_is_counted(proxy: ProxyModel, corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(proxy={"model": {"source": "embedded:proxy", "num_layers": 1, "max_seq_tokens": 160}})
    rows = list(corpus[0].rows())
    changed = {0: "", 1: "word " * 400}
    damaged = ValidatedSet(tmp_path / "validated")
    damaged.write(replace(row, text=changed.get(place, row.text)) for place, row in enumerate(rows))
    seal(damaged)
    shared = run.split.model_copy(update={"heldout": 0.0, "development": 0.0})
    splits = build_splits(damaged, shared, output=tmp_path / "splits")
    targets = estimate_distributions(
        None,
        damaged,
        splits,
        proxy,
        run.model_copy(update={"split": shared}),
        output=tmp_path / "targets",
        scratch=tmp_path / "scratch",
    )
    described = read_json(targets.path / "targets.json")
    assert (described["num_empty"], described["num_skipped"], described["num_cut"]) == (1, 1, 1)
    assert described["num_samples"] == len(rows) - 1
