"""MLflow and the bucket, each asked once, with every kind of answer."""

import json
from importlib.metadata import version

import pytest

from cluster import services
from proxykd.config.stack import S3StoreSpec
from tests.support.site import Site


@pytest.mark.parametrize(
    ("status", "text", "state"),
    [
        (200, "3.99.0", "ok"), (200, "2.9.0", "missing"), (401, "", "unchecked"), (500, "", "missing"),
        (404, "", "missing"),
    ],
)  # fmt: skip
def test_mlflow_by_its_version(site: Site, status: int, text: str, state: str) -> None:
    site.pages = {"/version": (status, text)}
    (finding,) = services.check_tracking(f"http://127.0.0.1:{site.server_port}/", None)
    assert finding.state == state
    assert version("mlflow").startswith("3.")  # else the first row says something else


def test_mlflow_that_does_not_answer() -> None:
    (finding,) = services.check_tracking("http://127.0.0.1:9", None)
    assert (finding.state, finding.remedy) == ("missing", "start it, or correct tracking_uri")


def store(port: int, bucket: str = "proxykd") -> S3StoreSpec:
    place = {"kind": "s3", "path": f"s3://{bucket}/artifacts", "endpoint_url": f"http://127.0.0.1:{port}"}
    return S3StoreSpec.model_validate({**place, "region": "eu-central-1"})


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "very-secret")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("no_proxy", "*")


@pytest.mark.integration
@pytest.mark.usefixtures("keys")
def test_a_bucket_that_can_be_written_is_left_as_it_was() -> None:
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        _, port = server.get_host_and_port()
        (finding,) = services.check_bucket(store(port))
        assert (finding.state, "NoSuchBucket" in finding.found) == ("missing", True)
        client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="eu-central-1")
        client.create_bucket(Bucket="proxykd", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        (finding,) = services.check_bucket(store(port))
        assert (finding.state, finding.found) == ("ok", "writable")
        assert client.list_objects_v2(Bucket="proxykd")["KeyCount"] == 0
    finally:
        server.stop()


@pytest.mark.usefixtures("keys")
def test_a_bucket_that_does_not_answer_tells_no_key() -> None:
    (finding,) = services.check_bucket(store(9))
    assert finding.state == "missing"
    assert "very-secret" not in json.dumps([finding.found, finding.remedy])


def test_a_bucket_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    (finding,) = services.check_bucket(store(9))
    assert (finding.state, finding.found) == ("missing", "no credentials here")


def test_a_key_is_not_handed_on_to_where_a_server_leads(site: Site) -> None:
    other = f"http://127.0.0.1:{site.server_port}/elsewhere"
    site.pages = {"/here": (307, other), "/elsewhere": (200, "there")}
    assert services.ask(f"http://127.0.0.1:{site.server_port}/here", Authorization="Bearer key").text == "there"
    assert site.keys == {"/here": "Bearer key", "/elsewhere": None}


def test_an_address_that_is_none_is_a_reply() -> None:
    assert services.ask("http://127.0.0.1:9/of two words").status is None
