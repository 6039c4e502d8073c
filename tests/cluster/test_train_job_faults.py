"""A TrainJob that never gets to its work: what the doubles of a cluster's parts make of it, and the one message then.

Time passes three thousandfold, so that hours of patience end within a second; no pod's command is ever run.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.api import ClusterApi, Patience
from cluster.connection import open_connection
from cluster.following import AWAY_S, IMAGE_S
from cluster.train_job import FOLDER, TrainJobLauncher
from proxykd.exceptions import ClusterAuthError, ClusterError, ClusterUnreachableError, ConfigError
from proxykd.launching.work import Work
from tests.cluster.conftest import NAMESPACE, MakeLauncher, manifest
from tests.k8s.access import service_account
from tests.k8s.cluster import Cluster
from tests.k8s.kinds import CORE
from tests.support.beside import beside

RATE = 3000.0
IMAGE = "ghcr.io/proxykd/proxykd@sha256:0"


def now() -> float:
    return time.monotonic() * RATE


def sleep(seconds: float) -> None:
    time.sleep(seconds / RATE)


class Steps:
    """A step that launches, and what is left of it."""

    def __init__(self, double: Cluster, launcher: TrainJobLauncher, home: Path) -> None:
        self.double, self.launcher, self.home = double, launcher, home

    def launch(self) -> None:
        self.launcher.launch(
            Work("student", "nothing", {}, (), "work", self.home, "the batch", lambda: None, lambda _: None)
        )

    def creations(self) -> int:
        """Times that a call was told to have made a TrainJob."""
        calls = self.double.api.access.calls
        return sum(one.resource == "trainjobs" and one.verb == "create" and one.status == 201 for one in calls)

    def is_followed(self) -> bool:
        """The answer to its making has come, so that only looks at it are left."""
        calls = self.double.api.access.calls
        return any((one.resource, one.verb, one.status) == ("trainjobs", "get", 200) for one in calls)

    def is_made(self) -> bool:
        return bool(self.double.api.store.list(CORE["TrainJob"]))

    def check_nothing_is_left(self) -> None:
        for kind in ("TrainJob", "Job", "Pod"):
            assert not self.double.api.store.list(CORE[kind])
        assert not list((self.home / FOLDER).iterdir())


@pytest.fixture
def begin(double: Cluster, make_launcher: MakeLauncher, home: Path) -> Callable[..., Steps]:
    def make(clock: Callable[[], float] = time.monotonic, **options: Any) -> Steps:
        """``clock`` of calls: their deadlines hold as on a busy machine, though their waits are short."""
        path = double.api.kubeconfig(NAMESPACE, account="proxykd-trainer")
        connection = open_connection("double", environ={"KUBECONFIG": str(path)})
        api = ClusterApi(connection, patience=Patience(), clock=clock, sleep=sleep)
        launcher = replace(make_launcher(**options), api=api, clock=now, sleep=sleep)
        return Steps(double, launcher, home)

    return make


@contextmanager
def once(happens: Callable[[], Any], act: Callable[[], Any]) -> Iterator[None]:
    """Act beside the block as soon as something is seen to happen."""

    def watch(is_over: threading.Event) -> None:
        while not is_over.is_set():
            if happens():
                act()
                return
            time.sleep(0.005)

    with beside(watch):
        yield


def test_an_image_that_is_not_there_ends_with_its_name_and_nothing_left(double: Cluster, begin: Any) -> None:
    double.kubelet.befall("image missing", num_times=2)
    steps, began = begin(nodes=2), now()
    with pytest.raises(ClusterError, match=rf'ImagePullBackOff.*"{IMAGE}"; push the image') as told:
        steps.launch()
    assert str(told.value).count("expected") == 1
    assert now() - began > IMAGE_S
    assert not double.kubelet.starts
    steps.check_nothing_is_left()


def test_a_step_that_finds_no_image_in_a_pod_of_its_own_is_told_where_to_name_one(begin: Any) -> None:
    steps = begin(image=None)
    advice = r"in namespace proxykd; let the step's account read pods.* add `image` to the launcher in PROXYKD_LAUNCHER"
    with pytest.raises(ConfigError, match=advice):
        steps.launch()
    assert not steps.is_made()


def test_a_queue_that_never_admits_ends_with_what_to_ask_for(double: Cluster, begin: Any) -> None:
    double.jobs.closed.add("proxykd-gpu")
    steps, began = begin(nodes=2, gpus=8, queue="proxykd-gpu", start_s=600.0), now()
    wanted = r"2 x 8 GPUs, queue 'proxykd-gpu'\) to run within 600 s, but it waits to be admitted; ask for fewer"
    with pytest.raises(ClusterError, match=wanted):
        steps.launch()
    assert now() - began > 600.0
    steps.check_nothing_is_left()


def test_a_quota_that_is_used_up_is_named(double: Cluster, begin: Any) -> None:
    double.api.apply(manifest("v1", "ResourceQuota", "full", spec={"hard": {"pods": "0"}}))
    steps = begin(start_s=600.0)
    with pytest.raises(
        ClusterError, match=r"0 of 1 nodes run \(Error creating: pods .* exceeded quota: full, .*pods=0"
    ):
        steps.launch()
    steps.check_nothing_is_left()


FAULTS = [
    ("create", 409, None),
    *((verb, code, wait_s) for verb in ("create", "get", "delete") for code, wait_s in [(429, 5.0), (500, None)]),
    *((verb, code, None) for verb in ("create", "get", "delete") for code in (503, 504)),
]
"""Verb, status, and the seconds that the server asks to wait."""


@pytest.mark.parametrize("is_after", [False, True])
def test_an_api_server_in_trouble_is_asked_again_and_one_train_job_made(
    double: Cluster, begin: Any, is_after: bool
) -> None:
    """Conflicts with itself, overload with a wish how long to wait, errors, lost answers, and a token that expires."""
    double.jobs.closed.add("proxykd-gpu")
    steps, user = begin(start_s=600.0, queue="proxykd-gpu"), service_account(NAMESPACE, "proxykd-trainer")
    for verb, code, wait_s in FAULTS:
        is_lost = is_after and verb == "create"
        double.api.trouble.add(code, verb=verb, resource="trainjobs", retry_after_s=wait_s, is_after=is_lost)

    def renew() -> None:
        """The file gets a new token, as a kubelet has it, before the old one expires."""
        double.api.kubeconfig(NAMESPACE, account="proxykd-trainer")
        double.api.access.expire(user, num_kept=1)

    with once(steps.is_made, renew), pytest.raises(ClusterError, match="waits to be admitted"):
        steps.launch()
    statuses = [call.status for call in double.api.access.calls if call.resource == "trainjobs"]
    left = 4 * is_after  # the first creation took effect: those that follow are refused at once
    assert len(double.api.trouble.faults) == left
    assert steps.creations() == 1 - is_after
    assert {409, 429, 500, 503, 504} - set(statuses) == set()
    steps.check_nothing_is_left()


def test_two_arms_may_remove_at_once_what_killed_steps_left(
    double: Cluster, home: Path, make_launcher: MakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left() -> list[Path]:
        return list((home / FOLDER).iterdir())

    for name in "abc":
        (home / FOLDER / name).mkdir(parents=True)
        os.utime(home / FOLDER / name, (0, 0))
    (home / FOLDER / "young").mkdir()

    def other_is_faster(*_: object) -> None:
        for folder in left():
            if folder.name != "young":
                folder.rmdir()

    monkeypatch.setattr(ClusterApi, "find", other_is_faster)
    make_launcher()._sweep()
    assert [folder.name for folder in left()] == ["young"]


def test_a_token_that_nobody_renews_ends_with_what_to_do(double: Cluster, begin: Any, capfd: Any) -> None:
    double.jobs.closed.add("proxykd-gpu")
    steps = begin(queue="proxykd-gpu")
    user = service_account(NAMESPACE, "proxykd-trainer")
    with (
        once(steps.is_made, lambda: double.api.access.expire(user)),
        pytest.raises(ClusterAuthError, match="log in again, or give the pod a service account"),
    ):
        steps.launch()
    assert "`proxykd gc` removes what is left" in capfd.readouterr().err


def test_a_server_that_goes_while_the_queue_is_asked_why_is_borne(double: Cluster, begin: Any) -> None:
    double.jobs.closed.add("proxykd-gpu")
    double.api.trouble.add(503, num_times=1000, verb="list", resource="workloads")
    with pytest.raises(ClusterError, match="waits to be admitted"):
        begin(clock=now, queue="proxykd-gpu", start_s=600.0).launch()


def test_a_server_that_stays_away_ends_after_half_an_hour_and_says_what_is_left(
    double: Cluster, begin: Any, capfd: Any
) -> None:
    double.jobs.closed.add("proxykd-gpu")
    steps, left = begin(clock=now, queue="proxykd-gpu"), list[float]()
    with (
        once(steps.is_followed, lambda: (left.append(now()), double.api.close())),
        pytest.raises(ClusterUnreachableError, match="got none"),
    ):
        steps.launch()
    assert now() - left[0] > AWAY_S
    told = capfd.readouterr().err
    assert told.count("goes on unseen") == 1
    assert "`proxykd gc` removes what is left" in told
