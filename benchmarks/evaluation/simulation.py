"""How often the gate promotes a student that is no better, and one that is better by what it says it would find.

    python benchmarks/evaluation/simulation.py [--evaluations 10000] [--prompts 30 100 1000] [--processes 2] [--seed 0]
                                               [--resamples 999] [--intervals studentised] [--only ratio binary ...]

Every evaluation draws prompts and scores, goes through the statistics of the evaluation (``statistics.estimate``) and
through ``decide`` with a policy of level 0.05. Scores:

    ratio       nats over tokens; tokens a prompt are log-normal (sigma 1: a tenth of the prompts holds half of them),
                difficulty is gamma, each model strays by Student's t with 5 degrees of freedom (0.1 nats)
    binary      right or wrong, once a prompt; how hard a prompt is, is uniform in 0.2 ... 0.8
    clustered   right or wrong, 1 to 8 answers a prompt (geometric); each model has luck of its own with a prompt
    skewed      as ratio, but the models differ by an exponential: rarely much, mostly a little the other way
    lengthy     as ratio, but the difference grows with the logarithm of a prompt's length and cancels over tokens

Gates:

    sft         a first version: the primary metric against the SFT arm's first seed
    champion    against the champion and against an SFT arm that is much worse (the worst case for the level)
    guarded     champion and SFT, both as good as the candidate, a guard and two slices with Holm's correction

Printed: the rate of "promote" with no true difference, with its 95 % interval over the evaluations (Clopper and
Pearson); the mean minimum detectable effect; and the rate of "promote" at a true effect of that size (gate sft), which
should be the power of 0.8. ``skewed`` and ``lengthy`` break what every interval for a mean rests on with few prompts,
and are there to show by how much. The same seed prints the same table.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from proxykd.config import GateSpec
from proxykd.config.gate import GuardSpec, PrimarySpec, SliceSpec
from proxykd.evaluation.comparing import Wanted, row_of
from proxykd.evaluation.decision import decide
from proxykd.evaluation.metrics import describe_metrics
from proxykd.evaluation.rules import CHAMPION, FIRST_SFT, REGISTERED, bars_of
from proxykd.evaluation.statistics import Arm, Contrast, Settings, estimate

LEVEL, POWER, AT_ONCE = 0.05, 0.8, 250
KINDS, STRESS, GATES = ("ratio", "binary", "clustered"), ("skewed", "lengthy"), ("sft", "champion", "guarded")
FACTS = {"validation": {"gate": {"is_open": True}, "rules": {"overlap": {"broken": 0, "measured": 1}}, "verdicts": {}}}


class Cell(NamedTuple):
    """One line of the table.

    Attributes:
        kind: How scores are drawn.
        gate: Which policy.
        num_prompts: Prompts of an evaluation.
        method: Interval.
        evaluations: How many are simulated.
        resamples: Bootstrap resamples of each.
        seed: Of the scores.
    """

    kind: str
    gate: str
    num_prompts: int
    method: str
    evaluations: int
    resamples: int
    seed: int


class Scores(NamedTuple):
    """Scores of one evaluation: the gain of the candidate is its difference from ``other``, per unit of ``below``.

    Attributes:
        first: Numerators of the candidate, float [num_prompts].
        other: Numerators of equally good models, float [2, num_prompts].
        below: Denominators, float [num_prompts].
    """

    first: NDArray[np.float64]
    other: NDArray[np.float64]
    below: NDArray[np.float64]


def draw(kind: str, num_prompts: int, effect: float, rng: np.random.Generator) -> Scores:
    """The scores of one evaluation in which the candidate is truly better by ``effect``."""
    if kind in ("binary", "clustered"):
        return _draw_answers(kind, num_prompts, effect, rng)
    logs = rng.normal(4.0, 1.0, num_prompts)
    tokens, hard = np.ceil(np.exp(logs)), rng.gamma(4.0, 0.25, num_prompts)
    if kind == "ratio":
        strays = 0.1 * rng.standard_t(5, (3, num_prompts))
    elif kind == "skewed":
        strays = np.vstack([0.1 * (rng.exponential(1.0, num_prompts) - 1.0), np.zeros((2, num_prompts))])
    else:  # E[tokens * (log tokens - 5)] = 0 for log-normal tokens with mean 4 and sigma 1 of their logarithm
        strays = np.vstack([0.1 * (logs - 5.0), 0.05 * rng.normal(size=(2, num_prompts))])
    nll = tokens * (hard + strays)
    return Scores(nll[0] - effect * tokens, nll[1:], tokens)


def _draw_answers(kind: str, num_prompts: int, effect: float, rng: np.random.Generator) -> Scores:
    samples = np.ones(num_prompts, dtype=int)
    odds = np.repeat(rng.uniform(0.2, 0.8, num_prompts)[None], 3, axis=0)
    if kind == "clustered":
        samples = np.minimum(rng.geometric(0.4, num_prompts), 8)
        odds = np.clip(odds + rng.uniform(-0.2, 0.2, odds.shape), 0.0, 1.0)
    odds[0] += effect / 0.5 * (1.0 - odds[0])  # what is wrong becomes right: the mean of 1 - odds is 1/2
    right = rng.binomial(samples, odds).astype(float)
    return Scores(right[0], right[1:], samples.astype(float))


def policy_of(cell: Cell) -> GateSpec:
    """The gate of a line."""
    metric = "heldout_nll" if cell.kind not in ("binary", "clustered") else "accuracy/task"
    guards = slices = ()
    if cell.gate == "guarded":
        margin = 0.05 if metric == "heldout_nll" else 0.1
        guards = (GuardSpec(metric="top1_agreement", margin=margin),)
        slices = tuple(SliceSpec(slice=name, margin=2 * margin) for name in ("part=0", "part=1"))
    return GateSpec(primary=PrimarySpec(metric=metric), level=LEVEL, guards=guards, slices=slices, min_slice_prompts=10)


def contrasts_of(
    cell: Cell, policy: GateSpec, effect: float, rng: np.random.Generator
) -> Iterator[tuple[Wanted, Contrast]]:
    """The differences of one evaluation."""
    scores, metric = draw(cell.kind, cell.num_prompts, effect, rng), policy.primary.metric
    is_judgement = metric.startswith("accuracy")
    others = {CHAMPION: scores.other[0], FIRST_SFT: scores.other[1]}
    if cell.gate == "champion":
        others[FIRST_SFT] = np.zeros_like(scores.below) if is_judgement else scores.first + 9.0 * scores.below
    for bar in bars_of(policy, has_champion=cell.gate != "sft"):
        first, other = Arm(scores.first, scores.below), Arm(others[bar], scores.below)
        yield Wanted(metric, None, REGISTERED, bar), Contrast(first, other, is_judgement)
    if cell.gate != "guarded":
        return
    guard = draw("ratio", cell.num_prompts, 0.0, rng)
    pair = Contrast(Arm(-guard.first, guard.below), Arm(-guard.other[0], guard.below))
    yield Wanted("top1_agreement", None, REGISTERED, CHAMPION), pair
    for part in (0, 1):
        of_part = [Arm(one[part::2], scores.below[part::2]) for one in (scores.first, scores.other[0])]
        yield Wanted(metric, f"part={part}", REGISTERED, CHAMPION), Contrast(of_part[0], of_part[1], is_judgement)


def simulate(cell: Cell, effect: float = 0.0) -> tuple[Counter[str], float]:
    """Outcomes of a line's evaluations, and the mean of the effects that they say they would find."""
    policy, rng = policy_of(cell), np.random.default_rng([cell.seed, cell.num_prompts, len(cell.kind), len(cell.gate)])
    settings = Settings(1.0 - 2.0 * LEVEL, cell.resamples, cell.method, POWER)  # type: ignore[arg-type]
    outcomes, detectable = Counter[str](), []
    for start in range(0, cell.evaluations, AT_ONCE):
        some = min(AT_ONCE, cell.evaluations - start)
        drawn = [list(contrasts_of(cell, policy, effect, rng)) for _ in range(some)]
        found = iter(estimate([contrast for one in drawn for _, contrast in one], settings))
        for one in drawn:
            rows = [row_of(wanted, next(found), settings, cell.num_prompts, {}) for wanted, _ in one]
            outcomes[
                decide(_report(policy, rows), policy, None if cell.gate == "sft" else {"version": "1"}).outcome
            ] += 1
            detectable.append(rows[0]["mde"] if rows[0]["mde"] is not None else np.nan)
    return outcomes, float(np.mean(detectable))


