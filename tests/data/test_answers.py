"""What a completion is taken to answer."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.data.answers import find_answer, find_code, normalise_answer, numbers_agree, parse_number

NUMBERS = st.fractions(min_value=-(10**9), max_value=10**9)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 3, no: Answer: 4 ", "4"),
        ("nothing", None),
        ("Answer: ", ""),
        ("", None),
        ("Answer: a\nb", "a"),
    ],
)
def test_the_last_match_counts(text: str, answer: str | None) -> None:
    assert find_answer(r"Answer: ?([^,\n]*)", text) == answer


def test_of_several_groups_the_first_that_is_not_empty_counts() -> None:
    pattern = r"<(\w+)>|\[(\w+)\]"
    assert find_answer(pattern, "<a> [b]") == "b"
    assert find_answer(pattern, "[b] <a>") == "a"


@pytest.mark.integration
@given(text=st.text("Answer: 0123,.\n ", max_size=60))
def test_answers_are_those_that_the_evaluation_scores(text: str) -> None:
    from lm_eval.filters.extraction import RegexFilter

    pattern = r"Answer: (\d[\d,.]*)"
    harness = RegexFilter(regex_pattern=pattern, group_select=-1, fallback="[none]")
    assert (find_answer(pattern, text) or "[none]") == harness.apply([[text]], [{}])[0][0]


@given(text=st.text(max_size=40))
def test_normalising_is_idempotent_and_passes_over_space_case_and_a_full_stop(text: str) -> None:
    once = normalise_answer(text)
    assert normalise_answer(f"  {text}\n") == once
    if not once.endswith("."):
        assert normalise_answer(once) == once
        assert normalise_answer(f"{once}.") == once


def test_normalised_by_hand() -> None:
    assert normalise_answer(" New\n York. ") == normalise_answer("new york") == "new york"
    assert normalise_answer("STRASSE") == normalise_answer("straße")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nDone.", "x = 1\n"),
        ("```py\nx = 1\n```\nbetter:\n```\nx = 2\n```", "x = 2\n"),
        ("```python\nx = 1\n```\nprints\n```text\n1\n```", "x = 1\n"),
        ("~~~\nx = 1\n~~~", "x = 1\n"),
        ("````python\ns = '```'\n````", "s = '```'\n"),
        ("Sure:\n```python\nx = 1\ny = 2", "x = 1\ny = 2"),
        ("```Python3\nx = 1\n```", "x = 1\n"),
        ("```python\n\n```\nnothing", "```python\n\n```\nnothing"),
    ],
)
def test_the_last_block_of_python_is_the_code(text: str, code: str) -> None:
    assert find_code(text) == code


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        (" -3.50 ", Fraction(-7, 2)),
        ("$1,234.5.", Fraction(2469, 2)),
        ("-$5", -5),
        ("12%", 12),
        ("3/4", Fraction(3, 4)),
        ("1e3", 1000),
        ("\N{MINUS SIGN}7", -7),
        ("1 000", 1000),
        (".5", Fraction(1, 2)),
    ],
)
def test_numbers_as_people_write_them(text: str, number: Fraction | int) -> None:
    assert parse_number(text) == number


@pytest.mark.parametrize(
    "text", ["", "four", "1/0", "nan", "inf", "1e9999", "0x10", "1.5/2", "3 apples", "9" * 201, "--1"]
)
def test_other_texts_are_no_numbers(text: str) -> None:
    assert parse_number(text) is None


@given(number=NUMBERS)
def test_every_number_that_is_written_is_read_back(number: Fraction) -> None:
    assert parse_number(str(number)) == number
    assert parse_number(f"{number.numerator:,}") == number.numerator


@given(number=NUMBERS, other=NUMBERS, absolute=st.floats(0, 10), relative=st.floats(0, 1))
def test_agreeing_is_reflexive_and_grows_with_the_tolerance(
    number: Fraction, other: Fraction, absolute: float, relative: float
) -> None:
    assert numbers_agree(str(number), str(number), relative=0.0, absolute=0.0) is True
    agree = numbers_agree(str(other), str(number), relative=relative, absolute=absolute)
    wider = numbers_agree(str(other), str(number), relative=2 * relative, absolute=2 * absolute)
    assert wider or not agree
    assert agree == (abs(number - other) <= max(Fraction(absolute), Fraction(relative) * abs(number)))


def test_what_is_no_number_neither_agrees_nor_differs() -> None:
    assert numbers_agree("x", "1", relative=0.0, absolute=0.0) is None
    assert numbers_agree("1", "x", relative=0.0, absolute=0.0) is None
