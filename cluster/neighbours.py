"""What of other runs stands in a new one's way: one that is under way, and trainings of runs that have ended.

The steps of all runs of a stack write to one claim: a journal that one machine may write at a time, and checkpoints.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress

from cluster import runs
from cluster.api import ClusterApi, Object
from cluster.garbage import OURS, ended, run_of
from cluster.kinds import JOBS, TRAIN_JOBS
from proxykd.exceptions import BusyError, ClusterConflictError, ClusterForbiddenError, ClusterMissingError


def refuse_second(stack: str) -> None:
    """Go on only if no run of a stack is under way.

    Args:
        stack: Name of the stack.

    Raises:
        BusyError: naming the run that is, and what to do.
    """
    for run in runs.unfinished():
        if run.stack == stack:
            raise BusyError(
                f"expected no run under way on the stack {stack}, whose runs write one journal and one folder of "
                f"checkpoints, but {run.name} is ({run.status}, submitted {run.created:%Y-%m-%d %H:%M} UTC); nothing "
                f"was submitted: look at it with `proxykd runs {run.name}` and run the same command after its end. If "
                f"its pods are gone, `proxykd gc --stack {stack} --yes` closes it, or, where that cannot see them, "
                f"`proxykd runs {run.name} --close`; a run beside it takes a stack with another claim for the journal"
            )


def remove_trainings(api: ClusterApi, has_ended: Callable[[str], bool], tell: Callable[[str], None]) -> None:
    """Remove TrainJobs that train on although their runs have ended, as when their step was killed.

    Args:
        api: The cluster.
        has_ended: Whether the run of an identity has.
        tell: Takes a line for each, or one if this identity may not do it.
    """
    try:
        for found in _under_way(api, has_ended):
            name = found["metadata"]["name"]
            with suppress(ClusterConflictError):  # another one has its name by now
                if api.delete(TRAIN_JOBS, name, uid=found["metadata"]["uid"]):
                    tell(f"TrainJob {name} is removed: it trained on although its run has ended")
    except ClusterForbiddenError as error:
        tell(f"TrainJobs of runs that have ended are not removed: {error}; `proxykd gc` does it as another identity")
    except ClusterMissingError:
        return  # the cluster knows no TrainJobs


def _under_way(api: ClusterApi, has_ended: Callable[[str], bool]) -> Iterator[Object]:
    trainings = [found for found in api.list(TRAIN_JOBS, labels=OURS) if ended(found) is None]
    owners = {job["metadata"]["uid"]: run_of(job) for job in api.list(JOBS)} if trainings else {}
    for found in trainings:
        owned_by = [owner["uid"] for owner in found["metadata"].get("ownerReferences") or []]
        run_id = run_of(found) or next((owners[uid] for uid in owned_by if owners.get(uid)), "")
        if run_id and has_ended(run_id):
            yield found
