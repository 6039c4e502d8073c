"""What a report holds beside sums: every answer, calibration, perplexity, speed and size."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.config import RunSpec
from proxykd.evaluation.calibration import calibration
from proxykd.evaluation.comparing import OVER_PROMPTS
from proxykd.evaluation.metrics import describe_metrics
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.scoring import ANSWERS, ModelScores
from proxykd.evaluation.speed import measure_speed, size_gb
from proxykd.evaluation.statistics import spread
from proxykd.evaluation.task_answers import TaskAnswer

_ROWS_AT_ONCE = 1024
_DERIVED = ("value", "low", "high")
_MACHINE = ("device", "num_threads")
_OF_THE_MACHINE = frozenset({"tokens_per_s", "tokens_per_s_single", "memory_gb"})


class AnswersFile:
    """``answers.parquet``: every answer of every arm, written as they come; holds a thousand in memory.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._writer = pq.ParquetWriter(path, ANSWERS)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._writer.close()

    def keeper(self, arm: str, seed: int) -> Callable[[TaskAnswer], None]:
        """What ``score_model`` is to tell the answers of one model to."""

        def keep(answer: TaskAnswer) -> None:
            row = {name: getattr(answer, name) for name in ANSWERS.names if name not in ("arm", "seed", "sums")}
            sums = [{"metric": name, "numerator": n, "denominator": d} for name, (n, d) in answer.sums.items()]
            self._rows.append({**row, "arm": arm, "seed": seed, "slices": list(answer.slices), "sums": sums})
            if len(self._rows) >= _ROWS_AT_ONCE:
                self._flush()

        return keep

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=ANSWERS))
            self._rows.clear()


def collect_resources(candidate: Sequence[Path], run: RunSpec) -> dict[str, Any]:
    """``measure_model`` of the model that would be registered, the first seed's; {} if there is no candidate."""
    return measure_model(candidate[0], run) if candidate else {}


def measure_model(folder: Path, run: RunSpec) -> dict[str, Any]:
    """``size_gb`` of a model and, if the specification asks for it, what ``measure_speed`` finds.

    Args:
        folder: As ``save_model`` wrote it.
        run: Its ``evaluation.speed`` and the student's precision, which every model is measured with.
    """
    if run.evaluation.speed is None:
        return {"size_gb": size_gb(folder)}
    return measure_speed(folder, run.evaluation.speed, precision=run.student.model.precision)


def comparable_resources(measured: Mapping[str, Any], beside: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured of a model, as far as it can stand beside another's: speed and memory on the same machine.

    Args:
        measured: As ``measure_model`` gives it.
        beside: The other's.

    Example:
        >>> comparable_resources({"tokens_per_s": 9.0, "size_gb": 1.0, "device": "cpu"}, {"device": "cuda:0"})
        {'size_gb': 1.0, 'device': 'cpu'}
    """
    if all(measured.get(name) == beside.get(name) for name in _MACHINE):
        return dict(measured)
    return {name: value for name, value in measured.items() if name not in _OF_THE_MACHINE}


def with_task_slices(prompts: PromptTable, scores: Mapping[str, Mapping[int, ModelScores]]) -> PromptTable:
    """The table with the questions of the tasks in it and the slices that they fall into.

    Args:
        prompts: The held-out prompts.
        scores: Every arm's scores.
    """
    every = [one.tasks for seeds in scores.values() for one in seeds.values()]
    asked = dict.fromkeys(name for tasks in every for sums in tasks.sums.values() for name in sums)
    slices = {name: set(members) for name, members in prompts.slices.items()}
    for tasks in every:
        for name, members in tasks.slices.items():
            slices.setdefault(name, set()).update(members)
    clusters = {**{name: name for name in asked}, **prompts.clusters}
    return PromptTable(clusters, {name: frozenset(slices[name]) for name in sorted(slices)})


def add_measures(
    report: Mapping[str, Any], scores: Mapping[str, Mapping[int, ModelScores]], run: RunSpec
) -> dict[str, Any]:
    """The report with ``calibration`` (source -> arm -> as ``calibration`` gives it), ``ece/<source>`` and perplexity.

    ``source`` is a task, or ``tokens`` for the next tokens of the teacher's held-out text.

    Args:
        report: As ``build_report`` gives it; not changed.
        scores: Every arm's scores.
        run: Confidence and resamples.
    """
    calibrations = _calibrations(scores, run)
    arms: dict[str, dict[str, Any]] = {}
    for arm, measures in report["arms"].items():
        own = {f"ece/{source}": _measure(by_arm[arm]) for source, by_arm in calibrations.items() if arm in by_arm}
        arms[arm] = {**measures, **_perplexity(measures), **own}
    names = {name for measures in arms.values() for name in measures} | report["metrics"].keys()
    return {**report, "arms": arms, "metrics": describe_metrics(names), "calibration": calibrations}


def _calibrations(
    scores: Mapping[str, Mapping[int, ModelScores]], run: RunSpec
) -> dict[str, dict[str, dict[str, Any]]]:
    spec = run.evaluation
    sources = dict.fromkeys(name for seeds in scores.values() for one in seeds.values() for name in one.reliability)
    return {
        source: {
            arm: calibration(
                {seed: one.reliability[source] for seed, one in seeds.items()},
                confidence=spec.confidence,
                resamples=spec.resamples,
            )
            for arm, seeds in scores.items()
            if all(source in one.reliability for one in seeds.values())
        }
        for source in sources
    }


def _measure(found: Mapping[str, Any]) -> dict[str, Any]:
    per_seed = [value for value in found["per_seed"].values() if value is not None]
    std = spread(per_seed)
    return {
        **{name: found[name] for name in (*_DERIVED, "per_seed", "num_prompts")},
        "std_over_seeds": std if math.isfinite(std) else None,
        "num_tokens": found["num_outcomes"],
        "num_clusters": found["num_prompts"],
        "over": OVER_PROMPTS,
    }


def _perplexity(measures: Mapping[str, Any]) -> dict[str, Any]:
    """``perplexity``: the exponential of the held-out NLL, its interval and each seed's."""
    nll = measures.get("heldout_nll")
    if nll is None:
        return {}
    per_seed = {seed: _exp(value) for seed, value in nll["per_seed"].items()}
    std = spread([value for value in per_seed.values() if value is not None])
    derived = {name: _exp(nll[name]) for name in _DERIVED}
    std_over_seeds = std if math.isfinite(std) else None
    return {"perplexity": {**nll, **derived, "per_seed": per_seed, "std_over_seeds": std_over_seeds}}


def _exp(value: float | None) -> float | None:
    return None if value is None or value > 700 else math.exp(value)
