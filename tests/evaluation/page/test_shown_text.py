"""Nothing that a model wrote stays hidden, and none of it leaves its fence."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from proxykd.evaluation.page.shown_text import cut, fenced, inline, visible

any_text = st.text(st.characters(codec=None), max_size=200)
"""Lone surrogates among it."""


@given(any_text)
def test_visible_text_can_be_written_and_hides_nothing(text: str) -> None:
    shown = visible(text)
    shown.encode("utf-8")
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert not [char for char in shown if unicodedata.bidirectional(char) in {"RLO", "LRO", "RLE", "LRE", "RLI", "LRI"}]


@given(st.text("abc \n\tÄß語🙂", max_size=50))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


def test_hidden_characters_are_named() -> None:
    assert visible("a\x00\u202e\u2066\ufeff\U000e0041b") == "a⟨U+0000⟩⟨U+202E⟩⟨U+2066⟩⟨U+FEFF⟩⟨U+E0041⟩b"
    assert visible("a\r\nb\rc") == "a\nb⟨U+000D⟩c"
    assert visible("\ud800") == "\ufffd"


@given(st.text("`~ab\n<>", max_size=80))
def test_no_line_closes_the_fence_early(text: str) -> None:
    first, *inside, last = fenced(text, 1000).split("\n")
    ticks = first.removesuffix("text")
    assert last == ticks
    assert set(ticks) == {"`"}
    assert not [line for line in inside if line.strip().startswith(ticks)]


@given(any_text)
def test_inline_text_is_one_line_without_markup(text: str) -> None:
    shown = inline(text)
    assert "\n" not in shown
    assert not [
        place for place, char in enumerate(shown) if char in "<>|`[]" and (place == 0 or shown[place - 1] != "\\")
    ]


def test_inline_text_mentions_and_links_nobody() -> None:
    shown = inline("@all see https://evil.example www.evil.example [x](y) #1")
    assert "@all" not in shown
    assert "https://" not in shown
    assert "www." not in shown
    assert "\\[x\\]" in shown
    assert "\\#1" in shown


def test_cut_says_what_is_missing() -> None:
    assert cut("abc", 3) == "abc"
    assert cut("a" * 1500, 100) == "a" * 100 + " … (1,400 more characters)"
