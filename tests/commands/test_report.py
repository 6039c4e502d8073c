"""``proxykd report`` as a user types it."""

import os
from pathlib import Path

import pytest

from proxykd import cli
from proxykd.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with the reports of two runs, ``first`` the older one."""
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    found = Workspace.default()
    for age, name in enumerate(("second", "first")):
        for suffix in ("html", "md"):
            (tmp_path / suffix).write_text(f"{suffix} of {name}\n", encoding="utf-8")
            page = found.publish(tmp_path / suffix, f"{name}.{suffix}")
            os.utime(page, (1000 - age, 1000 - age))
    return found


def ask(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["proxykd", "report", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_newest_report_is_found_without_a_name(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == f"{workspace.reports / 'second.html'}\n"


def test_a_named_report_is_printed_as_markdown(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask("first", "--markdown", monkeypatch=monkeypatch) == 0
    assert capsys.readouterr().out == "md of first\n"


@pytest.mark.parametrize("name", ["third", "../home/reports/first", "."])
def test_an_unknown_name_is_told_what_there_is(
    workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(name, monkeypatch=monkeypatch) == 2
    assert "found first, second" in capsys.readouterr().err


def test_a_workspace_without_reports_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    assert ask(monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err
    assert "found none" in message
    assert "proxykd run CONFIG" in message
    assert not (tmp_path / "home").exists()
