"""Who is calling, what they may do, and what they did: bearer tokens, Roles and the list of calls."""

import secrets
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.k8s.kinds import CORE
from tests.k8s.refusals import Refusal
from tests.k8s.store import Store

ADMIN = "kubernetes-admin"


class Call(NamedTuple):
    """One call, in the words of a Role's rule.

    Attributes:
        user: ``kubernetes-admin`` or ``system:serviceaccount:NAMESPACE:NAME``.
        verb: get, list, watch, create, update, patch, delete or deletecollection.
        resource: Plural with the subresource, such as ``pods/log``.
        status: HTTP status of the answer.
    """

    user: str
    verb: str
    group: str
    resource: str
    namespace: str
    name: str
    status: int = 0


@dataclass
class Access:
    """Tokens and rules.

    Attributes:
        is_enforced: Whether a service account may do only what the stored Roles allow.
        calls: Every call that reached the API, oldest first.
    """

    store: Store
    is_enforced: bool = False
    calls: list[Call] = field(default_factory=list)
    _tokens: dict[str, str] = field(default_factory=dict)
    _expired: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def issue(self, user: str) -> str:
        """A new token for a user."""
        token = f"token-{secrets.token_hex(16)}"
        with self._lock:
            self._tokens[token] = user
        return token

    def expire(self, user: str, *, num_kept: int = 0) -> None:
        """Let every token of a user that is out now expire, but the latest so many; ones issued later hold."""
        with self._lock:
            own = [token for token, holder in self._tokens.items() if holder == user]
            self._expired |= set(own[: len(own) - num_kept])

    def user(self, header: str | None) -> str:
        """The user a header ``Bearer TOKEN`` belongs to.

        Raises:
            Refusal: 401 where there is none, or the token is unknown or expired.
        """
        token = (header or "").partition(" ")[2].strip()
        with self._lock:
            if token in self._tokens and token not in self._expired:
                return self._tokens[token]
        raise Refusal(401, "Unauthorized", "Unauthorized")

    def note(self, call: Call) -> None:
        """Keep a call."""
        with self._lock:
            self.calls.append(call)

    def used(self, user: str) -> set[tuple[str, str, str]]:
        """What a user did: (group, resource, verb) of each call that its rights let through, whatever came of it."""
        with self._lock:
            own = {call for call in self.calls if call.user == user and call.status not in (401, 403)}
        return {(call.group, call.resource, call.verb) for call in own if call.status < 400 or self.is_allowed(call)}

    def is_allowed(self, call: Call) -> bool:
        """Whether the stored Roles and bindings let the call's user make it; the administrator may do anything."""
        if call.user == ADMIN:
            return True
        for binding, place in self._bindings():
            if place in ("", call.namespace) and any(
                _is_subject(one, call.user) for one in binding.get("subjects") or []
            ):
                rules = self._rules(binding["roleRef"], place)
                if any(_permits(rule, call) for rule in rules):
                    return True
        return False

    def _bindings(self) -> list[tuple[dict[str, Any], str]]:
        own = [(one, one["metadata"]["namespace"]) for one in self.store.scan(CORE["RoleBinding"])]
        return own + [(one, "") for one in self.store.scan(CORE["ClusterRoleBinding"])]

    def _rules(self, reference: dict[str, Any], namespace: str) -> list[dict[str, Any]]:
        place = namespace if reference["kind"] == "Role" else ""
        try:
            return list(self.store.peek(CORE[reference["kind"]], place, reference["name"]).get("rules") or [])
        except Refusal:
            return []


def service_account(namespace: str, name: str) -> str:
    """The user name of a service account."""
    return f"system:serviceaccount:{namespace}:{name}"


def _is_subject(subject: dict[str, Any], user: str) -> bool:
    if subject["kind"] == "ServiceAccount":
        return service_account(subject.get("namespace", ""), subject["name"]) == user
    return bool(subject["name"] == user)


def _permits(rule: dict[str, Any], call: Call) -> bool:
    names = rule.get("resourceNames")
    return (
        bool({"*", call.group} & set(rule.get("apiGroups") or []))
        and bool({"*", call.resource} & set(rule.get("resources") or []))
        and bool({"*", call.verb} & set(rule.get("verbs") or []))
        and (not names or call.name in names)
    )
