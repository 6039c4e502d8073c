"""The launcher that asks Kubeflow Trainer for pods: a TrainJob, made, followed, and removed with the step.

What the pods read and make lies in a folder of the workspace, which is a volume that they and the step share. The
TrainJob's name follows from the work and from the Job that owns the step's pod: a step that is started again finds the
TrainJob that it made before and goes on following it. Should the step's Job be removed, its TrainJob goes with it.
"""

import os
import secrets
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.api import ClusterApi, Patience
from cluster.following import Follower
from cluster.kinds import PODS, TRAIN_JOBS
from cluster.manifest import WORK_ANNOTATION, train_job
from cluster.own_pod import OwnPod, has_condition, is_disrupted, read_own_pod
from proxykd.artifacts import link_file
from proxykd.config.launcher import LAUNCHER_VARIABLE, LauncherSpec
from proxykd.exceptions import ClusterConflictError, ClusterError, ConfigError, ModelError, ProxykdError
from proxykd.launching.work import JOB, RESULT, Work, finish, remove, told_error, write_job
from proxykd.progress import report
from proxykd.records import hash_json
from proxykd.workspace import Workspace

T = TypeVar("T")
FOLDER = "launches"
_GONE_S, _STOPPING_S, _RESULT_S, _STALE_S = 600.0, 20.0, 30.0, 86_400.0


def build_launcher(spec: LauncherSpec) -> "TrainJobLauncher":
    """The launcher for a step: its own pod's credentials, or those of the kubeconfig."""
    return TrainJobLauncher(spec, ClusterApi.connect(), Workspace.default().root)


