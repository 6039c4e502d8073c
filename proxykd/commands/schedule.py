"""``proxykd schedule``: runs that a cluster starts again and again."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxykd.commands.stack import confirm
from proxykd.commands.submit import OnStack
from proxykd.exceptions import ConfigError

if TYPE_CHECKING:
    from proxykd.config.schedule import ScheduleFileSpec

StackOption = Annotated[
    str | None, typer.Option("--stack", metavar="STACK", help="A stack's file, or NAME for k8s/stacks/NAME.yaml.")
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name of the schedule.")]
RequiredStack = Annotated[
    str, typer.Option("--stack", metavar="STACK", help="A stack's file, or NAME for k8s/stacks/NAME.yaml.")
]


def build(load: Callable[[str], Any]) -> typer.Typer:
    """The group of commands.

    Args:
        load: Name of a module of the application -> the module, in an environment where ZenML answers.
    """
    app = typer.Typer(help="Runs that a cluster starts again and again.", no_args_is_help=True)
    _add_apply(app, load)
    _add_others(app, load)
    return app


def _add_apply(app: typer.Typer, load: Callable[[str], Any]) -> None:
    @app.command()
    def apply(
        file: Annotated[Path, typer.Argument(metavar="FILE", help="A schedule, or a run specification with --cron.")],
        stack: StackOption = None,
        name: Annotated[str | None, typer.Option(help="Name; by default that of the file.")] = None,
        cron: Annotated[str | None, typer.Option(help="When, e.g. '0 3 * * mon'.")] = None,
        time_zone: Annotated[str | None, typer.Option(help="Zone of that, e.g. Europe/Berlin.")] = None,
        concurrency: Annotated[str | None, typer.Option(help="Forbid, Allow or Replace.")] = None,
        starting_deadline_s: Annotated[int | None, typer.Option(help="Seconds after its time.")] = None,
        suspend: Annotated[bool | None, typer.Option("--suspend/--no-suspend", help="Start nothing for now.")] = None,
    ) -> None:
        """Make the cluster's CronJob say what the file says; a second time nothing changes, and no twin is made."""
        times = {
            "cron": cron, "time_zone": time_zone, "concurrency": concurrency,
            "starting_deadline_s": starting_deadline_s, "suspend": suspend,
        }  # fmt: skip
        _apply(_wanted(file, stack, name, {key: value for key, value in times.items() if value is not None}), load)


def _add_others(app: typer.Typer, load: Callable[[str], Any]) -> None:
    @app.command("list")
    def list_schedules(stack: RequiredStack) -> None:
        """List a stack's schedules."""
        from rich.console import Console
        from rich.table import Table

        table = Table("schedule", "when", "time zone", "if one is under way", "state", "last started")
        api = _api(stack, load)
        for one in load("cluster.schedules").listed(api):
            state = "paused" if one.is_suspended else (f"{one.active} running" if one.active else "waiting")
            table.add_row(one.name, one.cron, one.time_zone, one.concurrency, state, one.last or "never")
        Console(highlight=False).print(table)

    @app.command()
    def pause(name: NameArgument, stack: RequiredStack) -> None:
        """Start no more runs until `resume`; one that is under way goes on."""
        api = _api(stack, load)
        done = load("pipelines.scheduling").suspend(name, api, is_suspended=True)
        typer.echo(f"{name}: paused" if done else f"{name}: paused already")

    @app.command()
    def resume(name: NameArgument, stack: RequiredStack) -> None:
        """Start runs again at their times."""
        api = _api(stack, load)
        done = load("pipelines.scheduling").suspend(name, api, is_suspended=False)
        typer.echo(f"{name}: resumed" if done else f"{name}: was not paused")

    @app.command()
    def delete(
        name: NameArgument,
        stack: RequiredStack,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it without asking.")] = False,
    ) -> None:
        """Remove a schedule; a run of it that is under way goes on."""
        api = _api(stack, load)
        confirm(f"Remove the schedule {name}?", yes=yes)
        done = load("pipelines.scheduling").delete(name, api)
        typer.echo(f"{name}: removed" if done else f"{name}: gone already")


def _wanted(file: Path, stack: str | None, name: str | None, times: dict[str, Any]) -> "ScheduleFileSpec":
    """The schedule of a file, changed by options; or that of a run specification and options alone."""
    from proxykd.config.loading import load_model, read_yaml
    from proxykd.config.schedule import HELP, WHAT, ScheduleFileSpec

    values = read_yaml(file, what="a schedule or a run specification", example="k8s/schedules/weekly.yaml")
    if not {"schedule", "stack"} & values.keys():
        if stack is None or "cron" not in times:
            raise ConfigError(
                f"{file} is a run specification and says neither where nor when: add --stack and --cron, or write a "
                "schedule's file as k8s/schedules/weekly.yaml"
            )
        values = {"name": values.get("name"), "run": str(file.resolve())}
    values = {**values, **({"name": name} if name else {})}
    if stack is not None:
        values["stack"] = str(Path(stack).resolve()) if stack.endswith((".yaml", ".yml")) else stack
    if isinstance(own := values.get("schedule", {}), dict):
        values["schedule"] = {**own, **times}
    found: ScheduleFileSpec = load_model(file, ScheduleFileSpec, values, what=WHAT, help_text=HELP)
    return found


def _cluster(stack: str) -> Any:
    from proxykd.config.stack import KubernetesStackSpec, load_stack

    found = load_stack(stack)
    if not isinstance(found, KubernetesStackSpec):
        instead = (
            "let cron start `proxykd run` there"
            if found.kind == "local"
            else "make a recurring run on the pages of Kubeflow Pipelines"
        )
        raise ConfigError(
            f"expected a stack that has a scheduler, kind kubernetes; got {found.name} of kind {found.kind}: {instead}"
        )
    return found


def _api(stack: str, load: Callable[[str], Any]) -> Any:
    found = _cluster(stack)
    return load("cluster.api").ClusterApi.connect(found.context, namespace=found.namespace)


def _apply(wanted: "ScheduleFileSpec", load: Callable[[str], Any]) -> None:
    from proxykd.config import load_specification
    from proxykd.workspace import Workspace

    stack = _cluster(wanted.stack)
    run = load_specification(wanted.run, wanted.overrides).with_ablations_applied().with_questions_guarded()
    there = OnStack(run, wanted.stack, Workspace.default(), load)
    planned = there.plan()
    there.activate(is_scheduled=True)
    scheduling = load("pipelines.scheduling")
    application = scheduling.Application(
        wanted.name, run, stack, wanted.schedule, planned.inputs_hash, planned.models, wanted.anew
    )
    changes = scheduling.apply(application, _api(wanted.stack, load))
    if not changes:
        typer.echo(f"{wanted.name}: nothing to change")
    for change in changes:
        typer.echo(f"{wanted.name}: {change}")
