"""What the API told, mapped by bytes: cases by hand on a tiny vocabulary, and the embedded teacher's true odds."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from proxykd.artifacts import CompletionSet
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.estimation.evidence import ApiEvidence, EvidenceReader, evidence_facts
from proxykd.exceptions import ArtifactError
from proxykd.models.token_bytes import TokenBytes
from proxykd.models.tokenizers import load_tokenizer
from proxykd.records import Completion, Message, Outcome, ValidatedRow

WORDS = ["<eos>", "T", "o", "m", "y", "To", "Tom", "Ġ", "h", "a", "s", "Ġh", "as", "Ġhas", "Ã", "©", "Ġt", "w", "Ġtw"]
MERGES = [("T", "o"), ("To", "m"), ("Ġ", "h"), ("a", "s"), ("Ġh", "as"), ("Ġ", "t"), ("Ġt", "w")]
ID = {word: idx for idx, word in enumerate([*WORDS, "t", "e", "n"])}


@pytest.fixture
def reader() -> EvidenceReader:
    """Of a byte-level vocabulary of 22 tokens."""
    backend = Tokenizer(BPE(vocab=ID, merges=MERGES))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    return EvidenceReader(TokenBytes.of_backend(backend, eos_token="<eos>"))


def position(token: str | bytes, prob: float, **others: float) -> dict[str, Any]:
    """A row as ``Completion.logprobs`` has it; the chosen token is listed too."""
    data = token if isinstance(token, bytes) else token.encode()
    alternatives = {data: prob, **{name.replace("_", " ").encode(): odds for name, odds in others.items()}}
    top = [_one(name, odds) for name, odds in alternatives.items()]
    return {**_one(data, prob), "top": top}


def _one(data: bytes, prob: float) -> dict[str, Any]:
    return {"token": data.decode(errors="replace"), "bytes": data, "logprob": math.log(prob) if prob else -9999.0}


def read(reader: EvidenceReader, ids: list[str], rows: list[dict[str, Any]]) -> dict[int, dict[str, float]]:
    """Position -> token -> probability, rounded."""
    told, names = reader.read([ID[name] for name in ids], rows), list(ID)
    entries = iter(zip(told.token_ids, told.probs, strict=True))
    return {
        place: {names[idx]: round(prob, 6) for idx, prob in (next(entries) for _ in range(count))}
        for place, count in zip(told.positions, told.counts, strict=True)
    }


def test_equal_tokens_are_exact(reader: EvidenceReader) -> None:
    found = read(reader, ["Tom", "Ġhas", "<eos>"], [position("Tom", 0.7, To=0.2), position(" has", 0.9)])
    assert found == {0: {"Tom": 0.7, "To": 0.2}, 1: {"Ġhas": 0.9}}
    facts = evidence_facts([reader.sums()])
    assert (facts["num_exact"], facts["num_positions"], facts["num_positions_told"]) == (3, 3, 2)
    assert facts["position_share"] == pytest.approx(2 / 3)
    assert facts["mass_shares"] == {"exact": pytest.approx(1.0)}


def test_a_longer_token_leads_and_what_begins_inside_it_gets_nothing(reader: EvidenceReader) -> None:
    # "Tommy" is Tom, m, y for the proxy; the alternative " twen" begins with " tw".
    found = read(reader, ["Tom", "m", "y", "Ġhas"], [position("Tommy", 0.6, _twen=0.3), position(" has", 0.5)])
    assert found == {0: {"Tom": 0.6, "Ġtw": 0.3}, 3: {"Ġhas": 0.5}}
    assert reader.counts["leading"] == 2


def test_a_token_of_several_api_tokens_gets_their_product(reader: EvidenceReader) -> None:
    rows = [position("To", 0.5, T=0.25), position("m", 0.8), position(" has", 1.0)]
    assert read(reader, ["Tom", "Ġhas"], rows) == {0: {"Tom": 0.4, "T": 0.25}, 1: {"Ġhas": 1.0}}
    assert reader.counts["joined"] == 1


def test_tokens_that_straddle_give_evidence_where_they_begin_alike(reader: EvidenceReader) -> None:
    # API: To|my; proxy: Tom|y. The product of what covers "Tom" leads; "y" begins inside "my".
    assert read(reader, ["Tom", "y"], [position("To", 0.5), position("my", 0.4)]) == {0: {"Tom": 0.2}}


def test_half_a_character_maps_by_its_bytes_and_unknown_bytes_are_dropped(reader: EvidenceReader) -> None:
    rows = [position(b"\xc3", 0.5), position(b"\xa9", 1.0)]
    rows[0]["top"].append(_one(b"\xe2\x82", 0.4))
    assert read(reader, ["Ã", "©"], rows) == {0: {"Ã": 0.5}, 1: {"©": 1.0}}
    assert reader.counts["dropped"] == 1
    assert evidence_facts([reader.sums()])["mass_shares"]["dropped"] == pytest.approx(0.4 / 1.9)


def test_probabilities_too_small_to_tell_are_none_and_rounding_is_taken_back(reader: EvidenceReader) -> None:
    found = read(reader, ["Tom"], [position("Tom", 0.9, To=0.102, T=0.0)])
    assert found == {0: {"Tom": round(0.9 / 1.002, 6), "To": round(0.102 / 1.002, 6)}}


def test_from_where_the_api_spells_another_text_on_nothing_is_believed(reader: EvidenceReader) -> None:
    rows = [position("Tom", 0.7), position(" tw", 0.9), position(" has", 0.9)]
    assert read(reader, ["Tom", "Ġhas", "Ġhas"], rows) == {0: {"Tom": 0.7}}
    assert reader.counts["texts_cut"] == 1


def test_an_api_that_tells_nothing_is_counted(reader: EvidenceReader) -> None:
    assert reader.read([ID["Tom"]], None).positions == []
    assert (reader.counts["texts"], reader.counts["texts_told"]) == (1, 0)


def completion(prompt_id: str, text: str, rows: list[dict[str, Any]] | None) -> Completion:
    return Completion(prompt_id, 0, Outcome.OK, "", text, "stop", 0, 0, 0.0, "m", "", logprobs=rows)


@pytest.fixture
def corpus(tmp_path: Path, make_run: Any) -> tuple[TokenizedCorpus, CompletionSet, Any]:
    """Three texts of which the second is not taught; the first and the third have log-probabilities by words."""
    tokenizer = load_tokenizer(make_run().proxy.model)
    texts = {"a": "Tom has two pears.", "b": "No.", "c": "Ann has 3."}
    completions = CompletionSet(tmp_path / "completions")
    completions.write(
        completion(name, text, [position(word, 0.5) for word in text.replace(" ", "\0 ").split("\0")])
        for name, text in texts.items()
    )
    rows = [
        ValidatedRow(name, 0, (Message("user", "Q?"),), texts[name], "", None, Outcome.OK, "keep", "")
        for name in ("a", "c")
    ]
    built = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=99, path=tmp_path / "rows.arrow")
    return built, completions, tokenizer


def test_evidence_of_a_corpus_is_found_by_example(corpus: Any, tmp_path: Path) -> None:
    texts, completions, tokenizer = corpus
    evidence = ApiEvidence.build(completions, texts, tokenizer, path=tmp_path / "evidence.arrow")
    lengths = texts.completion_lengths.tolist()
    both = evidence.of([1, 0], [lengths[1], lengths[0]], device=torch.device("cpu"))
    alone = evidence.of([0], [lengths[0]], device=torch.device("cpu"))
    assert len(alone.rows) > 0
    assert torch.equal(both.rows[both.rows >= lengths[1]] - lengths[1], alone.rows)
    labels = torch.from_numpy(np.concatenate([texts[1].completion_ids, texts[0].completion_ids])).long()
    # The token that stands there leads or is exact at every aligned position.
    assert torch.equal(both.token_ids[:, 0], labels[both.rows])
    assert evidence_facts([evidence.sums()])["num_texts"] == 2


def test_completions_of_another_corpus_are_refused(corpus: Any, tmp_path: Path) -> None:
    texts, _, tokenizer = corpus
    others = CompletionSet(tmp_path / "others")
    others.write([completion("c", "Ann has 3.", None), completion("a", "Tom has two pears.", None)])
    with pytest.raises(ArtifactError, match="prompt c"):
        ApiEvidence.build(others, texts, tokenizer, path=tmp_path / "evidence.arrow")
