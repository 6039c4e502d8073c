"""Is a text damaged, or does it look cut off? Pure functions of one text.

Mojibake (UTF-8 that was read as something else) is found by the character sequences that ftfy's heuristic knows
(Speer, ftfy: fixes text for you, 2019); the rest is what no intact text holds.
"""

import re
from functools import cache

_NEVER_IN_TEXT = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff\ud800-\udfff]")
# Typographic characters alone (quotes, dashes, ellipsis, no-break space) are no mojibake; the heuristic is slow.
_BEYOND_TYPOGRAPHY = re.compile("[^\x00-\x7f\xa0\u2010-\u2027\u202f]")
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_NEVER_LAST = ",([{-\u2013\u2014\u201c"

_NAMES = {"\ufffd": "a replacement character", "\x00": "a NUL character"}


def find_damage(text: str) -> str:
    r"""What is broken in the encoding of ``text``; "" = nothing.

    Example:
        >>> find_damage("It costs 5 \u20ac."), find_damage("It\\u00e2\u20ac\\u2122s broken")
        ('', "mojibake: 'â€'")
    """
    if found := _NEVER_IN_TEXT.search(text):
        character = found[0]
        kind = "a lone surrogate" if "\ud800" <= character <= "\udfff" else "a control character"
        return f"{_NAMES.get(character, kind)} (U+{ord(character):04X}) at {found.start()}"
    if not text.isascii() and _BEYOND_TYPOGRAPHY.search(text) and (found := _mojibake().search(text)):
        return f"mojibake: {found[0]!r}"
    return ""


def find_cut(text: str) -> str:
    """Why ``text`` looks as if it had been cut off; "" = it does not.

    Only signs that a finished text hardly ever shows count: prose and lists may end without a full stop.

    Example:
        >>> find_cut("Eggs, milk,"), find_cut("Eggs, milk")
        ('ends on a comma, an opening bracket or a dash', '')
    """
    if ("```" in text or "~~~" in text) and len(_FENCE.findall(text)) % 2:
        return "a code block never closes"
    return "ends on a comma, an opening bracket or a dash" if text.rstrip()[-1:] in (*_NEVER_LAST,) else ""


@cache
def _mojibake() -> "re.Pattern[str]":
    from ftfy.badness import BADNESS_RE

    return re.compile(BADNESS_RE.pattern, BADNESS_RE.flags)
