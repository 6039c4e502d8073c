"""Tables of the command line: as Markdown every row is one line, and renders as a table."""

import pytest
from rich.table import Table

from proxykd.commands.tables import show_table


def make_table() -> Table:
    table = Table("what", "value", title="a [title]", show_lines=True)
    table.add_row("prompts", "word " * 60)
    table.add_row(r"\[a]", "b")
    return table


def test_markdown_has_a_line_a_row_under_its_heading(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(make_table(), is_markdown=True)
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == "### a [title]"
    head, rule, *rows = lines[1:]
    assert [cell.strip() for cell in head.strip("|").split("|")] == ["what", "value"]
    assert set(rule) == {"|", "-"}
    assert [row.strip("|").split("|")[0].strip() for row in rows] == ["prompts", "[a]"]
    assert all(row.count("|") == 3 for row in rows)


def test_a_terminal_gets_a_box(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(make_table())
    out = capsys.readouterr().out
    assert "┏" in out
    assert "### " not in out
