"""The tokenised corpus: what goes in comes out, cut and counted as promised, without copies."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from proxykd.data.chat import render_prompt
from proxykd.data.tokenizing import MIN_COMPLETION_TOKENS, TokenizedCorpus
from proxykd.exceptions import ArtifactError, ModelError
from proxykd.records import Message, Outcome, ValidatedRow


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and a special token that ends a sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({symbol: idx for idx, symbol in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


TOKENIZER = byte_tokenizer()


def row(question: str, text: str, *, prompt_id: str = "0" * 16, sample_idx: int = 0) -> ValidatedRow:
    messages = (Message("user", question),)
    return ValidatedRow(prompt_id, sample_idx, messages, text, "", None, Outcome.OK, "keep", "")


def build(rows: Sequence[ValidatedRow], path: Path, max_seq_tokens: int = 4096) -> TokenizedCorpus:
    return TokenizedCorpus.build(rows, TOKENIZER, max_seq_tokens=max_seq_tokens, path=path)


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(st.tuples(texts, texts), max_size=6))
def test_every_text_comes_back_and_ends_with_eos(pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    rows = [row(q, a, prompt_id=f"{idx:016x}", sample_idx=idx) for idx, (q, a) in enumerate(pairs)]
    corpus = build(rows, tmp_path / "corpus.arrow")
    assert len(corpus) == len(rows)
    for source, example in zip(rows, corpus, strict=True):
        assert (example.prompt_id, example.sample_idx) == (source.prompt_id, source.sample_idx)
        assert TOKENIZER.decode(example.prompt_ids) == render_prompt(TOKENIZER, source.messages)
        assert TOKENIZER.decode(example.completion_ids[:-1]) == source.text
        assert example.completion_ids[-1] == TOKENIZER.eos_token_id


def test_lengths_agree_with_the_examples_across_batches(tmp_path: Path) -> None:
    corpus = build([row("q" * (i % 7 + 1), "a" * (i % 11 + 1)) for i in range(1000)], tmp_path / "corpus.arrow")
    assert corpus.prompt_lengths.dtype == corpus.completion_lengths.dtype == np.int32
    assert [len(e.prompt_ids) for e in corpus] == corpus.prompt_lengths.tolist()
    assert [len(e.completion_ids) for e in corpus] == corpus.completion_lengths.tolist()
    assert corpus[-1].completion_ids.tolist() == corpus[999].completion_ids.tolist()
    assert [e.sample_idx for e in corpus[2:4]] == [0, 0]
    with pytest.raises(IndexError, match="example 1000 of 1000"):
        corpus[1000]


def test_examples_are_views_of_the_file(tmp_path: Path) -> None:
    example = build([row("question", "answer")], tmp_path / "corpus.arrow")[0]
    assert not example.completion_ids.flags.owndata
    assert not example.completion_ids.flags.writeable
    assert example.completion_ids.dtype == np.int32


def test_long_completions_are_cut_without_eos_and_counted(tmp_path: Path) -> None:
    num_prompt = len(build([row("q", "a")], tmp_path / "one.arrow")[0].prompt_ids)
    exact, longer = row("q", "a" * 19), row("q", "a" * 20)
    corpus = build([exact, longer], tmp_path / "corpus.arrow", max_seq_tokens=num_prompt + 20)
    # 19 bytes and eos fit into 20; of 20 bytes and eos, the eos is lost.
    assert corpus.completion_lengths.tolist() == [20, 20]
    assert corpus[0].completion_ids[-1] == TOKENIZER.eos_token_id
    assert corpus[1].completion_ids[-1] != TOKENIZER.eos_token_id
    assert (corpus.num_cut, corpus.num_skipped) == (1, 0)


def test_prompts_that_leave_no_room_are_skipped_and_counted(tmp_path: Path) -> None:
    num_prompt = len(build([row("q", "a")], tmp_path / "one.arrow")[0].prompt_ids)
    room = MIN_COMPLETION_TOKENS - 1
    rows = [row("q", "a" * 50), row("q", "a" * (room - 1)), row("q" * 500, "a")]
    corpus = build(rows, tmp_path / "corpus.arrow", max_seq_tokens=num_prompt + room)
    assert (len(corpus), corpus.num_skipped, corpus.num_cut) == (1, 2, 0)
    assert corpus.completion_lengths.tolist() == [room]


def test_what_the_teacher_did_not_finish_is_not_counted_as_cut(tmp_path: Path) -> None:
    """It has no end token either way; cut is what ``max_seq_tokens`` took away."""
    unfinished = dataclasses.replace(row("q", "a" * 19), outcome=Outcome.TRUNCATED)
    corpus = build([unfinished, row("q", "")], tmp_path / "corpus.arrow")
    assert corpus.completion_lengths.tolist() == [19]
    assert (corpus.num_cut, corpus.num_skipped, corpus.num_empty) == (0, 1, 1)
    room = len(corpus[0].prompt_ids) + 18
    assert build([unfinished], tmp_path / "short.arrow", max_seq_tokens=room).num_cut == 1


def test_special_tokens_spelled_out_in_a_completion_stay_text(tmp_path: Path) -> None:
    example = build([row("q", "not <|end|> yet")], tmp_path / "corpus.arrow")[0]
    assert example.completion_ids.tolist().count(TOKENIZER.eos_token_id) == 1
    assert TOKENIZER.decode(example.completion_ids[:-1]) == "not <|end|> yet"


def test_reopened_corpus_is_the_same(tmp_path: Path) -> None:
    built = build([row("q", "a" * i) for i in range(1, 30)], tmp_path / "corpus.arrow", max_seq_tokens=40)
    opened = TokenizedCorpus.open(tmp_path / "corpus.arrow")
    assert (len(opened), opened.num_cut, opened.num_skipped) == (len(built), built.num_cut, built.num_skipped)
    assert all(np.array_equal(a.completion_ids, b.completion_ids) for a, b in zip(built, opened, strict=True))


def test_no_rows_is_an_empty_corpus(tmp_path: Path) -> None:
    corpus = build([], tmp_path / "corpus.arrow")
    assert len(corpus) == 0
    assert corpus.prompt_lengths.tolist() == []


def test_a_build_that_is_interrupted_leaves_no_corpus(tmp_path: Path) -> None:
    def rows() -> object:
        yield row("q", "a")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TokenizedCorpus.build(rows(), TOKENIZER, max_seq_tokens=64, path=tmp_path / "corpus.arrow")  # type: ignore[arg-type]
    with pytest.raises(ArtifactError, match="build it again"):
        TokenizedCorpus.open(tmp_path / "corpus.arrow")


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.arrow").write_text("not arrow")
    with pytest.raises(ArtifactError, match="tokenised corpus"):
        TokenizedCorpus.open(tmp_path / "corpus.arrow")


def test_tokenizer_without_eos_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        TokenizedCorpus.build([row("q", "a")], tokenizer, max_seq_tokens=64, path=tmp_path / "corpus.arrow")


def test_a_truncated_text_does_not_teach_where_to_end(tmp_path: Path) -> None:
    whole = row("question", "an answer that goes on")
    truncated = dataclasses.replace(whole, outcome=Outcome.TRUNCATED, sample_idx=1)
    empty = dataclasses.replace(truncated, text="", sample_idx=2)
    finished, unfinished = build([whole, truncated, empty], tmp_path / "corpus.arrow")
    assert finished.completion_ids.tolist() == [*unfinished.completion_ids.tolist(), TOKENIZER.eos_token_id]
