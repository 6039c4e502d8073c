"""Every step in a process of its own, with another folder and an empty home, handing over through a bucket alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.program import CHECKOUT, Finished, Home

pytestmark = pytest.mark.integration


def test_steps_share_nothing_but_the_artifact_store(undisturbed: tuple[Home, Finished], tmp_path: Path) -> None:
    home = Home.create(tmp_path / "cluster")
    register = [sys.executable, "-m", "tests.support.cluster_stack", str(home.folder)]
    checkout = {"PYTHONPATH": str(CHECKOUT)}
    subprocess.run(register, cwd=CHECKOUT, env=home.environment(**checkout), check=True, timeout=120)

    finished = home.run(**checkout)

    assert finished.status == 0, finished.stderr
    notes = [ast.literal_eval(line) for line in (home.folder / "notes.txt").read_text(encoding="utf-8").splitlines()]
    assert len(notes) == 10
    assert not [note for note in notes if note["left"]]
    assert (home.folder / "volume" / "journal.sqlite").is_file()
    assert not list((home.folder / "volume" / "tmp").iterdir())
    assert not home.answers()
    assert list((home.folder / "objects").rglob("*.safetensors"))
    # Another workspace, other processes, another store: the same numbers.
    assert finished.report["arms"] == undisturbed[1].report["arms"]
