"""``proxykd gc`` and ``proxykd runs``: which runs there are, and what those left behind that nobody carries on."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from typing import Annotated, Any

import typer

from proxykd.commands.application import has_runs
from proxykd.exceptions import BusyError, InputError

StackOption = Annotated[
    str | None, typer.Option("--stack", metavar="STACK", help="A stack's file, or NAME for k8s/stacks/NAME.yaml.")
]


def add_run_commands(app: typer.Typer, load: Callable[[str], Any]) -> None:
    """Add the commands to the command line.

    Args:
        app: The command line.
        load: Name of a module of the application -> the module, in an environment where ZenML answers.
    """

    @app.command()
    def runs(
        name: Annotated[str, typer.Argument(metavar="[RUN]", help="Name of a run: show its steps.")] = "",
        stack: Annotated[str | None, typer.Option("--stack", metavar="NAME", help="Only runs of this stack.")] = None,
        limit: Annotated[int, typer.Option(min=1, max=1000, help="How many, the latest.")] = 20,
        stop: Annotated[bool, typer.Option("--stop", help="End RUN on its cluster; what is finished is kept.")] = False,
        close: Annotated[bool, typer.Option("--close", help="Record RUN as failed; its pods are not stopped.")] = False,
    ) -> None:
        """List runs and their states; with a run's name, its steps."""
        if (stop or close) and not name:
            raise InputError(
                f"expected the name of a run before {'--stop' if stop else '--close'}; `proxykd runs` lists them"
            )
        if not (name or has_runs()):
            _show_runs([], stack)
            return
        records = load("cluster.runs")
        if stop:
            _stop(load("cluster.stopping"), records.named(name))
        elif close:
            _close(records, name)
        elif name:
            _show_steps(records, name)
        else:
            _show_runs(list(records.recent(limit, stack=stack)), stack)

    @app.command()
    def gc(
        stack: StackOption = None,
        yes: Annotated[bool, typer.Option("--yes", "-y", help="Do it; without this nothing is changed.")] = False,
        grace_min: Annotated[float, typer.Option(min=0, help="Minutes; what is younger is left alone.")] = 10.0,
        keep_h: Annotated[float, typer.Option(min=0, help="Hours that Jobs are kept after their end.")] = 24.0,
    ) -> None:
        """Close runs that nobody carries on, and remove what they left behind; ours alone."""
        from proxykd.config.stack import ClusterStackSpec, load_stack
        from proxykd.workspace import Workspace

        specification, garbage = (None if stack is None else load_stack(stack)), load("cluster.garbage")
        try:
            with Workspace.default().locked():
                done = _clear(garbage.find_abandoned_here(), yes=yes)
        except BusyError as error:
            typer.echo(f"runs of this machine are not looked at: {error}", err=True)
            done = 0
        if isinstance(specification, ClusterStackSpec):
            ages = garbage.Ages(datetime.now(UTC), timedelta(minutes=grace_min), timedelta(hours=keep_h))
            done += _clear(_waste_of(specification, ages, load), yes=yes)
        if not done:
            typer.echo("nothing to remove")
        elif not yes:
            typer.echo(f"{done} to remove; `--yes` does it")


def _waste_of(stack: Any, ages: Any, load: Callable[[str], Any]) -> Iterable[Any]:
    """What runs of a cluster's stack left behind; Kubeflow Pipelines removes its pods itself."""
    # Refuses a file that differs from what ZenML holds: it would look for Jobs where there are none.
    orchestrator = load("cluster.stacks").orchestrator_id(stack)
    if stack.kind == "kubeflow":
        pipelines = load("cluster.kubeflow_runs")
        server = pipelines.KubeflowRuns.of_stack(load("cluster.stacks").stack_id(stack))
        found: Iterable[Any] = pipelines.find_abandoned(server, load("cluster.runs").unfinished(), orchestrator, ages)
        return found
    api = load("cluster.api").ClusterApi.connect(stack.context, namespace=stack.namespace)
    found = load("cluster.garbage").find_waste(api, orchestrator, ages, tell=_tell)
    unfinished = load("cluster.runs").unfinished()
    starved = load("cluster.starving").find_starved(
        api, unfinished, orchestrator, ages, stack.start_timeout_s, tell=_tell
    )
    return chain(found, starved)


def _tell(line: str) -> None:
    typer.echo(line, err=True)


def _clear(found: Iterable[Any], *, yes: bool) -> int:
    """Remove, or say what would be removed; how many there are."""
    count = 0
    for waste in list(found):
        count += 1
        did = ("removed" if waste.remove() else "gone already") if yes else "would remove"
        verb = did.replace("remove", "close") if waste.kind == "Run" else did
        typer.echo(f"{verb} {waste.kind} {waste.name}: {waste.reason}")
    return count


def _show_runs(found: Sequence[Any], stack: str | None) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        typer.echo(f"no runs {f'on the stack {stack}' if stack else 'yet'}: `proxykd run CONFIG` starts one")
        return
    table = Table("run", "stack", "state", "submitted (UTC)", "took")
    table.columns[0].overflow = "fold"
    for run in found:
        took = "" if run.ended is None else str(run.ended - run.created).split(".")[0]
        table.add_row(run.name, run.stack, run.status, f"{run.created:%Y-%m-%d %H:%M:%S}", took)
    Console(highlight=False).print(table)


def _close(records: Any, name: str) -> None:
    """For a run that nobody carries on, where `gc` cannot see that."""
    did = records.close(records.named(name).run_id, "closed by proxykd runs --close")
    typer.echo(f"{name}: recorded as failed" if did else f"{name}: had ended already")


def _stop(stopping: Any, run: Any) -> None:
    did = stopping.stop(run, f"stopped by proxykd runs {run.name} --stop", tell=_tell)
    typer.echo(f"{run.name}: {'stopped' if did else 'had ended already'}")


def _show_steps(records: Any, name: str) -> None:
    run = records.named(name)
    typer.echo(f"{run.name} on {run.stack or 'a stack that is gone'}: {run.status}")
    if run.reason:
        typer.echo(f"  {run.reason}")
    for step, status in records.steps_of(run.run_id).items():
        typer.echo(f"  {step}: {status}")
