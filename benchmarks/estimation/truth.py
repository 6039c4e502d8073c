"""How far each estimate is from the truth, on the teacher whose odds are known.

    python benchmarks/estimation/truth.py                       some eight minutes on a free core
    python benchmarks/estimation/truth.py --sizes 250 --seeds 1

For every corpus size and seed: the embedded teacher writes a corpus (one text a question), its embedded proxy is
fine-tuned on it from random weights, and every estimator says what the next-token distributions at the positions of
some of the corpus's own texts are, as in a run. A twentieth as many prompts, each answered twice, are the development
side, which the fitted weights alone see. Printed are means over positions, and over seeds +- their standard
deviation:

    KL      KL(truth || estimate) in nats, the estimate mixed with 0.1 % of a uniform one, without which a count that
            never saw a possible token would make it infinite
    TV      half the sum of absolute differences, in [0, 1]; no mixing
    missed  the truth's mass on tokens that the estimate excludes

The truth is asked for by this program alone; nothing is kept.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from worlds import World, build_world

from proxykd.config.estimation import EstimatorSpec, ProxyEstimatorSpec, TargetsSpec
from proxykd.config.prior import PriorSpec
from proxykd.estimation.counted_prior import CountedPrior
from proxykd.estimation.estimates import Estimate, SparseProbs, densify, draw_columns
from proxykd.estimation.estimators import build_estimator
from proxykd.estimation.evidence import ApiEvidence
from proxykd.estimation.fitting import Fitted
from proxykd.estimation.posterior import credible_interval, sampled_posterior
from proxykd.estimation.sparse_targets import sampled, threshold, top_k
from proxykd.estimation.unseen_text import fit_to_unseen

FLOOR = 1e-3


class Distance(NamedTuple):
    """Means over positions."""

    kl: float
    tv: float
    missed: float


def distance(truth: Tensor, probs: Tensor) -> Distance:
    """From the truth to an estimate, both float64 [n, vocab]."""
    mixed = (1.0 - FLOOR) * probs + FLOOR / probs.shape[1]
    kl = torch.special.xlogy(truth, truth) - torch.special.xlogy(truth, mixed)
    missed = torch.where(probs > 0.0, 0.0, truth)
    means = kl.sum(-1).mean(), (truth - probs).abs().sum(-1).mean() / 2, missed.sum(-1).mean()
    return Distance(*(float(mean) for mean in means))


class Bench:
    """Asks estimators about one world; counts are made once for each order, fits once for what they depend on."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._counted: dict[int, Any] = {}
        self._fitted: dict[str, Fitted] = {}
        self._evidence: ApiEvidence | None = None

    def measure(self, **estimator: Any) -> Distance:
        """The distance of an estimator, given as in a specification."""
        return distance(self.world.truth, probs_of(self.estimate(**estimator), self.world.batch.vocab_size))

    def estimate(self, **estimator: Any) -> Estimate:
        """What an estimator makes of the measured texts."""
        spec: EstimatorSpec = TargetsSpec.model_validate({"estimator": estimator}).estimator
        prior = fitted = None
        if not isinstance(spec, ProxyEstimatorSpec):
            gamma: dict[str, Any] = {"gamma": "fitted"} if spec.is_fitted else {}
            prior = self.prior(spec.prior.model_copy(update=gamma))
            fitted = self._fit(spec, prior) if spec.is_fitted else None
        evidence = self.evidence() if spec.kind == "logprobs" else None
        return build_estimator(spec, seed=0, prior=prior, evidence=evidence, fitted=fitted)(self.world.batch).main

    def _fit(self, spec: Any, prior: CountedPrior) -> Fitted:
        key = f"{spec.prior} {spec.mixes}"
        if key not in self._fitted:
            self._fitted[key] = fit_to_unseen(spec, prior.counts, self.world.unseen, self.world.proxy)
        return self._fitted[key]

    def evidence(self) -> ApiEvidence:
        """What the API told."""
        if self._evidence is None:
            world = self.world
            self._evidence = ApiEvidence.build(
                world.completions, world.corpus, world.tokenizer, path=world.folder / "told.arrow"
            )
        return self._evidence

    def prior(self, spec: PriorSpec) -> CountedPrior:
        """The prior of the whole corpus."""
        if spec.order not in self._counted:
            folder = self.world.folder / f"counts-{spec.order}"
            self._counted[spec.order] = CountedPrior.build(self.world.corpus, spec, folder=folder).counts
        return CountedPrior(self._counted[spec.order], spec)


