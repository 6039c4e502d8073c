"""``proxykd plan|run --stack``: the same run on a named stack, checked first, activated for this process alone."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxykd.exceptions import ConfigError

if TYPE_CHECKING:
    from proxykd.config import RunSpec
    from proxykd.plan import Plan
    from proxykd.workspace import Workspace

ACTIVE_STACK = "ZENML_ACTIVE_STACK_ID"

StackOption = Annotated[
    str | None,
    typer.Option("--stack", metavar="STACK", help="Run there: a stack's file, or NAME for k8s/stacks/NAME.yaml."),
]
ShardsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--shards",
        metavar="STEP=N",
        help="Work on a step's prompts in N parts, each a step of its own (on a cluster, a pod of its own, and by "
        "default as many as the placement says): query_teacher=8, estimate_distributions=4. Repeatable.",
    ),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="With --stack: submit, print the run's name and end.")]


@dataclass(frozen=True)
class OnStack:
    """A specification and where it is to run.

    Attributes:
        specification: The resolved specification.
        name: The stack's file or name.
        workspace: Of this machine.
        load: Name of a module of the application -> the module, in an environment where ZenML answers.
    """

    specification: "RunSpec"
    name: str
    workspace: "Workspace"
    load: Callable[[str], Any]

    @cached_property
    def stack(self) -> Any:
        """The stack, read and validated.

        Raises:
            ConfigError: naming every key of it or of its placement that is unknown, missing or out of bounds.
        """
        return load_stack_whole(self.name)

    @property
    def is_cluster(self) -> bool:
        """Whether the steps run in pods, and not on this machine."""
        from proxykd.config.stack import ClusterStackSpec

        return isinstance(self.stack, ClusterStackSpec)

    def plan(self) -> "Plan":
        """What ``make_plan`` finds; keys, memory and disk are looked at where the steps run.

        Raises:
            ConfigError: if something cannot be used, or would train in fewer processes than the specification says.
        """
        from proxykd.config.placement import check_processes, load_placement
        from proxykd.plan import make_plan

        if self.is_cluster:
            check_processes(self.specification, load_placement(self.stack.placement))
        return make_plan(self.specification, workspace=self.workspace, is_elsewhere=self.is_cluster)

    def examine(self, *, is_scheduled: bool = False, is_registered: bool = True) -> list[Any]:
        """What the doctor finds; ``is_registered`` = ZenML must hold the stack as its file says."""
        from proxykd.config.asking import askings_of

        askings = askings_of(self.specification) if self.is_cluster else ()
        doctor = self.load("cluster.doctor")
        wanted = {"is_scheduled": is_scheduled, "is_registered": is_registered}
        return list(doctor.examine(self.stack, askings=askings, **wanted))

    def activate(self, *, is_scheduled: bool = False) -> None:
        """Check the stack and make it the active one of this process alone.

        Raises:
            ConfigError: naming all that is missing, each with what to do.
        """
        uri = None if self.is_cluster else self.stack.tracking_uri
        if uri is not None:
            os.environ["MLFLOW_TRACKING_URI"] = uri
        refuse_missing(self.name, self.examine(is_scheduled=is_scheduled))
        os.environ[ACTIVE_STACK] = self.load("cluster.stacks").stack_id(self.stack)

    def _make_room(self) -> Any:
        """Go on only if no other run is at work there; the cluster, None where others start the pods."""
        neighbours = self.load("cluster.neighbours")
        neighbours.refuse_second(self.stack.name)
        if self.stack.kind != "kubernetes":
            return None
        api = self.load("cluster.api").ClusterApi.connect(self.stack.context, namespace=self.stack.namespace)
        has_ended = self.load("cluster.runs").has_ended
        neighbours.remove_trainings(api, has_ended, lambda line: typer.echo(line, err=True))
        return api

    def run(self, *, anew: Sequence[str], shards: Mapping[str, int], is_detached: bool) -> Any:
        """Submit to a cluster and wait for the end; gives the result, or None of a detached run.

        Raises:
            BusyError: if another run is under way there.
            ProxykdError: if anything is missing, or the run ends badly.
        """
        found = self.plan()
        self.activate()
        api = self._make_room()
        submitting = self.load("pipelines.submitting")
        run = submitting.submit(
            self.specification, self.stack, inputs=found.inputs_hash, models=found.models, anew=anew, shards=shards
        )
        if is_detached:
            typer.echo(run.name)
            return None
        typer.echo(f"submitted {run.name}", err=True)
        pipelines = None
        if api is None:
            pipelines = self.load("cluster.kubeflow_runs").KubeflowRuns.of_stack(os.environ[ACTIVE_STACK])
        try:
            tell = partial(typer.echo, err=True)
            submitting.follow(run, self.stack, api, tell=tell, pipelines=pipelines)
        except KeyboardInterrupt:
            typer.echo(f"the run goes on without being watched: proxykd runs {run.name}", err=True)
            raise
        return self.load("pipelines.running").collect(run.run_id, self.specification)


def load_stack_whole(name: str) -> Any:
    """Read a stack, and its placement, so that a wrong one is told before any engine is asked.

    Args:
        name: Its file, or the name of one in ``k8s/stacks``.

    Raises:
        ConfigError: naming every key that is unknown, missing or out of bounds, or what Kubeflow Pipelines cannot give.
    """
    from proxykd.config.kubeflow import check_kubeflow
    from proxykd.config.placement import load_placement
    from proxykd.config.stack import ClusterStackSpec, KubeflowStackSpec, load_stack

    stack = load_stack(name)
    if isinstance(stack, ClusterStackSpec):
        placement = load_placement(stack.placement)
        if isinstance(stack, KubeflowStackSpec):
            check_kubeflow(stack, placement)
    return stack


def read_shards(given: Sequence[str] | None, run: "RunSpec") -> dict[str, int]:
    """What was given as ``--shards``.

    Args:
        given: STEP=N each.
        run: The specification, which may leave nothing to divide.

    Raises:
        ConfigError: if it is not STEP=N, or the step cannot be divided so.
    """
    from proxykd.config.steps import check_shards

    shards = {}
    for text in given or ():
        name, _, count = text.partition("=")
        if not (name and count.isdecimal()):
            raise ConfigError(f"expected STEP=N after --shards, query_teacher=8 say, got {text!r}")
        shards[name] = int(count)
    check_shards(run, shards)
    return shards


def refuse_missing(stack: str, findings: Iterable[Any]) -> None:
    """Go on only if nothing is missing.

    Raises:
        ConfigError: naming all that is missing, each with what to do.
    """
    missing = [one for one in findings if one.state == "missing"]
    if missing:
        lines = "\n".join(f"  {one.what}: {one.found}; {one.remedy}" for one in missing)
        raise ConfigError(f"the stack {stack} lacks what this run needs; nothing was submitted:\n{lines}")
