"""The API server is reached through every passing trouble, and what it refuses is told with what to do."""

import json
import pickle
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml

from cluster.api import ClusterApi, Patience
from cluster.connection import Connection, context_names, open_connection, patient_retries
from cluster.kinds import JOBS, NODES, PODS, TRAIN_JOBS
from proxykd.exceptions import (
    ClusterAuthError,
    ClusterConflictError,
    ClusterError,
    ClusterForbiddenError,
    ClusterMissingError,
    ClusterUnreachableError,
)
from tests.support.servers import listening

Answer = tuple[int, dict[str, str], Any]


class Server(ThreadingHTTPServer):
    """Gives the scripted answers in order, the last one for ever, and keeps what it was asked."""

    answers: ClassVar[list[Answer]]
    asked: ClassVar[list[tuple[str, str, str, Any]]]


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        self.server.asked.append((self.command, self.path, self.headers.get("Authorization", ""), body))
        answers = self.server.answers
        status, headers, said = answers.pop(0) if len(answers) > 1 else answers[0]
        if not status:
            self.close_connection = True
            return
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), _Handler)
    running.answers, running.asked = [], []  # type: ignore[misc]
    with listening(running):
        yield running


def write_kubeconfig(folder: Path, address: str, token: str = "first") -> Path:
    (folder / "token").write_text(token)
    path = folder / "kubeconfig"
    context = {"cluster": "here", "user": "me", "namespace": "proxykd"}
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": context}],
        "clusters": [{"name": "here", "cluster": {"server": address}}],
        "users": [{"name": "me", "user": {"tokenFile": str(folder / "token")}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, list[float]()
        self.script: dict[float, Callable[[], Any]] = {}

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
        for hour in sorted(hour for hour in self.script if hour <= self.now):
            self.script.pop(hour)()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connection(server: Server, tmp_path: Path) -> Connection:
    path = write_kubeconfig(tmp_path, f"http://127.0.0.1:{server.server_port}")
    return open_connection(None, environ={"KUBECONFIG": str(path)})


@pytest.fixture
def api(connection: Connection, clock: Clock) -> ClusterApi:
    return ClusterApi(connection, patience=Patience(deadline_s=60.0), clock=clock.read, sleep=clock.sleep)


POD = {"metadata": {"name": "a"}}


def test_an_object_is_read_from_the_namespace_of_the_credentials(server: Server, api: ClusterApi) -> None:
    server.answers[:] = [(200, {}, POD)]
    assert api.get(PODS, "a") == POD
    assert api.get(TRAIN_JOBS, "a/b", namespace="other") == POD
    assert api.get(NODES, "n") == POD
    assert [path for _, path, _, _ in server.asked] == [
        "/api/v1/namespaces/proxykd/pods/a",
        "/apis/trainer.kubeflow.org/v1alpha1/namespaces/other/trainjobs/a%2Fb",
        "/api/v1/nodes/n",
    ]
    assert {token for _, _, token, _ in server.asked} == {"Bearer first"}


def test_a_list_is_read_to_its_last_page(server: Server, api: ClusterApi) -> None:
    first = {"items": [{"n": 1}, {"n": 2}], "metadata": {"continue": "more"}}
    server.answers[:] = [(200, {}, first), (200, {}, {"items": [{"n": 3}], "metadata": {}})]
    assert [one["n"] for one in api.list(PODS, labels="a=b,c in (d)")] == [1, 2, 3]
    assert "labelSelector=a%3Db%2Cc+in+%28d%29" in server.asked[0][1]
    assert "continue=more" in server.asked[1][1]


@pytest.mark.parametrize("status", [0, 429, 500, 502, 503, 504])
def test_a_passing_trouble_is_waited_out(server: Server, api: ClusterApi, clock: Clock, status: int) -> None:
    server.answers[:] = [(status, {}, {"message": "later"})] * 4 + [(200, {}, POD)]
    assert api.get(PODS, "a") == POD
    assert len(clock.slept) == 4
    assert clock.slept[3] > clock.slept[0], "each wait is longer"


BROKEN = {"Content-Length": "1000"}


@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_that_breaks_off_is_asked_for_again(server: Server, api: ClusterApi, status: int) -> None:
    server.answers[:] = [(status, BROKEN, {"message": "no such"}), (200, {}, POD)]
    assert api.get(PODS, "a") == POD
    assert len(server.asked) == 2


@pytest.mark.parametrize("status", [404, 500])
def test_a_refusal_of_a_log_that_breaks_off_is_asked_for_again(server: Server, api: ClusterApi, status: int) -> None:
    server.answers[:] = [(status, BROKEN, {"message": "no such"}), (200, {}, b"2026-01-01T00:00:00Z one\n")]
    assert b"".join(api.log("a", container="node")) == b"2026-01-01T00:00:00Z one\n"
    assert len(server.asked) == 2


def test_the_server_says_how_long_to_wait(server: Server, api: ClusterApi, clock: Clock) -> None:
    server.answers[:] = [(429, {"Retry-After": "17"}, {}), (200, {}, POD)]
    api.get(PODS, "a")
    assert clock.slept == [17.0]


def test_a_server_that_stays_away_ends_in_an_error_at_the_deadline(
    server: Server, api: ClusterApi, clock: Clock
) -> None:
    server.answers[:] = [(503, {}, {"message": "etcd is away"})]
    with pytest.raises(ClusterUnreachableError, match=r"get pods a in namespace proxykd.*503.*etcd is away"):
        api.get(PODS, "a")
    assert 40.0 < clock.now <= 60.0


USUAL = Patience()
SURVIVED = (60.0, USUAL.deadline_s - USUAL.longest_s)
"""Seconds: a minute, and as long as is certain whenever the last wait begins."""


@pytest.mark.parametrize("status", [0, 503])
@pytest.mark.parametrize(("away_s", "is_survived"), [*((away_s, True) for away_s in SURVIVED), (121.0, False)])
def test_a_minute_without_the_server_passes_and_beyond_the_limit_there_is_one_message(
    server: Server, connection: Connection, clock: Clock, status: int, away_s: float, is_survived: bool
) -> None:
    api = ClusterApi(connection, clock=clock.read, sleep=clock.sleep)
    server.answers[:] = [(status, {}, {"message": "away"})]
    clock.script[away_s] = lambda: server.answers.__setitem__(0, (200, {}, POD))
    if is_survived:
        assert api.get(PODS, "a") == POD
        assert away_s <= clock.now <= away_s + USUAL.longest_s
    else:
        with pytest.raises(ClusterUnreachableError, match=r"expected .*control plane") as told:
            api.get(PODS, "a")
        assert str(told.value).count("expected") == 1
        assert SURVIVED[-1] <= clock.now <= USUAL.deadline_s
    assert len(clock.slept) < 30, "and the server is not stormed when it comes back"


def test_an_orchestrator_pod_bears_two_minutes_without_the_server(
    server: Server, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import urllib3
    from urllib3.util import retry

    monkeypatch.setattr(retry, "time", SimpleNamespace(sleep=clock.sleep))
    address = f"http://127.0.0.1:{server.server_port}/"
    for status in (0, 503):
        clock.now = 0.0
        server.answers[:] = [(status, {}, {})]
        clock.script[60.0] = lambda: server.answers.__setitem__(0, (200, {}, POD))
        with urllib3.PoolManager(retries=patient_retries()) as client:
            assert client.request("GET", address).status == 200
        assert 60.0 <= clock.now <= 70.0
    server.answers[:] = [(0, {}, {})]
    clock.now = 0.0
    with urllib3.PoolManager(retries=patient_retries()) as client, pytest.raises(urllib3.exceptions.MaxRetryError):
        client.request("GET", address)
    assert 120.0 <= clock.now <= 140.0


def test_a_server_that_is_not_there_is_named(connection: Connection, server: Server, clock: Clock) -> None:
    server.shutdown()
    server.server_close()
    api = ClusterApi(connection, patience=Patience(deadline_s=1.0), clock=clock.read, sleep=clock.sleep)
    with pytest.raises(ClusterUnreachableError, match=rf"http://127\.0\.0\.1:{server.server_port}.*kubeconfig"):
        api.get(PODS, "a")


def test_a_token_that_was_renewed_meanwhile_is_read_again(server: Server, api: ClusterApi, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("second")
    server.answers[:] = [(401, {}, {"message": "Unauthorized"}), (200, {}, POD)]
    assert api.get(PODS, "a") == POD
    assert [token for _, _, token, _ in server.asked] == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize(
    ("status", "kind", "message"),
    [
        (401, ClusterAuthError, "log in again"),
        (403, ClusterForbiddenError, "create trainjobs t in namespace proxykd.*stack doctor"),
        (404, ClusterMissingError, "stack doctor"),
        (422, ClusterError, "spec.trainer.image"),
    ],
)
def test_a_refusal_is_told_at_once_with_what_to_do(
    server: Server, api: ClusterApi, clock: Clock, status: int, kind: type[ClusterError], message: str
) -> None:
    server.answers[:] = [(status, {}, {"message": "spec.trainer.image: invalid"})]
    with pytest.raises(kind, match=message) as caught:
        api.create(TRAIN_JOBS, {"metadata": {"name": "t"}})
    assert not clock.slept
    assert type(pickle.loads(pickle.dumps(caught.value))) is type(caught.value)  # noqa: S301


def test_an_object_that_is_there_already_is_a_conflict_at_once(server: Server, api: ClusterApi, clock: Clock) -> None:
    server.answers[:] = [(409, {}, {"reason": "AlreadyExists"})]
    with pytest.raises(ClusterConflictError):
        api.create(JOBS, {"metadata": {"name": "j"}})
    assert not clock.slept


@pytest.mark.parametrize("change", [lambda api: api.create(JOBS, POD), lambda api: api.patch(JOBS, "a", POD)])
def test_a_conflict_of_the_server_with_itself_passes(
    server: Server, api: ClusterApi, change: Callable[[ClusterApi], object]
) -> None:
    server.answers[:] = [(409, {}, {"reason": "Conflict", "message": "quota changed"}), (200, {}, POD)]
    change(api)
    assert len(server.asked) == 2


def test_what_somebody_else_changed_is_not_overwritten(server: Server, api: ClusterApi) -> None:
    server.answers[:] = [(409, {}, {"reason": "Conflict"}), (200, {}, POD)]
    with pytest.raises(ClusterConflictError):
        api.replace(JOBS, POD)


def test_removing_tells_whether_there_was_one(server: Server, api: ClusterApi) -> None:
    server.answers[:] = [(200, {}, {}), (404, {}, {})]
    assert api.delete(JOBS, "a", propagation="Foreground", uid="u")
    assert not api.delete(JOBS, "a")
    body = server.asked[0][3]
    assert body["propagationPolicy"] == "Foreground"
    assert body["preconditions"] == {"uid": "u"}
    assert api.find(JOBS, "a") is None


def test_a_log_comes_as_it_is(server: Server, api: ClusterApi) -> None:
    server.answers[:] = [(200, {}, b"2026-01-01T00:00:00Z one\n2026-01-01T00:00:01Z two\n")]
    assert b"".join(api.log("a", container="node", tail=2)).count(b"\n") == 2
    assert "/pods/a/log?" in server.asked[0][1]


@pytest.mark.parametrize("allowed", [True, False])
def test_permissions_are_asked_of_the_authorizer(server: Server, api: ClusterApi, allowed: bool) -> None:
    server.answers[:] = [(201, {}, {"status": {"allowed": allowed}})]
    assert api.allows("get", PODS, part="log") is allowed
    attributes = server.asked[0][3]["spec"]["resourceAttributes"]
    assert attributes == {"verb": "get", "resource": "pods", "subresource": "log", "namespace": "proxykd"}


def test_credentials_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="KUBECONFIG"):
        open_connection(None, environ={"KUBECONFIG": str(tmp_path / "none")})
    path = write_kubeconfig(tmp_path, "http://127.0.0.1:1")
    with pytest.raises(ClusterError, match=r"context 'there'.*KUBECONFIG"):
        open_connection("there", environ={"KUBECONFIG": str(path)})


def test_a_context_that_is_named_needs_no_current_one(tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path, "http://127.0.0.1:1")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["current-context"]
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    found = open_connection("here", environ={"KUBECONFIG": str(path)})
    assert (found.address, found.namespace) == ("http://127.0.0.1:1", "proxykd")
    assert context_names(environ={"KUBECONFIG": str(path)}) == ["here"]
    with pytest.raises(ClusterError, match="expected a current context"):
        open_connection(None, environ={"KUBECONFIG": str(path)})


@pytest.mark.parametrize(
    "content",
    ["- token: very-secret\n", "very-secret", "a: [very-secret", "contexts: very-secret\n", "users: [very-secret]\n",
     "contexts: [{context: {user: very-secret}}]\nclusters: []\nusers: [{user: {token: very-secret}}]\n", "a: \x00"],
)  # fmt: skip
@pytest.mark.parametrize("context", ["here", None])
def test_a_file_that_is_no_kubeconfig_is_one_sentence_without_what_is_in_it(
    tmp_path: Path, content: str, context: str | None
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ClusterError, match=r"expected .* in .*found.*kubectl config") as caught:
        open_connection(context, environ={"KUBECONFIG": str(path)})
    told = str(caught.value)
    assert "very-secret" not in told
    assert not any(word in told for word in ("NoneType", "object is not", "attribute", "\n"))


@pytest.mark.parametrize("token", ["very-secret\n", "very\tsecret", "very-sécret"])
@pytest.mark.parametrize("is_inline", [False, True])
def test_a_token_that_no_header_can_carry_is_refused_and_not_shown(tmp_path: Path, token: str, is_inline: bool) -> None:
    path = write_kubeconfig(tmp_path, "http://127.0.0.1:1", token)
    if is_inline:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        content["users"][0]["user"] = {"token": token}
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ClusterError, match=r"expected the kubeconfig's token.*printf") as caught:
        open_connection(None, environ={"KUBECONFIG": str(path)})
    assert "very" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "field"), [("clusters", "certificate-authority-data"), ("users", "client-certificate-data")]
)
def test_a_certificate_that_is_no_base64_is_told(tmp_path: Path, part: str, field: str) -> None:
    path = write_kubeconfig(tmp_path, "https://127.0.0.1:1")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    of_cluster = {"server": "https://127.0.0.1:1"} if part == "clusters" else {"client-key-data": "abc"}
    content[part][0][part.removesuffix("s")] = {field: "abc", **of_cluster}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(ClusterError, match=r"expected base64 in the fields of .*kubeconfig that end in -data"):
        open_connection(None, environ={"KUBECONFIG": str(path)})


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"nowhere, found no such file.*KUBECONFIG"):
        open_connection("here", environ={"KUBECONFIG": str(tmp_path / "nowhere")})