def probs_of(estimate: Estimate, vocab_size: int) -> Tensor:
    """The distributions over the whole vocabulary, float64."""
    return densify(estimate, vocab_size).double().softmax(-1)


ESTIMATORS: dict[str, dict[str, Any]] = {
    "hard label (plain SFT)": {"kind": "prior", "gamma": 1e9},
    "prior, gamma 2": {"kind": "prior", "gamma": 2},
    "prior (default: gamma fitted)": {"kind": "prior"},
    "proxy": {"kind": "proxy"},
    "posterior, kappa 8, gamma 2": {"kind": "posterior", "kappa": 8, "prior": {"gamma": 2}},
    "the same, trust observed": {"kind": "posterior", "kappa": 8, "prior": {"gamma": 2}, "trust": "observed"},
    "posterior, kappa fitted, gamma 2": {"kind": "posterior", "prior": {"gamma": 2}},
    "posterior (default: both fitted)": {"kind": "posterior"},
    "the same, 32 draws": {"kind": "posterior", "hits": "sampled"},
    "logprobs, evidence 10": {"kind": "logprobs", "evidence": 10},
    "logprobs (default: evidence 1000)": {"kind": "logprobs"},
}
GAMMAS = (1, 2, 8, 32, "fitted")
PRIORS: dict[str, dict[str, Any]] = {
    f"n {order}, gamma {gamma}, {counts}": {"kind": "prior", "order": order, "gamma": gamma, "counts": counts}
    for counts, orders in (("leave_out", (0, 1, 2, 4, 8)), ("keep", (4,)))
    for order in orders
    for gamma in GAMMAS
}
# What a posterior with given weights depends on is kappa's ratio to N, and gamma: twenty-four settings to choose from.
GIVEN: dict[str, dict[str, Any]] = {
    f"kappa {kappa:g}, N {draws}, gamma {gamma:g}": {
        "kind": "posterior", "kappa": kappa, "draws": draws, "prior": {"gamma": gamma}
    }
    for gamma in (1.25, 2, 8, 32)
    for kappa, draws in ((0.5, 32), (2, 32), (8, 32), (32, 32), (32, 8), (32, 4))
}  # fmt: skip
FITTED: dict[str, dict[str, Any]] = {
    f"fitted, n {order}": {"kind": "posterior", "prior": {"order": order}} for order in (1, 2, 4, 8)
}
SAMPLED: dict[str, Any] = {"kind": "posterior", "hits": "sampled"}
DRAWS = {f"fitted, N {draws} sampled": {"draws": draws} | SAMPLED for draws in (2, 8, 32, 128)}
INTERVALS: dict[str, dict[str, Any]] = {
    "kappa 2, N 8, gamma 1.25": {"kappa": 2, "draws": 8, "prior": {"gamma": 1.25}} | SAMPLED,
    "kappa 8, N 128, gamma 1.25": {"kappa": 8, "draws": 128, "prior": {"gamma": 1.25}} | SAMPLED,
    "kappa 8, N 32, gamma 2, expected": {"kind": "posterior", "kappa": 8, "prior": {"gamma": 2}},
    "kappa fitted, gamma 2": {"kind": "posterior", "prior": {"gamma": 2}},
    "both fitted (default)": {"kind": "posterior"},
    "both fitted, 32 draws": SAMPLED,
}


