"""A report as large as the page has to bear: 8 arms, 20 tasks, slices, curves, and predictions of 5,000 prompts."""

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.artifacts import SplitSet, ValidatedSet, seal
from proxykd.config.specification import DataSplitSpec
from proxykd.data.splits import build_splits
from proxykd.evaluation.metrics import describe_metrics
from proxykd.evaluation.page.rendering import PageData
from proxykd.evaluation.scoring import PREDICTIONS
from proxykd.records import Message, Outcome, ValidatedRow
from tests.support.judged_report import calibration, judge

ARMS = ("none", "sft", "proxy_kd", "proxy", "champion", "on-policy", "sequence-level", "half-width")
HOSTILE = (
    '</script><script>alert("x")</script><img src=http://evil.example/x.png onerror=alert(1)> ' + "long" * 300,
    "\u202egnp.exe \u0627\u0644\u062c\u0648\u0627\u0628 \u0647\u0648 42\u202c \x00\x1b[31mred\x07 \ud800 \ufeff",
    "```\n</details></style></title>--><!-- @everyone [x](javascript:alert(1)) ![](http://evil.example/y.png)\n````",
    "Z" + "\u0301\u0316" * 400 + "algo\u2028next {{ 7 * 7 }} {% raw %} &lt;b&gt;",
)
"""Texts that try to leave their place on the page, or to look like what they are not."""


