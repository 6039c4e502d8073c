# ruff: noqa: RUF001
"""Encoding damage and texts that look cut off: precise on intact texts of many kinds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.data.damage import find_cut, find_damage

INTACT = [
    "",
    "Plain ASCII\twith\r\nlines.",
    "“Quotes” – dashes — ellipsis… and no-break\u00a0space",
    "Ça coûte 5 €, señor Müller; naïve café.",
    "Привет, мир! Γειά σου. 東京 서울 مرحبا שלום",
    "20 °C, 3 m², ½, ±5, µm, §7, ©",
    "🙂 👩‍👩‍👧 and a soft\u00adhyphen",
]


@pytest.mark.parametrize("text", INTACT)
def test_intact_texts_are_not_damaged(text: str) -> None:
    assert find_damage(text) == ""


@pytest.mark.parametrize("text", ["It’s “done” – café", "größer", "25 °C", "naïve"])
@pytest.mark.parametrize("encoding", ["latin-1", "windows-1252"])
def test_utf8_that_was_read_as_something_else_is_found(text: str, encoding: str) -> None:
    garbled = text.encode().decode(encoding, errors="replace")
    assert find_damage(garbled)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a\ufffdb", "a replacement character (U+FFFD) at 1"),
        ("a\x00b", "a NUL character (U+0000) at 1"),
        ("ab\x1b[0m", "a control character (U+001B) at 2"),
        ("\ud83d", "a lone surrogate (U+D83D) at 0"),
    ],
)
def test_characters_that_no_text_holds_are_named_with_their_place(text: str, what: str) -> None:
    assert find_damage(text) == what


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"])))
def test_printable_ascii_is_never_damaged(text: str) -> None:
    assert find_damage(text) == ""


@pytest.mark.parametrize("text", ["A list:\n- one\n- two", "x = 1", "Done.", "```py\nx\n```", "He said: “No.”", ""])
def test_finished_texts_do_not_look_cut_off(text: str) -> None:
    assert find_cut(text) == ""


@pytest.mark.parametrize("text", ["one, two,", "f(", "and so —", "Here:\n```py\nx = 1", "```\na\n```\n```\nb"])
def test_open_ends_look_cut_off(text: str) -> None:
    assert find_cut(text)
