"""Corrections: feedback and improved attempts on the student's own wrong answers (TriPosT, arXiv 2310.13522)."""

from typing import Annotated

from pydantic import Field

from proxykd.config.base import Count, InputPath, Spec
from proxykd.config.sampling import SamplingSpec
from proxykd.config.verifiers import VerifierSpec

Weight = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


class CorrectionsSpec(Spec):
    """How wrong attempts become trajectories, and what of them teaches."""

    verifier: VerifierSpec
    """Says which attempts are right; an attempt at a prompt of which nothing is known counts as wrong."""
    rounds: Annotated[int, Field(ge=1, le=10)] = 3
    """Most updates of one attempt; the first that is right ends its trajectory. Each costs two calls of the teacher."""
    sampling: SamplingSpec | None = None
    """How the teacher is asked for feedback and updates; None = as teacher.sampling says. Always one sample."""
    feedback_template: InputPath | None = None
    """Text file of the request for feedback, with $question and $attempt, if wanted $reference; $$ is a dollar sign.
    None = the package's."""
    update_template: InputPath | None = None
    """Text file of the request for an improved attempt, with $question, $attempt and $feedback, if wanted $reference;
    $$ is a dollar sign. None = the package's."""
    workers: Annotated[int, Field(ge=1, le=256)] = 2
    """Checks at a time, for verifiers that run programs."""
    wrong_weight: Weight = 0.0
    """Loss weight of attempts and updates that are wrong; 0 = they are read and not learnt, 1 = as in the paper, whose
    loss covers the whole trajectory."""
    right_weight: Weight = 1.0
    """Loss weight of an attempt that was right at once."""
    feedback_weight: Weight = 1.5
    """Loss weight of feedback; the paper's --self_improve_section_weight."""
    update_weight: Weight = 1.5
    """Loss weight of the update that is right; the paper's --self_improve_section_weight."""
    improve_ratio: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 1.5
    """Least number of improving samples for each one that was right at once, which are left out beyond it; the
    paper's --improve_data_ratio."""
    limit: Count | None = None
    """Take only the first so many attempts; None = all."""
