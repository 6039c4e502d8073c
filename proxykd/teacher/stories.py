"""The questions of the embedded teacher: six kinds of short word problems over small numbers.

A question and its ``Problem`` determine each other: ``render_question`` writes the one, ``parse_question`` reads it
back, and nothing else about a problem is known anywhere.
"""

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from proxykd.exceptions import InputError

NAMES = ("Mia", "Tom", "Ana", "Ben", "Lea", "Sam", "Eva", "Max")
ITEMS = ("apples", "pears", "coins", "cards", "books", "shells", "pens", "stamps")

_TEMPLATES = {
    "gift": "{name} has {a} {items}. {other} gives {name} {b} more. How many {items} does {name} have now?",
    "loss": "{name} has {a} {items} and gives {b} of them to {other}. How many {items} does {name} have left?",
    "bags": "{name} has {a} bags with {b} {items} in each bag. How many {items} does {name} have?",
    "trade": "{name} has {a} {items}, finds {b} more and gives {c} to {other}. How many {items} does {name} have now?",
    "share": "{name} has {a} bags with {b} {items} in each bag and gives {c} of them to {other}. "
    "How many {items} does {name} have left?",
    "pair": "{name} has {a} {items}. {other} has {b} fewer. How many {items} do they have together?",
}
STORIES = tuple(_TEMPLATES)


@dataclass(frozen=True, slots=True)
class Problem:
    """What a question says.

    Attributes:
        story: One of ``STORIES``.
        name: Whose things are counted.
        other: The second person; "" in stories of one.
        items: What is counted, in the plural.
        numbers: The two or three numbers in the order of the question.
    """

    story: str
    name: str
    other: str
    items: str
    numbers: tuple[int, ...]

    @property
    def answer(self) -> int:
        """The right answer."""
        return _ANSWERS[self.story](*self.numbers)


_ANSWERS: dict[str, Callable[..., int]] = {
    "gift": lambda a, b: a + b,
    "loss": lambda a, b: a - b,
    "bags": lambda a, b: a * b,
    "trade": lambda a, b, c: a + b - c,
    "share": lambda a, b, c: a * b - c,
    "pair": lambda a, b: a + a - b,
}


def render_question(problem: Problem) -> str:
    """The question's text."""
    numbers = dict(zip("abc", problem.numbers, strict=False))
    return _TEMPLATES[problem.story].format(
        name=problem.name, other=problem.other, items=problem.items, **{key: str(n) for key, n in numbers.items()}
    )


@lru_cache(maxsize=4096)
def parse_question(question: str) -> Problem:
    """The problem that ``question`` states.

    Raises:
        InputError: if no story reads like that, or its numbers are out of range.
    """
    for story, pattern in _PATTERNS.items():
        if match := pattern.fullmatch(question):
            fields = match.groupdict()
            numbers = tuple(int(fields[key]) for key in "abc" if key in fields)
            problem = Problem(story, fields["name"], fields.get("other", ""), fields["items"], numbers)
            if _is_in_range(problem):
                return problem
    raise InputError(
        f"the embedded teacher reads its own word problems only, got {question!r:.120}; "
        "ask prompts that proxykd.teacher.problems.generate_prompts made"
    )


def draw_problem(rng: random.Random) -> Problem:
    """A random problem: the story uniform, then names, items and numbers uniform within the story's range."""
    story = rng.choice(STORIES)
    name, other = rng.sample(NAMES, 2)
    while True:
        numbers = tuple(rng.randint(low, high) for low, high in _RANGES[story])
        problem = Problem(story, name, "" if story == "bags" else other, rng.choice(ITEMS), numbers)
        if _is_in_range(problem):
            return problem


_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "gift": ((2, 12), (2, 12)),
    "loss": ((5, 20), (2, 12)),
    "bags": ((2, 9), (2, 9)),
    "trade": ((2, 12), (2, 9), (2, 9)),
    "share": ((2, 5), (2, 6), (2, 9)),
    "pair": ((4, 12), (1, 3)),
}


def _is_in_range(problem: Problem) -> bool:
    # From 3 on, two slips of one each cannot make a result negative.
    in_bounds = all(low <= n <= high for n, (low, high) in zip(problem.numbers, _RANGES[problem.story], strict=True))
    return in_bounds and problem.answer >= 3 and problem.name != problem.other


def _pattern_of(template: str) -> re.Pattern[str]:
    groups = {"name": NAMES, "other": NAMES, "items": ITEMS}
    seen: set[str] = set()

    def group(match: re.Match[str]) -> str:
        key = match[1]
        if key in seen:
            return f"(?P={key})"
        seen.add(key)
        return f"(?P<{key}>{'|'.join(groups[key]) if key in groups else '0|[1-9][0-9]?'})"

    return re.compile(re.sub(r"\\{(\w+)\\}", group, re.escape(template)))


_PATTERNS = {story: _pattern_of(template) for story, template in _TEMPLATES.items()}
