"""``proxykd query``: the teacher engine alone, questions in and answers out."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from proxykd.querying import QuerySummary


def query(
    prompts: Annotated[Path, typer.Argument(metavar="PROMPTS", help="Questions: .jsonl, .csv, .tsv or .parquet.")],
    teacher: Annotated[
        str, typer.Option(help="Address of the API up to its version, or a YAML file with a section `teacher`.")
    ] = "https://api.openai.com/v1",
    model: Annotated[str, typer.Option(help="Model name as the endpoint knows it.")] = "",
    kind: Annotated[str, typer.Option(help="Shape of the API: openai, anthropic or gemini.")] = "openai",
    api_key: Annotated[str, typer.Option(help="Name of the environment variable of the key, never the key.")] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="File of answers: .jsonl or .parquet.")] = Path(
        "answers.jsonl"
    ),
    usd: Annotated[float | None, typer.Option(help="Most US dollars that the calls may cost.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="E.g. teacher.sampling.num_samples=4, prompts.prompt_field=q."),
    ] = None,
    journal: Annotated[Path | None, typer.Option(help="The journal; by default that of the workspace.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")] = False,
) -> None:
    """Ask a teacher every question once and write the answers; the same command goes on after any interruption."""
    from proxykd.config.loading import load_query, load_teacher
    from proxykd.progress import heed_interrupts
    from proxykd.querying import prompts_section, run_query

    if quiet:
        os.environ["PROXYKD_PROGRESS"] = "off"
    started = time.monotonic()
    is_file = teacher.endswith((".yaml", ".yml"))
    section: dict[str, Any] = load_teacher(Path(teacher)) if is_file else {"kind": kind, "base_url": teacher}
    given = {"model": model, "api_key": f"${{{api_key.strip('${}')}}}" if api_key else ""}
    section |= {name: value for name, value in given.items() if value}
    if usd is not None:
        section["budget"] = {**section.get("budget", {}), "usd": usd}
    spec = load_query({"prompts": prompts_section(prompts), "teacher": section}, overrides or ())
    with heed_interrupts():
        _show(run_query(spec, output=output, journal=journal), time.monotonic() - started)


def _show(summary: "QuerySummary", seconds: float) -> None:
    outcomes = ", ".join(f"{count:,} {name}" for name, count in summary.outcomes.items() if count)
    typer.echo(f"  answers  {summary.path}: {outcomes}")
    typer.echo(f"   tokens  {summary.prompt_tokens:,} in, {summary.completion_tokens:,} out")
    typer.echo(f"      USD  {summary.cost_usd:,.4f}")
    typer.echo(f"     time  {seconds:.1f} s")