def reductions(world: World) -> dict[str, tuple[Tensor, float]]:
    """What each reduction keeps of the proxy: the mean of its targets over draws, and tokens a position."""
    estimate, num = Estimate(world.batch.logits, None), len(world.truth)
    rng = torch.Generator().manual_seed(0)

    def starts(columns: int = 1) -> Tensor:
        return torch.rand(num, columns, generator=rng, dtype=torch.float64)

    evenly = torch.arange(50) / 50
    return {
        "top-10 and tail": _kept([top_k(estimate, 10)], world),
        "top-10 renormalised": _kept(
            [top_k(estimate, 10)._replace(tail_logprob=torch.full((num,), -torch.inf))], world
        ),
        "sampled, 50 draws": _kept([sampled(estimate, starts(50), 50) for _ in range(50)], world),
        "sampled, 50 evenly": _kept([sampled(estimate, starts() / 50 + evenly, 50) for _ in range(50)], world),
        "threshold, 10 tokens": _kept([threshold(estimate, starts(), 10) for _ in range(50)], world),
    }


def _kept(runs: list[Any], world: World) -> tuple[Tensor, float]:
    """Squared error of each run's targets and of their mean, against the proxy's own; tokens a position."""
    exact = world.batch.logits.double().softmax(-1)
    found = []
    for rows in runs:
        probs = torch.zeros(len(exact), exact.shape[1] + 1, dtype=torch.float64)
        probs.scatter_(1, torch.where(rows.token_ids < 0, exact.shape[1], rows.token_ids), rows.logprobs.double().exp())
        probs = probs[:, :-1]
        # A tail bucket says nothing of its tokens: evenly shared among them.
        others = (probs == 0.0).double()
        probs = probs + others * (rows.tail_logprob.double().exp() / others.sum(-1).clamp_min(1))[:, None]
        found.append(probs / probs.sum(-1, keepdim=True))
    each = torch.stack([(probs - exact).square().sum(-1).mean() for probs in found]).mean()
    mean = (torch.stack(found).mean(0) - exact).square().sum(-1).mean()
    tokens = np.mean([float((rows.token_ids >= 0).sum(-1).double().mean()) for rows in runs])
    return torch.stack([each, mean]), float(tokens)


class Coverage(NamedTuple):
    """Shares of intervals that hold the truth, of two tokens, and the second's mean width.

    All but ``anywhere`` are over the positions where the truth is not certain: others are covered by any interval that
    nearly reaches 1, as ``anywhere`` counts them, which would flatter.
    """

    of_likeliest_true: float
    of_likeliest_estimated: float
    width: float
    anywhere: float


def coverage(world: World, found: Estimate, *, level: float = 0.95) -> Coverage:
    """How often an estimate's intervals hold the true probability of two tokens, and how wide the second's are."""
    assert found.concentration is not None
    probs, concentration = probs_of(found, world.batch.vocab_size), found.concentration.numpy()
    is_open = (world.truth.amax(-1) < 0.999).numpy()
    shares = []
    for token in (world.truth.argmax(-1, keepdim=True), probs.argmax(-1, keepdim=True)):
        low, high = credible_interval(probs.gather(1, token)[:, 0].numpy(), concentration, level=level)
        true = world.truth.gather(1, token)[:, 0].numpy()
        shares.append(float(((low - 1e-9 <= true) & (true <= high + 1e-9))[is_open].mean()))
    anywhere = (low - 1e-3 <= true) & (true <= high + 1e-3)
    return Coverage(*shares, float((high - low)[is_open].mean()), float(anywhere.mean()))


def from_truth(bench: Bench, *, kappa: float, draws: int) -> Estimate:
    """The posterior whose draws come from the truth itself."""
    world = bench.world
    prior = bench.prior(PriorSpec(gamma=1.25)).rows_of(world.batch.examples).probs
    points = torch.rand(len(world.truth), draws, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    worth = torch.full((len(world.truth),), kappa, dtype=torch.float64)
    return sampled_posterior(SparseProbs(*prior), draw_columns(world.truth.log().float(), points), kappa=worth)


def _spread(values: Sequence[float], digits: int = 4) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} +-{deviation:.{digits}f}"


def _table(title: str, rows: Mapping[str, Sequence[Distance]]) -> None:
    print(f"\n{title}\n{'':34} {'KL, nats':>16} {'TV':>16} {'missed':>16}")
    for name, found in rows.items():
        print(f"{name:34} " + " ".join(f"{_spread([one[at] for one in found]):>16}" for at in range(3)))


