"""The most that a ClusterQueue of Kueue can ever give: its own quota, and what its cohort lends while all others rest.

A queue without a cohort has its nominal quota. In a cohort it keeps what it does not lend (all above its
``lendingLimit``), and reaches beside that what all members lend, but no more than its nominal quota and its
``borrowingLimit`` together. A cohort gathers what its members lend and the quota of its own Cohort object, if there is
one; it may itself be a member of another (``parentName``) by the same rules. All of it is by flavor and resource:
nothing is lent across them.

References: Kueue's API reference (v1beta2), ClusterQueue and Cohort; KEP-79, hierarchical cohorts.
"""

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from cluster.api import ClusterApi, Object
from cluster.capacity import quantity
from cluster.kinds import CLUSTER_QUEUES, COHORTS
from proxykd.exceptions import ClusterMissingError

Group = Mapping[str, Mapping[str, Decimal | None]]
"""Flavor -> resource -> the most that it gives; None = not known. A pod takes one flavor of each group."""


class _Key(NamedTuple):
    flavor: str
    resource: str


class _Member(NamedTuple):
    """A ClusterQueue or a Cohort: the cohort that it is in, or None, and what its object says of each quota."""

    above: str | None
    quotas: Mapping[_Key, Mapping[str, Any]]

    @classmethod
    def of(cls, found: Object, above: str) -> "_Member":
        spec = found.get("spec") or {}
        quotas = {
            _Key(flavor["name"], quota["name"]): quota
            for group in spec.get("resourceGroups") or []
            for flavor in group["flavors"]
            for quota in flavor["resources"]
        }
        return cls(spec.get(above) or None, quotas)

    def amount(self, key: _Key, word: str) -> Decimal | None:
        found = self.quotas.get(key, {}).get(word)
        return None if found is None else quantity(found)


class Lending:
    """Who lends to whom: all ClusterQueues and Cohorts of a cluster."""

    def __init__(self, queues: Iterable[Object], cohorts: Iterable[Object]) -> None:
        self._cohorts = {one["metadata"]["name"]: _Member.of(one, "parentName") for one in cohorts}
        self._queues: dict[str, list[_Member]] = {}
        for queue in (_Member.of(one, "cohortName") for one in queues):
            self._queues.setdefault(queue.above or "", []).append(queue)

    @classmethod
    def read(cls, api: ClusterApi) -> "Lending":
        """That of a cluster.

        Raises:
            ClusterForbiddenError: if this identity may not list them.
        """
        try:
            cohorts = list(api.list(COHORTS))
        except ClusterMissingError:  # an older Kueue
            cohorts = []
        return cls(api.list(CLUSTER_QUEUES), cohorts)

    def has_circle(self, queue: Object) -> bool:
        """Whether a cohort above a queue is above itself, upon which Kueue admits nothing."""
        seen, above = set[str](), cohort_of(queue)
        while above is not None and above not in seen:
            seen.add(above)
            above = self._cohort(above).above
        return above is not None

    def groups(self, queue: Object) -> list[Group]:
        """The most that each flavor of a queue gives, by group; the queue must not be in a circle."""
        member = _Member.of(queue, "cohortName")

        def most(key: _Key) -> Decimal:
            return self._reached(member, self._own(member, key), key)

        return _filled(queue, most)

    def _cohort(self, name: str) -> _Member:
        return self._cohorts.get(name) or _Member(None, {})  # one without an object of its own

    def _reached(self, member: _Member, gathered: Decimal, key: _Key) -> Decimal:
        if member.above is None:
            return gathered
        above = self._cohort(member.above)
        found = gathered - _lent(member, gathered, key)
        found += self._reached(above, self._gathered(member.above, key), key)
        limit = member.amount(key, "borrowingLimit")
        return found if limit is None else min(found, gathered + limit)

    def _gathered(self, name: str, key: _Key) -> Decimal:
        """A cohort's own quota, and what its members lend."""
        queues = [(one, self._own(one, key)) for one in self._queues.get(name, [])]
        below = [(one, self._gathered(own, key)) for own, one in self._cohorts.items() if one.above == name]
        lent = (_lent(one, gathered, key) for one, gathered in (*queues, *below))
        return sum(lent, self._own(self._cohort(name), key))

    def _own(self, member: _Member, key: _Key) -> Decimal:
        return member.amount(key, "nominalQuota") or Decimal(0)


def _lent(member: _Member, gathered: Decimal, key: _Key) -> Decimal:
    limit = member.amount(key, "lendingLimit")
    return gathered if limit is None else min(gathered, limit)


def cohort_of(queue: Object) -> str | None:
    """The cohort in which a ClusterQueue is."""
    return (queue.get("spec") or {}).get("cohortName") or None


def alone(queue: Object) -> list[Group]:
    """What ``Lending.groups`` gives, as far as the queue itself tells: None = as much as its cohort lends."""
    member = _Member.of(queue, "cohortName")

    def most(key: _Key) -> Decimal | None:
        nominal, limit = member.amount(key, "nominalQuota") or Decimal(0), member.amount(key, "borrowingLimit")
        if member.above is None:
            return nominal
        return None if limit is None else nominal + limit

    return _filled(queue, most)


def _filled(queue: Object, most: Any) -> list[Group]:
    groups = (queue.get("spec") or {}).get("resourceGroups") or []
    return [
        {
            one["name"]: {two["name"]: most(_Key(one["name"], two["name"])) for two in one["resources"]}
            for one in flavors
        }
        for flavors in (group["flavors"] for group in groups)
    ]
