"""The command line: from ``plan`` and ``run`` to ``promote`` and ``serve``; groups of commands are in ``commands``.

Nothing heavy is imported before a command needs it. Exit status: 0 done, 2 bad input (nothing spent, nothing lost),
130 interrupted (the same command goes on from there).
"""

import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from proxykd.commands.application import (
    check_tracking,
    find_application,
    has_runs,
    import_application,
    spare_the_collector,
    with_engines,
    with_tracking,
)
from proxykd.commands.compile import add_compile_command
from proxykd.commands.disk import damage, disk_trouble
from proxykd.commands.gc import add_run_commands
from proxykd.commands.journal import app as journal_commands
from proxykd.commands.lineage import add_lineage_commands
from proxykd.commands.quarantine import build as quarantine_commands
from proxykd.commands.query import query
from proxykd.commands.registry import add_registry_commands
from proxykd.commands.report import report as report_command
from proxykd.commands.schedule import build as schedule_commands
from proxykd.commands.serve import add_serve_command
from proxykd.commands.stack import build as stack_commands
from proxykd.commands.stack import show_findings
from proxykd.commands.submit import DetachOption, OnStack, ShardsOption, StackOption, read_shards, refuse_missing
from proxykd.commands.tables import show_table
from proxykd.exceptions import ArtifactError, ConfigError, ProxykdError

if TYPE_CHECKING:
    from proxykd.config import RunSpec
    from proxykd.plan import Plan
    from proxykd.workspace import Workspace

app = typer.Typer(
    help="Distil a black-box LLM API into a small model that you own.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.command()(query)
app.command("report")(report_command)
app.add_typer(journal_commands, name="journal")

_INTERRUPTED = 130

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The run specification, a YAML file.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one value, e.g. --set student.steps=100. Repeatable."),
]
AnewOption = Annotated[
    list[str] | None,
    typer.Option(
        "--anew",
        metavar="STEP",
        help="Do a finished step again, e.g. --anew estimate_distributions, whose files are damaged, say. Repeatable.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]


def _version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"proxykd {version('proxykd')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Say which it is.")] = False,
) -> None:
    pass


@app.command()
def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="As a page of documentation instead.")] = False,
) -> None:
    """Print the JSON Schema of the run specification, so that editors complete and check it."""
    from proxykd.config import RunSpec
    from proxykd.config.describing import specification_page

    if markdown:
        typer.echo(specification_page(), nl=False)
        return
    typer.echo(json.dumps(RunSpec.model_json_schema(), indent=2))


@app.command()
def plan(
    config: ConfigArgument,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    stack: StackOption = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print tables as Markdown, for a page.")] = False,
) -> None:
    """Check everything that can be known before spending, and forecast calls, tokens, USD, steps and GB."""
    from proxykd.plan import make_plan, plan_table

    specification = _load(config, overrides, quiet)
    if stack is None:
        show_table(plan_table(make_plan(specification, workspace=_workspace())), is_markdown=markdown)
        return
    there = OnStack(specification, stack, _workspace(), with_engines)
    show_table(plan_table(there.plan()), is_markdown=markdown)
    # What is only planned changes nothing in ZenML, and asks nobody to have changed it.
    show_findings(findings := there.examine(is_registered=False), is_markdown=markdown)
    refuse_missing(stack, findings)


@app.command()
def preview(
    config: ConfigArgument,
    overrides: SetOption = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=1000, help="How many prompts to show.")] = 3,
) -> None:
    """Show exactly what would be sent for the first prompts and what it costs; asks nobody and needs no key."""
    from proxykd.preview import make_preview, preview_text

    found = make_preview(_load(config, overrides, quiet=True), workspace=_workspace(), rows=rows)
    typer.echo(preview_text(found))


