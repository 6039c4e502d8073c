"""How the targets are kept on disk."""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Spec


class TargetStoreSpec(Spec):
    """Format of the target store (docs/target-store.md)."""

    kind: Literal["coded", "plain"] = "coded"
    """coded = entropy-coded, about a quarter of the bytes, within ``max_kl``; plain = float32, nothing lost."""
    max_kl: Annotated[float, Field(gt=0.0, le=0.1)] = 1e-4
    """Upper bound on KL(given || kept) at every position, nats; not used by ``plain``, nor for sampled targets, whose
    counts are kept exactly. 1e-4 is a hundredth of the difference between two good proxies and less."""
    fit_positions: Annotated[int, Field(ge=256, le=2**22)] = 2**16
    """Positions on which the code is fitted before the first is written; they wait in memory, 8 bytes a token."""
