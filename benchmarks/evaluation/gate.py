"""Time and memory of the gate: 20 tasks of 5,000 rows, two bars, 10,000 resamples.

    python benchmarks/evaluation/gate.py [--tasks 20] [--rows 5000] [--resamples 10000] [--unequal]

Every task has prompts of its own, as many as every other, so that they share their draws; with ``--unequal`` each has a
few more than the last, so that no two do. The policy names every task as a guard, and a continuous primary metric over
all rows of one task. Scores are made before the clock starts; timed are the comparisons with the champion and with SFT
(``comparing.compare``) and the decision. Peak RSS is that of the whole process, libraries and scores included.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from proxykd.config import GateSpec
from proxykd.config.statistics import StatisticsSpec
from proxykd.evaluation.comparing import ArmSums, compare, settings_of
from proxykd.evaluation.decision import decide
from proxykd.evaluation.metrics import describe_metrics
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.rules import rules_of

POLICY = {"primary": {"metric": "heldout_nll"}, "guards": [{"metric": "accuracy/*", "margin": 0.03}]}
FACTS = {"validation": {"gate": {"is_open": True}, "rules": {"overlap": {"broken": 0, "measured": 1}}}}


def make_sums(num_tasks: int, num_rows: int, *, is_unequal: bool) -> ArmSums:
    """Scores of the candidate and its two bars."""
    rng = np.random.default_rng(0)
    sums: dict[str, dict[str, dict[int, dict[str, tuple[float, float]]]]] = {}
    for task in range(num_tasks):
        names = [f"{task}-{row}" for row in range(num_rows + (task if is_unequal else 0))]
        hard = rng.uniform(0.2, 0.8, len(names))
        for arm, more in (("registered", 0.03), ("champion", 0.0), ("first_sft", -0.1)):
            right = (rng.random(len(names)) < hard + more).astype(float).tolist()
            of_prompts = {name: (one, 1.0) for name, one in zip(names, right, strict=True)}
            sums.setdefault(f"accuracy/task-{task}", {})[arm] = {0: of_prompts}
    names, tokens = [f"nll-{row}" for row in range(num_rows)], np.ceil(np.exp(rng.normal(4.0, 1.0, num_rows)))
    for arm, level in (("registered", 1.0), ("champion", 1.02), ("first_sft", 1.1)):
        pairs = zip((tokens * rng.normal(level, 0.1, num_rows)).tolist(), tokens.tolist(), strict=True)
        sums.setdefault("heldout_nll", {})[arm] = {0: dict(zip(names, pairs, strict=True))}
    return sums


def main() -> None:
    """Print the decision, its time and its memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tasks", type=int, default=20)
    parser.add_argument("--rows", type=int, default=5_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    parser.add_argument("--interval", default="studentised")
    parser.add_argument("--unequal", action="store_true", help="no two tasks of one size")
    arguments = parser.parse_args()
    sums, policy = (
        make_sums(arguments.tasks, arguments.rows, is_unequal=arguments.unequal),
        GateSpec.model_validate(POLICY),
    )
    spec = StatisticsSpec(resamples=arguments.resamples, interval=arguments.interval)
    start, start_cpu = time.perf_counter(), time.process_time()
    metrics = describe_metrics(sums)
    rules = rules_of(policy, has_champion=True, metrics=metrics, slices=())
    wanted = [rule.wanted for rule in rules]
    rows = compare(sums, wanted, PromptTable(), settings_of(spec, level=policy.level), seeds_in_interval=False)
    decision = decide({"metrics": metrics, "comparisons": rows, "facts": FACTS}, policy, {"version": "1"})
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{len(rows)} comparisons of {arguments.rows}+ rows, {arguments.resamples} resamples: {decision.outcome}")
    print(f"{seconds:.1f} s by the clock, {cpu:.1f} s of the processors (target < 10 s)")
    print(f"peak RSS {peak:.0f} MiB (target < 1024)")


if __name__ == "__main__":
    main()
