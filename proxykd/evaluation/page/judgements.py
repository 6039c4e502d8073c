"""``report["judge"]`` -> what the page shows: win rates, strengths and grades on axes, and the judge's consistency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxykd.evaluation.page.plots import Axis, axis
from proxykd.evaluation.page.views import Group, Json, Mark, arm_label, colours, interval_text, is_known, number, places

_EVEN = 0.5


@dataclass(frozen=True, slots=True)
class Judgements:
    """What a judge said.

    Attributes:
        about: Who judged, how often and at what cost, in a sentence.
        groups: Win rates and strengths, or grades.
        duels: Rows of a table: who, won, tied, lost, not judged, mean scores, agreement between orders, share of points
            that went to the answer that stood first.
    """

    about: str
    groups: tuple[Group, ...]
    duels: tuple[tuple[str, ...], ...]


def judgements(report: Json) -> Judgements | None:
    """The judge's section; None where nobody judged."""
    if not (judge := report.get("judge")):
        return None
    shades = colours(report.get("arms", {}))
    groups = (_win_rates(judge, shades), _strengths(judge, shades), _grades(judge, shades))
    duels = tuple(_duel_row(one) for one in judge.get("duels", ()))
    return Judgements(_about(judge), tuple(group for group in groups if group.rows), duels)


def _about(judge: Json) -> str:
    fates = ", ".join(f"{count:,} {name}" for name, count in judge.get("fates", {}).items())
    tie = judge.get("tie_margin", 0)
    parts = [
        f"{judge.get('model', 'a model')} was asked {judge.get('requests', 0):,} times ({fates or 'no replies'})",
        f"{judge['cost_usd']:,.2f} USD" if is_known(judge.get("cost_usd")) else "",
        f"scores at most {tie:g} apart are a tie" if tie else "",
    ]
    return "; ".join(part for part in parts if part)


def _win_rates(judge: Json, shades: Mapping[str, int]) -> Group:
    scale = axis([0.0, 1.0])
    rows = [
        _mark(_duel_label(one), shades.get(one["arm"], 0), one["win_rate"], scale) for one in judge.get("duels", ())
    ]
    line = scale.across(_EVEN), "dotted line: neither is preferred"
    return Group("win rate", "a tie counts half", scale, tuple(rows), line=line)


def _strengths(judge: Json, shades: Mapping[str, int]) -> Group:
    found = judge.get("strengths", {})
    caption = "natural-log odds, 0 on average; over all duels together"
    return _by_arm("Bradley-Terry strength", caption, found, shades, has_zero=True)


def _grades(judge: Json, shades: Mapping[str, int]) -> Group:
    return _by_arm("grade", "each answer judged alone, 1 to 10", judge.get("grades", {}), shades)


def _by_arm(
    title: str, caption: str, found: Mapping[str, Json], shades: Mapping[str, int], *, has_zero: bool = False
) -> Group:
    ends = [one[part] for one in found.values() for part in ("value", "low", "high") if is_known(one.get(part))]
    scale = axis([*ends, 0.0] if has_zero else ends)
    strongest = sorted(found, key=lambda arm: -(found[arm]["value"] or 0.0))
    rows = [_mark(arm_label(arm), shades.get(arm, 5), found[arm], scale) for arm in strongest]
    return Group(title, caption, scale, tuple(rows), zero=scale.across(0.0) if has_zero else None)


def _mark(label: str, colour: int, one: Json, scale: Axis) -> Mark:
    return Mark(label, colour, interval_text(one), *places(one, scale))


def _duel_label(one: Json) -> str:
    return f"{arm_label(one['arm'])} against {arm_label(one['against'])}"


def _duel_row(one: Json) -> tuple[str, ...]:
    consistency: Mapping[str, Any] = one.get("consistency", {})
    counts: Sequence[str] = [number(one.get(name)) for name in ("wins", "ties", "losses", "num_unjudged")]
    scores = f"{number(one.get('score'))} : {number(one.get('score_against'))}"
    return _duel_label(one), *counts, scores, *(_percent(consistency.get(name)) for name in _CONSISTENCY)


_CONSISTENCY = ("agreement", "first_preferred")
DUEL_HEAD = ("duel", "won", "tied", "lost", "not judged", "mean scores", "same in both orders", "points to the first")
"""Head of the table of duels."""


def _percent(value: Any) -> str:
    return f"{value:.0%}" if is_known(value) else "-"
