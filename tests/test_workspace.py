"""The workspace's lock and its temporary folders."""

import os
from pathlib import Path

import pytest

from proxykd.exceptions import BusyError
from proxykd.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "home")


def test_one_run_at_a_time(workspace: Workspace) -> None:
    def enter_again() -> None:
        with workspace.locked():
            pass

    with workspace.locked(), pytest.raises(BusyError, match=rf"process {os.getpid()} .*set PROXYKD_HOME"):
        enter_again()
    enter_again()


def test_the_lock_clears_away_what_a_killed_run_left(workspace: Workspace) -> None:
    left = workspace.tmp / "proxykd-scratch-x"
    left.mkdir(parents=True)
    (left / "weights").touch()
    with workspace.temporary_folder("plan") as in_use:
        with workspace.locked():
            assert not left.exists()
        assert in_use.is_dir()


def test_temporary_folders_leave_nothing(workspace: Workspace) -> None:
    with workspace.temporary_folder("plan") as folder:
        assert folder.parent == workspace.root / "tmp"
        (folder / "file").touch()
    assert not workspace.root.exists()
    with workspace.temporary_folder("proxy", is_kept=True) as kept:
        pass
    assert kept.is_dir()


def test_what_the_user_set_wins_and_what_is_empty_is_not_set(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "environ", {"MLFLOW_TRACKING_URI": "http://mlflow:5000", "ZENML_STORE_URL": "", "EMPTY": ""}
    )
    workspace.set_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "ZENML_STORE_URL" not in os.environ
    assert os.environ["EMPTY"] == ""

    monkeypatch.setattr(os, "environ", {"MLFLOW_TRACKING_URI": ""})
    workspace.set_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == workspace.mlflow_uri
