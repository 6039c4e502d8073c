"""The teachers of a run in the order in which the student learns from them; one, unless the run is staged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from proxykd.config.specification import QuerySpec, RunSpec
from proxykd.config.teacher import RecordedTeacherSpec, TeacherSpec
from proxykd.data.shares import Share
from proxykd.exceptions import TeacherError
from proxykd.teacher.live import LiveTeacher


class TeacherStage(NamedTuple):
    """A teacher that is asked, and what its answers are called in the artifact.

    Attributes:
        stage: 0 = the one that the student learns from first; the main one is the last.
        teacher: Who is asked, and which prompts.
        first_sample_idx: Index of its first sample of a prompt; those of earlier teachers come before.
        section: Where it stands in the specification.
    """

    stage: int
    teacher: LiveTeacher
    first_sample_idx: int = 0
    section: str = "teacher"

    @property
    def title(self) -> str:
        """What asking it is called."""
        return f"Asking {self.teacher.model}" if self.teacher.share is not None else "Asking the teacher"


def teachers_of(run: RunSpec) -> tuple[TeacherSpec, ...]:
    """The teachers of a run in the order in which the student learns from them, the main one last."""
    earlier = () if run.staging is None else run.staging.earlier
    return (*(one.teacher for one in earlier), run.teacher)


def shares_of(run: RunSpec) -> tuple[Share | None, ...]:
    """Which prompts each of ``teachers_of`` is asked; None = all."""
    if run.staging is None:
        return (None,)
    earlier = (Share(one.fraction, is_main=False, split=run.split) for one in run.staging.earlier)
    return (*earlier, Share(run.staging.fraction, is_main=True, split=run.split))


def stages_of(run: QuerySpec) -> tuple[TeacherStage, ...]:
    """The teachers of a run that are asked; none for recorded texts.

    Raises:
        ConfigError: if a key is not where the specification says.
    """
    if isinstance(run.teacher, RecordedTeacherSpec):
        return ()
    if not isinstance(run, RunSpec) or run.staging is None:
        return (TeacherStage(0, LiveTeacher.of(run, run.teacher)),)
    stages, first_sample_idx = [], 0
    for stage, (spec, share) in enumerate(zip(teachers_of(run), shares_of(run), strict=True)):
        assert not isinstance(spec, RecordedTeacherSpec)  # the specification allows no other
        section = "teacher" if stage == run.main_stage else f"staging.earlier[{stage}].teacher"
        stages.append(TeacherStage(stage, LiveTeacher.of(run, spec, share), first_sample_idx, section))
        first_sample_idx += spec.sampling.num_samples
    return tuple(stages)


@contextmanager
def blamed(stage: TeacherStage) -> Iterator[None]:
    """Names the section of an earlier teacher in what goes wrong with it."""
    try:
        yield
    except TeacherError as error:
        if stage.section == "teacher":
            raise
        raise type(error)(f"{error} (asking {stage.teacher.model}: its settings are in {stage.section})") from error
