"""``proxykd stack``: stacks as code, registered with ZenML, and what they lack."""

import sys
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import typer

from proxykd.commands.submit import load_stack_whole
from proxykd.commands.tables import show_table
from proxykd.exceptions import ConfigError

StackArgument = Annotated[
    str, typer.Argument(metavar="STACK", help="A stack's file, or NAME for k8s/stacks/NAME.yaml.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of a stack that ZenML holds.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")]

_MARKS = {"ok": "ok", "missing": "MISSING", "unchecked": "not checked"}


def build(load: Callable[[str], Any]) -> typer.Typer:
    """The group of commands.

    Args:
        load: Name of a module of the application -> the module, in an environment where ZenML answers.
    """
    app = typer.Typer(help="Where runs take place: stacks as code.", no_args_is_help=True)
    _add_file_commands(app, load)
    _add_name_commands(app, load)
    return app


def _add_file_commands(app: typer.Typer, load: Callable[[str], Any]) -> None:
    @app.command()
    def apply(stack: StackArgument, yes: YesOption = False) -> None:
        """Show what differs between a stack's file and ZenML, and make ZenML hold what the file says."""
        specification = load_stack_whole(stack)  # nothing is registered that no run could use
        stacks = load("cluster.stacks")
        if not (changes := stacks.compare(specification)):
            typer.echo(f"{specification.name}: nothing to change")
            return
        for change in changes:
            typer.echo(_line(change))
        confirm(f"Apply these {len(changes)} changes to {specification.name}?", yes=yes)
        stacks.apply(specification)
        typer.echo(f"{specification.name}: {len(changes)} changes applied")

    @app.command()
    def doctor(stack: StackArgument) -> None:
        """Say what is there and what is missing for a stack, before anything is submitted. Status 2 = something is."""
        specification = load_stack_whole(stack)
        if missing := show_findings(load("cluster.doctor").examine(specification)):
            raise ConfigError(
                f"the stack {specification.name} lacks {missing} of what a run needs: see the last column"
            )


def _add_name_commands(app: typer.Typer, load: Callable[[str], Any]) -> None:
    @app.command("list")
    def list_stacks() -> None:
        """List the stacks that ZenML holds."""
        from rich.console import Console
        from rich.table import Table

        table = Table("stack", "orchestrator", "artifact store", "made by", "")
        for one in load("cluster.stacks").standings():
            flavors = {part.kind: part.flavor for part in one.components}
            maker, note = ("proxykd" if one.is_ours else "others"), ("active" if one.is_active else "")
            table.add_row(one.name, flavors.get("orchestrator", ""), flavors.get("artifact_store", ""), maker, note)
        Console(highlight=False).print(table)

    @app.command()
    def show(name: NameArgument) -> None:
        """Show a stack's components and their settings; secrets by name."""
        for part in load("cluster.stacks").standing(name).components:
            typer.echo(f"{part.kind}: {part.flavor} ({part.name})")
            for key, value in sorted(part.configuration.items()):
                typer.echo(f"  {key}: {value}")

    @app.command()
    def delete(name: NameArgument, yes: YesOption = False) -> None:
        """Remove a stack and those of its components that no other stack uses; its artifacts and runs stay."""
        stacks = load("cluster.stacks")
        parts = ", ".join(part.name for part in stacks.standing(name).components)
        confirm(f"Remove the stack {name} ({parts}) from ZenML?", yes=yes)
        stacks.delete(name)
        typer.echo(f"{name}: removed")


def show_findings(findings: Iterable[Any], *, is_markdown: bool = False) -> int:
    """Print a doctor's findings as a table, of the terminal or of Markdown; how many of them are missing."""
    from rich.markup import escape
    from rich.table import Table

    table, missing = Table(), 0
    for name in ("", "what", "found, and what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        missing += finding.state == "missing"
        told = ("<br>" if is_markdown else "\n").join(
            filter(None, (finding.found, finding.remedy and f"-> {finding.remedy}"))
        )
        table.add_row(_MARKS[finding.state], escape(finding.what), escape(told))
    show_table(table, is_markdown=is_markdown)
    return missing


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if the user agrees.

    Raises:
        ConfigError: if nobody can be asked.
        typer.Abort: if the answer is no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise ConfigError("expected --yes where nobody can be asked; nothing was changed")
    typer.confirm(question, abort=True)


def _line(change: Any) -> str:
    place = f"{change.component}.{change.key}"
    if not change.old:
        return f"  + {place}: {change.new}"
    return f"  ~ {place}: {change.old} -> {change.new}" if change.new else f"  - {place}: {change.old}"
