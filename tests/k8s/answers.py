"""What each verb does: the API server double's behaviour, apart from HTTP."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.k8s import defaults, patches, selectors
from tests.k8s.access import Access, Call
from tests.k8s.kinds import Kind
from tests.k8s.refusals import Refusal
from tests.k8s.routes import Route
from tests.k8s.store import Store, now

Object = dict[str, Any]
Logs = Callable[[str, str, str], Path | None]
"""(namespace, pod, container) -> the file with the container's output; None = it never started."""

MAX_WATCH_S = 60.0


class Answers:
    """Create, read, change, delete and watch, on one store.

    Attributes:
        webhooks: Called with each new object before it is stored; may change it.
        warnings: What a real server would warn about: fields it does not know, sent as null.
    """

    def __init__(self, store: Store, access: Access, logs: Logs) -> None:
        self.store, self.access, self.logs = store, access, logs
        self.webhooks: list[Callable[[Object], None]] = []
        self.warnings: list[str] = []

    def get(self, route: Route) -> Object:
        """One object, or its status."""
        assert route.kind is not None
        return self.store.peek(route.kind, route.namespace, route.name)

    def list(self, route: Route, query: dict[str, str]) -> Object:
        """The objects that the selectors choose, in pages of ``limit``."""
        assert route.kind is not None
        items = list(filter(_chosen(query), self.store.scan(route.kind, route.namespace)))
        start, limit = int(query.get("continue") or 0), int(query.get("limit") or 0)
        page = items[start : start + limit] if limit else items
        meta: Object = {"resourceVersion": self.store.version}
        if limit and start + limit < len(items):
            meta |= {"continue": str(start + limit), "remainingItemCount": len(items) - start - limit}
        kind = {"kind": f"{route.kind.name}List", "apiVersion": route.kind.api_version}
        return {**kind, "metadata": meta, "items": page}

    def watch(self, route: Route, query: dict[str, str]) -> Iterator[Object | None]:
        """The changes as events; None where there was none for a while."""
        assert route.kind is not None
        chosen = _chosen(query)
        until = time.monotonic() + min(float(query.get("timeoutSeconds") or MAX_WATCH_S), MAX_WATCH_S)
        since = query.get("resourceVersion") or ""
        if since in ("", "0"):
            since = self.store.version
            for found in filter(chosen, self.store.scan(route.kind, route.namespace)):
                yield {"type": "ADDED", "object": found}
        try:
            for event in self.store.watch(route.kind, route.namespace, since, until):
                if event is None:
                    yield None
                elif chosen(event[1]):
                    yield {"type": event[0], "object": event[1]}
        except Refusal as refusal:
            yield {"type": "ERROR", "object": refusal.status()}

    def create(self, route: Route, body: Object, query: dict[str, str], user: str) -> Object:
        """A new object, an access review's verdict, an eviction or a token."""
        if route.kind is None:
            return self._review(body, user)
        if route.subresource == "eviction":
            return self._evict(route)
        if route.subresource == "token":
            token = self.access.issue(f"system:serviceaccount:{route.namespace}:{route.name}")
            return {**body, "status": {"token": token, "expirationTimestamp": now()}}
        _check_kind(route.kind, body)
        place = body.get("metadata", {}).get("namespace") or route.namespace if route.kind.is_namespaced else ""
        if place != route.namespace:
            raise Refusal(400, "BadRequest", f"namespace {place!r} of the object is not the path's {route.namespace!r}")
        body = defaults.admitted(self._pruned(body))
        for webhook in self.webhooks:
            webhook(body)
        return self.store.create(route.kind, place, body, is_trial=query.get("dryRun") == "All")

    def _pruned(self, body: Object) -> Object:
        """The object without nulls, as a real server stores it; null fields that no schema knows are noted."""
        pruned = defaults.without_nulls(body)
        for path in defaults.unknown_nulls(body):
            self.warnings.append(f"{body['kind']}: unknown field {path}")
        return pruned

    def update(self, route: Route, body: Object, query: dict[str, str]) -> Object:
        """A whole new state."""
        assert route.kind is not None
        _check_kind(route.kind, body)
        if body.get("metadata", {}).get("name") != route.name:
            raise Refusal(400, "BadRequest", f"the name in the object is not the path's {route.name!r}")
        body = defaults.admitted(self._pruned(body))
        if query.get("dryRun") == "All":
            return body
        return self.store.replace(route.kind, route.namespace, body, subresource=route.subresource)

    def patch(self, route: Route, body: Any, content_type: str, query: dict[str, str]) -> Object:
        """A change of some fields; server-side apply also creates."""
        assert route.kind is not None
        try:
            old = self.store.get(route.kind, route.namespace, route.name)
        except Refusal:
            if "apply-patch" in content_type:
                return self.create(route._replace(name=""), body, query, "")
            raise
        if "json-patch" in content_type:
            new = patches.json_patched(old, body)
        else:
            new = patches.merged(old, body, is_strategic="strategic" in content_type)
        return self.update(route, new, query)

    def delete(self, route: Route, body: Object, query: dict[str, str]) -> Object:
        """One object, or all that the selectors choose."""
        assert route.kind is not None
        propagation = body.get("propagationPolicy") or query.get("propagationPolicy") or "Background"
        names = [route.name]
        if not route.name:
            found = filter(_chosen(query), self.store.scan(route.kind, route.namespace))
            names = [one["metadata"]["name"] for one in found]
        wanted = (body.get("preconditions") or {}).get("uid")
        for name in names:
            if wanted and self.store.peek(route.kind, route.namespace, name)["metadata"]["uid"] != wanted:
                raise Refusal(409, "Conflict", f"precondition failed: uid of {name!r} is not {wanted}")
            self.store.delete(route.kind, route.namespace, name, propagation=propagation)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}

    def log(self, route: Route, query: dict[str, str]) -> Iterator[bytes]:
        """A container's output; with ``follow`` until its pod has ended."""
        assert route.kind is not None
        pod = self.store.peek(route.kind, route.namespace, route.name)
        container = query.get("container") or pod["spec"]["containers"][0]["name"]
        path = self.logs(route.namespace, route.name, container)
        if path is None or not path.exists():
            told = f'container "{container}" in pod "{route.name}" is waiting to start: ContainerCreating'
            raise Refusal(400, "BadRequest", told)
        pieces = self._followed(route, path, query)
        return _timed(pieces) if query.get("timestamps") in ("true", "True", "1") else pieces

    def _followed(self, route: Route, path: Path, query: dict[str, str]) -> Iterator[bytes]:
        with path.open("rb") as file:
            content = file.read()
            if (last := query.get("tailLines")) is not None:
                content = b"".join(content.splitlines(keepends=True)[-int(last) :]) if int(last) else b""
            yield content
            while query.get("follow") in ("true", "True", "1"):
                is_over = self._is_over(route)
                content = file.read()
                yield content
                if is_over and not content:
                    return
                time.sleep(0.05)

    def _is_over(self, route: Route) -> bool:
        assert route.kind is not None
        try:
            pod = self.store.peek(route.kind, route.namespace, route.name)
        except Refusal:
            return True
        return pod.get("status", {}).get("phase") in ("Succeeded", "Failed")

    def _evict(self, route: Route) -> Object:
        assert route.kind is not None

        def mark(pod: Object) -> None:
            condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
            pod["status"].setdefault("conditions", []).append({**condition, "lastTransitionTime": now()})
            pod["metadata"]["deletionTimestamp"] = now()

        self.store.change(route.kind, route.namespace, route.name, mark)
        return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}

    def _review(self, body: Object, user: str) -> Object:
        asked = body["spec"].get("resourceAttributes") or {}
        subject = body["spec"].get("user") or user
        resource = asked.get("resource", "")
        if asked.get("subresource"):
            resource = f"{resource}/{asked['subresource']}"
        words = (asked.get("verb", ""), asked.get("group", ""), resource, asked.get("namespace", ""))
        call = Call(subject, *words, asked.get("name", ""))
        allowed = self.access.is_allowed(call) or not self.access.is_enforced
        return {**body, "status": {"allowed": allowed}}


def _timed(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Each line with a time before it: that of its reading, as none is kept with the log."""
    rest, stamp = b"", b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
        yield b"".join(stamp + b" " + line + b"\n" for line in lines)
    if rest:
        yield stamp + b" " + rest


def _chosen(query: dict[str, str]) -> Callable[[Object], bool]:
    labels = selectors.by_labels(query.get("labelSelector", ""))
    fields = selectors.by_fields(query.get("fieldSelector", ""))
    return lambda found: labels(found) and fields(found)


def _check_kind(kind: Kind, body: Any) -> None:
    if not isinstance(body, dict):
        raise Refusal(400, "BadRequest", "the body is not an object")
    body.setdefault("kind", kind.name)
    body.setdefault("apiVersion", kind.api_version)
    if (body["apiVersion"], body["kind"]) != (kind.api_version, kind.name):
        raise Refusal(400, "BadRequest", f"{body['apiVersion']} {body['kind']} does not belong at {kind.plural}")
