"""How the embedded teacher words a solution: one probabilistic program whose only freedom is ``choose(options)``.

Each story has a writer; writers share the arithmetic (``_sum``, ``_difference``, ``_product``), which picks a route and
may slip, and the closing line. All odds are literals here or follow from the problem's numbers; options with no odds
are left out, so that an enumeration never walks a path that cannot happen.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from proxykd.teacher.stories import Problem

SLIP_ODDS = {"+": 0.02, "-": 0.03, "x": 0.04}

OptionT = TypeVar("OptionT")
Options = Sequence[tuple[OptionT, float]]


class Choose(Protocol):
    """Picks one option; the odds of all of them sum to 1."""

    def __call__(self, options: Options[OptionT]) -> OptionT:
        """The option picked."""


class _Work(NamedTuple):
    text: str
    result: int


def write(problem: Problem, choose: Choose) -> str:
    """One completion: an opening, one or two steps, a closing and the line ``#### answer``.

    Args:
        problem: What to solve.
        choose: Called once for every free choice, in the order of the text.
    """
    work = _WRITERS[problem.story](problem, choose)
    return f"{work.text}\n{_closing(problem, work.result, choose)}\n#### {work.result}"


def _gift(p: Problem, choose: Choose) -> _Work:
    a, b = p.numbers
    opening = choose(
        _by_odds(
            (0.5, 0.3, 0.2) if a >= b else (0.2, 0.2, 0.6),
            f"{p.name} starts with {a} {p.items} and gets {b} more.",
            f"There are {a} {p.items} first and then {b} more.",
            f"{p.other} gives {p.name} {b} {p.items}, so we add.",
        )
    )
    work = _sum(a, b, choose)
    return _Work(f"{opening}\n{_verb('add', choose)} {work.text}.", work.result)


def _loss(p: Problem, choose: Choose) -> _Work:
    a, b = p.numbers
    opening = choose(
        _by_odds(
            (0.55, 0.3, 0.15),
            f"{p.name} starts with {a} {p.items} and gives {b} away.",
            f"{p.other} gets {b} of the {a} {p.items}.",
            f"There are {a} {p.items} first and then {b} fewer.",
        )
    )
    work = _difference(a, b, choose)
    return _Work(f"{opening}\n{_verb('subtract', choose)} {work.text}.", work.result)


def _bags(p: Problem, choose: Choose) -> _Work:
    a, b = p.numbers
    opening = choose(
        _by_odds(
            (0.6, 0.25, 0.15) if a <= b else (0.25, 0.25, 0.5),
            f"Each bag has {b} {p.items} and there are {a} bags.",
            f"{p.name} has {a} bags of {b}.",
            f"There are {a} bags with {b} {p.items} in each.",
        )
    )
    work = _product(a, b, choose)
    return _Work(f"{opening}\n{_verb('multiply', choose)} {work.text}.", work.result)


def _trade(p: Problem, choose: Choose) -> _Work:
    a, b, c = p.numbers
    opening = choose(
        _by_odds(
            (0.7, 0.3), f"{p.name} starts with {a} {p.items}.", f"{p.name} finds {b} {p.items} and gives {c} away."
        )
    )
    words = _steps(choose)
    in_order = choose((("order", 0.55), ("net", 0.45)) if b > c else (("order", 1.0),)) == "order"
    first = _plain(a, "+", b, choose) if in_order else _plain(b, "-", c, choose)
    last = _plain(first.result, "-", c, choose) if in_order else _plain(a, "+", first.result, choose)
    return _Work(f"{opening}\n{words[0]} {first.text}.\n{words[1]} {last.text}.", last.result)


def _share(p: Problem, choose: Choose) -> _Work:
    a, b, c = p.numbers
    opening = choose(
        _by_odds(
            (0.65, 0.35) if a <= b else (0.3, 0.7),
            f"There are {a} bags of {b} and {c} {p.items} go to {p.other}.",
            f"{p.name} gives {c} {p.items} away.",
        )
    )
    words = _steps(choose)
    first = _product(a, b, choose)
    last = _plain(first.result, "-", c, choose)
    return _Work(f"{opening}\n{words[0]} {first.text}.\n{words[1]} {last.text}.", last.result)


def _pair(p: Problem, choose: Choose) -> _Work:
    a, b = p.numbers
    opening = choose(
        _by_odds((0.6, 0.4), f"{p.other} has {b} fewer than {p.name}.", f"We count the {p.items} of {p.other} first.")
    )
    words = _steps(choose)
    first = _plain(a, "-", b, choose)
    last = _sum(a, first.result, choose)
    return _Work(f"{opening}\n{words[0]} {first.text}.\n{words[1]} {last.text}.", last.result)


_WRITERS = {"gift": _gift, "loss": _loss, "bags": _bags, "trade": _trade, "share": _share, "pair": _pair}


def _sum(a: int, b: int, choose: Choose) -> _Work:
    """A + b: as it stands, larger number first, or by way of ten."""
    swap = 0.65 if b > a else 0.1
    via_ten = 0.2 if a < 10 < a + b and a + b - 10 < b else 0.0
    route = choose(_by_odds((1.0 - swap - via_ten, swap, via_ten), "plain", "swap", "ten"))
    total = _slip(a + b, "+", choose)
    if route == "ten":
        return _Work(f"{a} + {10 - a} = 10 and 10 + {a + b - 10} = {total}", total)
    first, second = (b, a) if route == "swap" else (a, b)
    return _Work(f"{first} + {second} = {total}", total)


def _difference(a: int, b: int, choose: Choose) -> _Work:
    """A - b: taking away, or counting up, which is likelier where the two are close."""
    up = 0.6 if a - b <= 4 else 0.15
    route = choose(_by_odds((1.0 - up, up), "away", "up"))
    rest = _slip(a - b, "-", choose)
    text = f"{a} - {b} = {rest}" if route == "away" else f"from {b} up to {a} it is {rest}"
    return _Work(text, rest)


def _product(a: int, b: int, choose: Choose) -> _Work:
    """A x b: as it stands, smaller factor first, or as a repeated sum, which is likelier for few terms."""
    repeated = {2: 0.6, 3: 0.4}.get(a, 0.0)
    swap = 0.3 if a > b else 0.0
    route = choose(_by_odds((1.0 - repeated - swap, swap, repeated), "plain", "swap", "repeated"))
    total = _slip(a * b, "x", choose)
    if route == "repeated":
        return _Work(f"{' + '.join([str(b)] * a)} = {total}", total)
    first, second = (b, a) if route == "swap" else (a, b)
    return _Work(f"{first} x {second} = {total}", total)


def _plain(a: int, sign: str, b: int, choose: Choose) -> _Work:
    result = _slip(a + b if sign == "+" else a - b, sign, choose)
    return _Work(f"{a} {sign} {b} = {result}", result)


def _slip(value: int, sign: str, choose: Choose) -> int:
    odds = SLIP_ODDS[sign]
    return choose(((value, 1.0 - odds), (value + 1, odds / 2), (value - 1, odds / 2)))


def _verb(verb: str, choose: Choose) -> str:
    return choose(((f"We {verb}:", 0.75), ("That is", 0.25)))


def _steps(choose: Choose) -> tuple[str, str]:
    return choose(((("First", "Then"), 0.6), (("Step 1:", "Step 2:"), 0.4)))


def _closing(p: Problem, result: int, choose: Choose) -> str:
    return choose(
        _by_odds(
            (0.2, 0.3, 0.5) if result > 20 else (0.6, 0.3, 0.1),
            f"So {p.name} has {result} {p.items}." if p.story != "pair" else f"So they have {result} {p.items}.",
            f"That makes {result} {p.items}.",
            f"The answer is {result}.",
        )
    )


def _by_odds(odds: Sequence[float], *options: OptionT) -> list[tuple[OptionT, float]]:
    return [(option, share) for option, share in zip(options, odds, strict=True) if share > 0.0]
