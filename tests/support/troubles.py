"""What befalls a whole run on the stand-in cluster, which it survives."""

import threading
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from cluster.waiting import step_of
from tests.k8s.access import service_account
from tests.k8s.cluster import Cluster
from tests.k8s.kinds import CORE

QUEUE = "proxykd-cpu"


class Troubles:
    """What befalls the whole run, each once, and what is seen of the objects meanwhile."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.befallen = Counter[str]()
        self.seen: list[Any] = []

    def arrange(self) -> None:
        """Pods lost and taken back, a token that expires, and an API server that refuses, loses answers and goes."""
        kubelet, trouble = self.cluster.kubelet, self.cluster.api.trouble
        kubelet.befall("evicted", step_name="query_teacher_2-of-3", when=lambda pod, log: log.exists())
        kubelet.befall("node gone", step_name="split", when=lambda pod, log: log.exists())
        kubelet.befall("evicted", **{"proxykd.dev/role": "train"}, when=self._seen)
        for step, act in (
            ("align_proxy", lambda: self.cluster.api.go_away(4.0)),
            ("estimate_distributions_1-of-2", self._expire),
            ("distill_student_sft", self._take_back),
        ):
            kubelet.befall("killed", step_name=step, when=partial(self._once, step, act))
        for code, wait_s in ((409, None), (429, 1.0), (503, None)):
            trouble.add(code, verb="create", resource="jobs", num_times=2, retry_after_s=wait_s)
        trouble.add(504, verb="create", resource="jobs", num_times=2, is_after=True)  # made, and not told

    def clear(self) -> None:
        """What has not happened by now will not."""
        self.cluster.kubelet.mishaps.clear()
        self.cluster.api.trouble.faults.clear()

    def _once(self, name: str, act: Any, pod: Any, log: Path) -> bool:
        if log.exists() and not self.befallen[name]:
            self.befallen[name] += 1
            act()
        return False

    def _seen(self, pod: Any, log: Path) -> bool:
        if not self.seen:
            self.seen = [*self.objects("TrainJob"), *self.objects("Job")]
        return log.exists()

    def objects(self, kind: str) -> list[Any]:
        return list(self.cluster.api.store.list(CORE[kind], "proxykd"))

    def _expire(self) -> None:
        self.cluster.api.access.expire(service_account("proxykd", "proxykd-orchestrator"))
        self.cluster.kubelet.rotate_tokens()

    def _take_back(self) -> None:
        """As Kueue does: the Job is suspended, its pod goes, and in a while the queue admits it again."""
        (job,) = (one for one in self.objects("Job") if step_of(one) == "distill_student_sft")
        self.cluster.jobs.closed.add(QUEUE)
        self.cluster.api.store.change(
            CORE["Job"], "proxykd", job["metadata"]["name"], lambda one: one["spec"].update(suspend=True)
        )
        threading.Timer(3.0, self.cluster.jobs.closed.clear).start()
