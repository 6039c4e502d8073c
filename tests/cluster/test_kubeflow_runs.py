"""What Kubeflow Pipelines says of runs, over HTTP, and for how long a run of its may stand still."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from cluster.garbage import Ages
from cluster.kubeflow_runs import ENDED, Idleness, KubeflowRuns, find_abandoned, why_over
from cluster.runs import Run as ZenmlRun
from proxykd.exceptions import ClusterUnreachableError
from tests.k8s.api_server import api_server
from tests.k8s.kubeflow_pipelines import KubeflowPipelines, Run, kubeflow_pipelines
from tests.support.site import Site

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def double(tmp_path: Path) -> Iterator[tuple[KubeflowPipelines, str]]:
    with api_server(tmp_path) as api, kubeflow_pipelines(api) as found:
        yield found


def test_a_run_that_kubeflow_ended_never_goes_on(double: tuple[KubeflowPipelines, str]) -> None:
    kfp = pytest.importorskip("kfp")
    pipelines, address = double
    found = KubeflowRuns(lambda: kfp.Client(host=address))
    run = Run("tiny", {}, {})
    pipelines.runs[run.run_id] = run
    assert not why_over(found.state(run.run_id))
    run.state = "FAILED"
    assert "ended it as FAILED" in why_over(found.state(run.run_id))
    assert "does not know it" in why_over(found.state("another"))
    made = NOW - timedelta(hours=1)
    shown = [
        ZenmlRun(name, name, "running", False, "s", "proxykd-kubeflow", orchestrator, made, None, "")
        for name, orchestrator in (("mine", "ours"), ("never-sent", "ours"), ("foreign", "another"))
    ]
    noted = {"mine": run.run_id, "foreign": run.run_id}
    waste = list(find_abandoned(found, shown, "ours", Ages(NOW), noted=lambda name: noted.get(name, "")))
    assert [one.name for one in waste] == ["mine"]
    assert not list(find_abandoned(found, shown, "ours", Ages(made), noted=lambda _: run.run_id))
    with pytest.raises(ClusterUnreachableError, match="hostname or context reaches it"):
        KubeflowRuns(lambda: kfp.Client(host="http://127.0.0.1:9")).state(run.run_id)


@pytest.mark.parametrize("status", [401, 503])
def test_a_server_that_is_not_healthy_does_not_answer(site: Site, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    kfp = pytest.importorskip("kfp")
    monkeypatch.setattr("kfp.client.client.time", SimpleNamespace(sleep=lambda _: None))
    site.pages = {"/apis/v2beta1/healthz": (status, "no endpoints available")}
    with pytest.raises(ClusterUnreachableError, match="hostname or context reaches it"):
        KubeflowRuns(lambda: kfp.Client(host=f"http://127.0.0.1:{site.server_port}")).state("any")


def test_only_an_end_is_an_end() -> None:
    assert not any(map(why_over, ("PENDING", "RUNNING", "CANCELING", "PAUSED", "RUNTIME_STATE_UNSPECIFIED")))
    assert all(map(why_over, ENDED))


def test_a_run_stands_still_from_the_last_change_of_its_steps() -> None:
    idle = Idleness(3600.0)
    looks = [
        (0.0, {}), (0.9, {}), (1.0, {"split": "running"}), (9.0, {"split": "running"}),
        (9.5, {"split": "completed"}), (10.4, {"split": "completed"}),
    ]  # fmt: skip
    assert not any(idle.look(steps, NOW + timedelta(hours=hours)) for hours, steps in looks)
    why = idle.look({"split": "completed"}, NOW + timedelta(hours=10.6))
    assert why == "for 3600 s no step of it ran: its next pod does not start"
    for_ever = Idleness(None)
    assert not any(for_ever.look({}, NOW + timedelta(days=days)) for days in range(9))
