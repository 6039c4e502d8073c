"""``proxykd compile``: what Kubeflow Pipelines would be sent for a run, as a file."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxykd.commands.submit import ShardsOption, read_shards

if TYPE_CHECKING:
    from proxykd.config import RunSpec


def add_compile_command(
    app: typer.Typer, load: Callable[[str], Any], read: Callable[[Path, list[str] | None], "RunSpec"]
) -> None:
    """Add the command to the command line.

    Args:
        app: The command line.
        load: Name of a module of the application -> the module, in an environment where ZenML answers.
        read: Path and overrides -> the resolved specification.
    """

    @app.command("compile")
    def compile_(
        config: Annotated[Path, typer.Argument(metavar="CONFIG", help="The run specification, a YAML file.")],
        stack: Annotated[
            str, typer.Option(metavar="STACK", help="A stack's file, or NAME for k8s/stacks/NAME.yaml.")
        ] = "kubeflow",
        output: Annotated[
            Path | None, typer.Option("--output", "-o", help="The file; by default it is printed.")
        ] = None,
        overrides: Annotated[
            list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one value. Repeatable.")
        ] = None,
        shards: ShardsOption = None,
    ) -> None:
        """Write the pipeline as Kubeflow Pipelines reads it; needs no cluster, sends nothing, holds no credential."""
        from proxykd.config.stack import load_stack

        run, place = read(config, overrides), load_stack(stack)
        divided = read_shards(shards, run)
        text = load("pipelines.kubeflow").compile_distillation(run, place, shards=divided)
        if output is None:
            typer.echo(text, nl=False)
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
        typer.echo(str(output))
