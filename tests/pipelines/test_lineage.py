"""From a registered version back to every answer: ``proxykd verify`` finds one changed byte, wherever it is."""

import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import read_json
from tests.support.command import Ended
from tests.support.program import NUM_PROMPTS, PROXYKD, Finished, Home
from tests.support.without_us import run_without_us

pytestmark = pytest.mark.integration

Run = tuple[Home, Finished]
MODEL = "tiny-student"

PLAIN = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer, model = (kind.from_pretrained(sys.argv[1]) for kind in (AutoTokenizer, AutoModelForCausalLM))
prompt = tokenizer.apply_chat_template(
    [{"role": "user", "content": "2 + 2?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
)
print(model.generate(**prompt, max_new_tokens=2).shape[1] > prompt["input_ids"].shape[1], "mlflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of this module's own: others register further versions in theirs."""
    home = Home.create(tmp_path_factory.mktemp("lineage"))
    finished = home.run()
    assert finished.status == 0, finished.stderr
    return home, finished


def _command(home: Home, *arguments: str) -> Ended:
    environment = home.environment(COLUMNS="200")
    done = subprocess.run([PROXYKD, *arguments], cwd=home.folder, env=environment, capture_output=True, text=True)
    return Ended(done.returncode, done.stdout, done.stderr)


def _rows(ended: Ended) -> dict[str, tuple[str, str]]:
    """What -> status and detail, from the table."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in ended.out.splitlines() if "│" in line]
    return {what: (status, detail) for what, status, detail in cells if what}


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@contextmanager
def _changed(home: Home, journal: Path, *paths: Path) -> Iterator[None]:
    """One byte changed in each file and in one answer; put back at the end."""
    before = {path: path.read_bytes() for path in paths}
    swap = "UPDATE answers SET reply = replace(reply, ?, ?) WHERE seq = 5"
    try:
        for path in paths:
            _flip(path)
        with sqlite3.connect(journal) as database:
            database.execute(swap, ('"text"', '"tex_"'))
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)
        with sqlite3.connect(journal) as database:
            database.execute(swap, ('"tex_"', '"text"'))


def _stored(home: Home, pattern: str) -> Path:
    """The one file of the workspace that fits."""
    found = list(home.workspace.root.glob(pattern))
    assert len(found) == 1, (pattern, found)
    return found[0]


def _lineage(home: Home) -> dict[str, Any]:
    return read_json(_stored(home, "mlartifacts/tiny/models/*/artifacts/lineage.json"))


def test_a_version_carries_its_whole_lineage(undisturbed: Run) -> None:
    home, finished = undisturbed
    lineage = _lineage(home)
    assert lineage["journal"]["num_entries"] == NUM_PROMPTS
    assert set(lineage["artifacts"]) == {
        "prompts", "completions", "journal", "validated", "validation", "drift", "splits", "proxy", "targets", "sft",
        "student", "evaluation",
    }  # fmt: skip
    (teacher,) = lineage["teachers"]
    assert teacher["first_answer_at"] <= teacher["last_answer_at"]
    assert lineage["evaluation"]["arms"] == finished.report["arms"]
    assert lineage["validation"]["gate"]["is_open"] is True
    assert lineage["fidelity"]
    assert lineage["targets"]
    assert lineage["packages"]["zenml"]
    assert lineage["cost"]["usd"] == 0.0
    assert lineage["cost"]["steps"]["distill_student_proxy_kd"] > 0


def test_all_of_it_verifies(undisturbed: Run) -> None:
    home, _ = undisturbed
    ended = _command(home, "verify", MODEL)
    assert ended.status == 0, ended.out + ended.err
    statuses = {what: status for what, (status, _) in _rows(ended).items() if what != "what"}
    assert statuses.pop("prompts' source") == "not reached"  # they were generated
    assert set(statuses.values()) == {"matched"}
    assert len(statuses) == 5 + len(_lineage(home)["artifacts"]) + 1


def test_one_byte_of_anything_is_found_and_named(undisturbed: Run) -> None:
    home, _ = undisturbed
    model, store = "mlartifacts/tiny/models/*/artifacts", "zenml/local_stores/*"
    registered = [
        _stored(home, f"{model}/{name}") for name in ("model/model.safetensors", "model/README.md", "MLmodel")
    ]
    artifacts = [
        _stored(home, f"{store}/query_teacher/completions/*/*/part-00000.parquet"),
        _stored(home, f"{store}/validate_data/validation/*/*/result.json"),
        _stored(home, f"{store}/align_proxy/proxy/*/*/model/tokenizer.json"),
        _stored(home, f"{store}/distill_student_proxy_kd/student/*/*/seed-0/model/model.safetensors"),
        _stored(home, f"{store}/evaluate_student/evaluation/*/*/manifest.json"),
    ]
    specification = _stored(home, "mlartifacts/tiny/*/artifacts/specification.json")
    with _changed(home, home.workspace.journal, *registered, *artifacts, specification):
        ended = _command(home, "verify", f"{MODEL}@challenger")
        refused = _command(home, "export", MODEL, "exported-damaged")
    assert ended.status == 2
    found = {what: detail for what, (status, detail) in _rows(ended).items() if status == "differs"}
    assert {"MLmodel", "model/README.md", "model/model.safetensors"} <= set(
        found.pop("registered files").removeprefix("changed: ").split(", ")
    )
    assert "rows that are not what was written: [5]" in found.pop("journal entries")
    named = {
        "artifact completions": "changed: part-00000.parquet",
        "artifact validation": "changed: result.json",
        "artifact proxy": "changed: model/tokenizer.json",
        "artifact student": "changed: seed-0/model/model.safetensors",
    }
    assert {what: found.pop(what) for what in named} == named
    assert "manifest.json" in found.pop("artifact evaluation")
    assert set(found) <= {"specification.json of the run"}
    assert "but these differ: registered files" in ended.err
    assert refused.status == 2
    assert "nothing was exported" in refused.err
    assert not (home.folder / "exported-damaged").exists()
    assert _command(home, "verify", MODEL).status == 0


def test_what_is_gone_is_said_and_is_no_difference(undisturbed: Run) -> None:
    home, _ = undisturbed
    targets = _stored(home, "zenml/local_stores/*/estimate_distributions/targets/*/*/manifest.json").parent
    hidden, journal = targets.with_name("hidden"), home.workspace.journal.with_name("hidden.sqlite")
    targets.rename(hidden)
    home.workspace.journal.rename(journal)
    try:
        ended = _command(home, "verify", MODEL)
    finally:
        hidden.rename(targets)
        journal.rename(home.workspace.journal)
    assert ended.status == 0, ended.out + ended.err
    found = {what: detail for what, (status, detail) in _rows(ended).items() if status == "not reached"}
    assert set(found) == {"artifact targets", "journal entries", "prompts' source"}
    assert "it is gone" in found["artifact targets"]


def test_the_exported_folder_needs_transformers_alone(undisturbed: Run) -> None:
    home, _ = undisturbed
    ended = _command(home, "export", MODEL, "exported")
    assert (ended.status, ended.out) == (0, f"{MODEL} version 1 written to exported\n"), ended.err
    folder = home.folder / "exported"
    assert {"README.md", "lineage.json", "config.json", "model.safetensors"} <= {file.name for file in folder.iterdir()}
    loaded = run_without_us(PLAIN, str(folder))
    assert loaded.stdout == "True False\n", loaded.stderr
    again = _command(home, "export", MODEL, "exported")
    assert (again.status, "holds something; name another" in again.err) == (2, True)


def test_a_student_that_gguf_cannot_hold_is_refused_whole(undisturbed: Run) -> None:
    home, _ = undisturbed
    ended = _command(home, "export", MODEL, "exported-gguf", "--format", "gguf")
    assert ended.status == 2
    assert "expected a tokenizer that GGUF can describe" in ended.err
    assert not (home.folder / "exported-gguf").exists()
    assert _command(home, "export", MODEL, "exported-gguf", "--precision", "f16").status == 2
    missing = _command(home, "verify", "nobody")
    assert (missing.status, "expected a registered model 'nobody'" in missing.err) == (2, True)
