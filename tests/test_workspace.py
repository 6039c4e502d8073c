"""The workspace's lock and its temporary folders."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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


def test_a_step_removes_what_killed_steps_left_a_day_ago_and_leaves_the_rest(workspace: Workspace) -> None:
    """On a claim, where nobody has the workspace's lock."""
    left, young = (workspace.tmp / f"proxykd-scratch-{name}" for name in ("left", "young"))
    for folder in (left, young):
        (folder / "weights").mkdir(parents=True)
    with workspace.temporary_folder("train") as in_use:
        for folder in (left, in_use):
            os.utime(folder, (0, 0))
        with workspace.temporary_folder("another"):
            assert not left.exists()
            assert young.is_dir()
            assert in_use.is_dir()
    assert [path.name for path in workspace.tmp.iterdir()] == [young.name]


def test_a_volume_belongs_to_one_run_until_it_is_in_nobodys_way(workspace: Workspace) -> None:
    asked = []

    def answering(is_in_the_way: bool) -> Callable[[str], bool]:
        return lambda run_id: asked.append(run_id) or is_in_the_way  # type: ignore[func-returns-value]

    workspace.take("1", "weekly-1", is_in_the_way=answering(True))
    workspace.take("1", "weekly-1", is_in_the_way=answering(True))  # its next step
    assert not asked, "nobody else was there"
    with pytest.raises(BusyError, match=r"weekly-1 is under way there.*proxykd runs weekly-1"):
        workspace.take("2", "mine-1", is_in_the_way=answering(True))
    workspace.take("2", "mine-1", is_in_the_way=answering(False))
    with pytest.raises(BusyError, match="mine-1 is under way"):
        workspace.take("1", "weekly-1", is_in_the_way=answering(True))
    assert asked == ["1", "1", "2"]


def test_of_runs_that_meet_on_a_volume_one_has_it(workspace: Workspace) -> None:
    with ThreadPoolExecutor(8) as pool:

        def take(number: int) -> bool:
            try:
                workspace.take(str(number), f"run-{number}", is_in_the_way=lambda _: True)
            except BusyError:
                return False
            return True

        assert sum(pool.map(take, range(32))) == 1


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
