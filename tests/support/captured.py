"""``python -m tests.support.captured FILE``: what ZenML and the launcher really create on a cluster, for checkov.

A small pipeline goes through ZenML's Kubernetes orchestrator to the cluster double, whose Jobs are kept; beside
them stand the TrainJob that a step makes by k8s/placements/gpu.yaml, and the Job that Kubeflow Trainer makes of it.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from cluster.manifest import train_job
from proxykd.config.placement import load_placement
from tests.k8s.cluster import cluster
from tests.k8s.kinds import CORE
from tests.k8s.train_jobs import child_job
from tests.support.platform import BUCKET, NO_IMAGE, Platform, furnish, in_cluster
from tests.support.program import CHECKOUT
from tests.support.s3_server import s3_server
from tests.support.zenml_server import zenml_server


def main(target: Path) -> None:
    """Write the objects as one file."""
    with TemporaryDirectory(prefix="proxykd-captured-") as folder:
        found = [*submitted(Path(folder)), *trained()]
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(yaml.safe_dump_all(found), encoding="utf-8")
    print(f"{target}: {', '.join(sorted(one['kind'] for one in found))}")


def submitted(folder: Path) -> list[Any]:
    """The Jobs of a run: of its orchestrator and of each step."""
    with s3_server(folder, BUCKET) as bucket, zenml_server(folder) as zenml, cluster(folder / "cluster") as double:
        furnish(double)
        double.kubelet.machine.addresses[in_cluster(zenml)] = zenml.address
        there = Platform(folder, double, zenml, "http://127.0.0.1:9", bucket, NO_IMAGE)
        (folder / "cpu.yaml").write_text((CHECKOUT / "k8s" / "placements" / "cpu.yaml").read_text(), encoding="utf-8")
        ended = there.run_small(folder / "home", folder / "cpu.yaml", 0.0)
        assert ended.status == 0, ended.stderr
        found = double.api.store.list(CORE["Job"], "proxykd")
    assert len(found) == 3, [one["metadata"]["name"] for one in found]
    return found


def trained() -> Iterator[Any]:
    """The TrainJob of a training, and its Job."""
    path = CHECKOUT / "k8s" / "trainjob" / "training-runtime.yaml"
    runtime = yaml.safe_load(path.read_text(encoding="utf-8"))
    spec = load_placement(CHECKOUT / "k8s" / "placements" / "gpu.yaml").launcher("distill_student")
    arguments = ["proxykd.student.worker", "/var/lib/proxykd/launches/training/job.json"]
    made = train_job("training", spec, arguments=arguments, image=NO_IMAGE, work="0" * 16, owner={}, environ={})
    place = {"namespace": "proxykd"}
    job = child_job(made, runtime, "training-node-0")
    yield {**made, "metadata": {**made["metadata"], **place}}
    yield {**job, "metadata": {**job["metadata"], **place}}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