@app.command()
def run(
    config: ConfigArgument,
    overrides: SetOption = None,
    quiet: QuietOption = False,
    anew: AnewOption = None,
    shards: ShardsOption = None,
    stack: StackOption = None,
    detach: DetachOption = False,
) -> None:
    """Run the whole way: query, validate, align, estimate, distil, evaluate, promote. Finished parts are not redone."""
    from proxykd.config.steps import check_anew

    started = time.monotonic()
    spare_the_collector()
    specification = _load(config, overrides, quiet)
    divided = read_shards(shards, specification)
    check_anew(anew or ())
    workspace = _workspace()
    if stack is not None:
        there = OnStack(specification, stack, workspace, with_engines)
        if there.is_cluster:
            if (finished := there.run(anew=anew or (), shards=divided, is_detached=detach)) is not None:
                _show_result(finished, workspace, time.monotonic() - started)
            return
        there.activate()
    if detach:
        raise ConfigError("expected --detach with a --stack of a cluster: a run on this machine ends with its process")
    workspace.set_environment()
    from proxykd.progress import heed_interrupts, hush_engines

    hush_engines()
    found = _check_plan(specification, workspace)
    with workspace.locked(), heed_interrupts():
        _check_services(specification, workspace, found)
        running = import_application("pipelines.running")
        try:
            result = running.run_distillation(
                specification, inputs=found.inputs_hash, models=found.models, anew=anew or (), shards=divided
            )
        except ArtifactError as error:
            raise ArtifactError(
                f"{error} (--anew STEP does a finished step again: --anew estimate_distributions makes targets)"
            ) from error
    _show_result(result, workspace, time.monotonic() - started)


@app.command()
def correct(
    config: ConfigArgument,
    attempts: Annotated[Path, typer.Argument(help="JSONL of the student's attempts: prompt_id and text a line.")],
    output: Annotated[Path, typer.Argument(help="New folder for the trajectories.")],
    overrides: SetOption = None,
    quiet: QuietOption = False,
) -> None:
    """Have the teacher give feedback on a student's wrong attempts and improve them; write weighted trajectories."""
    specification, workspace = _load(config, overrides, quiet), _workspace()
    from proxykd.progress import heed_interrupts
    from proxykd.teacher.correcting import correct_attempts

    with workspace.locked(), heed_interrupts():
        summary = correct_attempts(specification, attempts, journal_path=workspace.journal, output=output)
    typer.echo(json.dumps(summary, indent=2))


@app.command()
def ask(
    model: Annotated[str, typer.Argument(help="Registered name, or NAME@ALIAS, or NAME/VERSION.")],
    question: Annotated[str, typer.Argument(help="What to ask it.")],
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
) -> None:
    """Ask a registered student one question (greedy decoding)."""
    asking = with_tracking("steps.adapters.mlflow_asking")
    typer.echo(asking.ask(model, question, max_new_tokens=max_new_tokens))


def _newest_quarantine(name: str) -> Any:
    if not has_runs():
        raise ConfigError(
            f"expected a run called {name} with validated rows in this workspace, found no runs; run it first"
        )
    return with_engines("steps.adapters.quarantine_store").newest_quarantine(name)


def _load_quietly(config: Path, overrides: list[str] | None) -> "RunSpec":
    return _load(config, overrides, quiet=True)


app.add_typer(quarantine_commands(_load_quietly, _newest_quarantine), name="quarantine")
app.add_typer(stack_commands(with_engines), name="stack")
add_compile_command(app, with_engines, _load_quietly)
app.add_typer(schedule_commands(with_engines), name="schedule")
add_run_commands(app, with_engines)
add_registry_commands(app, with_tracking)
add_serve_command(app, with_tracking)
add_lineage_commands(app, with_tracking)


def main() -> None:
    """Entry point: errors raised on purpose become one message and their exit status."""
    if os.getpid() == 1:  # of a container: what it does not handle itself, nobody handles
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        status = app(prog_name="proxykd", standalone_mode=False)
        if status == _INTERRUPTED:  # typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        sys.exit(status)
    except ProxykdError as error:
        _fail(str(error), error.exit_status)
    except typer.TyperException as error:
        # The usage, and what was wrong about it: typer's own words.
        cast(Any, error).show()
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; what was paid for is kept, and the same command goes on from here", _INTERRUPTED)
    except Exception as error:
        root = _workspace().root
        if told := damage(error, root) or _server_trouble(error):
            _fail(told, 2)
        if (reason := disk_trouble(error, root)) is None:
            raise
        _fail(
            f"cannot write: {reason}; free some space (or fix the permission) and run the same command again: it goes "
            "on from here",
            2,
        )


