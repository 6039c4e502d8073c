"""The judge: a model behind an API that compares or grades answers."""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Count, InputPath, Spec
from proxykd.config.sampling import SamplingSpec
from proxykd.config.teacher import AnthropicTeacherSpec, GeminiTeacherSpec, OpenAITeacherSpec

JudgeTeacherSpec = Annotated[OpenAITeacherSpec | AnthropicTeacherSpec | GeminiTeacherSpec, Field(discriminator="kind")]
WIN_RATE = "win_rate/teacher"
"""Metric: mean points against the teacher's text; 0.5 = as good. A champion is judged, too, if the gate names it."""
Contestant = Literal["none", "sft", "proxy_kd", "proxy", "teacher"]


class DuelSpec(Spec):
    """Two whose answers are compared."""

    arm: Contestant = "proxy_kd"
    """Whose win rate is reported."""
    against: Contestant = "sft"
    """The other; teacher = the teacher's own held-out texts."""


class JudgeSpec(Spec):
    """How a model judges the answers to held-out prompts (the referee of Lion, arXiv 2305.12870)."""

    teacher: JudgeTeacherSpec
    """The API that judges, with a budget of its own; a model other than the teacher is fairer to its rivals."""
    kind: Literal["pairwise", "graded"] = "pairwise"
    """pairwise = two answers at a time, in both orders, two calls a pair; graded = each answer alone, one call."""
    duels: Annotated[tuple[DuelSpec, ...], Field(min_length=1)] = (DuelSpec(),)
    """Who is compared with whom; graded judges everyone named in them. A duel against the teacher is the metric
    win_rate/teacher, which the gate may name; a champion is judged by it too then."""
    limit: Count | None = 200
    """Take only the first so many of the prompts with free answers; None = all."""
    reasks: Annotated[int, Field(ge=0, le=5)] = 2
    """How often a reply without readable scores is asked again; then it counts as unparsable."""
    tie_margin: Annotated[float, Field(ge=0.0, le=9.0)] = 0.0
    """Mean scores that differ by no more than this are a tie."""
    sampling: SamplingSpec = SamplingSpec(temperature=0.2, max_tokens=512)
    """How the judge is asked; in place of teacher.sampling. The temperature and length are Lion's."""
    template: InputPath | None = None
    """Text file of the request, with $question, $answer_1 and, if pairwise, $answer_2; $$ is a dollar sign. It must
    ask for the explanation first and the lines "Score 1: <number>" last. None = the package's."""
