"""``proxykd report``: where the report of a run lies, or what it says."""

from pathlib import Path
from typing import Annotated

import typer

from proxykd.exceptions import InputError


def report(
    run: Annotated[str, typer.Argument(metavar="[RUN]", help="Name of the run; by default the newest.")] = "",
    markdown: Annotated[bool, typer.Option("--markdown", help="Print it as Markdown, for a pull request.")] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Print the path of a run's report, or the report itself as Markdown, or open it in the browser."""
    from proxykd.workspace import Workspace

    page = _find(Workspace.default().reports, run)
    if markdown:
        typer.echo(page.with_suffix(".md").read_text(encoding="utf-8"), nl=False)
    else:
        typer.echo(str(page))
    if open_page and typer.launch(page.as_uri()) != 0:
        raise InputError(f"expected a browser to open {page}, found none; open the file by hand")


def _find(folder: Path, run: str) -> Path:
    """The page of a run, or the newest page."""
    pages = sorted(folder.glob("*.html"), key=lambda page: page.stat().st_mtime)
    if not run and pages:
        return pages[-1]
    if run in {page.stem for page in pages}:
        return folder / f"{run}.html"
    known = ", ".join(sorted(page.stem for page in pages)) or "none"
    asked = f"a report of the run {run!r}" if run else "a report"
    raise InputError(f"expected {asked} in {folder}, found {known}; `proxykd run CONFIG` writes one when it ends")
