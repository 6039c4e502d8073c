"""What the index remembers does not depend on when it writes it down."""

import random
import sqlite3
from contextlib import closing

import pytest

from proxykd.config import ValidationSpec
from proxykd.data.duplicates import CorpusIndex
from proxykd.data.filters import HashFilter
from proxykd.data.measuring import Measurer, Runs, Texts
from proxykd.data.quality import hash_word_runs

WORDS = ("the", "river", "runs", "through", "old", "town", "north", "people", "love")


def corpus() -> list[str]:
    """Prompts of a few templates: more in a band than are compared, some of them near duplicates."""
    rng = random.Random(0)
    templates = [" ".join(rng.choices(WORDS, k=60)) for _ in range(2)]
    return [f"{rng.choice(templates)} {' '.join(rng.choices('abcdefgh', k=rng.randint(1, 12)))}" for _ in range(300)]


def answers(rows_at_once: int, threshold: float, monkeypatch: pytest.MonkeyPatch) -> list[tuple[bool, bool]]:
    monkeypatch.setattr("proxykd.data.duplicates._ROWS_AT_ONCE", rows_at_once)
    measurer = Measurer.build(ValidationSpec(near_duplicate_threshold=threshold), HashFilter(), None)
    found = []
    with closing(sqlite3.connect(":memory:")) as database:
        index = CorpusIndex(database, near_duplicate_threshold=threshold)
        for prompt, (text,) in measurer.measure([Texts(question, ("answer",)) for question in corpus()]):
            found.append((index.has_near(prompt), index.has_pair(text.pair_key)))
            index.add_prompt(prompt)
            index.add_pair(text.pair_key)
    return found


@pytest.mark.parametrize("threshold", [0.8, 0.95, 1.0])
def test_answers_are_the_same_however_many_rows_are_written_together(
    threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once = answers(1, threshold, monkeypatch)
    assert {is_near for is_near, _ in at_once} == {is_pair for _, is_pair in at_once} == {True, False}
    for rows in (7, 40, 10_000):
        assert answers(rows, threshold, monkeypatch) == at_once


def test_overlap_names_the_text_that_holds_most_runs() -> None:
    texts = {"one": "a b c d e f", "other": "c d e f g h i j"}
    with closing(sqlite3.connect(":memory:")) as database:
        index = CorpusIndex(database, near_duplicate_threshold=0.9)
        for name, text in texts.items():
            index.add_evaluation(hash_word_runs(text, 3), name)
        for text, expected in (("x a b c d e g h i j", "5 of 8 word runs"), ("x y z", ""), ("", "")):
            runs = hash_word_runs(text, 3)
            found = index.find_overlap(Runs(len(runs), runs[index.evaluation.may_hold(runs)]))
            assert found.startswith(expected)
            assert bool(found) == bool(expected)
        assert found == ""
