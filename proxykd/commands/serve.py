"""``proxykd serve``: a registered student behind an OpenAI-compatible endpoint."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any

import typer

from proxykd.commands.lineage import ModelArgument

LOOPBACK = "127.0.0.1"


class Engine(StrEnum):
    """Which server answers."""

    AUTO = "auto"
    TRANSFORMERS = "transformers"
    VLLM = "vllm"


def add_serve_command(app: typer.Typer, load: Callable[[str], Any]) -> None:
    """Add the command to the command line.

    Args:
        app: The command line.
        load: Name of a module of the application -> the module, in an environment where MLflow answers.
    """

    @app.command()
    def serve(
        model: ModelArgument,
        host: Annotated[str, typer.Option(help="Address to listen on; anything but loopback is open to others.")] = (
            LOOPBACK
        ),
        port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
        engine: Annotated[Engine, typer.Option(help="auto: vLLM where it is installed, else transformers.")] = (
            Engine.AUTO
        ),
        follow: Annotated[bool, typer.Option("--follow", help="Serve the new version when the alias moves.")] = False,
        poll_s: Annotated[float, typer.Option(min=0.1, help="Seconds between looks at the alias.")] = 15.0,
    ) -> None:
        """Serve a registered student at /v1/chat/completions until interrupted."""
        serving = load("steps.adapters.mlflow_serving")
        serving.serve(model, host=host, port=port, engine=engine.value, poll_s=poll_s if follow else None)
