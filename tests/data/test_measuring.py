"""Measures of texts: each planted defect is found and nothing else, in one process as in many."""

from collections.abc import Sequence

import numpy as np
import pytest

from proxykd.config import ValidationSpec
from proxykd.data.filters import HashFilter
from proxykd.data.measuring import Measurer, Measures, Runs, Texts, measure_all
from proxykd.data.quality import Verdict, hash_word_runs

PLAIN = (
    "The river runs through the old town in the north, and people love it because it is quiet in the evening and "
    "full of boats in the morning."
)
GERMAN = (
    "Der Fluss fließt durch die alte Stadt im Norden, und die Leute lieben ihn, weil er am Abend ruhig ist und am "
    "Morgen voller Boote."
)
SPEC = ValidationSpec(languages=("en",), min_chars=5, max_chars=400)
DEFECTS = {
    Verdict.REFUSED: f"I'm sorry, but I can't help with that. {PLAIN}",
    Verdict.CUT_OFF: PLAIN[:-1] + ",",
    Verdict.EMPTY: " \n",
    Verdict.TOO_SHORT: "Yes.",
    Verdict.TOO_LONG: f"{PLAIN} {PLAIN} {PLAIN} {PLAIN}",
    Verdict.DAMAGED: PLAIN.replace("it is", "itâ€™s"),
    Verdict.OTHER_LANGUAGE: GERMAN,
    Verdict.SECRET: f"{PLAIN} ghp_{'a1B2' * 9}",
    Verdict.PERSONAL_DATA: f"{PLAIN} Write to jane.doe@acme.io.",
}


def count_words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def load_word_counter() -> object:
    return count_words


def same_runs(one: Runs, other: Runs) -> bool:
    return one.num_runs == other.num_runs and np.array_equal(one.suspects, other.suspects)


def measure(*texts: str, spec: ValidationSpec = SPEC) -> Measures:
    return Measurer.build(spec, HashFilter(), lambda: count_words).measure([Texts("a question", texts)])[0]


@pytest.mark.parametrize(("rule", "text"), DEFECTS.items())
def test_each_defect_is_found_and_no_other(rule: Verdict, text: str) -> None:
    (found,) = measure(text).completions
    assert set(found.broken) == {rule}
    assert found.broken[rule]


def test_a_text_without_defects_breaks_nothing() -> None:
    (found,) = measure(PLAIN).completions
    assert found.broken == {}
    assert found.is_language_known


def test_a_text_with_every_defect_breaks_every_rule_at_once() -> None:
    text = "I'm sorry, but I can't help with that. " + " ".join(
        DEFECTS[rule] for rule in (Verdict.DAMAGED, Verdict.SECRET, Verdict.PERSONAL_DATA)
    )
    (found,) = measure(text + " " + PLAIN[:-1] + ",").completions
    assert set(found.broken) == {
        Verdict.REFUSED, Verdict.CUT_OFF, Verdict.TOO_LONG, Verdict.DAMAGED, Verdict.SECRET, Verdict.PERSONAL_DATA,
    }  # fmt: skip


def test_lengths_in_tokens_are_counted_only_where_they_are_bounded() -> None:
    (uncounted,) = measure(PLAIN).completions
    assert uncounted.num_tokens is None
    num_words = len(PLAIN.split())
    for low, high, rule in ((num_words + 1, None, Verdict.TOO_SHORT), (None, num_words - 1, Verdict.TOO_LONG)):
        (found,) = measure(PLAIN, spec=ValidationSpec(min_tokens=low, max_tokens=high)).completions
        assert found.num_tokens == num_words
        assert "tokens" in found.broken[rule]
    (within,) = measure(PLAIN, spec=ValidationSpec(min_tokens=num_words, max_tokens=num_words)).completions
    assert within.broken == {}


def test_pairs_are_equal_but_for_white_space_and_only_then() -> None:
    keys = [found.pair_key for found in measure("a b", " a\n b ", "ab", "b a").completions]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


def test_measures_do_not_depend_on_the_batch() -> None:
    texts = [PLAIN, *DEFECTS.values()]
    together = measure(*texts).completions
    alone = [measure(text).completions[0] for text in texts]
    assert [found._replace(runs=0) for found in together] == [found._replace(runs=0) for found in alone]
    assert all(same_runs(one.runs, other.runs) for one, other in zip(together, alone, strict=True))


@pytest.mark.integration  # two interpreters start
def test_many_processes_measure_as_one_does() -> None:
    texts = [PLAIN, *DEFECTS.values()]
    items = [Texts(f"question {idx} {PLAIN}", (texts[idx % len(texts)], PLAIN)) for idx in range(2000)]
    spec = ValidationSpec(languages=("en",), max_tokens=30)
    evaluation = HashFilter()
    evaluation.add(hash_word_runs(PLAIN, spec.overlap_ngram))
    one, many = (
        list(measure_all(items, spec, evaluation, load_counter=load_word_counter, num_processes=count))  # type: ignore[arg-type]
        for count in (1, 2)
    )
    for first, second in zip(one, many, strict=True):
        assert all(map(np.array_equal, first.prompt[:3], second.prompt[:3]))
        assert same_runs(first.prompt.runs, second.prompt.runs)
        for left, right in zip(first.completions, second.completions, strict=True):
            assert left._replace(runs=0) == right._replace(runs=0)
            assert same_runs(left.runs, right.runs)
