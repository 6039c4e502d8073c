"""Asking a model: transformers' own tokens, and the same answers after a death at any row."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config import RunSpec
from proxykd.evaluation.generation import Generation, Respondent, build_sampler, journal_of
from proxykd.evaluation.generation_journal import AnswerJournal
from proxykd.exceptions import ConfigError
from proxykd.models.loading import load_model, load_tokenizer
from proxykd.models.sampling import TransformersSampler

SAMPLED = Generation(12, temperature=0.9, num_samples=2)


@pytest.fixture(scope="module")
def parts(run_spec: RunSpec) -> tuple[Any, Any]:
    return load_model(run_spec.student.model, seed=0), load_tokenizer(run_spec.student.model)


def _prompts(tokenizer: Any, count: int) -> list[list[int]]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["pears", "Ann", "has", "12", "and", "apples"], k=2 + row)) for row in range(count)]
    return [list(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


class Killed(Exception):
    """The process died here."""


class Counting:
    """Transformers' sampler that counts its rows and dies before the batch in which ``rows_left`` runs out."""

    def __init__(self, inner: TransformersSampler, rows_left: float = float("inf")) -> None:
        self._inner, self.rows_left, self.rows = inner, rows_left, 0

    def with_stops(self, is_ended: Callable[[Sequence[int]], bool], stops: Sequence[str]) -> Self:
        return self

    def sample(self, prompts: Sequence[Sequence[int]], **how: Any) -> list[list[int]]:
        if self.rows + len(prompts) > self.rows_left:
            raise Killed
        self.rows += len(prompts)
        return self._inner.sample(prompts, **how)


Asking = Callable[..., tuple[Respondent, Counting]]


@pytest.fixture
def asking(parts: tuple[Any, Any]) -> Iterator[Asking]:
    """Makes a respondent with a journal in a file, and what counts the rows that it generates."""
    model, tokenizer = parts
    with ExitStack() as opened:

        def ask(path: Path, rows_left: float = float("inf")) -> tuple[Respondent, Counting]:
            counting = Counting(TransformersSampler(model, tokenizer, description=None), rows_left)
            journal = opened.enter_context(AnswerJournal(path))
            return Respondent(model, tokenizer, sampler=counting, journal=journal, batch_tokens=64), counting

        yield ask


