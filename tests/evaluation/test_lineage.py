"""The lineage says all that is known, and says of the rest that it is not."""

from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import Evaluation, read_json
from proxykd.config import RunSpec
from proxykd.evaluation.lineage import build_lineage, hash_folder, installed_packages, store_lineage
from proxykd.records import hash_json
from proxykd.teacher.query import collect_prompts, query_teacher

JOURNAL: dict[str, Any] = {
    "root": "0" * 64,
    "num_entries": 9,
    "num_missing": 1,
    "stages": [{"stage": 0, "first_answer_at": "2026-01-01T00:00:00+00:00", "last_answer_at": "2026-01-02T00:00:00"}],
}


@pytest.fixture
def report(evaluation: Evaluation) -> dict[str, Any]:
    return read_json(evaluation.path / "report.json")


def _build(report: dict[str, Any], run: RunSpec, **more: Any) -> dict[str, Any]:
    told = {"journal": JOURNAL, "artifacts": {"student": "a" * 64, "prompts": "b" * 64}, "inputs": None, **more}
    return build_lineage(report, run, **told)


def test_everything_is_said(report: dict[str, Any], run_spec: RunSpec) -> None:
    lineage = _build(report, run_spec, steps={"train": 1800.0, "ask": 900.0}, accelerators=2)
    assert lineage["specification"]["hash"] == hash_json(run_spec.model_dump(mode="json"))
    assert RunSpec.model_validate(lineage["specification"]["content"]) == run_spec
    (teacher,) = lineage["teachers"]
    assert (teacher["kind"], teacher["first_answer_at"][:10]) == ("embedded", "2026-01-01")
    assert lineage["journal"] == {"root": "0" * 64, "num_entries": 9, "num_missing": 1}
    assert lineage["prompts"]["hash"] == "b" * 64
    assert lineage["seeds"] == {"run": 0, "student": [3, 4]}
    assert lineage["weights"] == {"source": "embedded:student", "seed": 3}
    assert lineage["fidelity"] == report["facts"]["fidelity"]
    assert lineage["evaluation"]["arms"]["proxy_kd"]["heldout_nll"]["low"] is not None
    assert lineage["estimator"] == run_spec.targets.model_dump(mode="json")
    # 1800 s + 900 s = 0.75 h, on two GPUs 1.5 h of GPU.
    assert lineage["cost"] == {
        "usd": 0.25,
        "teacher_usd": 0.25,
        "judge_usd": None,
        "wall_hours": 0.75,
        "gpu_hours": 1.5,
        "accelerators": 2,
        "steps": {"train": 0.5, "ask": 0.25},
    }


def test_gpu_hours_are_not_guessed_where_the_machines_are_not_known(report: dict[str, Any], run_spec: RunSpec) -> None:
    cost = _build(report, run_spec, steps={"train": 3600.0})["cost"]
    assert (cost["wall_hours"], cost["gpu_hours"], cost["accelerators"]) == (1.0, None, None)


def test_what_nobody_has_said_is_unknown_and_not_left_out(report: dict[str, Any], run_spec: RunSpec) -> None:
    lineage = _build(report, run_spec, journal={"root": None})
    assert lineage["prompts"]["terms"] == {
        "licence": "unknown",
        "url": None,
        "allows_training": None,
        "allows_publication": None,
    }
    (teacher,) = lineage["teachers"]
    assert teacher["terms"]["licence"] == "unknown"
    assert teacher["last_answer_at"] is None
    assert lineage["cost"]["gpu_hours"] is None
    assert lineage["targets"] is None


def test_terms_reach_the_lineage_and_no_hash_of_the_data(
    report: dict[str, Any], run_spec: RunSpec, tmp_path: Path
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Why?", "completion": "So."}\n')
    stated: dict[str, dict[str, Any]] = {"first": {}, "second": {"licence": "Apache-2.0", "allows_training": True}}
    hashes = set()
    for name, terms in stated.items():
        sections = run_spec.model_dump(mode="json", exclude={"evaluation"})
        sections["prompts"] = {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl"), "terms": terms}
        sections["teacher"] = {"kind": "recorded", "terms": terms}
        run = RunSpec.model_validate(sections)
        prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / name / "prompts")
        completions = query_teacher(prompts, run, journal_path=tmp_path / "none", output=tmp_path / name / "answers")
        hashes.add((prompts.hash, completions.hash))
        lineage = _build(report, run)
        found = lineage["teachers"][0]["terms"], lineage["prompts"]["terms"]
        assert [one["allows_training"] for one in found] == [terms.get("allows_training")] * 2
    assert len(hashes) == 1


def test_every_teacher_of_a_staged_run_is_there(report: dict[str, Any], run_spec: RunSpec) -> None:
    sections = run_spec.model_dump(mode="json", exclude={"evaluation"})
    changes = {
        "prompts": {"kind": "jsonl", "path": "rows.jsonl"},
        "teacher": {"kind": "openai", "model": "better"},
        "staging": {"earlier": [{"teacher": {"kind": "openai", "model": "cheap"}}]},
    }
    lineage = _build(report, RunSpec.model_validate({**sections, **changes}))
    assert [(one["stage"], one["model"]) for one in lineage["teachers"]] == [(0, "cheap"), (1, "better")]
    assert [one["first_answer_at"] is None for one in lineage["teachers"]] == [False, True]
    assert lineage["prompts"]["source"] == "rows.jsonl"


def test_the_stored_document_holds_the_hash_of_every_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "a.txt").write_text("a")
    store_lineage({"name": "x"}, tmp_path)
    # SHA-256 of "a".
    digest = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"
    assert read_json(tmp_path / "lineage.json") == {"name": "x", "files": {"model/a.txt": digest}}
    assert set(hash_folder(tmp_path)) == {"lineage.json", "model/a.txt"}


def test_packages_that_are_missing_are_null() -> None:
    found = installed_packages()
    assert found["torch"] is not None
    assert found["python"] is not None
    assert found.get("vllm", "absent") != "absent"
