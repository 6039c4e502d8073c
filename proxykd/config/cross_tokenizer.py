"""How a student learns from a proxy that has another tokenizer."""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Spec


class CrossTokenizerSpec(Spec):
    """Targets of another tokenizer, aligned by the bytes of the text; `proxykd plan` says how much of it aligns."""

    unshared: Literal["first_token", "transport"] = "first_token"
    """What becomes of proxy tokens that the student does not have: first_token = their probability goes to the token
    with which the student spells them; transport = it joins the tail bucket, and their sorted probabilities are
    compared with those of the student's own unshared tokens (ULD). first_token leaves nothing without a name."""
    uld_weight: Annotated[float, Field(ge=0.0)] = 1.0
    """Weight of the transport term beside the divergence, for unshared: transport; 0 = the tail bucket alone."""
