"""Tables of the command line: for a terminal, or as Markdown for a page that others read."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

_PAGE_COLUMNS = 10_000
"""Wider than any row: a row of Markdown is one line."""


def show_table(table: "Table", *, is_markdown: bool = False) -> None:
    """Print a table.

    Args:
        table: What is shown; rich's markup counts in its cells.
        is_markdown: As Markdown, the title as a heading.
    """
    from rich import box
    from rich.console import Console

    if not is_markdown:
        Console(highlight=False).print(table)
        return
    console = Console(highlight=False, width=_PAGE_COLUMNS, color_system=None)
    title, table.title, table.box, table.show_lines = table.title, None, box.MARKDOWN, False
    if title is not None:
        console.print(f"### {title}\n", markup=False)
    console.print(table)
    console.print()
