"""What a run needs beside the cluster itself: MLflow and the bucket.

Each is asked once, with a short wait. What only pods can reach is said to be unchecked, not missing.
"""

import uuid
from collections.abc import Iterator
from http.client import HTTPException
from importlib.metadata import version
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from cluster.api import ClusterApi
from cluster.findings import Finding, missing, ok, unchecked
from cluster.kinds import ENDPOINT_SLICES, SERVICES
from proxykd.config.addresses import is_loopback
from proxykd.config.stack import S3StoreSpec

TIMEOUT_S = 5.0
_IN_CLUSTER = (".svc", ".cluster.local")


class Reply(NamedTuple):
    """What an HTTP server said; status None = nothing."""

    status: int | None
    text: str
    challenge: str = ""


def ask(address: str, *, method: str = "GET", **headers: str) -> Reply:
    """One request; whatever happens is a reply."""
    request = Request(address, method=method)
    for name, value in headers.items():
        request.add_unredirected_header(name.replace("_", "-"), value)  # a key is for this server alone
    try:
        with urlopen(request, timeout=TIMEOUT_S) as response:
            return Reply(response.status, response.read(65_536).decode(errors="replace").strip())
    except HTTPError as error:
        return Reply(error.code, str(error.reason), error.headers.get("WWW-Authenticate", ""))
    except (OSError, ValueError, HTTPException) as error:
        return Reply(None, str(getattr(error, "reason", error)))


def check_tracking(uri: str, api: ClusterApi | None) -> Iterator[Finding]:
    """MLflow answers and is of the version that the checkout speaks; or its Service has pods, where only pods reach it.

    Args:
        uri: MLflow's address.
        api: The cluster, for an address that only pods know; None = there is none.
    """
    what, own = f"MLflow {uri}", version("mlflow")
    reply = ask(f"{uri.rstrip('/')}/version")
    if reply.status == 200:
        if reply.text.split(".")[:1] == own.split(".")[:1]:
            yield ok(what, reply.text)
        else:
            yield missing(
                what, f"version {reply.text}", f"run MLflow {own.split('.')[0]}.x there: this checkout has {own}"
            )
    elif reply.status in (401, 403):
        yield unchecked(what, "it wants a login", "name its secret in tracking_secret")
    elif reply.status is not None:
        yield missing(what, f"HTTP {reply.status}", "mend the server, or correct tracking_uri")
    elif api is not None and is_in_cluster(uri):
        yield from _check_service(api, what, (urlsplit(uri).hostname or "").split("."))
    else:
        yield missing(what, f"no answer ({reply.text})", "start it, or correct tracking_uri")


def is_in_cluster(uri: str) -> bool:
    """Whether an address is one that a cluster's own name service gives."""
    host = urlsplit(uri).hostname or ""
    return ("." not in host and not is_loopback(host)) or host.endswith(_IN_CLUSTER)


def _check_service(api: ClusterApi, what: str, host: list[str]) -> Iterator[Finding]:
    name, namespace = host[0], host[1] if len(host) > 1 else api.namespace
    if api.find(SERVICES, name, namespace=namespace) is None:
        yield missing(what, f"no Service {name} in namespace {namespace}", "apply k8s/base, or correct tracking_uri")
        return
    slices = list(api.list(ENDPOINT_SLICES, labels=f"kubernetes.io/service-name={name}", namespace=namespace))
    ready = sum(
        one.get("conditions", {}).get("ready", True) is not False
        for part in slices
        for one in part.get("endpoints") or []
    )
    if ready:
        yield unchecked(what, f"Service {name} has {ready} ready pods; its version can be asked from inside only")
    else:
        yield missing(what, f"Service {name} has no ready pod", f"kubectl -n {namespace} get pods says why")


def check_bucket(store: S3StoreSpec) -> Iterator[Finding]:
    """A small object can be written to the bucket and removed again, with this machine's own credentials."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

    what = f"artifact store {store.path}"
    bucket, _, prefix = store.path.removeprefix("s3://").partition("/")
    key = f"{prefix.rstrip('/')}/.doctor-{uuid.uuid4().hex}".lstrip("/")
    patience = Config(connect_timeout=TIMEOUT_S, read_timeout=4 * TIMEOUT_S, retries={"max_attempts": 2})
    try:
        session: Any = boto3.Session(region_name=store.region)
        client = session.client("s3", endpoint_url=store.endpoint_url, config=patience)
        client.put_object(Bucket=bucket, Key=key, Body=b"")
        client.delete_object(Bucket=bucket, Key=key)
    except NoCredentialsError:
        yield missing(what, "no credentials here", "export AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE")
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "?")
        yield missing(
            what, f"{error.operation_name}: {code}", "make the bucket, or allow this key to read and write it"
        )
    except BotoCoreError as error:
        if store.endpoint_url is not None and is_in_cluster(store.endpoint_url):
            yield unchecked(what, "only pods reach it", "this machine reads results from it: open a way to it")
        else:
            yield missing(what, f"no answer ({type(error).__name__})", "correct artifact_store.endpoint_url and region")
    else:
        yield ok(what, "writable")
