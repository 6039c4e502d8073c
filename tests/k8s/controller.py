"""What the doubles of controllers share: a thread that looks at the store whenever something has changed."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from tests.k8s.kinds import Kind
from tests.k8s.store import Store, copied

Object = dict[str, Any]


class Controller(ABC):
    """Looks again and again, from ``start`` to ``stop``; a subclass says what a look is.

    Attributes:
        store: Every object of the cluster.
        wait_s: A look is due after so many seconds in which nothing changed, too.
    """

    wait_s = 0.2

    def __init__(self, store: Store) -> None:
        self.store = store
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._is_over.set()
        self.store.wake()
        self._thread.join(30)

    @abstractmethod
    def look(self) -> None:
        """Bring what is there nearer to what is asked for."""

    def owned(self, kind: Kind, owner: Object) -> list[Object]:
        """The objects of a kind that an object owns, to be read alone."""
        meta = owner["metadata"]
        return [
            one
            for one in self.store.scan(kind, meta["namespace"])
            if any(each["uid"] == meta["uid"] for each in one["metadata"].get("ownerReferences") or [])
        ]

    def restate(self, kind: Kind, found: Object, change: Callable[[Object], Any]) -> None:
        """Let ``change`` write into an object's status, unless that would leave it as it was read."""
        trial = {**found, "status": copied(found.get("status", {}))}
        change(trial)
        if trial["status"] != found.get("status"):
            self.store.change(kind, found["metadata"]["namespace"], found["metadata"]["name"], change)

    def _loop(self) -> None:
        version = ""
        while not self._is_over.is_set():
            version = self.store.wait(version, self.wait_s)
            self.look()
            time.sleep(0.02)


def ownership(found: Object) -> list[Object]:
    """``ownerReferences`` of what a controller makes for an object."""
    own = {key: found["metadata"][key] for key in ("name", "uid")}
    kind = {key: found[key] for key in ("apiVersion", "kind")}
    return [{**kind, **own, "controller": True, "blockOwnerDeletion": True}]


def is_finished(found: Object) -> bool:
    """Whether a Job or a TrainJob has come to its end, good or bad."""
    conditions = found.get("status", {}).get("conditions", [])
    return any(one["type"] in ("Complete", "Failed") and one["status"] == "True" for one in conditions)