@dataclass(frozen=True, slots=True)
class TrainJobLauncher:
    """Does work in the pods of a TrainJob.

    Attributes:
        spec: Numbers, resources and places.
        api: The server, in the namespace of the TrainJob.
        home: Folder that the pods see under the same path.
        environ: The step's.
        clock: Seconds.
        sleep: Waits; None = really, and while it follows no longer than until a pod's log ends.
    """

    spec: LauncherSpec
    api: ClusterApi
    home: Path
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] | None = None

    def launch(self, work: Work[T]) -> T:
        """Do it; the TrainJob and its folder are removed at the end, however it ends.

        Raises:
            ProxykdError: the one that a process raised.
            ModelError: if the pods used up their memory, or failed for a reason of their own.
            ClusterError: if the cluster has no room, no image or no permission for it, or stays away.
        """
        own = read_own_pod(self.api, environ=self.environ)
        name = self._name(work, own)
        output = self.home / FOLDER / name
        self._sweep()
        with _stopping_by_exception(), self._removed_after(name, output, own):
            self._start(name, output, work, own)
            with _prefer_told_error(output):
                self._follower(name, work).wait()
            self._wait_for_result(output)
            return finish(work, output, f"the TrainJob {name} completed without one")

    def _follower(self, name: str, work: Work[Any]) -> Follower:
        checkpoint = None if (path := work.job.get("checkpoint")) is None else Path(path)
        return Follower(
            self.api, name, self.spec, advice=work.advice, clock=self.clock, sleep=self.sleep, checkpoint=checkpoint
        )

    def _name(self, work: Work[Any], own: OwnPod | None) -> str:
        owner = own.owner.get("uid", "") if own else ""
        unique = [work.hashed(), owner] if work.identity else secrets.token_hex(8)
        return f"proxykd-{work.name}-{hash_json([unique, self.spec.nodes])[:16]}"

    def _sweep(self) -> None:
        """Remove the folders that killed steps left, whose TrainJobs are gone."""
        for folder in (self.home / FOLDER).glob("*"):
            with suppress(FileNotFoundError):  # another arm's step was faster
                if time.time() - folder.stat().st_mtime > _STALE_S and self.api.find(TRAIN_JOBS, folder.name) is None:
                    remove(folder)

    def _start(self, name: str, output: Path, work: Work[Any], own: OwnPod | None) -> None:
        """Make the TrainJob, unless the one that is there is at the same work."""
        if self._is_there(name, output, work):
            report(f"TrainJob {name} is there already and is followed from here")
            return
        image = self.spec.image or (own.image if own else "")
        if not image:
            raise ConfigError(
                "expected the step to run in a pod whose image the pods of its TrainJob get, found none by POD_NAME "
                f"or the host's name that it may read in namespace {self.api.namespace}; let the step's account read "
                "pods, as k8s/base/rbac/trainer.yaml does, or, where it runs in no pod, add `image` to the launcher "
                f"in {LAUNCHER_VARIABLE}"
            )
        job = write_job(_staged(work, output), output)
        body = train_job(
            name,
            self.spec,
            arguments=[work.module, str(job)],
            image=image,
            work=work.hashed(),
            owner=own.owner if own else {},
            environ={**self.environ, "PROXYKD_HOME": str(self.home)},
        )
        # A conflict is the answer to our own call, repeated after its first answer was lost.
        with suppress(ClusterConflictError):
            self.api.create(TRAIN_JOBS, body)

    def _is_there(self, name: str, output: Path, work: Work[Any]) -> bool:
        """Whether a TrainJob of that name is at this work or has done it; any other makes room."""
        if (found := self.api.find(TRAIN_JOBS, name)) is None:
            return False
        metadata = found["metadata"]
        same = (metadata.get("annotations") or {}).get(WORK_ANNOTATION) == work.hashed() and (output / JOB).is_file()
        if same and not metadata.get("deletionTimestamp") and not has_condition(found, "Failed"):
            return True
        self._remove(name, patience_s=_GONE_S)
        return False

    def _remove(self, name: str, *, patience_s: float) -> None:
        """Remove the TrainJob with its pods, and wait until it is gone."""
        deadline = self.clock() + patience_s
        api = self.api.with_patience(Patience(deadline_s=min(patience_s, 60.0)))
        while api.delete(TRAIN_JOBS, name, propagation="Foreground"):
            if self.clock() > deadline:
                raise ClusterError(
                    f"expected the TrainJob {name} to be gone within {patience_s:g} s, but it is still being removed; "
                    "look at its finalizers and pods, then run the same command again"
                )
            self._pause()

    def _wait_for_result(self, output: Path) -> None:
        """A shared volume may show a file some seconds after another machine wrote it."""
        deadline = self.clock() + _RESULT_S
        while not (output / RESULT).is_file() and told_error(output) is None and self.clock() < deadline:
            os.listdir(output)
            self._pause()

    def _pause(self) -> None:
        (self.sleep or time.sleep)(0.5)

    @contextmanager
    def _removed_after(self, name: str, output: Path, own: OwnPod | None) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            # A signal ends a step by an exception of ZenML's; an error of ours is the training's own.
            if not isinstance(error, ProxykdError) and self._goes_on_elsewhere(own):
                report(f"TrainJob {name} runs on without this pod, which must go; the step's next pod follows it")
                raise
            self._clear(name, output)
            raise
        # Its pods have ended: nothing is waited for.
        self._clear(name, output, patience_s=0.0)

    def _goes_on_elsewhere(self, own: OwnPod | None) -> bool:
        """Whether this pod must go for its node's sake, so that its Job starts another that takes over."""
        try:
            pod = self.api.with_patience(Patience(deadline_s=5.0)).find(PODS, own.name) if own else None
        except ClusterError:
            return False
        return pod is not None and is_disrupted(pod)

    def _clear(self, name: str, output: Path, *, patience_s: float = _STOPPING_S) -> None:
        try:
            if patience_s:
                self._remove(name, patience_s=patience_s)
            else:
                self.api.delete(TRAIN_JOBS, name)
        except ClusterError as error:
            report(f"TrainJob {name} was not seen to go ({error}); `proxykd gc` removes what is left")
        remove(output)


def _staged(work: Work[T], output: Path) -> Work[T]:
    """The work with its inputs in its own folder, where they outlive the step's temporary folders."""
    remove(output)
    job = dict(work.job)
    for key in work.inputs:
        if job.get(key) is not None:
            source, target = Path(job[key]), output / "inputs" / key / Path(job[key]).name
            target.parent.mkdir(parents=True)
            _link(source, target)
            job[key] = str(target)
    return replace(work, job=job)


def _link(source: Path, target: Path) -> None:
    """The same files under another name, or copies where they lie on another disk; they are never written again."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link_file)
    else:
        link_file(source, target)


@contextmanager
def _prefer_told_error(output: Path) -> Iterator[None]:
    """What a process said of its end is a better message than what the cluster saw of it."""
    try:
        yield
    except ModelError as error:
        if (told := told_error(output)) is not None:
            raise told from error
        raise


@contextmanager
def _stopping_by_exception() -> Iterator[None]:
    """SIGTERM, by which a pod is told to go, ends the step by an exception, as under ZenML, so that it can clear up."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(*_: Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