def large_page(*, num_tasks: int = 20, num_prompts: int = 5000, seed: int = 0) -> PageData:
    """The data of a page, without samples."""
    rng = random.Random(seed)
    tasks = [f"accuracy/task-{idx:02d}" for idx in range(num_tasks)]
    metrics = ["heldout_nll", "top1_agreement", *tasks]
    arms = {
        arm: {name: _measure(rng, name, position, num_prompts) for name in metrics} for position, arm in enumerate(ARMS)
    }
    report = {
        "name": "large",
        "num_prompts": num_prompts,
        "confidence": 0.95,
        "resamples": 10_000,
        "heldout": {"tokenizer": "ab" * 32, "num_texts": num_prompts, "num_cut": 12, "num_skipped": 0},
        "metrics": describe_metrics(metrics),
        "slices": {f"task={name}": num_prompts // num_tasks for name in tasks},
        "resources": {"usd": 15.75, "tokens_per_s": 1830.5, "size_gb": 0.27},
        "champion": {"resources": {"tokens_per_s": 1210.25, "size_gb": 0.31}},
        "arms": arms,
        "comparisons": list(_comparisons(rng, arms, metrics, num_prompts)),
        "teacher": {"entropy": {"value": 0.35, "low": 0.34, "high": 0.36, "num_prompts": 200}},
        "facts": _facts(rng),
    }
    more = random.Random(seed + 1)
    report |= {
        "judge": judge(more, f"referee {HOSTILE[0][:60]}"),
        "calibration": calibration(more, list(ARMS), num_tasks),
    }
    return PageData(
        report, _decision(), _gate(), {"model_uri": "models:/large/7", "aliases": ["challenger"]}, (), runs(rng)
    )


def _measure(rng: random.Random, name: str, position: int, num_prompts: int) -> dict[str, Any]:
    level = rng.uniform(0.3, 0.9) if name != "heldout_nll" else 0.4 + 0.05 * position + (5 if position == 0 else 0)
    half = 0.02 + 0.01 * rng.random()
    seeds = {str(seed): level + rng.gauss(0, 0.01) for seed in range(3)}
    interval = {"value": level, "low": level - half, "high": level + half}
    return {
        **interval,
        "per_seed": seeds,
        "std_over_seeds": 0.01,
        "num_prompts": num_prompts,
        "num_tokens": num_prompts,
    }


def _comparisons(
    rng: random.Random, arms: dict[str, Any], metrics: list[str], num_prompts: int
) -> Iterator[dict[str, Any]]:
    pairs = [("registered", "champion"), *(("proxy_kd", arm) for arm in arms if arm != "proxy_kd")]
    for arm, against in pairs:
        for name in metrics:
            for part in [None, *(f"language={idx}" for idx in range(10))]:
                value, half = rng.gauss(0, 0.02), 0.01 + 0.01 * rng.random()
                yield {
                    "metric": name, "slice": part, "arm": arm, "against": against,
                    "value": value, "low": value - half, "high": value + half, "confidence": 0.9,
                    "p_value": 0.5 * math.erfc(value / half), "p_adjusted": min(1.0, math.erfc(value / half)),
                    "mde": 1.2 * half, "test": "paired bootstrap", "per_seed": {}, "num_prompts": num_prompts,
                }  # fmt: skip


def _facts(rng: random.Random) -> dict[str, Any]:
    curves = {
        f"{arm}/seed-{seed}": [
            {
                "step": step,
                "loss": 6 * math.exp(-step / 60) + 0.3 + 0.05 * rng.random(),
                "nll": 0.3 + 1 / step,
                "lr": 0.1,
            }
            for step in range(1, 401)
        ]
        for arm in ARMS[1:3]
        for seed in range(3)
    }
    stages = ["unaligned", "warmup", "round 1 of 2", "round 2 of 2"]
    return {
        "spend": {
            "num_completions": 50_000,
            "cost_usd": 12.5,
            "prompt_tokens": 10**6,
            "completion_tokens": 10**7,
            "judge": {"requests": 1600, "cost_usd": 3.25},
        },
        "fidelity": [
            {"stage": stage, "development_nll": 2 / (idx + 1), "top1_agreement": 0.2 * (idx + 1), "num_tokens": 27_760}
            for idx, stage in enumerate(stages)
        ],
        "curves": {**curves, "proxy/warmup": [{"step": step * 10, "loss": 3 / step} for step in range(1, 40)]},
        "targets": {"format": "plain-1", "top_k": 32, "num_positions": 5_694_700, "statistics": {"weight_mean": 0.51}},
        "validation": {
            "gate": {"is_open": True, "reasons": []},
            "outcomes": {"ok": 48_000, "refused": 1200, "truncated": 700, "filtered": 90, "failed": 10},
            "verdicts": {"keep": 46_000, "refused": 1200, "too_long": 800, "near_duplicate": 2000, "failed": 0},
            "kept_by_side": {"warmup": 4600, "alignment": 18_000, "distillation": 18_400, "heldout": 5000},
            "rules": {
                "near_duplicate": {"broken": 2000, "measured": 48_000},
                "empty": {"broken": 0, "measured": 48_000},
            },
        },
        "made_from": {
            name: f"{rng.getrandbits(256):064x}" for name in ("completions", "validation", "proxy", "student")
        },
        "settings": {"student": {"model": {"source": "embedded:student"}, "seeds": [0, 1, 2]}},
        "notes": {"text": HOSTILE[0]},
    }


def _decision() -> dict[str, Any]:
    return {
        "outcome": "undecided",
        "reasons": [
            "held-out NLL against champion version 6: -0.012 [-0.031, +0.007] nats/token: cannot tell",
            f"the guard on accuracy task-07 was not met: {HOSTILE[0]}",
        ],
        "checks": [
            {"name": "primary against champion", "passed": None, "text": "-0.012 [-0.031, +0.007], must be below 0"},
            {"name": "guard accuracy/task-07 against champion", "passed": False, "text": "-0.060 [-0.081, -0.040]"},
            {"name": "limit usd", "passed": True, "text": "12.5, at most 20"},
            {"name": "validation", "passed": True, "text": "the gate was open"},
        ],
    }


def _gate() -> dict[str, Any]:
    return {
        "primary": {"metric": "heldout_nll", "margin": 0.0},
        "guards": [{"metric": "accuracy/*", "margin": 0.03}],
        "slices": [{"slice": "language=*", "metric": None, "margin": 0.02}],
    }


def runs(rng: random.Random, count: int = 12) -> list[dict[str, Any]]:
    """Points of the plot of cost against quality."""
    found = []
    for idx in range(count):
        cost = rng.uniform(1, 30)
        value = 0.4 + 0.5 / cost + rng.uniform(0, 0.1)
        point = {"label": f"2026-11-{idx + 1:02d}", "cost_usd": cost, "teacher_tokens": int(cost * 1e6), "value": value}
        outcome = "promote" if idx % 4 == 0 else "keep"
        found.append(
            {**point, "low": value - 0.02, "high": value + 0.02, "outcome": outcome, "is_this": idx == count - 1}
        )
    return found


def write_predictions(
    folder: Path, *, num_tasks: int = 20, num_prompts: int = 5000
) -> tuple[Path, ValidatedSet, SplitSet]:
    """The answers of every arm to every prompt, some of them hostile, and the corpus that they belong to."""
    rng, ids = random.Random(1), [f"{idx:016x}" for idx in range(num_prompts)]
    validated = ValidatedSet(folder / "validated")
    validated.write(_corpus_row(prompt_id, idx) for idx, prompt_id in enumerate(ids))
    seal(validated)
    spec = DataSplitSpec(heldout=0.99, development=0.0)
    splits = build_splits(validated, spec, output=folder / "splits")
    path = folder / "predictions.parquet"
    with pq.ParquetWriter(path, PREDICTIONS) as writer:
        for arm in ARMS:
            rows = [_prediction(rng, arm, prompt_id, idx, num_tasks) for idx, prompt_id in enumerate(ids)]
            writer.write_table(pa.Table.from_pylist(rows, schema=PREDICTIONS))
    return path, validated, splits


def _corpus_row(prompt_id: str, idx: int) -> ValidatedRow:
    text = HOSTILE[idx % len(HOSTILE)].encode("utf-8", "replace").decode()
    return ValidatedRow(
        prompt_id=prompt_id,
        sample_idx=0,
        messages=(Message("user", f"What is {idx} + {idx}? {text[:200]}"),),
        text=f"It is {2 * idx}. {text}",
        task="sums",
        reference=str(2 * idx),
        outcome=Outcome.OK,
        verdict="keep",
        request_hash="",
    )


def _prediction(rng: random.Random, arm: str, prompt_id: str, idx: int, num_tasks: int) -> dict[str, Any]:
    text = HOSTILE[(idx + len(arm)) % len(HOSTILE)].encode("utf-8", "replace").decode()
    answer = {"task": f"task-{idx % num_tasks:02d}", "text": f"#### {idx} {text}", "answer": str(idx)}
    return {
        "arm": arm, "seed": 0, "prompt_id": prompt_id, "nll_sum": rng.uniform(5, 50), "num_tokens": 40, "num_top1": 20,
        "kl_sum": None, "answers": [{**answer, "is_correct": rng.random() < 0.7}],
    }  # fmt: skip
