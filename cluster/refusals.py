"""Pods that may not be made: a quota that is used up, say, or a rule of the namespace.

Whoever makes them (a Job's controller) tries again for ever, with growing pauses, and says so in an event alone.
"""

from cluster.api import ClusterApi
from cluster.kinds import EVENTS
from proxykd.exceptions import ClusterForbiddenError


def refusals(api: ClusterApi) -> dict[str, str]:
    """Job -> why a pod of it was refused; {} where this identity may not read events.

    Args:
        api: The cluster.
    """
    try:
        events = list(api.list(EVENTS, fields="reason=FailedCreate"))
    except ClusterForbiddenError:
        return {}
    return {one["involvedObject"]["name"]: str(one.get("message", "")) for one in events}
