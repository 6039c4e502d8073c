"""The life of a champion on real stores: promoted, beaten, kept against a worse one, rolled back, loaded anywhere."""

import os
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from proxykd.config.models import ModelSpec
from proxykd.evaluation.decision import Decision
from proxykd.models.loading import load_model, load_saved, load_tokenizer, save_model
from steps.adapters import mlflow_promotion as promotion
from steps.adapters import mlflow_registry as registry
from steps.adapters.mlflow_tracking import connect
from tests.support.without_us import run_without_us

pytestmark = [
    pytest.mark.integration,
    # MLflow's own use of others: not ours to mend.
    pytest.mark.filterwarnings("default"),
]

TEXT = "Ben has 7 pens. Sam has 1 fewer. How many pens do they have together? 7 + 6 = 13."

PLAIN = """
import sys
import mlflow

mlflow.set_tracking_uri(sys.argv[1])
pipeline = mlflow.transformers.load_model(f"models:/{sys.argv[2]}@champion")
weights = sum(float(weight.double().sum()) for weight in pipeline.model.state_dict().values())
print(f"{weights:.6f}", pipeline("2 + 2?", max_new_tokens=2)[0]["generated_text"][:6])
"""


def _loss(folder: Path, steps: int = 0) -> float:
    """Nats a token of the text; after so many steps of training on it, which are saved."""
    model, tokenizer = load_saved(folder)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    if steps:
        save_model(model, tokenizer, folder)
    with torch.no_grad():
        return float(model(ids, labels=ids).loss)


def _student(folder: Path, seed: int, steps: int) -> Path:
    spec = ModelSpec(source="embedded:student")
    save_model(load_model(spec, seed=seed), load_tokenizer(spec), folder)
    _loss(folder, steps)
    return folder


def _run(name: str, student: Path, scratch: Path) -> Decision:
    """What the step does: register, compare with the champion, decide, act."""
    registered = registry.register_student(
        student, model_name=name, student_hash=f"{name}-{student.name}", experiment=name, model_card="# Student"
    )
    champion, bar = registry.find_champion(name), float("inf")
    if champion is not None:
        bar = _loss(registry.download_version(champion, scratch / f"champion-{student.name}"))
    found = _loss(student)
    expected = champion.version if champion else None
    decision = Decision(
        "promote" if found < bar else "keep", (f"{found:.3f} against {bar:.3f} nats a token",), (), expected
    )
    registry.apply_decision(registered, decision)
    return decision


def _weights(folder: Path) -> str:
    model, _ = load_saved(folder)
    return f"{sum(float(weight.double().sum()) for weight in model.state_dict().values()):.6f}"


def _loaded_elsewhere(name: str) -> str:
    """The champion's weights, as a process sees them that has only mlflow and transformers."""
    address = os.environ["MLFLOW_TRACKING_URI"]
    finished = run_without_us(PLAIN, address, name)
    assert finished.returncode == 0, finished.stderr
    weights, text = finished.stdout.splitlines()[-1].split(" ", 1)
    assert text == "2 + 2?"
    return weights


@pytest.mark.parametrize(
    "registry_store", [pytest.param("sqlite", marks=pytest.mark.long), "postgresql"], indirect=True
)
def test_a_champion_is_promoted_beaten_kept_and_rolled_back(registry_store: str, tmp_path: Path) -> None:
    name = f"life-{uuid4().hex[:8]}"
    first = _student(tmp_path / "first", 0, 3)
    better = _student(tmp_path / "better", 1, 12)
    worse = _student(tmp_path / "worse", 2, 0)
    assert [_run(name, student, tmp_path).outcome for student in (first, better, worse)] == [
        "promote",
        "promote",
        "keep",
    ]
    found = connect().get_registered_model(name).aliases
    assert {alias: str(version) for alias, version in found.items()} == {
        "champion": "2",
        "previous-champion": "1",
        "challenger": "3",
    }
    assert _loaded_elsewhere(name) == _weights(better)
    promotion.rollback(name, reason="it rhymes")
    assert _loaded_elsewhere(name) == _weights(first)
    # The same runs again change nothing: each version keeps its decision.
    assert _run(name, better, tmp_path).outcome == "promote"
    found_now = promotion.history(name)
    assert [(entry.action, entry.version) for entry in found_now.entries] == [
        ("rollback", "1"),
        ("promote", "2"),
        ("promote", "1"),
    ]
    assert found_now.champion == "1"
    assert "against" in found_now.entries[1].reason
