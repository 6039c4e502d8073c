"""Peak memory and processor time of every step's pod, of which one only follows a TrainJob.

    python benchmarks/cluster/pods.py

The tiny specification's whole pipeline runs through ZenML's Kubernetes orchestrator on the stand-in cluster of the
tests, whose kubelet runs a pod's real command as a process of this machine, with ZenML, MLflow and S3 servers beside
it. The arm ``proxy_kd`` is trained by a TrainJob, the arm ``sft`` by its step's own pod. The difference between the pod
that follows and that of ``split``, which does next to nothing, is what following a training adds to what every step's
pod holds: ZenML and the components of the stack. Ends with status 1 if it is above ``LIMIT_MIB``.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

LIMIT_MIB = 300.0
FOLLOWS, IDLE, STEP = "distill_student_proxy_kd", "split", "step_name"
PLACEMENT: dict[str, Any] = {
    "pools": {"cpu": {}},
    "orchestrator": {"poll_s": 1},
    "steps": {
        "default": {"pool": "cpu", "cpu": "1", "memory": "4Gi"},
        "query_teacher": {"role": "teacher-query", "secrets": ["proxykd-teacher"]},
        FOLLOWS: {"launcher": {"kind": "trainjob", "cpu": "1", "memory": "2Gi"}},
    },
}


def main() -> int:
    """Run the pipeline, print the table; gives the exit status."""
    from benchmarks.cluster.watching import watched
    from tests.support.platform import platform

    runtime = yaml.safe_load((CHECKOUT / "k8s/trainjob/training-runtime.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="proxykd-pods-") as name, platform(Path(name), num_slots=4) as found:
        found.cluster.api.apply(runtime, namespace="proxykd")
        placement = Path(name) / "placement.yaml"
        placement.write_text(yaml.safe_dump(PLACEMENT), encoding="utf-8")
        with watched(found.cluster.kubelet, 0.05) as pods:
            ended = found.run(Path(name) / "home", placement)
    if ended.status:
        sys.exit(ended.stderr[-4000:])
    # Of a training's pods the first process is torchrun, which is not what trains.
    steps = {taken.labels[STEP]: taken for taken in pods.values() if STEP in taken.labels}
    for step, taken in sorted(steps.items(), key=lambda one: one[1].peak_mib):
        print(f"{step:28} {taken.peak_mib:6.0f} MiB {taken.processor_s:6.1f} s of a processor")
    added = steps[FOLLOWS].peak_mib - steps[IDLE].peak_mib
    print(f"following a TrainJob adds {added:.0f} MiB to a step's pod; at most {LIMIT_MIB:.0f}")
    return 0 if added <= LIMIT_MIB else 1


if __name__ == "__main__":
    sys.exit(main())
