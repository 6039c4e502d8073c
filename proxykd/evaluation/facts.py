"""What the report shows beside the numbers, gathered from the artifacts of the earlier stages."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow.compute as pc

from proxykd.artifacts import Artifact, CompletionSet, ProxyModel, StudentModel, Targets, ValidationResult, read_json

MAX_CURVE_POINTS = 400
"""Longer curves are thinned for the report; ``training.json`` keeps every step."""

VALIDATION_FACTS = ("gate", "num_rows", "outcomes", "verdicts", "kept_by_side", "rules", "num_released")


def collect_facts(
    completions: CompletionSet,
    validation: ValidationResult,
    proxy: ProxyModel,
    targets: Targets | None,
    sft: StudentModel,
    student: StudentModel,
) -> dict[str, Any]:
    """Facts for ``evaluate``: spend, validation, fidelity, targets, training, curves and lineage.

    Args:
        completions: What the teacher said and cost.
        validation: Verdicts and the gate.
        proxy: The aligned proxy.
        targets: The estimated distributions; None = the students learnt from none.
        sft: The baseline.
        student: The distilled student.
    """
    arms = {"sft": read_json(sft.path / "training.json"), "proxy_kd": read_json(student.path / "training.json")}
    described = None if targets is None else read_json(targets.path / "targets.json")
    stages = read_json(proxy.path / "fidelity.json")["stages"]
    checked = read_json(validation.path / "result.json")
    artifacts: dict[str, Artifact] = {
        "completions": completions,
        "validation": validation,
        "proxy": proxy,
        **({} if targets is None else {"targets": targets}),
        "sft": sft,
        "student": student,
    }
    return {
        "spend": collect_spend(completions),
        "validation": {name: checked[name] for name in VALIDATION_FACTS if name in checked},
        "fidelity": [_without_curve(one) for one in stages],
        **({} if described is None else {"targets": _without_shards(described)}),
        "training": {arm: _training(record) for arm, record in arms.items()},
        "curves": {**_alignment_curves(stages), **_training_curves(arms)},
        "made_from": {name: artifact.hash for name, artifact in artifacts.items()},
    }


def _alignment_curves(stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    curves = {f"proxy/{one['stage']}": one.get("training", {}).get("curve") for one in stages}
    return {name: thin(curve) for name, curve in curves.items() if curve}


def _training_curves(arms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{arm}/seed-{one['seed']}": thin(one["curve"]) for arm, record in arms.items() for one in record["runs"]}


def _without_curve(stage: Mapping[str, Any]) -> dict[str, Any]:
    training = {name: value for name, value in stage.get("training", {}).items() if name != "curve"}
    return {**stage, "training": training} if "training" in stage else dict(stage)


def collect_spend(completions: CompletionSet) -> dict[str, Any]:
    """Completions, their outcomes, tokens and USD, read batch by batch; for several teachers, each one's too."""
    columns = ["outcome", "prompt_tokens", "completion_tokens", "cost_usd"]
    outcomes: Counter[str] = Counter()
    totals = dict.fromkeys(columns[1:], 0.0)
    for batch in completions.batches(columns=columns):
        outcomes.update(batch["outcome"].to_pylist())
        for column in totals:
            totals[column] += pc.sum(batch[column]).as_py() or 0
    return {
        "num_completions": outcomes.total(),
        "outcomes": dict(sorted(outcomes.items())),
        "prompt_tokens": int(totals["prompt_tokens"]),
        "completion_tokens": int(totals["completion_tokens"]),
        "cost_usd": totals["cost_usd"],
        **_spend_by_teacher(completions),
    }


def _spend_by_teacher(completions: CompletionSet) -> dict[str, Any]:
    """What was asked of each teacher of a staged run, in order; nothing for a run with one."""
    path = completions.path / "summary.json"
    stages = read_json(path).get("stages", []) if path.exists() else []
    return {"teachers": stages} if stages else {}


def thin(points: list[dict[str, float]]) -> list[dict[str, float]]:
    """At most ``MAX_CURVE_POINTS`` of ``points``, evenly spaced, the last one among them."""
    every = -(-len(points) // MAX_CURVE_POINTS) if points else 1
    return points[::-1][::every][::-1]


def _without_shards(described: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in described.items() if name != "shards"}


def _training(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in {"arm", "runs", "settings"}}
    runs = [{name: value for name, value in one.items() if name != "curve"} for one in record["runs"]]
    return {**kept, "runs": runs}
