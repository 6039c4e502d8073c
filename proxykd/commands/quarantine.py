"""``proxykd quarantine``: list, show and release the rows that validation keeps from teaching.

Nothing is changed but the user's own file of released rows (``validation.release``); the next run heeds it.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxykd.exceptions import ConfigError, InputError

if TYPE_CHECKING:
    from proxykd.artifacts import QuarantineSet
    from proxykd.config import RunSpec

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run specification, a YAML file.")]
PromptArgument = Annotated[str, typer.Argument(metavar="PROMPT_ID", help="16 hex digits, as `list` prints them.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for `proxykd run`. Repeatable.")
]
SampleOption = Annotated[int | None, typer.Option("--sample", min=0, help="Which sample; all of them if left out.")]


def build(load: Callable[[Path, list[str] | None], "RunSpec"], newest: Callable[[str], "QuarantineSet"]) -> typer.Typer:
    """The group of commands.

    Args:
        load: A file and its overrides -> the specification.
        newest: Name of a run -> its newest quarantine.
    """
    app = typer.Typer(help="Look at the rows that may not teach, and release some.", no_args_is_help=True)

    @app.command(name="list")
    def list_rows(
        config: ConfigArgument,
        overrides: SetOption = None,
        verdict: Annotated[str | None, typer.Option(help="Only rows with this verdict.")] = None,
        limit: Annotated[int, typer.Option(min=1, help="Rows to print.")] = 20,
    ) -> None:
        """Count the rows by verdict and print the first ones, a line each."""
        quarantine, counts, shown = newest(load(config, overrides).name), Counter[str](), 0
        for row in quarantine.rows():
            counts[row.verdict] += 1
            if verdict in (None, row.verdict) and shown < limit:
                shown += 1
                why = next(found.detail for found in row.findings if found.rule == row.verdict)
                typer.echo(f"{row.prompt_id}  {row.sample_idx:>3}  {row.verdict:<15}{why[:80]}")
        typer.echo(", ".join(f"{count:,} {name}" for name, count in counts.most_common()) or "nothing in quarantine")
        typer.echo(f"page: {quarantine.path / 'index.html'}")

    @app.command()
    def show(
        config: ConfigArgument, prompt_id: PromptArgument, sample: SampleOption = None, overrides: SetOption = None
    ) -> None:
        """Print whole rows as JSON: every finding, the question and the text."""
        for row in _rows(newest(load(config, overrides).name), prompt_id, sample):
            typer.echo(json.dumps(row, indent=2, ensure_ascii=False))

    @app.command()
    def release(
        config: ConfigArgument,
        prompt_id: PromptArgument,
        by: Annotated[str, typer.Option(help="Who releases it.")],
        reason: Annotated[str, typer.Option(help="Why it may teach.")],
        sample: SampleOption = None,
        overrides: SetOption = None,
    ) -> None:
        """Add a row to the file that `validation.release` names; the next run lets it teach."""
        from proxykd.data.release import Release, append_release

        run = load(config, overrides)
        if (path := run.validation.release) is None:
            raise ConfigError("expected validation.release in the specification, the file of released rows; set it")
        _rows(newest(run.name), prompt_id, sample)
        append_release(path, Release(prompt_id=prompt_id, sample_idx=sample, by=by, reason=reason))
        typer.echo(f"{prompt_id} released in {path}")

    return app


def _rows(quarantine: "QuarantineSet", prompt_id: str, sample: int | None) -> list[dict[str, Any]]:
    from proxykd.data.quarantine import describe

    found = [
        describe(row) for row in quarantine.rows() if row.prompt_id == prompt_id and sample in (None, row.sample_idx)
    ]
    if not found:
        which = "" if sample is None else f", sample {sample}"
        raise InputError(f"expected prompt {prompt_id}{which} in {quarantine.path}, found no such row in quarantine")
    return found
