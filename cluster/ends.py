"""Why the Jobs of a run's steps failed, as the orchestrator's pod wrote it down.

It looks at each failed pod (exit status, out of memory, an image that is not there) before it removes the Job, so its
log is where the reason is left.
"""

import re

from cluster.api import ClusterApi
from cluster.kinds import PODS
from cluster.names import ROLE
from proxykd.exceptions import ClusterError

# ZenML shows names in quotes, or in another colour instead.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_FAILED = re.compile(r"Job for step `?(?P<step>[^`\s]+)`? failed: (?P<why>.+)")
_MOST_LINES = 2_000


def reasons(api: ClusterApi, run_id: str) -> dict[str, str]:
    """Step -> why its Job failed; {} where the orchestrator's pod left no word, or is gone.

    Args:
        api: The cluster.
        run_id: ZenML's identity of the run.
    """
    found: dict[str, str] = {}
    try:
        for pod in api.list(PODS, labels=f"run_id={run_id},{ROLE}=orchestrator"):
            log = b"".join(api.log(pod["metadata"]["name"], container="main", tail=_MOST_LINES))
            found |= parse(log.decode("utf-8", errors="replace"))
    except ClusterError:
        return found
    return found


def parse(log: str) -> dict[str, str]:
    """Step -> reason, out of a log; the last word on a step counts."""
    matches = (_FAILED.search(_COLOUR.sub("", line)) for line in log.splitlines())
    return {match["step"]: match["why"].strip() for match in matches if match}
