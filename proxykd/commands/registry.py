"""``proxykd promote``, ``rollback`` and ``history``: who is champion, by hand.

The same functions as a run's own promotion; two at once, by hand or by a run, never both win.
"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Registered model.")]
ExpectOption = Annotated[
    str | None,
    typer.Option(
        "--expect-champion",
        metavar="VERSION",
        help="Only if this version is champion now; `none`: only if nobody is. Naming it also accepts an alias that "
        "was moved by other means.",
    ),
]
ReasonOption = Annotated[str, typer.Option(help="Why; kept in the history.")]
ByOption = Annotated[str, typer.Option(help="Who; kept in the history. [default: user@machine]", show_default=False)]

_SHOWN_CHARS = 60


def add_registry_commands(app: typer.Typer, load: Callable[[str], Any]) -> None:
    """Add the commands to the command line.

    Args:
        app: The command line.
        load: Name of a module of the application -> the module, in an environment where MLflow answers.
    """

    @app.command()
    def promote(
        name: NameArgument,
        version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Who shall be champion.")],
        expect_champion: ExpectOption = None,
        reason: ReasonOption = "",
        by: ByOption = "",
    ) -> None:
        """Make a registered version the champion. Of two at once exactly one wins, and the other is told."""
        promotion = load("steps.adapters.mlflow_promotion")
        expected = promotion.ANY if expect_champion is None else expect_champion
        found = promotion.promote(name, str(version), expected=expected, reason=reason, by=by)
        if not found.is_new:
            typer.echo(f"version {version} of {name} is the champion already")
            return
        _tell(name, found)

    @app.command()
    def rollback(
        name: NameArgument, expect_champion: ExpectOption = None, reason: ReasonOption = "", by: ByOption = ""
    ) -> None:
        """Make the champion before the present one champion again; once more goes one further back."""
        promotion = load("steps.adapters.mlflow_promotion")
        expected = promotion.ANY if expect_champion is None else expect_champion
        _tell(name, promotion.rollback(name, expected=expected, reason=reason, by=by))

    @app.command()
    def history(
        name: NameArgument, limit: Annotated[int, typer.Option(min=1, help="How many entries, the latest.")] = 20
    ) -> None:
        """Show who was made champion, when, by whom and why, and whether the alias is where it was put."""
        _show_history(name, load("steps.adapters.mlflow_promotion").history(name, limit=limit))


def _tell(name: str, found: Any) -> None:
    typer.echo(f"champion of {name}: version {found.standing.champion}, in place of {_version(found.replaced)}")
    if found.standing.previous:
        typer.echo(f"`proxykd rollback {name}` goes back to version {found.standing.previous}")


def _show_history(name: str, found: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table, console = Table("entry", "at (UTC)", "action", "from", "to", "by", "why"), Console(highlight=False)
    for entry in found.entries:
        action = entry.action if entry.number in found.in_effect else f"{entry.action} (came second)"
        why = entry.reason if len(entry.reason) <= _SHOWN_CHARS else f"{entry.reason[:_SHOWN_CHARS]}..."
        cells = (str(entry.number), entry.at.replace("T", " ").partition("+")[0], action)
        table.add_row(*cells, entry.replaced or "nobody", entry.version or "nobody", entry.by, why)
    console.print(table)
    console.print(f"champion of {name}: {_version(found.champion)}", markup=False)
    if not found.is_settled:
        console.print(
            "the last entry has not been carried out: whoever did it is under way or died; the next promotion, rollback"
            " or run carries it out"
        )
    elif found.champion != found.standing.champion:
        console.print(
            f"the alias was moved by other means: by the history it is {_version(found.standing.champion)}; "
            "`--expect-champion` with what it is now accepts that"
        )


def _version(version: str | None) -> str:
    return f"version {version}" if version else "nobody"
