"""What the API server double keeps: objects by path, a counter of versions, a history for watchers, owners and owned.

Every change gets the next resourceVersion; a write that names an older one is refused with 409. Deleting an owner
deletes what it owns, in the background or first, unless it is to be orphaned.
"""

import itertools
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from tests.k8s.defaults import settle
from tests.k8s.kinds import BY_NAME, Kind
from tests.k8s.quotas import admit
from tests.k8s.refusals import Refusal

Object = dict[str, Any]
Key = tuple[Kind, str, str]


def now() -> str:
    """The time as the API writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def copied(value: Any) -> Any:
    """A copy of what JSON can hold; the standard library's takes three times as long."""
    if isinstance(value, dict):
        return {key: copied(part) for key, part in value.items()}
    return [copied(part) for part in value] if isinstance(value, list) else value


class Store:
    """Objects of every kind, safe for many threads. What is kept is never changed: a change keeps another object."""

    def __init__(self) -> None:
        self._objects: dict[Kind, dict[tuple[str, str], Object]] = defaultdict(dict)
        self._history: list[tuple[int, str, Key, Object]] = []
        self._changed = threading.Condition(threading.RLock())
        self._version = 0
        self._oldest = 0

    @property
    def version(self) -> str:
        """The latest resourceVersion."""
        with self._changed:
            return str(self._version)

    def wait(self, version: str, timeout_s: float) -> str:
        """The latest version, once it is another one than ``version`` or the time is over."""
        with self._changed:
            if str(self._version) == version:
                self._changed.wait(timeout_s)
            return str(self._version)

    def wake(self) -> None:
        """Let whoever waits look again."""
        with self._changed:
            self._changed.notify_all()

    def peek(self, kind: Kind, namespace: str, name: str) -> Object:
        """One object as it is kept, to be read alone.

        Raises:
            Refusal: 404 where there is none.
        """
        with self._changed:
            found = self._objects[kind].get((namespace, name))
        if found is None:
            raise Refusal(404, "NotFound", f'{kind.plural}{_dot(kind)} "{name}" not found')
        return found

    def scan(self, kind: Kind, namespace: str = "") -> list[Object]:
        """The objects that ``list`` copies, as they are kept, to be read alone."""
        with self._changed:
            return [found for (place, _), found in self._objects[kind].items() if namespace in ("", place)]

    def get(self, kind: Kind, namespace: str, name: str) -> Object:
        """A copy of one object.

        Raises:
            Refusal: 404 where there is none.
        """
        found: Object = copied(self.peek(kind, namespace, name))
        return found

    def list(self, kind: Kind, namespace: str = "", chosen: Callable[[Object], bool] = bool) -> list[Object]:
        """Copies of the objects of a kind, in the namespace or, with an empty one, everywhere."""
        return [copied(found) for found in self.scan(kind, namespace) if chosen(found)]

    def create(self, kind: Kind, namespace: str, new: Object, *, is_trial: bool = False) -> Object:
        """Store a new object under its name, or one made from its generateName; a trial is only checked.

        Raises:
            Refusal: 409 where the name is taken, 422 where there is none, 404 where the namespace is not there, 403
                where a quota or a limit range does not allow it.
        """
        new = copied(new)
        meta = new.setdefault("metadata", {})
        if not meta.get("name") and meta.get("generateName"):
            meta["name"] = meta["generateName"] + secrets.token_hex(3)[:5]
        if not meta.get("name"):
            raise Refusal(422, "Invalid", f"{kind.name}: metadata.name or generateName is required")
        key = (kind, namespace, meta["name"])
        with self._changed:
            if key[1:] in self._objects[kind]:
                raise Refusal(409, "AlreadyExists", f'{kind.plural}{_dot(kind)} "{meta["name"]}" already exists')
            if kind.is_namespaced and ("", namespace) not in self._objects[BY_NAME["v1", "Namespace"]]:
                raise Refusal(404, "NotFound", f'namespaces "{namespace}" not found')
            admit(self, kind, namespace, new)
            meta.update(uid=str(uuid4()), creationTimestamp=now(), generation=1)
            if kind.is_namespaced:
                meta["namespace"] = namespace
            settle(new)
            return new if is_trial else self._record("ADDED", key, new)

    def replace(self, kind: Kind, namespace: str, new: Object, *, subresource: str = "") -> Object:
        """Put a new state in an object's place; ``subresource`` "status" changes the status alone, else it is kept.

        Raises:
            Refusal: 404 where there is none, 409 where it names a version that is no longer the latest.
        """
        with self._changed:
            old = self.peek(kind, namespace, new["metadata"]["name"])
            wanted = new["metadata"].get("resourceVersion")
            if wanted and wanted != old["metadata"]["resourceVersion"]:
                name = new["metadata"]["name"]
                told = f'Operation cannot be fulfilled on {kind.plural}{_dot(kind)} "{name}": the object has been '
                raise Refusal(409, "Conflict", told + "modified; please apply your changes to the latest version")
            result = copied(old if subresource == "status" else new)
            if subresource == "status":
                result["status"] = copied(new.get("status", {}))
            elif "status" in old:
                result["status"] = old["status"]
            for key in ("uid", "creationTimestamp", "namespace", "generation", "deletionTimestamp"):
                if key in old["metadata"]:
                    result["metadata"][key] = old["metadata"][key]
            if result.get("spec") != old.get("spec"):
                result["metadata"]["generation"] = old["metadata"]["generation"] + 1
            result["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"]
            if result == old:
                return copied(old)
            return self._record("MODIFIED", (kind, namespace, new["metadata"]["name"]), result)

    def change(self, kind: Kind, namespace: str, name: str, change: Callable[[Object], Any]) -> Object | None:
        """Let ``change`` write into the object, spec and status, in one go; None where it is gone."""
        with self._changed:
            old = self._objects[kind].get((namespace, name))
            if old is None:
                return None
            new = copied(old)
            change(new)
            return new if new == old else self._record("MODIFIED", (kind, namespace, name), new)

    def delete(self, kind: Kind, namespace: str, name: str, *, propagation: str = "Background") -> Object:
        """Delete an object, and what it owns unless ``propagation`` is Orphan; one with finalizers is only marked.

        Raises:
            Refusal: 404 where there is none.
        """
        with self._changed:
            found = self.get(kind, namespace, name)
            if propagation == "Orphan":
                self._orphan(found["metadata"]["uid"])
            if found["metadata"].get("finalizers"):
                found["metadata"].setdefault("deletionTimestamp", now())
                return self._record("MODIFIED", (kind, namespace, name), found)
            self._remove((kind, namespace, name))
            if kind.name == "Namespace":
                for key, _ in self._everything():
                    if key[1] == name:
                        self._remove(key)
            return found

    def watch(self, kind: Kind, namespace: str, since: str, until: float) -> Iterator[tuple[str, Object] | None]:
        """The changes after a version, waiting for more until the monotonic clock shows ``until``; None = still here.

        Raises:
            Refusal: 410 where the version is older than the history.
        """
        with self._changed:
            place = int(since) if since else self._version
            if place < self._oldest:
                raise Refusal(410, "Expired", f"too old resource version: {place} ({self._version})")
        while True:
            with self._changed:
                if self._version == place and (left := until - time.monotonic()) > 0:
                    self._changed.wait(min(left, 1.0))
                new = [entry for entry in self._tail(place) if entry[2][0] == kind and namespace in ("", entry[2][1])]
                place = self._version
            for _, word, _, found in new:
                yield word, copied(found)
            if not new:
                yield None
            if time.monotonic() >= until:
                return

    def forget(self) -> None:
        """Drop the history, so that a watch from an old version is answered with 410."""
        with self._changed:
            self._history, self._oldest = [], self._version

    def _tail(self, place: int) -> Iterator[tuple[int, str, Key, Object]]:
        newer = list(itertools.takewhile(lambda entry: entry[0] > place, reversed(self._history)))
        return reversed(newer)

    def _record(self, word: str, key: Key, new: Object) -> Object:
        self._version += 1
        new["metadata"]["resourceVersion"] = str(self._version)
        if word == "DELETED":
            self._objects[key[0]].pop(key[1:], None)
        else:
            self._objects[key[0]][key[1:]] = new
        self._history.append((self._version, word, key, new))
        self._changed.notify_all()
        return copied(new)

    def _everything(self) -> Sequence[tuple[Key, Object]]:
        return [((kind, *place), found) for kind, kept in self._objects.items() for place, found in kept.items()]

    def _remove(self, key: Key) -> None:
        gone = self._objects[key[0]].get(key[1:])
        if gone is None:
            return
        self._record("DELETED", key, copied(gone))
        uid = gone["metadata"]["uid"]
        for other, found in self._everything():
            if uid in _owners(found) and not self._is_owned_elsewhere(found):
                self._remove(other)

    def _is_owned_elsewhere(self, found: Object) -> bool:
        return bool(_owners(found) & {other["metadata"]["uid"] for _, other in self._everything()})

    def _orphan(self, uid: str) -> None:
        for key, found in self._everything():
            if uid in _owners(found):
                new = copied(found)
                left = [one for one in new["metadata"]["ownerReferences"] if one["uid"] != uid]
                new["metadata"]["ownerReferences"] = left
                self._record("MODIFIED", key, new)


def _owners(found: Object) -> set[str]:
    return {owner["uid"] for owner in found["metadata"].get("ownerReferences") or []}


def _dot(kind: Kind) -> str:
    return f".{kind.group}" if kind.group else ""
