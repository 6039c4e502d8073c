"""The last step as a whole, on real stores: what a champion's comparison costs, and what is left of it after a kill."""

import copy
import os
import re
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxykd.artifacts import (
    DriftReport,
    Evaluation,
    JournalExcerpt,
    Promotion,
    SplitSet,
    StudentModel,
    ValidatedSet,
    ValidationResult,
    read_json,
    seal,
    write_json,
)
from proxykd.config import RunSpec
from proxykd.config.shielding import shielded
from proxykd.evaluation.decision import Decision
from proxykd.evaluation.evaluating import evaluate
from proxykd.evaluation.generation_journal import ANSWERS
from proxykd.exceptions import TeacherError
from proxykd.own_code import code_hash
from steps.adapters import mlflow_registry as registry
from steps.adapters.mlflow_tracking import connect
from steps.promote_model import promote_model
from tests.evaluation.conftest import FACTS, SPECIFICATION, arms, run_spec, splits, validated  # noqa: F401  (fixtures)
from tests.evaluation.test_judge import prefers_the_longer

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]

PRICE = {"input_usd_per_million": 1000.0, "output_usd_per_million": 1000.0}
CODE = code_hash("steps.promote_model")


@dataclass(frozen=True)
class Given:
    """What the step is given, but for the specification."""

    journal: JournalExcerpt
    validation: ValidationResult
    drift: DriftReport
    validated: ValidatedSet
    splits: SplitSet
    student: StudentModel
    evaluation: Evaluation
    run: RunSpec

    def promote(self) -> Promotion:
        """The step as it runs in a pipeline, without a pipeline."""
        names = ("journal", "validation", "drift", "validated", "splits", "student", "evaluation")
        inputs = {name: getattr(self, name) for name in names}
        plain = shielded(self.run.model_dump(mode="json"))
        made: Promotion = promote_model.entrypoint(**inputs, specification=plain, planned=None, code=CODE)
        return made

    def lineage(self) -> dict[str, Any]:
        """Of the registered student."""
        found = registry.find_student("tiny", self.student.hash)
        assert found is not None
        uri = connect().get_model_version_download_uri("tiny", found.version)
        return read_json(Path(urlsplit(uri).path) / "lineage.json")


@pytest.fixture
def speed() -> dict[str, int] | None:
    """What is measured of the student's and of the champion's speed, each in a process of its own."""
    return None


@pytest.fixture
def judged(endpoint: Any, speed: dict[str, int] | None) -> RunSpec:
    """The win rate against the teacher decides, at a price."""
    endpoint.answer = lambda request: (200, endpoint.chat(prefers_the_longer(request)))
    sections = copy.deepcopy(SPECIFICATION)
    sections["student"]["seeds"] = [3]
    sections["evaluation"] |= {
        "exact_kl": False,
        "tasks": [],
        "drift": {"num_prompts": 6, "max_new_tokens": 8},
        "speed": speed,
        "judge": {
            "teacher": {
                "kind": "openai",
                "base_url": endpoint.url,
                "model": "referee",
                "price": PRICE,
                "max_attempts": 2,
            },
            "duels": [{"arm": "proxy_kd", "against": "teacher"}],
        },
    }
    limits = [{"name": "usd", "at_most": 100.0}, {"name": "size_gb", "at_most": 1.0}]
    sections["gate"] = {"primary": {"metric": "win_rate/teacher"}, "guards": [], "min_prompts": 3, "limits": limits}
    return RunSpec.model_validate(sections)


