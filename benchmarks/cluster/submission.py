"""Seconds from the command to a cluster that has a run of many pods, in parts.

    python benchmarks/cluster/submission.py [--pods 60] [--limit 10]

A pipeline of so many steps side by side goes through ZenML's Kubernetes orchestrator to the API server double of the
tests (HTTPS on this machine, every object validated strictly) and a real ZenML server. Parts: reading the placement and
making the steps' settings; ZenML's compiling, registering and posting of the orchestrator's Job, after which the user
is free; and from there until the orchestrator's pod has posted the last step's Job, of which its start is told apart.
Steps' pods are not run. Before the clock starts ZenML is imported and has registered the stack, and a run of one step
has gone through, as the first run of a process reads more of ZenML than the later ones.

Ends with status 1 if all of it, to the last step's Job, takes longer than ``--limit`` seconds.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PLACEMENT = """
pools: {cpu: {}}
orchestrator: {parallel_steps: 256}
steps: {default: {pool: cpu}}
"""
WAIT_S = 600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--pods", type=int, default=60)
    parser.add_argument("--limit", type=float, default=10.0)
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="proxykd-submission-") as folder, _platform(Path(folder)) as submit:
        submit(1)
        parts = submit(asked.pods)
        print(f"{asked.pods} pods; {os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
        for name, seconds in parts.items():
            print(f"{name:<44} {seconds:7.2f} s")
    return status(parts, asked.limit)


def status(parts: Mapping[str, float], limit_s: float) -> int:
    """0 if all Jobs were there within the limit, else 1, whenever the command was free."""
    return 0 if parts["in all"] <= limit_s else 1


def _job() -> Any:
    from tests.k8s.kinds import CORE

    return CORE["Job"]


@contextmanager
def _platform(folder: Path) -> Iterator[Any]:
    os.environ["KUBECONFIG"] = str(folder / "kubeconfig")  # Kubernetes's client looks where it is as it is imported
    from tests.k8s.cluster import cluster
    from tests.support.platform import furnish, stack_file
    from tests.support.s3_server import CREDENTIALS, s3_server
    from tests.support.zenml_server import zenml_server

    placement = folder / "placement.yaml"
    placement.write_text(PLACEMENT, encoding="utf-8")
    with s3_server(folder, "proxykd") as storage, zenml_server(folder) as zenml, cluster(folder / "cluster") as double:
        double.kubelet.num_slots = 1  # of the orchestrator
        furnish(double)
        os.environ.update(zenml.environment(folder), **CREDENTIALS, ZENML_LOGGING_VERBOSITY="CRITICAL")
        shutil.copy(double.api.kubeconfig("proxykd", account="proxykd-submitter"), folder / "kubeconfig")
        yield _submitter(double, stack_file(folder, placement, storage))


def _submitter(double: Any, stack_path: Path) -> Any:
    from cluster import stacks
    from pipelines.placement import run_options
    from pipelines.submitting import submitted
    from proxykd.config.placement import load_placement
    from proxykd.config.stack import load_stack
    from tests.support.many_steps import many, names

    stack: Any = load_stack(str(stack_path))
    stacks.apply(stack)
    os.environ["ZENML_ACTIVE_STACK_ID"] = stacks.stack_id(stack)

    def submit(num_pods: int) -> dict[str, float]:
        before = len(double.api.store.list(_job()))
        started, worked = time.perf_counter(), time.process_time()
        options = run_options(stack, load_placement(stack.placement), names(num_pods))
        optioned = time.perf_counter()
        submitted(many.with_options(**options), {"num_steps": num_pods})
        free, busy = time.perf_counter(), time.process_time() - worked
        first = _await_jobs(double, before + 2)
        last = _await_jobs(double, before + 1 + num_pods)
        _empty(double)
        return {
            "placement and settings": optioned - started,
            "ZenML, to the orchestrator's Job": free - optioned,
            "submission, until the command is free": free - started,
            "  of which this process's processor time": busy,
            "the orchestrator's pod, to its first Job": first - free,
            "all further Jobs": last - first,
            "in all": last - started,
        }

    return submit


def _await_jobs(double: Any, count: int) -> float:
    deadline, version, found = time.perf_counter() + WAIT_S, "", 0
    while time.perf_counter() < deadline:
        version = double.api.store.wait(version, timeout_s=1.0)
        found = len(double.api.store.scan(_job()))
        if found >= count:
            return time.perf_counter()
    raise TimeoutError(f"expected {count} Jobs in {WAIT_S:.0f} s, found {found}")


def _empty(double: Any) -> None:
    """Remove the run, so that its orchestrator gives its slot to the next one's."""
    for job in double.api.store.list(_job()):
        try:
            double.api.store.delete(_job(), "proxykd", job["metadata"]["name"])
        except Exception as error:  # its owner has taken it along
            if type(error).__name__ != "Refusal":
                raise


if __name__ == "__main__":
    sys.exit(main())
