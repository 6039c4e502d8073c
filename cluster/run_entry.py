"""How the process of a run's orchestrator begins: as ZenML has it, and guarded against a run that waits for ever."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event, Thread

from zenml.integrations.kubernetes.orchestrators.kubernetes_orchestrator_entrypoint_configuration import (
    KubernetesOrchestratorEntrypointConfiguration,
)

from cluster.api import ClusterApi
from cluster.connection import settle_client_logs
from cluster.names import START_TIMEOUT

COMMAND = ("python", "-m", "cluster.run_entry")
LOOK_S, END_S = 60.0, 180.0
"""Most seconds between two looks of the guard, and those it has to finish the last one."""


def use_run_entry() -> None:
    """Let ZenML's orchestrator tell its pod to begin with this module; it names its own in its code."""
    KubernetesOrchestratorEntrypointConfiguration.get_entrypoint_command = lambda: list(COMMAND)


def main() -> None:
    """Walk the run."""
    from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint

    settle_client_logs()
    told = os.environ.get(START_TIMEOUT)
    with guarded(float(told) if told else None):
        kubernetes_orchestrator_entrypoint.main()


@contextmanager
def guarded(limit_s: float | None) -> Iterator[None]:
    """Inside, the run that this pod walks is ended once nothing of it has run for so long; None = it is left alone."""
    if limit_s is None:
        yield
        return
    over = Event()
    thread = Thread(target=_watch, args=(limit_s, over), name="guard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(END_S)


def _watch(limit_s: float, over: Event) -> None:
    began, pause_s = datetime.now(UTC), min(LOOK_S, limit_s)
    if over.wait(pause_s):
        return
    from cluster.starving import Guard  # not at once: the first step's Job need not wait for what this imports

    guard = Guard(ClusterApi.connect(), limit_s, began)
    while not over.is_set():
        _bear(lambda: guard.look(datetime.now(UTC)))
        over.wait(pause_s)
    if guard.has_given_up:
        _bear(guard.clear)


def _bear(look: Callable[[], None]) -> None:
    """Look; whoever does not answer now, or nonsense, may do better at the next look."""
    try:
        look()
    except Exception as error:  # of two clients: a guard that ends would leave its run alone
        print(f"could not look whether anything of the run runs: {error}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