@pytest.fixture
def given(
    arms: dict[str, list[Path]],  # noqa: F811
    validated: ValidatedSet,  # noqa: F811
    splits: SplitSet,  # noqa: F811
    judged: RunSpec,
    mlflow_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Given:
    """An evaluated student, and another one that is champion."""
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    shutil.copytree(validated.path, tmp_path / "validated")
    rows = ValidatedSet(tmp_path / "validated")
    seal(rows, {"prompts": "a" * 64, "completions": "b" * 64})
    student = StudentModel(tmp_path / "student")
    shutil.copytree(arms["proxy_kd"][0], student.path / "seed-3" / "model")
    seal(student)
    journal, validation, drift = (
        kind(tmp_path / kind.kind) for kind in (JournalExcerpt, ValidationResult, DriftReport)
    )
    write_json(journal.path / "journal.json", {"root": "0" * 64, "num_entries": 1, "num_missing": 0, "stages": []})
    write_json(validation.path / "result.json", {})
    write_json(drift.path / "drift.json", {})
    for artifact in (journal, validation, drift):
        seal(artifact)
    first = {arm: folders[:1] for arm, folders in arms.items()}
    (tmp_path / "scratch").mkdir()
    places = {"output": tmp_path / "evaluation", "scratch": tmp_path / "scratch"}
    paid = {"journal_path": tmp_path / "home" / "journal.sqlite"}
    (tmp_path / "home").mkdir()
    evaluation = evaluate(first, rows, splits, judged, facts=FACTS, **places, **paid)
    champion = registry.register_student(
        arms["sft"][1], model_name="tiny", student_hash="champion", experiment="tiny", model_card="# Champion"
    )
    registry.apply_decision(champion, Decision("promote", ("somebody has to be",)))
    return Given(journal, validation, drift, rows, splits, student, evaluation, judged)


def killed_at(write: str, act: Callable[[], Any]) -> None:
    """Do something in a process of its own that is killed right before it logs a file of this name."""
    if pid := os.fork():
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        return
    try:
        from mlflow import MlflowClient

        log = MlflowClient.log_artifact

        def dying(client: MlflowClient, run_id: str, path: str, *more: Any, **named: Any) -> None:
            if path.endswith(write):
                os.kill(os.getpid(), signal.SIGKILL)
            log(client, run_id, path, *more, **named)

        MlflowClient.log_artifact = dying  # type: ignore[method-assign]
        act()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def files_of(promotion: Promotion) -> Iterator[str]:
    """The report's texts without what differs between any two runs: ids, times and places."""
    for name in ("decided.json", "report.html", "report.md"):
        text = (promotion.path / name).read_text(encoding="utf-8")
        yield re.sub(r"[0-9a-f]{32}(?![0-9a-f])|\d{4}-\d\d-\d\d \d\d:\d\d|sqlite:\S+?mlflow\.db", "*", text)


@pytest.mark.parametrize("speed", [{"num_prompts": 2, "prompt_tokens": 4, "new_tokens": 2, "repeats": 1}])
def test_what_judging_the_champion_costs_is_in_spend_gate_lineage_and_page(given: Given, endpoint: Any) -> None:
    before = read_json(given.evaluation.path / "report.json")
    asked = endpoint.asked.total()
    promotion = given.promote()
    decided, page = (promotion.path / name for name in ("decided.json", "report.html"))
    report = read_json(decided)
    judge, own = (one["facts"]["spend"]["judge"] for one in (report, before))
    assert judge["requests"] - own["requests"] == endpoint.asked.total() - asked > 0
    assert judge["cost_usd"] > own["cost_usd"] > 0
    usd = FACTS["spend"]["cost_usd"] + judge["cost_usd"]
    assert report["resources"]["usd"] == pytest.approx(usd)
    assert before["resources"]["usd"] == pytest.approx(FACTS["spend"]["cost_usd"] + own["cost_usd"])
    cost = given.lineage()["cost"]
    assert (cost["usd"], cost["judge_usd"]) == (pytest.approx(usd), pytest.approx(judge["cost_usd"]))
    text = page.read_text(encoding="utf-8")
    assert f"<dt>judge cost</dt><dd>{judge['cost_usd']:,.2f} USD</dd>" in text
    found = {check["name"]: check["text"] for check in read_json(promotion.path / "promotion.json")["checks"]}
    assert f"usd is {usd:.4g}" in found["limit usd"]
    assert {(duel["arm"], duel["against"]) for duel in report["judge"]["duels"]} >= {("champion", "teacher")}
    metrics = connect().get_run(read_json(promotion.path / "promotion.json")["run_id"]).data.metrics
    assert metrics["spend/cost_usd"] == pytest.approx(usd)
    # The champion is measured as the student is, and stands beside it.
    assert report["champion"]["resources"].keys() == report["resources"].keys() - {"usd"}
    assert report["champion"]["resources"]["tokens_per_s"] > 0
    assert "the champion's is" in found["limit size_gb"]


@pytest.mark.parametrize("write", ["report.html", "decided.json"])
def test_a_killed_run_leaves_the_page_of_an_undisturbed_one(
    given: Given, endpoint: Any, write: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-kept"))
    killed_at(write, given.promote)
    asked = endpoint.asked.total()
    after_kill = given.promote()
    assert endpoint.asked.total() == asked
    assert any(
        found["arm"] == "registered" and found["against"] == "champion" and found["value"] is not None
        for found in read_json(after_kill.path / "decided.json")["comparisons"]
    )
    disturbed = list(files_of(after_kill))
    shutil.rmtree(tmp_path)
    tmp_path.with_name(f"{tmp_path.name}-kept").rename(tmp_path)
    for artifact in (given.student, given.evaluation):
        artifact.verify()
    assert list(files_of(given.promote())) == disturbed
    assert not list((tmp_path / "home").glob(f"checkpoints/*/{ANSWERS}"))


def test_a_page_whose_basis_is_lost_is_made_from_the_champion_of_then(given: Given) -> None:
    killed_at("report.html", given.promote)
    student = registry.find_student("tiny", given.student.hash)
    assert student is not None
    registry.apply_decision(student, Decision("promote", ("too late",)))
    (basis,) = given.validated.path.parent.rglob("basis.json")
    basis.write_text(basis.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    report = read_json(given.promote().path / "decided.json")
    assert any(found["against"] == "champion" and found["value"] is not None for found in report["comparisons"])


def test_a_judge_that_fails_leaves_nothing_registered_and_the_answers_known(
    given: Given, endpoint: Any, tmp_path: Path
) -> None:
    answer, endpoint.answer = endpoint.answer, lambda request: (401, {"error": {"message": "no"}})
    with pytest.raises(TeacherError):
        given.promote()
    assert registry.find_student("tiny", given.student.hash) is None
    (answers,) = (tmp_path / "home").glob(f"checkpoints/*/{ANSWERS}")
    (journal,) = answers.glob("*.jsonl")
    before = journal.read_bytes()
    assert before
    with pytest.raises(TeacherError):
        given.promote()
    assert journal.read_bytes() == before, "an answer that is asked again is written again"
    endpoint.answer = answer
    given.promote()
    assert not answers.exists()
