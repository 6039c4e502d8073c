"""Text that a model wrote -> text that a person may look at: nothing hidden, nothing that turns its surroundings round.

Escaping is the business of the page (Jinja's autoescape) and of the Markdown summary (fences); here characters that no
escaping covers are made visible: control characters, those that reverse the direction of writing, those that have no
width, and what cannot be written as UTF-8.
"""

import re

_UNSEEN = (
    *(code for code in range(0x20) if chr(code) not in "\n\t"), *range(0x7F, 0xA0),
    0x061C, 0x180E, 0x200B, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF,
    *range(0xFFF9, 0xFFFC), 0xFFFE, 0xFFFF, *range(0xE0000, 0xE0080),
)  # fmt: skip
_TABLE: dict[int, str] = {
    **{code: f"\u27e8U+{code:04X}\u27e9" for code in _UNSEEN},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd"),
}
_FENCE = re.compile("`{3,}")


def visible(text: str) -> str:
    """The text with its invisible characters shown.

    Example:
        >>> visible("a" + chr(0x1b) + "b" + chr(0x202e) + "c")
        'a⟨U+001B⟩b⟨U+202E⟩c'
    """
    return text.replace("\r\n", "\n").translate(_TABLE)


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters, and how many more there are.

    Example:
        >>> cut("abcdef", 4)
        'abcd … (2 more characters)'
    """
    if len(text) <= limit:
        return text
    return f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def fenced(text: str, limit: int) -> str:
    """A Markdown code block that its text cannot leave.

    Args:
        text: As a model wrote it.
        limit: Most characters shown.
    """
    shown = cut(visible(text), limit)
    ticks = "`" * max(3, 1 + max((len(run) for run in _FENCE.findall(shown)), default=0))
    return f"{ticks}text\n{shown}\n{ticks}"


_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&])")
_LINKS = re.compile(r"(@|://|www\.)")


def inline(text: str) -> str:
    r"""One line of Markdown without markup, mentions, links or HTML, for a table's cell or a sentence.

    Example:
        >>> inline("a|b <img> @all").replace(chr(0x200B), "?")
        'a\\|b \\<img\\> @?all'
    """
    escaped = _MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))
    return _LINKS.sub(lambda found: f"{found[0][0]}\u200b{found[0][1:]}", escaped)
