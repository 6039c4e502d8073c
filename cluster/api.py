"""One way to reach the Kubernetes API server: verbs on plain objects, with deadlines, retries and clear errors.

Each call is repeated while the server is away, overloaded or in conflict with itself, with waits that double and that
follow ``Retry-After``, until a deadline. A refused token is read again once. Everything else that the server refuses
is an error which says what to do.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlencode

from cluster.connection import Answer, Connection, open_connection
from cluster.kinds import ACCESS_REVIEWS, PODS, Kind
from proxykd.exceptions import (
    ClusterAuthError,
    ClusterConflictError,
    ClusterError,
    ClusterForbiddenError,
    ClusterMissingError,
    ClusterUnreachableError,
)

Object = dict[str, Any]
_AWAY = frozenset({429, 500, 502, 503, 504})
_VERBS = {"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_PAGE = 500
_RULES = ("admission webhook", "violates PodSecurity", "exceeded quota", "usage per", "ValidatingAdmissionPolicy")
"""Words of a refusal that no Role would lift."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call goes on being tried.

    Attributes:
        deadline_s: Seconds from the first try to the last; an API server's upgrade takes about a minute.
        first_s: The first wait; each further one is twice as long.
        longest_s: The longest wait, unless the server asks for more.
    """

    deadline_s: float = 120.0
    first_s: float = 0.25
    longest_s: float = 10.0


class ClusterApi:
    """The API server, as one identity in one namespace.

    Attributes:
        namespace: Where objects are, unless a call says otherwise.
        address: Of the server.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        namespace: str | None = None,
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._connection = connection
        self.namespace = namespace or connection.namespace
        self.address = connection.address
        self._patience = patience or Patience()
        self._clock, self._sleep = clock, sleep

    @classmethod
    def connect(
        cls, context: str | None = None, *, namespace: str | None = None, patience: Patience | None = None
    ) -> "ClusterApi":
        """Reach the server; nothing is sent yet.

        Args:
            context: Name in the kubeconfig; None = in a pod its service account, elsewhere the current context.
            namespace: None = the one that the credentials name.
            patience: None = that of ``Patience``.

        Raises:
            ClusterError: if there are no usable credentials.
        """
        return cls(open_connection(context), namespace=namespace, patience=patience)

    def with_patience(self, patience: Patience) -> "ClusterApi":
        """The same server and identity, tried for longer or shorter."""
        return ClusterApi(
            self._connection, namespace=self.namespace, patience=patience, clock=self._clock, sleep=self._sleep
        )

    def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object:
        """An object.

        Raises:
            ClusterMissingError: if there is none of that name, or if the cluster does not know its kind.
            ClusterError: as every call: forbidden, refused, or away beyond the deadline.
        """
        return self._json("GET", kind.path(namespace or self.namespace, name), kind, name, namespace)

    def find(self, kind: Kind, name: str, *, namespace: str | None = None) -> Object | None:
        """An object, or None if there is none of that name."""
        try:
            return self.get(kind, name, namespace=namespace)
        except ClusterMissingError:
            return None

    def list(
        self, kind: Kind, *, labels: str = "", fields: str = "", namespace: str | None = None, everywhere: bool = False
    ) -> Iterator[Object]:
        """All objects of a kind, read page by page.

        Args:
            kind: Of the objects.
            labels: A label selector, for example ``app=proxykd,role in (train)``; "" = any.
            fields: A field selector; "" = any.
            namespace: None = the server's own.
            everywhere: All namespaces.
        """
        path = kind.path(None if everywhere else namespace or self.namespace)
        query = {"limit": str(_PAGE), "labelSelector": labels, "fieldSelector": fields}
        query = {name: value for name, value in query.items() if value}
        while True:
            page = self._json("GET", path, kind, None, namespace, query=query, verb="list")
            yield from page.get("items") or []
            if not (more := (page.get("metadata") or {}).get("continue")):
                return
            query["continue"] = more

    def create(self, kind: Kind, body: Mapping[str, Any], *, is_trial: bool = False) -> Object:
        """Make an object, in the namespace that it names.

        A call that is repeated because the answer was lost finds what it made itself, and says so by
        ``ClusterConflictError``: whoever names objects by what they are can then go on with the one that is there.

        Args:
            kind: Of the object.
            body: The manifest.
            is_trial: Let the server check it and store nothing.

        Raises:
            ClusterConflictError: if there is one of that name.
        """
        metadata = body.get("metadata") or {}
        name, namespace = metadata.get("name"), metadata.get("namespace")
        query = {"fieldValidation": "Strict", **({"dryRun": "All"} if is_trial else {})}
        path = kind.path(namespace or self.namespace)
        whole = {"apiVersion": kind.api_version, "kind": kind.name, **body}
        return self._json("POST", path, kind, name, namespace, query=query, body=whole)

    def patch(self, kind: Kind, name: str, body: Mapping[str, Any], *, namespace: str | None = None) -> Object:
        """Change what ``body`` names, by a JSON merge patch (RFC 7386); lists are replaced whole."""
        path, query = kind.path(namespace or self.namespace, name), {"fieldValidation": "Strict"}
        content = "application/merge-patch+json"
        return self._json("PATCH", path, kind, name, namespace, query=query, body=body, content=content)

    def replace(self, kind: Kind, body: Mapping[str, Any]) -> Object:
        """Write an object that was read, if nobody changed it since.

        Raises:
            ClusterConflictError: if somebody did; read it again.
        """
        name, namespace = body["metadata"]["name"], body["metadata"].get("namespace")
        path, query = kind.path(namespace or self.namespace, name), {"fieldValidation": "Strict"}
        return self._json("PUT", path, kind, name, namespace, query=query, body=body)

    def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str | None = None,
        propagation: Literal["Background", "Foreground", "Orphan"] = "Background",
        uid: str | None = None,
    ) -> bool:
        """Remove an object and all that it owns.

        Args:
            kind: Of the object.
            name: Of the object.
            namespace: None = the server's own.
            propagation: What it owns goes after it (Background), goes before it (Foreground) or stays (Orphan).
            uid: Remove this one only, not another that has its name by now.

        Returns:
            Whether there was one.
        """
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        body |= {} if uid is None else {"preconditions": {"uid": uid}}
        try:
            self._json("DELETE", kind.path(namespace or self.namespace, name), kind, name, namespace, body=body)
        except ClusterMissingError:
            return False
        return True

    def log(
        self,
        pod: str,
        *,
        container: str,
        is_followed: bool = False,
        since: str | None = None,
        tail: int | None = None,
    ) -> Iterator[bytes]:
        """A container's log in pieces as they come, each line with its time before it.

        Args:
            pod: Its name.
            container: One of its containers.
            is_followed: Wait for more until the container ends, or no byte has come for a while.
            since: From this time on, to the second, as the lines have it; None = from the beginning.
            tail: The last so many lines only; None = all.

        Raises:
            ClusterError: also when the stream breaks; ask again from there.
        """
        from urllib3.exceptions import HTTPError

        query = {"container": container, "timestamps": "true", "follow": str(is_followed).lower()}
        query |= {} if since is None else {"sinceTime": f"{since[:19]}Z"}
        query |= {} if tail is None else {"tailLines": str(tail)}
        path = PODS.path(self.namespace, pod, "log")
        answer = self._ask("GET", path, PODS, f"{pod}/log", None, query=query, is_stream=True)
        try:
            yield from answer.raw.stream(65_536, decode_content=True)
        except HTTPError as error:
            raise ClusterUnreachableError(f"the log of pod {pod} broke off: {error}") from error
        finally:
            answer.raw.close()

    def allows(self, verb: str, kind: Kind, *, part: str = "", name: str = "", namespace: str | None = None) -> bool:
        """Whether this identity may do something, as the server's authorizer sees it.

        Args:
            verb: As in a Role, for example ``create``.
            kind: Of the objects.
            part: For example ``log`` of ``pods``; "" = the object itself.
            name: Of the object; "" = any.
            namespace: None = the server's own.
        """
        asked = {"verb": verb, "group": kind.group, "resource": kind.plural, "subresource": part, "name": name}
        if kind.is_namespaced:
            asked["namespace"] = namespace or self.namespace
        review = {"spec": {"resourceAttributes": {key: value for key, value in asked.items() if value}}}
        return bool((self.create(ACCESS_REVIEWS, review).get("status") or {}).get("allowed"))

    def version(self) -> str:
        """The server's, for example ``v1.34.1``."""
        return str(self._json("GET", "/version", PODS, None, None).get("gitVersion", ""))

    def _json(self, method: str, path: str, kind: Kind, name: str | None, namespace: str | None, **more: Any) -> Object:
        return dict(self._ask(method, path, kind, name, namespace, **more).body)

    def _ask(
        self,
        method: str,
        path: str,
        kind: Kind,
        name: str | None,
        namespace: str | None,
        *,
        query: Mapping[str, str] | None = None,
        verb: str | None = None,
        **more: Any,
    ) -> Answer:
        what = f"{verb or _VERBS[method]} {kind.plural}" + (f" {name}" if name else "")
        what += f" in namespace {namespace or self.namespace}" if kind.is_namespaced else ""
        address = f"{path}?{urlencode(query)}" if query else path
        deadline, wait, renewed = self._clock() + self._patience.deadline_s, self._patience.first_s, False
        while True:
            problem, asked_s = self._try(method, address, what, more)
            if isinstance(problem, Answer):
                return problem
            if isinstance(problem, ClusterAuthError) and not renewed:
                self._connection.renew()
                renewed = True
                continue
            pause = max(asked_s or 0.0, wait * random.uniform(0.5, 1.0))
            if asked_s is None or self._clock() + pause > deadline:
                raise problem
            self._sleep(pause)
            wait = min(2.0 * wait, self._patience.longest_s)

    def _try(
        self, method: str, path: str, what: str, more: Mapping[str, Any]
    ) -> tuple[Answer | ClusterError, float | None]:
        """An answer, or an error with the seconds to wait before the next try; None = there is no use in one."""
        try:
            answer = self._connection.ask(method, path, **more)
        except ClusterUnreachableError as error:
            return error, 0.0
        if answer.status < 300:
            return answer, None
        refused = refusal(answer, what, self.address)
        return refused, _seconds(answer.headers.get("retry-after")) if _passes(answer, method) else None


