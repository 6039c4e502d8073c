"""Stack and schedule files: what is refused, with which words, and that every shipped one loads."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.placement import load_placement
from proxykd.config.schedule import MACROS, ScheduleSpec, load_schedule
from proxykd.config.stack import STACKS, ClusterStackSpec, load_stack, stack_file
from proxykd.config.steps import STEPS
from proxykd.exceptions import ConfigError

PAGE = STACKS.parents[1] / "docs" / "schedules.md"
DIGEST = f"ghcr.io/proxykd/proxykd@sha256:{'0' * 64}"
CLUSTER: dict[str, Any] = {
    "kind": "kubernetes", "name": "production", "context": "production", "image": DIGEST,
    "container_registry": "ghcr.io/proxykd", "artifact_store": {"kind": "s3", "path": "s3://bucket"},
    "placement": "placement.yaml",
}  # fmt: skip


def load(tmp_path: Path, **values: Any) -> Any:
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return load_stack(str(tmp_path / "stack.yaml"))


@pytest.mark.parametrize("file", sorted(STACKS.glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_stack_loads_and_names_its_command(file: Path) -> None:
    found = load_stack(file.stem)
    assert found.name == file.stem
    assert file.read_text(encoding="utf-8").startswith(f"# proxykd stack apply {file.stem}\n")
    if isinstance(found, ClusterStackSpec):
        load_placement(found.placement)


@pytest.mark.parametrize("file", sorted((STACKS.parent / "schedules").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_shipped_schedule_loads_and_names_its_command(file: Path) -> None:
    found = load_schedule(file)
    assert found.run.is_file()
    assert stack_file(found.stack).is_file()
    assert found.anew, "from its second time on it would find everything done"
    assert set(found.anew) <= set(STEPS)
    (shown,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert yaml.safe_load(shown) == yaml.safe_load(file.read_text(encoding="utf-8"))
    assert file.read_text(encoding="utf-8").startswith(f"# proxykd schedule apply k8s/schedules/{file.name}\n")


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "sqlite:////tmp/mlflow.db", "postgresql+psycopg://db/mlflow", "runs"]
)
def test_a_local_stack_tracks_wherever_mlflow_can(tmp_path: Path, uri: str) -> None:
    assert load(tmp_path, kind="local", name="mine", tracking_uri=uri).tracking_uri == uri


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("htp://mlflow:5000", r"scheme 'htp'; use one of .*https"),
        ("http+unix://mlflow", r"scheme 'http\+unix'"),
        ("mlflow:5000", "write http://mlflow:5000"),
        ("127.0.0.1:5000/", "write http://127.0.0.1:5000/"),
    ],
)
def test_an_address_that_mlflow_does_not_know_is_refused(tmp_path: Path, uri: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"tracking_uri: .*MLflow knows, got .*{words}"):
        load(tmp_path, kind="local", name="mine", tracking_uri=uri)


def test_readme_applies_the_stack_that_its_run_and_its_schedule_name() -> None:
    text = (STACKS.parents[1] / "README.md").read_text(encoding="utf-8")
    applied = set(re.findall(r"^proxykd stack apply (\S+)", text, re.MULTILINE))
    schedules = re.findall(r"^proxykd schedule apply (\S+)", text, re.MULTILINE)
    assert schedules
    assert all(load_schedule(STACKS.parents[1] / path).stack in applied for path in schedules)
    assert set(re.findall(r"--stack (\S+)", text)) == applied
    assert all(stack_file(name).is_file() for name in applied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"namespase": "x"}, ["namespase", "did you mean 'namespace'?", "docs/stacks.md"]),
        ({"artifact_store": {"kind": "s3", "path": "s3://b", "endpoint": "x"}}, ["store.endpoint:", "'endpoint_url'"]),
        ({"artifact_store": {"kind": "folder"}}, ["artifact_store"]),
        ({"service_accounts": {"orchestator": "x"}}, ["service_accounts.orchestator", "'orchestrator'"]),
        ({"kind": "kubernets"}, ["local, kubernetes, kubeflow", "'kubernets'"]),
        ({"kind": None}, ["local, kubernetes, kubeflow"]),
        ({"image": "ghcr.io/proxykd/proxykd:latest"}, ["image", "pinned by its digest", "skopeo inspect"]),
        ({"image": "ghcr.io/proxykd/proxykd@sha256:abc"}, ["pinned by its digest"]),
        ({"namespace": "Not A Name"}, ["namespace"]),
        ({"tracking_uri": "mlflow:5000"}, ["tracking_uri", "http://"]),
        ({"artifact_store": {"kind": "s3", "path": "gs://bucket"}}, ["artifact_store.path"]),
        ({"start_timeout_s": 0}, ["start_timeout_s"]),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_the_nearest_key(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    assert load(tmp_path, **CLUSTER).namespace == "proxykd"
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, **{**CLUSTER, **change})
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, **{**CLUSTER, "tracking_uri": "http://user:very-secret@mlflow:5000"})
    assert "belong in a secret" in str(refused.value)
    assert "very-secret" not in str(refused.value)


def test_a_stack_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match="kubeflow, kubernetes, local"):
        load_stack("kubernets")
    with pytest.raises(ConfigError, match="No such file"):
        load_stack("nowhere.yaml")


def test_a_local_stack_may_have_a_bucket_and_its_keys_are_told_as_written(tmp_path: Path) -> None:
    store = {"kind": "s3", "path": "s3://bucket"}
    assert load(tmp_path, kind="local", name="x", artifact_store=store).artifact_store.path == "s3://bucket"
    with pytest.raises(ConfigError, match=r"artifact_store\.regoin: unknown key; did you mean 'region'"):
        load(tmp_path, kind="local", name="x", artifact_store={**store, "regoin": "eu"})


def test_kubeflow_needs_a_way_to_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hostname or context"):
        load(tmp_path, **{**CLUSTER, "kind": "kubeflow", "context": None})


@pytest.mark.parametrize(
    "cron", ["0 3 * * 1-5", "*/15 * * * *", "0 0 1,15 * *", "5 4 * jan-mar sun", "0-30/10 8-18 * * mon-fri", *MACROS]
)
def test_times_of_cron(cron: str) -> None:
    assert ScheduleSpec(cron=cron).cron == cron


@pytest.mark.parametrize(
    "cron",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * * 13 *", "* * * * 7", "*/0 * * * *",
     "5-1 * * * *", "a * * * *", "@often", "TZ=UTC 0 3 * * *", "0 3 * * mon-", "1, * * * *"],
)  # fmt: skip
def test_what_is_no_time_of_cron(cron: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        ScheduleSpec(cron=cron)


@given(st.integers(0, 59), st.integers(0, 23), st.integers(1, 31), st.integers(1, 12), st.integers(0, 6))
def test_every_minute_of_the_year_is_a_time_of_cron(minute: int, hour: int, day: int, month: int, weekday: int) -> None:
    cron = f"{minute} {hour} {day} {month} {weekday}"
    assert ScheduleSpec(cron=f" {cron}  ").cron == cron


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_is_refused_as_a_value(text: str) -> None:
    with suppress(ValueError):
        assert ScheduleSpec(cron=text).cron == " ".join(text.split())


@pytest.mark.parametrize("zone", ["Europe/Berln", "", "../etc/passwd", "UTC+1"])
def test_what_is_no_time_zone(zone: str) -> None:
    with pytest.raises(ValueError, match="IANA"):
        ScheduleSpec(cron="@daily", time_zone=zone)
    assert ScheduleSpec(cron="@daily", time_zone="Europe/Berlin").time_zone == "Europe/Berlin"


def test_a_schedule_forbids_two_at_once_unless_told_otherwise() -> None:
    assert ScheduleSpec(cron="@daily").concurrency == "Forbid"


def test_a_schedule_with_an_unknown_key(tmp_path: Path) -> None:
    content = {"name": "x", "run": "run.yaml", "stack": "local", "schedule": {"cron": "@daily", "timezone": "UTC"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ConfigError, match="did you mean 'time_zone'"):
        load_schedule(tmp_path / "s.yaml")


def test_paths_are_those_of_the_file(tmp_path: Path) -> None:
    content = {"name": "x", "run": "run.yaml", "stack": "stacks/own.yaml", "schedule": {"cron": "@daily"}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    found = load_schedule(tmp_path / "s.yaml")
    assert found.run == tmp_path / "run.yaml"
    assert found.stack == str(tmp_path / "stacks" / "own.yaml")
