"""A store read through two tokenizers: what is aligned, what is counted, what is refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError
from proxykd.records import Message, Outcome, ValidatedRow
from proxykd.student.translated_targets import TranslatedTargets
from proxykd.targets.codec import Positions
from proxykd.targets.reader import TargetReader
from proxykd.targets.writer import TargetWriter
from tests.support.tokenizer_pairs import EOS, TEXTS, byte_level, lower_case, sentence_piece

TOP_K = 4
SPEC = CrossTokenizerSpec()
Build = Callable[..., TranslatedTargets]


def fast(tokenizer: Tokenizer, *, template: str | None = None) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS, chat_template=template)


def row_of(idx: int, text: str, **changes: Any) -> ValidatedRow:
    values = {"outcome": Outcome.OK, "messages": (Message("user", "Say it."),)} | changes
    return ValidatedRow(f"{idx:016x}", 0, values["messages"], text, "", None, values["outcome"], "keep", "")


ROWS = [row_of(idx, text) for idx, text in enumerate(TEXTS)]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Makes a store with the proxy's tokenizer and opens it for the student."""

    def make(
        proxy: PreTrainedTokenizerBase,
        student: PreTrainedTokenizerBase,
        rows: Sequence[ValidatedRow] = ROWS,
        *,
        max_proxy: int = 300,
        shorten: int = 0,
        rows_later: Sequence[ValidatedRow] | None = None,
    ) -> TranslatedTargets:
        folder = Path(mkdtemp(dir=tmp_path))
        read = TokenizedCorpus.build(rows, proxy, max_seq_tokens=max_proxy, path=folder / "read.arrow")
        writer = TargetWriter(folder / "targets", scratch=folder, top_k=TOP_K, vocab_size=len(proxy))
        rng = np.random.default_rng(0)
        for example in read:
            length = len(example.completion_ids) - shorten
            ids = np.stack([rng.choice(len(proxy), TOP_K, replace=False) for _ in range(length)]).astype(np.int32)
            logprobs = np.log(rng.dirichlet(np.ones(TOP_K + 1), length)).astype(np.float32)
            writer.add(example.prompt_id, 0, Positions(ids, logprobs[:, :-1], logprobs[:, -1]), sequence_logprob=-1.0)
        writer.finish(lambda logprobs, lengths: np.full(len(lengths), 0.5), lambda: {"max_seq_tokens": max_proxy})
        corpus = TokenizedCorpus.build(rows, student, max_seq_tokens=250, path=folder / "corpus.arrow")
        later = rows if rows_later is None else rows_later
        return TranslatedTargets.build(
            TargetReader(folder / "targets"), lambda: later, corpus, (proxy, student), SPEC, scratch=folder
        )

    return make


def lengths(student: PreTrainedTokenizerBase, rows: Sequence[ValidatedRow]) -> list[int]:
    return [len(student.encode(row.text, add_special_tokens=False)) + 1 for row in rows]


@pytest.mark.parametrize(("proxy", "student"), [(byte_level, sentence_piece), (sentence_piece, byte_level)])
def test_every_position_of_the_students_has_a_row(build: Build, proxy: Any, student: Any) -> None:
    own = fast(student())
    targets = build(fast(proxy()), own)
    for row, length in zip(ROWS, lengths(own, ROWS), strict=True):
        found = targets.get(row.prompt_id, 0)
        assert len(found.token_ids) == len(found.tail_logprob) == length
        assert found.weight == 0.5
        assert found.position_weights is not None
        assert found.position_weights[[0, -1]].tolist() == [1.0, 1.0]
        mass = np.exp(found.logprobs.astype(float)).sum(1) + np.exp(found.tail_logprob)
        np.testing.assert_allclose(mass, 1.0, atol=1e-5)
    facts = targets.facts
    assert facts["one_to_one"] + facts["grouped"] == pytest.approx(1.0, abs=1e-5)
    assert facts["texts_rewritten"] == facts["texts_without_target"] == 0
    assert 0.0 < facts["shared_mass"] < 1.0
    assert 0.0 < facts["vocabulary"]["shared"] < 1.0


def test_other_prompts_under_other_chat_templates_do_not_move_the_completions(build: Build) -> None:
    plain, own = build(fast(byte_level()), fast(sentence_piece())), fast(sentence_piece())
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    other = build(fast(byte_level(), template=template), own)
    for row in ROWS:
        np.testing.assert_array_equal(plain.get(row.prompt_id, 0).logprobs, other.get(row.prompt_id, 0).logprobs)


def test_a_text_that_the_proxy_left_out_or_cut_is_learnt_from_without_a_target(build: Build) -> None:
    long = row_of(7, TEXTS[0], messages=(Message("user", "word " * 20),))
    own = fast(byte_level())
    targets = build(fast(byte_level(TEXTS[:2], vocab_size=300)), own, [*ROWS, long], max_proxy=45)
    without = targets.get(long.prompt_id, 0)
    assert without.weight == 0.0
    assert without.position_weights is not None
    assert not without.position_weights.any()
    assert (without.tail_logprob == 0.0).all()
    assert targets.facts["texts_without_target"] == 1
    cut = targets.get(ROWS[0].prompt_id, 0)
    assert cut.position_weights is not None
    assert 0 < cut.position_weights.sum() < len(cut.position_weights)
    assert not cut.position_weights[-1]  # the proxy never came to the end
    assert targets.facts["unaligned"] > 0.0


def test_texts_that_were_cut_at_the_teacher_have_no_end_token_to_align(build: Build) -> None:
    own = fast(byte_level())
    rows = [row_of(0, TEXTS[0], outcome=Outcome.TRUNCATED)]
    found = build(fast(sentence_piece()), own, rows).get(rows[0].prompt_id, 0)
    assert len(found.token_ids) == len(own.encode(TEXTS[0], add_special_tokens=False))


def test_a_rewriting_proxy_is_aligned_where_its_text_is_the_students(build: Build) -> None:
    targets = build(fast(lower_case()), fast(byte_level()), [*ROWS, row_of(9, "The ﬁsh costs ½ of IT")])
    assert targets.facts["texts_rewritten"] >= 3
    assert 0.2 < targets.facts["position_share"] < 1.0


def test_targets_that_are_not_of_these_tokens_are_refused(build: Build) -> None:
    with pytest.raises(ArtifactError, match="as the proxy's tokenizer cuts it"):
        build(fast(byte_level()), fast(sentence_piece()), shorten=1)


def test_other_rows_than_those_of_the_corpus_are_refused(build: Build) -> None:
    with pytest.raises(ArtifactError, match="expected the rows of 5 tokenised texts, found those of 3"):
        build(fast(byte_level()), fast(sentence_piece()), rows_later=ROWS[:3])


def test_a_sample_that_was_not_aligned_is_named(build: Build) -> None:
    with pytest.raises(ArtifactError, match="prompt nobody, sample 3"):
        build(fast(byte_level()), fast(sentence_piece())).get("nobody", 3)