def _passes(answer: Answer, method: str) -> bool:
    """Whether the same call may succeed later.

    A conflict does where the server ran into itself (a quota's counter, say): not where the object is there already,
    nor where somebody else changed what is to be replaced.
    """
    if answer.status == 409:
        return method in ("POST", "PATCH") and answer.body.get("reason") != "AlreadyExists"
    return answer.status in _AWAY


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0.0))
    except ValueError:
        return 0.0


def refusal(answer: Answer, what: str, address: str) -> ClusterError:
    """The error that an answer stands for.

    Args:
        answer: With a status of 300 or more.
        what: Verb, resource, name and namespace.
        address: Of the server.
    """
    said = str(answer.body.get("message") or answer.body.get("reason") or f"status {answer.status}")
    if answer.status == 401:
        return ClusterAuthError(
            f"expected the API server {address} to know this identity, but it refused the token for: {what} ({said}); "
            "log in again, or give the pod a service account whose token is renewed"
        )
    if answer.status == 403 and any(word in said for word in _RULES):
        return ClusterError(
            f"expected to {what}, but a rule of the namespace refuses it ({said}); change what it names"
        )
    if answer.status == 403:
        return ClusterForbiddenError(
            f"expected permission to {what}, but the cluster forbids it ({said}); bind a Role that allows it: "
            "`proxykd stack doctor` lists every permission that is missing"
        )
    if answer.status == 404:
        return ClusterMissingError(
            f"expected to {what}, but there is none ({said}); `proxykd stack doctor` looks for it"
        )
    if answer.status == 409:
        return ClusterConflictError(f"expected to {what}, but another object or change came first ({said})")
    if answer.status in _AWAY:
        return ClusterUnreachableError(
            f"expected the API server {address} to {what}, but it answered {answer.status} to the end ({said}); "
            "check the control plane and try again"
        )
    return ClusterError(
        f"expected to {what}, but the server refused the object with status {answer.status} ({said}); correct what it "
        "names"
    )
