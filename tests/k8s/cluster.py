"""A whole cluster double in one process: API server, Job, CronJob and TrainJob controllers, and kubelet.

::

    with cluster(folder) as double:
        double.api.kubeconfig("proxykd")                      # for clients
        double.kubelet.befall("evicted", step_name="split")   # what happens to the next pod with that label
        double.jobs.closed.add("proxykd-gpu")                 # a queue that admits nothing
        double.cron_jobs.ring("proxykd-nightly")              # a time at which a CronJob is due: no other comes here
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.containers import Machine
from tests.k8s.cron_jobs import CronJobs
from tests.k8s.jobs import Jobs
from tests.k8s.kubelet import Kubelet
from tests.k8s.runtimes import Runtime
from tests.k8s.train_jobs import TrainJobs


@dataclass(frozen=True)
class Cluster:
    """The doubles that tests steer."""

    api: ApiServer
    jobs: Jobs
    kubelet: Kubelet
    cron_jobs: CronJobs


@contextmanager
def cluster(
    folder: Path,
    *,
    addresses: dict[str, str] | None = None,
    passed: dict[str, str] | None = None,
    num_slots: int = 8,
    namespace: str = "proxykd",
    runtime: Runtime | None = None,
) -> Iterator[Cluster]:
    """A running cluster double; all that it started is ended on leaving.

    Args:
        folder: Pods, volumes and logs are below it.
        addresses: The cluster's names -> addresses on loopback.
        passed: Variables of every container, as the image would set them.
        num_slots: Pods that run at once.
        namespace: Made at once, with the service account ``default``.
        runtime: What pods run as; None = processes of this machine.
    """
    with api_server(folder / "api") as api:
        api.create_namespace(namespace)
        jobs = Jobs(api.store)
        api.answers.webhooks.append(jobs.suspend_queued)
        machine = Machine(folder, dict(addresses or {}), passed or {})
        train_jobs = TrainJobs(api.store, machine.addresses)
        api.answers.webhooks.append(train_jobs.check)
        kubelet = Kubelet(api, machine, num_slots=num_slots, runtime=runtime)
        began = datetime.now(UTC)
        cron_jobs = CronJobs(api.store, lambda: began)
        cron_jobs.start()
        jobs.start()
        train_jobs.start()
        kubelet.start()
        try:
            yield Cluster(api, jobs, kubelet, cron_jobs)
        finally:
            cron_jobs.stop()
            train_jobs.stop()
            jobs.stop()
            kubelet.stop()