def _server_trouble(error: BaseException) -> str | None:
    """Why ZenML's server is to blame for an error of a command that has imported ZenML; None = it is not."""
    if "zenml" not in sys.modules:
        return None
    told: str | None = with_engines("cluster.zenml_server").server_trouble(error)
    return told


def _load(config: Path, overrides: list[str] | None, quiet: bool) -> "RunSpec":
    from proxykd.config import load_specification

    if quiet:
        os.environ["PROXYKD_PROGRESS"] = "off"
    return load_specification(config, overrides or ()).with_ablations_applied().with_questions_guarded()


def _check_plan(specification: "RunSpec", workspace: "Workspace") -> "Plan":
    from proxykd.plan import make_plan

    found = make_plan(specification, workspace=workspace)
    find_application("pipelines.running")
    return found


def _check_services(specification: "RunSpec", workspace: "Workspace", found: "Plan") -> None:
    """One call to a tracking server, then one to a live endpoint if any is left to make.

    The second is the run's first one and its answer goes to the journal, so that it is not paid for twice. A teacher
    with a cap is first asked when nobody else can spend, and not here.
    """
    from proxykd.teacher.query import probe_teacher

    check_tracking()
    for stage, outlook in enumerate(found.outlooks):
        if specification.teacher.kind != "embedded" and outlook.first_unknown is not None:
            prompt, sample_idx = outlook.first_unknown
            probe_teacher(
                specification,
                journal_path=workspace.journal,
                prompt=prompt,
                sample_idx=sample_idx,
                stage=stage,
            )


def _workspace() -> "Workspace":
    from proxykd.workspace import Workspace

    return Workspace.default()


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def describe_promotion(promotion: Mapping[str, Any]) -> dict[str, str]:
    """What became of the student, as the lines ``decision`` and ``student`` at the end of a run.

    A version keeps the decision that was taken about it, so one that was promoted need not be the champion any more.

    Args:
        promotion: Content of ``promotion.json``.
    """
    outcome, aliases, name = promotion["outcome"], promotion["aliases"], promotion["model_name"]
    later = ""
    if outcome == "promote" and "champion" not in aliases:
        later = f" (decided by an earlier run; another version is champion since: `proxykd history {name}`)"
    return {
        "decision": f"{outcome}{later}: {'; '.join(promotion['reasons'])}",
        "student": f"{promotion['model_uri']} ({'alias ' + ', '.join(aliases) if aliases else 'no alias'})",
    }


def _show_result(result: Any, workspace: "Workspace", seconds: float) -> None:
    """The arms, what was spent, where everything is, and what to type next."""
    from proxykd.artifacts import read_json
    from proxykd.evaluation.report import report_table, spend_line

    console, promotion, report = _console(), result.promotion, read_json(result.evaluation.path / "report.json")
    page = workspace.publish(result.promotion_folder / "report.html", f"{report['name']}.html")
    workspace.publish(result.promotion_folder / "report.md", f"{report['name']}.md")
    cached = sum(status == "cached" for status in result.statuses.values())
    console.print(report_table(report))
    lines = {
        "spent": spend_line(report),
        **describe_promotion(promotion),
        "report": page,
        "mlflow": f"run {promotion['run_id']} in {promotion['tracking_uri']}",
        "time": f"{seconds:.0f} s; {cached} of {len(result.statuses)} steps from the cache",
        "next": shlex.join([sys.argv[0], "ask", promotion["model_name"], promotion["example_question"]]),
    }
    for name, text in lines.items():
        console.print(f"[bold]{name:>9}[/bold]  {text}", soft_wrap=True)


def _fail(message: str, status: int) -> None:
    typer.secho(f"proxykd: {message}", err=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