def test_greedy_tokens_are_those_of_transformers_generate(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    prompts = _prompts(tokenizer, 7)
    ours = Respondent(model, tokenizer, batch_tokens=80).generate(prompts, Generation(16))
    tokenizer.padding_side = "left"
    padded = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
    theirs = (
        model.eval()
        .generate(**padded, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)[
            :, padded.input_ids.shape[1] :
        ]
        .tolist()
    )
    for mine, other in zip(ours, theirs, strict=True):
        eos = tokenizer.eos_token_id
        assert mine == (other[: other.index(eos) + 1] if eos in other else other)


@pytest.mark.integration
@pytest.mark.parametrize("how", [Generation(12), SAMPLED])
def test_answers_are_the_same_after_a_death_at_a_random_row(
    parts: tuple[Any, Any], asking: Asking, tmp_path: Path, how: Generation
) -> None:
    prompts, rng = _prompts(parts[1], 9), random.Random(5)
    expected = asking(tmp_path / "whole.jsonl")[0].generate(prompts, how)
    num_rows = len(prompts) * how.num_samples
    for death in range(3):
        path = tmp_path / f"killed-{death}.jsonl"
        dying, before = asking(path, rows_left=rng.randrange(num_rows))
        with pytest.raises(Killed):
            dying.generate(prompts, how)
        # The last line is torn, as by a kill in the middle of a write.
        lines = path.read_bytes()
        path.write_bytes(lines[: len(lines) - rng.randrange(4)])
        again, after = asking(path)
        assert again.generate(prompts, how) == expected
        assert after.rows < num_rows or before.rows == 0
        third, asked = asking(path)
        assert third.generate(prompts, how) == expected
        assert asked.rows == 0


def test_nothing_is_shared_between_settings_that_differ(parts: tuple[Any, Any], asking: Asking, tmp_path: Path) -> None:
    prompts = _prompts(parts[1], 3)
    respondent, asked = asking(tmp_path / "answers.jsonl")
    for how in (Generation(8), Generation(9), Generation(8, stops=("x",)), SAMPLED, SAMPLED._replace(seed=1)):
        before = asked.rows
        respondent.generate(prompts, how)
        assert asked.rows == before + len(prompts) * how.num_samples
    before = asked.rows
    respondent.generate(prompts, Generation(8, seed=4))  # greedy: the seed means nothing
    assert asked.rows == before


def test_prompt_and_answer_fit_what_the_model_reads(parts: tuple[Any, Any]) -> None:
    respondent = Respondent(*parts)
    respondent.max_tokens = 20
    (prompt,) = _prompts(parts[1], 20)[-1:]
    short = Respondent(*parts).generate([prompt[-10:]], Generation(10))
    for max_new_tokens in (10, 12, 500):
        (found,) = respondent.generate([prompt], Generation(max_new_tokens))
        assert [found] == short


def test_likelihoods_are_journaled(parts: tuple[Any, Any], asking: Asking, tmp_path: Path) -> None:
    prompts = _prompts(parts[1], 4)
    pairs = [(prompts[0], prompts[1]), (prompts[2], prompts[3])]
    first = asking(tmp_path / "answers.jsonl")[0].likelihoods(pairs)
    again = asking(tmp_path / "answers.jsonl")[0]
    again.model = None  # type: ignore[assignment]
    assert again.likelihoods(pairs) == first
    assert all(one.logprob < 0 and one.num_tokens == len(pair[1]) for one, pair in zip(first, pairs, strict=True))


def test_samples_of_a_prompt_differ_and_stand_together(parts: tuple[Any, Any]) -> None:
    model, tokenizer = parts
    prompts = _prompts(tokenizer, 3)
    found = Respondent(model, tokenizer).generate(prompts, SAMPLED)
    assert len(found) == 6
    assert found[0] != found[1]


def test_another_model_or_arithmetic_has_another_journal(tmp_path: Path) -> None:
    identities = [("a", "float32", "vllm"), ("b", "float32", "vllm"), ("a", "bfloat16", "vllm")]
    for model_hash, precision, engine in identities:
        journal_of(tmp_path, model_hash=model_hash, precision=precision, engine=engine).close()
    assert len(list(tmp_path.iterdir())) == 3


def test_vllm_that_is_not_installed_is_named(parts: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"evaluation\.engine=transformers"):
        build_sampler("vllm", tmp_path, *parts, precision="float32", batch_tokens=64)


@given(
    answers=st.dictionaries(st.text(max_size=5), st.lists(st.integers()) | st.floats(allow_nan=False), max_size=8),
    torn=st.integers(min_value=0, max_value=40),
)
def test_journal_gives_back_what_it_was_told_but_for_torn_lines(
    tmp_path_factory: pytest.TempPathFactory, answers: dict[str, Any], torn: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "answers.jsonl"
    with AnswerJournal(path) as journal:
        journal.put(answers.items())
        assert {key: journal.get(key) for key in answers} == answers
    content = path.read_bytes()
    kept = content[: max(0, len(content) - torn)]
    path.write_bytes(kept)
    with AnswerJournal(path) as journal:
        whole = list(answers)[: kept.count(b"\n")]
        assert [key for key in answers if key in journal] == whole
        assert {key: journal.get(key) for key in whole} == {key: answers[key] for key in whole}
        journal.put(answers.items())
        assert {key: journal.get(key) for key in answers} == answers
    assert all(line.endswith(b"\n") for line in path.read_bytes().splitlines(keepends=True))


def test_damaged_line_is_no_answer(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b'{"key":"a","value":1}\n\x00\x00\x00\n{"key":"b","value":2}\n')
    with AnswerJournal(path) as journal:
        assert (journal.get("a"), journal.get("b"), journal.get("c"), len(journal)) == (1, 2, None, 2)
