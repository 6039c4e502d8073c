"""Peak memory of every step's pod, of which one only follows a TrainJob.

    python benchmarks/cluster/pods.py

The tiny specification's whole pipeline runs through ZenML's Kubernetes orchestrator on the stand-in cluster of the
tests, whose kubelet runs a pod's real command as a process of this machine, with ZenML, MLflow and S3 servers beside
it. The arm ``proxy_kd`` is trained by a TrainJob, the arm ``sft`` by its step's own pod. The difference between the pod
that follows and that of ``split``, which does next to nothing, is what following a training adds to what every step's
pod holds: ZenML and the components of the stack. Ends with status 1 if it is above ``LIMIT_MIB``.
"""

import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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
    from tests.support.platform import platform

    runtime = yaml.safe_load((CHECKOUT / "k8s/trainjob/training-runtime.yaml").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="proxykd-pods-") as name, platform(Path(name), num_slots=4) as found:
        found.cluster.api.apply(runtime, namespace="proxykd")
        placement = Path(name) / "placement.yaml"
        placement.write_text(yaml.safe_dump(PLACEMENT), encoding="utf-8")
        with watched(found.cluster.kubelet) as peaks:
            ended = found.run(Path(name) / "home", placement)
    if ended.status:
        sys.exit(ended.stderr[-4000:])
    added = peaks[FOLLOWS] - peaks[IDLE]
    for step, peak in sorted(peaks.items(), key=lambda one: one[1]):
        print(f"{step:28} {peak:6.0f} MiB")
    print(f"following a TrainJob adds {added:.0f} MiB to a step's pod; at most {LIMIT_MIB:.0f}")
    return 0 if added <= LIMIT_MIB else 1


@contextmanager
def watched(kubelet: Any) -> Iterator[dict[str, float]]:
    """Peak memory by step, in MiB, of pods that run while the context lasts."""
    from benchmarks.cluster.launcher import peak_mib

    peaks: dict[str, float] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.1):
            for running in list(kubelet._running.values()):
                # Of a training's pods the first process is torchrun, which is not what trains.
                if (step := (running.pod["metadata"].get("labels") or {}).get(STEP)) is None:
                    continue
                for one in running.processes.values():
                    peaks[step] = max(peaks.get(step, 0.0), peak_mib(one.process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        is_over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