def _report(policy: GateSpec, rows: list[dict[str, Any]]) -> dict[str, Any]:
    metrics = describe_metrics(row["metric"] for row in rows)
    return {"metrics": metrics, "slices": {"part=0": 1, "part=1": 1}, "comparisons": rows, "facts": FACTS}


def line_of(cell: Cell) -> str:
    """A line of the table."""
    outcomes, mde = simulate(cell)
    promoted = outcomes["promote"]
    low, high = binomtest(promoted, cell.evaluations).proportion_ci()
    rates = f"{promoted / cell.evaluations:>8.4f} [{low:.4f}, {high:.4f}]"
    others = f"{outcomes['keep'] / cell.evaluations:>8.3f}{outcomes['undecided'] / cell.evaluations:>11.3f}"
    line = f"{cell.kind:<10}{cell.gate:<10}{cell.num_prompts:>6}  {cell.method:<12}{rates}{others}"
    if cell.gate != "sft" or cell.kind in STRESS or not np.isfinite(mde):
        return line
    found = simulate(cell._replace(evaluations=max(1, cell.evaluations // 5)), effect=mde)[0]
    return f"{line}{mde:>10.4f}{found['promote'] / found.total():>8.3f}"


def cells_of(arguments: argparse.Namespace) -> list[Cell]:
    """The lines of the table."""
    rest = (arguments.evaluations, arguments.resamples, arguments.seed)
    lines = [(kind, gate) for kind in KINDS for gate in GATES] + [(kind, "sft") for kind in STRESS]
    return [
        Cell(kind, gate, num_prompts, method, *rest)
        for method in arguments.intervals
        for kind, gate in lines
        if kind in arguments.only and gate in arguments.gates
        for num_prompts in arguments.prompts
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--prompts", type=int, nargs="+", default=[30, 100, 1000])
    parser.add_argument("--resamples", type=int, default=999)
    parser.add_argument("--intervals", nargs="+", default=["studentised"])
    parser.add_argument("--only", nargs="+", default=[*KINDS, *STRESS])
    parser.add_argument("--gates", nargs="+", default=list(GATES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    heads = f"{'promote':>8} {'95 % interval':<17}{'keep':>8}{'undecided':>11}{'mde':>10}{'power':>8}"
    print(f"{'scores':<10}{'gate':<10}{'n':>6}  {'interval':<12}{heads}")
    with ProcessPoolExecutor(arguments.processes) as pool:
        for line in pool.map(line_of, cells_of(arguments)):
            print(line, flush=True)
    print(f"{arguments.evaluations} evaluations a line, seed {arguments.seed}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
