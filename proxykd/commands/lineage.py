"""``proxykd verify`` and ``export``: is a registered student what its lineage says, and how to take it elsewhere."""

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from proxykd.exceptions import ArtifactError, InputError

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help="NAME (its champion), NAME@ALIAS or NAME/VERSION.")]


class Format(StrEnum):
    """What is written."""

    HF = "hf"
    GGUF = "gguf"


class Precision(StrEnum):
    """How the matrices of a GGUF file are written."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


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

    @app.command()
    def export(
        model: ModelArgument,
        folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="New or empty folder.")],
        format_: Annotated[
            Format, typer.Option("--format", help="hf: a folder for transformers. gguf: one file for llama.cpp.")
        ] = Format.HF,
        precision: Annotated[
            Precision | None, typer.Option(help="Of a GGUF file's matrices.", show_default="f32")
        ] = None,
    ) -> None:
        """Write a registered student where nothing of ours is needed, with its card and its lineage."""
        if precision is not None and format_ is Format.HF:
            raise InputError(f"expected --precision with --format gguf alone, got {precision.value}; leave it out")
        exporting = load("steps.adapters.mlflow_export")
        if format_ is Format.GGUF:
            found, path = exporting.export_gguf(model, folder, precision=(precision or Precision.F32).value)
        else:
            found, path = exporting.export_folder(model, folder)
        typer.echo(f"{found.model_name} version {found.version} written to {path}")


def _show(title: str, findings: list[Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table, console = Table("what", "", title=title, title_justify="left"), Console(highlight=False)
    table.add_column("detail", overflow="fold")
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
