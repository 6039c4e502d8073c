"""What a stack's runs need on the cluster: gathered from the stack's file and its placement, judged by the doctor."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from cluster.capacity import GPU, Demand, quantity
from proxykd.config.stack import ClusterStackSpec

S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be there.

    Attributes:
        demands: What each step asks of its pool.
        accounts: Service accounts of the pods.
        secrets: Secret -> the keys that must be in it.
        volumes: Volume claims.
        has_train_job: Whether a step starts a TrainJob.
    """

    demands: tuple[Demand, ...]
    accounts: tuple[str, ...]
    secrets: Mapping[str, tuple[str, ...]]
    volumes: tuple[str, ...]
    has_train_job: bool = False

    @property
    def has_queue(self) -> bool:
        """Whether any step waits in a queue of Kueue."""
        return any(demand.queue for demand in self.demands)


def needs_of(stack: ClusterStackSpec) -> Needs:
    """The needs of a stack.

    Raises:
        ConfigError: if the placement cannot be used.
    """
    from proxykd.config.placement import load_placement

    raise NotImplementedError
