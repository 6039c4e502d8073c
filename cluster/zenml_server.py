"""ZenML's server: whether a run can use it, and which errors of a command are its fault."""

from collections.abc import Iterator
from importlib.metadata import version
from urllib.parse import urlsplit

import requests
from zenml.client import Client
from zenml.config.global_config import GlobalConfiguration
from zenml.exceptions import AuthorizationException

from cluster.findings import Finding, missing, ok
from cluster.services import ask
from proxykd.config.addresses import is_loopback
from proxykd.config.stack import ClusterStackSpec, KubernetesStackSpec, StackSpec

_UNREACHED = "Error connecting to URL"


def find_trouble() -> Finding | None:
    """What keeps this machine from asking ZenML's server; None = nothing, or ZenML's database is a file here."""
    address = _address()
    what = f"ZenML server {address}"
    if not address.startswith(("http://", "https://")):
        return None
    reply = ask(f"{address}/health")  # ZenML's client would try for half a minute
    if reply.status is None or reply.status >= 500:
        said = f"no answer ({reply.text})" if reply.status is None else f"HTTP {reply.status}"
        return missing(what, said, "start it, or correct ZENML_STORE_URL")
    try:
        assert Client().zen_store
    except AuthorizationException:
        return missing(what, "it does not know this login", "set ZENML_STORE_API_KEY, or log in with `zenml login`")
    return None


def check_zenml(stack: StackSpec) -> Iterator[Finding]:
    """ZenML's server is of this checkout's version, and one that pods can reach."""
    store, own = Client().zen_store, version("zenml")
    if isinstance(stack, ClusterStackSpec) and not stack.is_on_this_machine and store.is_local_store():
        remedy = "set ZENML_STORE_URL and ZENML_STORE_API_KEY to a ZenML server that the pods reach"
        yield missing("ZenML server", "this machine's own database, which no pod can reach", remedy)
        return
    yield from check_reached(stack, str(store.url))
    found = str(store.get_store_info().version)
    what = "ZenML" if store.is_local_store() else f"ZenML server {store.url}"
    if found.split(".")[:2] != own.split(".")[:2]:
        yield missing(what, f"version {found}", f"run ZenML {own} there: this checkout has {own}")
    else:
        yield ok(what, found)


def check_reached(stack: StackSpec, address: str) -> Iterator[Finding]:
    """Pods of a stack of kind kubernetes are not told to look for ZenML's server on their own loopback.

    ZenML hands the submitter's own address on; pods of Kubeflow Pipelines take theirs from a secret.

    Args:
        stack: Whose ``zenml_url``, where it has one, is what the pods are told instead.
        address: By which this machine reaches the server.
    """
    if (
        isinstance(stack, KubernetesStackSpec)
        and stack.zenml_url is None
        and is_loopback(urlsplit(address).hostname or "")
    ):
        found = "an address of this machine's loopback, which ZenML hands on to the pods"
        yield missing(f"ZenML server {address}", found, "name the address that pods reach under zenml_url of the stack")


def server_trouble(error: BaseException | None) -> str | None:
    """Why ZenML's server is to blame for an error, or for one that it was raised from; None = it is not.

    Args:
        error: What ended a command.
    """
    while error is not None:
        told = str(error).partition("\n")[0]
        if isinstance(error, AuthorizationException):
            return (
                f"expected ZenML's server to know this login, but: {told}; set ZENML_STORE_URL and "
                "ZENML_STORE_API_KEY, or log in with `zenml login`"
            )
        if told.startswith(_UNREACHED) or _was_sent_to_zenml(error):
            return (
                f"expected ZenML's server to answer, but: {told}; start it, or correct ZENML_STORE_URL, and run the "
                "same command again: it goes on from here"
            )
        error = error.__cause__
    return None


def _was_sent_to_zenml(error: BaseException) -> bool:
    """Whether an error of the library that ZenML's client asks with is of a request to ZenML's server."""
    if not isinstance(error, requests.RequestException) or error.request is None:
        return False
    return str(error.request.url).startswith(f"{_address()}/")


def _address() -> str:
    """Where ZenML keeps what it knows: a server, or a database's file."""
    return str(GlobalConfiguration().store_configuration.url).rstrip("/")