def _given_best(rows: Mapping[str, Sequence[Distance]]) -> None:
    """The given weights that the truth itself would choose, for each world and for all of them together."""
    each = [min(found[idx].kl for found in rows.values()) for idx in range(len(next(iter(rows.values()))))]
    name = min(rows, key=lambda name: statistics.mean(one.kl for one in rows[name]))
    print(f"{'best of these for each world':34} {_spread(each):>16}")
    print(f"{'best of these for all':34} {_spread([one.kl for one in rows[name]]):>16}  ({name})")


def main() -> None:
    """Build the worlds, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000, 4000], help="texts in the corpus")
    parser.add_argument("--seeds", type=int, default=3, help="corpora and proxies for each size")
    parser.add_argument("--first-seed", type=int, default=0, help="10 = none that a choice was made on")
    parser.add_argument("--steps", type=int, default=150, help="steps of the proxy's training, 16 texts each")
    parser.add_argument(
        "--repeats", type=int, choices=range(1, 5), default=2, help="completions of each prompt of the development side"
    )
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="proxykd-truth-") as folder:
        for size in given.sizes:
            benches = []
            for seed in range(given.first_seed, given.first_seed + given.seeds):
                place = Path(folder) / f"{size}-{seed}"
                place.mkdir()
                benches.append(Bench(build_world(size, seed, given.steps, given.repeats, place)))
            _print_size(benches, size, is_last=size == max(given.sizes))
            print(f"{time.perf_counter() - began:.0f} s", flush=True)
        _print_reductions(benches)
    print(f"\n{time.perf_counter() - began:.0f} s")


def _print_size(benches: Sequence[Bench], size: int, *, is_last: bool) -> None:
    tables = {"estimators": ESTIMATORS, "posterior, given weights": GIVEN, "posterior, fitted weights": FITTED}
    if is_last:
        tables |= {"prior": PRIORS, "draws": DRAWS}
    for title, settings in tables.items():
        rows = {name: [bench.measure(**one) for bench in benches] for name, one in settings.items()}
        _table(f"{title}: {size} texts, {len(benches)} seeds", rows)
        if settings is GIVEN:
            _given_best(rows)
    print(f"\n95 % intervals where the truth is not certain, {size} texts: share that holds the true probability of")
    print(f"{'':40} {'likeliest, truth':>18} {'likeliest, estim.':>18} {'width of this':>18} {'this anywhere':>18}")
    for kappa, draws in ((2, 8), (8, 128)):
        found = [from_truth(bench, kappa=kappa, draws=draws) for bench in benches]
        _interval_row(f"draws from the truth, kappa {kappa}, N {draws}", benches, found)
    for name, one in INTERVALS.items():
        _interval_row(name, benches, [bench.estimate(**one) for bench in benches])
    for level in (0.5, 0.8, 0.9, 0.99):
        _interval_row(
            f"both fitted, level {level}", benches, [bench.estimate(kind="posterior") for bench in benches], level
        )


def _interval_row(name: str, benches: Sequence[Bench], found: Sequence[Estimate], level: float = 0.95) -> None:
    shares = [coverage(bench.world, one, level=level) for bench, one in zip(benches, found, strict=True)]
    print(f"{name:40} " + " ".join(f"{_spread([one[at] for one in shares], 3):>18}" for at in range(4)))


def _print_reductions(benches: Sequence[Bench]) -> None:
    print("\nwhat is kept of the proxy's distribution: squared error of a target, and of the mean of 50 of them")
    print(f"{'':34} {'one target':>20} {'mean of 50':>20} {'tokens':>14}")
    found = [reductions(bench.world) for bench in benches]
    for name in found[0]:
        errors = [" ".join(f"{_spread([float(one[name][0][at]) for one in found], 6):>20}" for at in range(2))]
        print(f"{name:34} {errors[0]} {_spread([one[name][1] for one in found], 2):>14}")


if __name__ == "__main__":
    main()
