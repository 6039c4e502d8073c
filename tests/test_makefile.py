"""The Makefile: what it removes, what it asks of Python, and what survives when a part of it fails."""

import os
import subprocess
from pathlib import Path

import pytest

import proxykd

CHECKOUT = Path(proxykd.__file__).parents[1]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile, paid answers, and an environment whose programs are scripts."""
    (tmp_path / "Makefile").write_bytes((CHECKOUT / "Makefile").read_bytes())
    (tmp_path / "constraints.txt").write_text("torch==1\n")
    (tmp_path / ".proxykd").mkdir()
    (tmp_path / ".proxykd" / "journal.sqlite").touch()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    return tmp_path


def write_script(file: Path, text: str) -> Path:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def make(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "MAKE"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env={**own, **variables}, capture_output=True, text=True, timeout=60
    )


def test_clean_keeps_what_was_paid_for(checkout: Path) -> None:
    assert make(checkout, "clean").returncode == 0
    assert not (checkout / ".venv").exists()
    assert (checkout / ".proxykd" / "journal.sqlite").is_file()
    recipes = [line for line in (checkout / "Makefile").read_text().splitlines() if line.startswith("\t")]
    assert not any(".proxykd" in line for line in recipes)


@pytest.mark.parametrize("script", ["[ $1 = --version ] && echo Python 3.9.1; exit 1", "exit 127"])
def test_an_unfit_python_is_told_at_once(checkout: Path, script: str) -> None:
    python = write_script(checkout / "python", script)
    done = make(checkout, "check-python", f"PYTHON={python}")
    assert done.returncode == 2
    (message,) = [line for line in done.stderr.splitlines() if line.startswith("expected")]
    assert "Python 3.11 to 3.13 with its modules venv and ensurepip" in message
    assert "python3-venv" in message


def test_a_lock_that_fails_leaves_the_constraints(checkout: Path) -> None:
    write_script(checkout / ".venv" / "bin" / "python", "exit 1")
    uv = write_script(checkout / ".venv" / "bin" / "uv", "echo half; exit 1")
    assert make(checkout, "lock").returncode == 2
    assert (checkout / "constraints.txt").read_text() == "torch==1\n"
    write_script(uv, "echo torch==2+cpu")
    assert make(checkout, "lock").returncode == 0
    assert (checkout / "constraints.txt").read_text() == "torch==2\n"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "- - -"),
        ({"PIP_INDEX_URL": "https://key@one/simple"}, "https://key@one/simple - -"),
        ({"PIP_EXTRA_INDEX_URL": "file:///x https://two http://three"}, "- https://two http://three -"),
        ({"PIP_INDEX_URL": "https://one", "UV_DEFAULT_INDEX": "https://four"}, "https://four - -"),
    ],
)
def test_uv_is_told_of_pips_indexes(checkout: Path, variables: dict[str, str], expected: str) -> None:
    write_script(checkout / ".venv" / "bin" / "python", "exit 1")
    uv = checkout / ".venv" / "bin" / "uv"
    write_script(uv, 'echo "${UV_DEFAULT_INDEX--} ${UV_INDEX--} ${UV_FIND_LINKS:--}"')
    done = make(checkout, "lock", **variables)
    assert done.returncode == 0, done.stderr
    assert (checkout / "constraints.txt").read_text() == f"{expected}\n"
    assert "key" not in done.stdout + done.stderr
