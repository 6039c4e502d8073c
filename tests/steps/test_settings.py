"""What a step is told of the specification, and what becomes of its temporary folders."""

import shutil
import tempfile
from pathlib import Path

import pytest

from proxykd.config import RunSpec
from steps.settings import new_folder, scratch_folder, settings_for

pytestmark = pytest.mark.integration


def test_settings_hold_the_named_sections_only() -> None:
    run = RunSpec.model_validate(
        {
            "name": "tiny",
            "prompts": {"kind": "embedded"},
            "teacher": {"kind": "embedded"},
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "tiny"},
        }
    )
    told = settings_for(run, "seed", "split")
    assert set(told) == {"seed", "split"}
    assert RunSpec.view(told).split == run.split


def interrupted_work() -> None:
    with new_folder("proxy") as output, scratch_folder() as scratch:
        (output / "file.json").touch()
        (scratch / "file.json").touch()
        raise KeyboardInterrupt


def test_an_artifacts_folder_outlives_success_and_not_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    with new_folder("proxy") as kept:
        (kept / "file.json").touch()
    assert kept.parent == tmp_path / "home" / "tmp"
    shutil.rmtree(kept)
    with pytest.raises(KeyboardInterrupt):
        interrupted_work()
    assert not list(kept.parent.iterdir())


def test_a_step_without_a_workspace_works_in_the_systems_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROXYKD_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with scratch_folder() as scratch:
        assert scratch.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())
