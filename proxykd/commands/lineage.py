"""``proxykd verify``: is a registered student what its lineage says?"""

from collections.abc import Callable
from typing import Annotated, Any

import typer

from proxykd.exceptions import ArtifactError

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="NAME (its champion), NAME@ALIAS or NAME/VERSION.")]


def add_lineage_commands(app: typer.Typer, load: Callable[[str], Any]) -> None:
    """Add the commands to the command line.

    Args:
        app: The command line.
        load: Name of a module of the application -> the module, in an environment where MLflow answers.
    """

    @app.command()
    def verify(model: ModelArgument) -> None:
        """Recompute every hash of a student's lineage that can be reached; status 2 if one differs."""
        registered, findings = load("steps.adapters.mlflow_lineage").verify(model)
        _show(f"{registered.model_name} version {registered.version}", findings)


def _show(title: str, findings: list[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table, console = Table("what", "", "detail", title=title, title_justify="left"), Console(highlight=False)
    for finding in findings:
        table.add_row(*(escape(text) for text in (finding.what, finding.status.value, finding.detail)))
    console.print(table)
    counts = {
        status: sum(one.status.value == status for one in findings) for status in ("matched", "differs", "not reached")
    }
    console.print(", ".join(f"{count} {status}" for status, count in counts.items()))
    if counts["differs"]:
        names = ", ".join(one.what for one in findings if one.status.value == "differs")
        raise ArtifactError(
            f"expected {title} to be what its lineage says, but these differ: {names}; the table says where; restore "
            "them from a copy, or train the student again"
        )
