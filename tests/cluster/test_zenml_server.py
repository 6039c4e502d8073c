"""ZenML's server is looked at before anything is asked of it, and what it refuses is one message."""

import pytest
import requests
import urllib3
from zenml.exceptions import AuthorizationException
from zenml.zen_stores import rest_zen_store

from cluster import zenml_server
from cluster.zenml_server import server_trouble
from proxykd.config.stack import load_stack
from tests.support.site import Site

DEAD = "http://127.0.0.1:9"
HERE = [
    "http://127.0.0.1:8080",
    "http://localhost:8080",
    "http://[::1]:8080",
    "http://127.0.1.1",
    "http://0.0.0.0:8080",
]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zenml_server, "_address", lambda: DEAD)


@pytest.mark.parametrize(("status", "state"), [(503, "HTTP 503"), (None, "no answer")])
def test_a_server_that_is_away_is_a_finding_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch, status: int | None, state: str
) -> None:
    site.pages = {"/health": (status or 200, "")}
    address = DEAD if status is None else f"http://127.0.0.1:{site.server_port}"
    monkeypatch.setattr(zenml_server, "_address", lambda: address)
    found = zenml_server.find_trouble()
    assert found is not None
    assert (found.what, found.state) == (f"ZenML server {address}", "missing")
    assert found.found.startswith(state)
    assert "ZENML_STORE_URL" in found.remedy


def test_a_database_on_this_machine_is_never_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zenml_server, "_address", lambda: "sqlite:////somewhere/zenml.db")
    assert zenml_server.find_trouble() is None


def test_what_zenmls_client_says_of_a_server_that_is_away_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rest_zen_store, "Retry", lambda **_: urllib3.Retry(0))
    configuration = rest_zen_store.RestZenStoreConfiguration(url=DEAD)
    with pytest.raises(RuntimeError) as caught:
        rest_zen_store.RestZenStore(config=configuration, skip_default_registrations=True)
    try:
        raise ValueError("what a step made of it") from caught.value
    except ValueError as error:
        told = str(server_trouble(error))
    assert told.startswith("expected ZenML's server to answer")
    assert DEAD in told


@pytest.mark.usefixtures("at")
def test_a_request_to_zenml_that_breaks_off_is_its_servers_fault_and_one_to_others_is_not() -> None:
    for address, is_its in ((f"{DEAD}/api/v1/runs", True), ("http://127.0.0.1:10/api/v1/runs", False)):
        with pytest.raises(requests.ConnectionError) as caught:
            requests.get(address, timeout=5)
        assert (server_trouble(caught.value) is not None) is is_its


@pytest.mark.usefixtures("at")
def test_a_login_that_is_refused_is_told_and_nothing_else_is_taken_for_one() -> None:
    assert "ZENML_STORE_API_KEY" in str(server_trouble(AuthorizationException("not you")))
    assert server_trouble(RuntimeError("something else")) is None
    assert server_trouble(None) is None


@pytest.mark.parametrize("address", HERE)
def test_pods_are_not_sent_to_their_own_loopback_for_zenml(address: str) -> None:
    stack = load_stack("kubernetes")
    (finding,) = zenml_server.check_reached(stack, address)
    assert (finding.state, "zenml_url" in finding.remedy) == ("missing", True)
    told = stack.model_copy(update={"zenml_url": "http://zenml.zenml"})
    assert not list(zenml_server.check_reached(told, address))
    for name in ("kubeflow", "local"):  # pods of the first take the address from a secret
        assert not list(zenml_server.check_reached(load_stack(name), address))


@pytest.mark.parametrize("address", ["https://zenml.example.com", "http://zenml.zenml:80", "http://10.0.0.7:8080"])
def test_an_address_that_pods_may_reach_is_none_of_loopback(address: str) -> None:
    assert not list(zenml_server.check_reached(load_stack("kubernetes"), address))
