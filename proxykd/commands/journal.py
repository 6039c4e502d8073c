"""``proxykd journal``: look at, check, write out, fill and compact what was paid for."""

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxykd.exceptions import ArtifactError, InputError

if TYPE_CHECKING:
    from proxykd.teacher.journal import Journal

app = typer.Typer(help="The journal: every answer that was paid for.", no_args_is_help=True)

_SHOWN_CHARS = 60
_NO_ANSWER, _DAMAGED = "no answer", "damaged"

PathOption = Annotated[
    Path | None, typer.Option("--journal", metavar="PATH", help="The journal; by default that of the workspace.")
]


@app.command("list")
def list_answers(
    journal: PathOption = None,
    outcome: Annotated[str, typer.Option(help="Only answers with this outcome: ok, failed, ...")] = "",
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows.")] = 20,
) -> None:
    """Count answers by outcome and model, and show the latest."""
    from rich.console import Console
    from rich.table import Table

    from proxykd.records import Outcome
    from proxykd.teacher.replies import outcome_of

    if outcome and outcome not in (known := [*map(str, Outcome), _NO_ANSWER]):
        raise InputError(f"expected one of {', '.join(known)} for --outcome, got {outcome!r}")
    counts: Counter[tuple[str, str]] = Counter()
    latest: list[tuple[str, ...]] = []
    with _open(journal) as opened:
        for row in opened.rows():
            if not row.is_intact:
                counts[_DAMAGED, "see `proxykd journal verify`"] += 1
                continue
            reply = row.entry().reply
            found = outcome_of(reply)[0].value if row.is_final else _NO_ANSWER
            counts[found, reply.model or "?"] += 1
            if outcome in ("", found):
                when = f"{datetime.fromtimestamp(row.answered_at, UTC):%Y-%m-%d %H:%M:%S}"
                text = " ".join((reply.text or reply.error or reply.refusal).split())
                latest.append((row.key[:12], when, found, text[:_SHOWN_CHARS]))
                del latest[:-limit]
    table, console = (
        Table("key", "answered at (UTC)", "outcome", "text", title_justify="left"),
        Console(highlight=False),
    )
    for cells in latest:
        table.add_row(*cells)
    console.print(table)
    for (name, model), count in sorted(counts.items()):
        console.print(f"{count:>9,}  {name}  {model}", markup=False)


@app.command()
def verify(
    journal: PathOption = None,
    drop_damaged: Annotated[
        bool, typer.Option("--drop-damaged", help="Remove rows that are damaged, so that they are asked again.")
    ] = False,
) -> None:
    """Recompute every checksum; status 2 if anything is wrong."""
    from proxykd.teacher.archive import verify as check

    with _open(journal) as opened:
        found = check(opened)
        typer.echo(f"{found.num_rows:,} rows, {found.num_final:,} final answers that are intact, root {found.root}")
        for row in found.damaged:
            typer.echo(f"damaged: row {row.seq}, key {row.key[:12]!a}")
        for text in found.file_damage:
            typer.echo(f"damaged: {text}")
        if drop_damaged and found.damaged:
            opened.drop(found.damaged)
            typer.echo(f"{len(found.damaged)} damaged rows removed: what they answered is asked again")
            found.damaged.clear()
        if not found.is_intact:
            raise ArtifactError(
                f"the journal {opened.path} is damaged as listed above; restore a copy of it, or remove damaged rows "
                "with --drop-damaged; a file that SQLite finds damaged is read out with "
                f"`sqlite3 {opened.path} .recover | sqlite3 {opened.path}.recovered`"
            )


@app.command()
def export(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="A new file that ends in .jsonl or .parquet.")],
    journal: PathOption = None,
) -> None:
    """Write all answers, with what was asked, to a file."""
    from proxykd.teacher.archive import export as write

    with _open(journal) as opened:
        typer.echo(f"{write(opened, path):,} rows written to {path}")


@app.command("import")
def import_file(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A journal, an export of one, or JSONL of another tool.")
    ],
    journal: PathOption = None,
    config: Annotated[
        Path | None,
        typer.Option(help="A run specification: the file is another tool's and answers this run's prompts."),
    ] = None,
) -> None:
    """Add answers that were paid for elsewhere; those that are here stay."""
    from proxykd.teacher.archive import import_rows

    if config is not None:
        _import_foreign(path, config, journal)
        return
    with _open(journal, is_new=True) as opened:
        num_read, num_new = import_rows(opened, path)
        typer.echo(f"{num_new:,} of {num_read:,} rows were new to {opened.path}")


@app.command()
def compact(journal: PathOption = None) -> None:
    """Remove rows that were replaced, and give their space back to the disk."""
    with _open(journal) as opened:
        before = opened.path.stat().st_size
        opened.compact()
        typer.echo(f"{opened.path}: {before:,} bytes before, {opened.path.stat().st_size:,} now")


def _import_foreign(path: Path, config: Path, journal: Path | None) -> None:
    from proxykd.config import load_specification
    from proxykd.teacher.foreign import import_foreign
    from proxykd.teacher.live import LiveTeacher
    from proxykd.teacher.query import collect_prompts
    from proxykd.workspace import Workspace

    run = load_specification(config)
    if run.teacher.kind == "recorded":
        raise InputError(f"expected a teacher that is asked in {config}, found recorded texts: they need no journal")
    with Workspace.default().temporary_folder("import") as folder, _open(journal, is_new=True) as opened:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "prompts")
        found = import_foreign(opened, path, prompts, LiveTeacher.of(run, run.teacher))
    num_strange = found.num_lines - found.num_known_prompts
    typer.echo(
        f"{found.num_new:,} of {found.num_lines:,} answers were new, {num_strange:,} match no prompt of the run (its "
        f"system message counts); {found.num_missing:,} requests of the run still have none"
    )


def _open(path: Path | None, *, is_new: bool = False) -> "Journal":
    from proxykd.teacher.journal import Journal
    from proxykd.workspace import Workspace

    path = path or Workspace.default().journal
    if not is_new and not path.exists():
        raise InputError(f"expected a journal at {path}, found none; name one with --journal or set PROXYKD_HOME")
    return Journal(path)
