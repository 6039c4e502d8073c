"""Which differences a gate's policy needs: what is compared before a decision is what is decided on.

What is registered is the model of the candidate's first seed, so that model is what is compared, not the mean of its
seeds. The bars:

    champion      the present champion, where there is one
    first_sft     the first seed of the SFT arm, the student that the same teacher texts give without the method
    first_none    the first seed of the untrained student, for a first version that need not beat SFT

The primary metric must be better than every bar. Guards and slices are held against the first bar alone: what may not
get worse is what is served now.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from proxykd.config.gate import GateSpec
from proxykd.evaluation.comparing import Wanted

CANDIDATE = "proxy_kd"
REGISTERED = "registered"
"""The candidate's first seed, the model that is registered."""
CHAMPION = "champion"
FIRST_SFT, FIRST_NONE = "first_sft", "first_none"
FIRST_SEEDS = {"sft": FIRST_SFT, "none": FIRST_NONE}
"""Arm -> what its first seed is called as a bar."""

Kind = Literal["primary", "guard", "slice"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One difference that a policy looks at.

    Attributes:
        kind: primary = must be better; guard and slice = may not be worse.
        wanted: The difference; an empty metric or slice = the policy's pattern names none that there is.
        margin: Of the policy, in the metric's unit.
        pattern: What the policy says.
    """

    kind: Kind
    wanted: Wanted
    margin: float
    pattern: str

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to compare."""
        return self.wanted.metric == "" or self.wanted.slice == ""


def bars_of(policy: GateSpec, *, has_champion: bool) -> tuple[str, ...]:
    """The bars, the one that guards and slices are held against first."""
    if has_champion:
        return (CHAMPION, FIRST_SFT) if policy.beat_sft else (CHAMPION,)
    return (FIRST_SFT,) if policy.beat_sft else (FIRST_NONE,)


def rules_of(
    policy: GateSpec, *, has_champion: bool, metrics: Iterable[str], slices: Iterable[str]
) -> tuple[Rule, ...]:
    """Every difference that a policy looks at, in its order.

    Args:
        policy: The gate's section.
        has_champion: Whether there is a champion to compare with.
        metrics: Metrics of the report, for patterns.
        slices: Slices of the report, for patterns.
    """
    bars = bars_of(policy, has_champion=has_champion)
    return tuple(_rules(policy, bars, tuple(metrics), tuple(slices)))


def _rules(
    policy: GateSpec, bars: tuple[str, ...], metrics: tuple[str, ...], slices: tuple[str, ...]
) -> Iterator[Rule]:
    primary = policy.primary
    for bar in bars:
        yield Rule("primary", Wanted(primary.metric, None, REGISTERED, bar), primary.margin, primary.metric)
    for guard in policy.guards:
        for metric in _matching(guard.metric, metrics):
            yield Rule("guard", Wanted(metric, None, REGISTERED, bars[0]), guard.margin, guard.metric)
    for part in policy.slices:
        metric = part.metric or primary.metric
        for name in _matching(part.slice, slices):
            yield Rule("slice", Wanted(metric, name, REGISTERED, bars[0]), part.margin, part.slice)


def _matching(pattern: str, names: tuple[str, ...]) -> list[str]:
    """The names that a pattern fits; [""] for a pattern that fits none, itself for a plain name."""
    if not any(sign in pattern for sign in "*?["):
        return [pattern]
    return [name for name in names if fnmatchcase(name, pattern)] or [""]
