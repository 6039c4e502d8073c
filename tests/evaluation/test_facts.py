"""What the report shows beside the numbers."""

from pathlib import Path
from typing import Any

from proxykd.artifacts import (
    Artifact,
    CompletionSet,
    ProxyModel,
    StudentModel,
    Targets,
    ValidationResult,
    seal,
    write_json,
)
from proxykd.evaluation.facts import MAX_CURVE_POINTS, collect_facts, collect_spend, thin
from proxykd.records import Completion, Outcome


def test_spend_adds_up_every_completion(tmp_path: Path) -> None:
    completions = CompletionSet(tmp_path)
    completions.write(
        Completion(f"{row:016x}", 0, outcome, "", "", "", 10, 5 + row, 0.25, "m", "")
        for row, outcome in enumerate([Outcome.OK, Outcome.OK, Outcome.FAILED])
    )
    assert collect_spend(completions) == {
        "num_completions": 3,
        "outcomes": {"failed": 1, "ok": 2},
        "prompt_tokens": 30,
        "completion_tokens": 18,
        "cost_usd": 0.75,
    }


def test_spend_tells_what_each_of_several_teachers_took(tmp_path: Path) -> None:
    completions = CompletionSet(tmp_path)
    completions.write([])
    stages = [{"model": "cheap", "cost_usd": 0.5}, {"model": "better", "cost_usd": 1.0}]
    write_json(tmp_path / "summary.json", {"stages": stages})
    assert collect_spend(completions)["teachers"] == stages
    write_json(tmp_path / "summary.json", {})
    assert "teachers" not in collect_spend(completions)


def test_spend_of_nothing_is_zero(tmp_path: Path) -> None:
    completions = CompletionSet(tmp_path)
    completions.write([])
    assert collect_spend(completions)["num_completions"] == 0


def test_thinned_curve_keeps_its_last_point() -> None:
    points = [{"step": float(step)} for step in range(1001)]
    thinned = thin(points)
    assert len(thinned) <= MAX_CURVE_POINTS
    assert thinned[-1] == {"step": 1000.0}
    assert thin(points[:3]) == points[:3]
    assert thin([]) == []


def test_facts_come_from_every_stage(tmp_path: Path) -> None:
    def sealed(kind: type[Artifact], name: str, file: str, content: dict[str, Any]) -> Any:
        write_json(tmp_path / name / file, content)
        artifact = kind(tmp_path / name)
        seal(artifact)
        return artifact

    def training(arm: str) -> dict[str, Any]:
        runs = [{"seed": 3, "learning_rate": 0.1, "curve": [{"step": 1, "loss": 2.0}]}]
        return {"arm": arm, "learning_rate": 0.1, "runs": runs, "settings": {}}

    completions = CompletionSet(tmp_path / "completions")
    completions.write([])
    seal(completions)
    gate = {"is_open": True, "reasons": []}
    trained = {"training_loss": 0.5, "steps": 20}
    stages = [{"stage": "unaligned", "development_nll": 1.0}, {"stage": "warmup", "training": trained}]
    curve = [{"step": 10, "loss": 0.7}, {"step": 20, "loss": 0.3}]
    told = [stages[0], {"stage": "warmup", "training": {**trained, "curve": curve}}]
    student = sealed(StudentModel, "student", "training.json", training("proxy_kd"))
    facts = collect_facts(
        completions,
        sealed(ValidationResult, "validation", "result.json", {"gate": gate, "great_expectations": {}}),
        sealed(ProxyModel, "proxy", "fidelity.json", {"stages": told}),
        sealed(Targets, "targets", "targets.json", {"top_k": 10, "shards": [{}]}),
        sealed(StudentModel, "sft", "training.json", training("sft")),
        student,
    )
    assert facts["validation"] == {"gate": gate}
    assert facts["fidelity"] == stages
    assert facts["targets"] == {"top_k": 10}
    assert facts["training"]["sft"] == {"learning_rate": 0.1, "runs": [{"seed": 3, "learning_rate": 0.1}]}
    assert facts["curves"]["proxy/warmup"] == curve
    assert facts["curves"]["proxy_kd/seed-3"] == [{"step": 1, "loss": 2.0}]
    assert facts["made_from"]["student"] == student.hash
