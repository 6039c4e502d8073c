"""The n-gram prior's section of the specification (Proxy-KD version 1, the prior of the teacher's distributions)."""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Count, Spec


class PriorSpec(Spec):
    """An estimate of the teacher's distributions from counts over its own corpus."""

    order: Annotated[int, Field(ge=0, le=16)] = 4
    """Tokens of the longest context that is counted (the paper's n, which no source gives; 4 = five-grams, the
    customary longest). 0 = no context: every position has the corpus's token frequencies."""
    gamma: Annotated[float, Field(ge=1.0, allow_inf_nan=True)] | Literal["fitted"] = "fitted"
    """The estimate weighs 1/gamma, the token that the teacher wrote the rest: 1 = the estimate alone, inf = the written
    token alone (plain fine-tuning). fitted = the value under which several completions of one prompt are likeliest, on
    the development side; where no prompt there has several, it is 2, which gives both the same weight. The paper's
    value is not known."""
    counts: Literal["leave_out", "keep"] = "leave_out"
    """leave_out = what a sequence contributed itself is subtracted before it is looked up, so that an estimate never
    confirms itself; keep = counts of the whole corpus, as in the equation as written."""
    min_count: Count = 1
    """Observations that a context needs, after leaving out, before it is believed; with fewer the next shorter context
    is used. 1 = every context that was seen at all."""
    back_off: Literal["longest", "interpolated"] = "longest"
    """longest = the relative frequencies after the longest believed context; interpolated = those of every believed
    context, shorter ones mixed in by Witten and Bell's weights, which is smoother and slower."""
    max_tokens: Annotated[int, Field(ge=1, le=1024)] = 32
    """Tokens listed at a position, the most probable first; the mass of all others is kept as one tail."""
