"""Under which terms a teacher's answers and a set of prompts may be used; nobody but the user can know them."""

from proxykd.config.base import Spec

UNKNOWN = "unknown"


class TermsSpec(Spec):
    """Licence and terms, as the user states them; they are recorded with every student and change nothing else."""

    licence: str = UNKNOWN
    """SPDX identifier (Apache-2.0) or the name of the terms; unknown = nobody has stated them."""
    url: str | None = None
    """Where they can be read; None = not stated."""
    allows_training: bool | None = None
    """Whether other models may be trained on it; None = not stated."""
    allows_publication: bool | None = None
    """Whether what was trained on it may be given to others; None = not stated."""
