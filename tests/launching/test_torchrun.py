"""Processes that are told to stop have time for a checkpoint: in a pod, as long as the pod has."""

import signal
import threading
import time
from pathlib import Path

import pytest

from proxykd.launching import torchrun
from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import Work

pytestmark = pytest.mark.integration


class StepEndedError(Exception):
    """As ZenML ends a step that is told to stop."""


@pytest.mark.parametrize("is_in_pod", [False, True])
def test_the_grace_period_of_a_pod_is_its_processes_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_in_pod: bool
) -> None:
    def end(*_: object) -> None:
        raise StepEndedError

    def stop_once_begun() -> None:
        while not (tmp_path / "begun").exists():
            time.sleep(0.05)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    monkeypatch.setattr(torchrun, "_STOP_S", 1)
    if is_in_pod:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    work: Work[None] = Work(
        name="student",
        module="tests.support.slow_saver",
        job={"folder": str(tmp_path)},
        inputs=(),
        identity="",
        folder=tmp_path,
        advice="nothing",
        here=lambda: None,
        collect=lambda _: None,
    )
    before = signal.signal(signal.SIGTERM, end)
    threading.Thread(target=stop_once_begun, daemon=True).start()
    try:
        with pytest.raises(StepEndedError):
            Torchrun(1).launch(work)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (tmp_path / "saved").exists() is is_in_pod
