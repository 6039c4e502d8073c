"""What a completion answers: the part that a pattern finds, the code that it holds, the number that it means."""

import re
from collections import deque
from fractions import Fraction

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\1[ \t]*$", re.DOTALL | re.MULTILINE)
_PYTHON = frozenset({"", "py", "python", "python3"})
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?(?:/[1-9]\d*)?")
_LONGEST_NUMBER = 200


def find_answer(pattern: str, text: str) -> str | None:
    """The first group that is not empty in the last match of ``pattern``, stripped; None if nothing matches.

    The same reading as the regex filter of lm-evaluation-harness with ``group_select: -1``, which scores the tasks.

    Args:
        pattern: Regular expression with at least one group.
        text: A completion.
    """
    last = deque(re.finditer(pattern, text), maxlen=1)
    return next((str(group).strip() for group in last[0].groups() if group), "") if last else None


def normalise_answer(text: str) -> str:
    """Case folded, runs of white space made one space, a full stop at the end taken away."""
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


def find_code(text: str) -> str:
    """The last fenced block of Python in ``text`` that is not empty, else the whole text; a fence may be left open."""
    blocks = [block for _, language, block in _FENCE.findall(text) if language.lower() in _PYTHON and block.strip()]
    if blocks:
        return str(blocks[-1])
    opened = re.search(
        r"^[ \t]*`{3,}(?:py|python|python3)?[ \t]*\n(.*)\Z", text, re.DOTALL | re.MULTILINE | re.IGNORECASE
    )
    return str(opened[1]) if opened and "```" not in opened[1] else text


def parse_number(text: str) -> Fraction | None:
    """The number that ``text`` is, exactly; None if it is none.

    Thousands separators, white space, a currency sign before, a percent sign or a full stop after are passed over
    (a percent sign does not divide by 100: where answers are per cent, so are references). ``3/4`` is a number.

    Args:
        text: An answer; longer than 200 characters is no number.
    """
    plain = text.strip().rstrip(".%").strip().removeprefix("$").replace(",", "").replace("\N{MINUS SIGN}", "-").strip()
    plain = plain.replace("-$", "-").replace(" ", "")
    if len(plain) > _LONGEST_NUMBER or not _NUMBER.fullmatch(plain):
        return None
    if "/" in plain and ("e" in plain.lower() or "." in plain):
        return None
    return Fraction(plain)


def numbers_agree(answer: str, reference: str, *, relative: float, absolute: float) -> bool | None:
    """Whether two texts are numbers at most ``max(absolute, relative * |reference|)`` apart; None if one is no number.

    Args:
        answer: Of a completion.
        reference: The right one.
        relative: >= 0.
        absolute: >= 0.
    """
    found, right = parse_number(answer), parse_number(reference)
    if found is None or right is None:
        return None
    return abs(found - right) <= max(Fraction(absolute), Fraction(relative) * abs(right))
