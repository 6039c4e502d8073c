"""What a decision rests on: the report with its comparisons, and the answers beside each other.

It is made before anything is acted on and kept with the run, so that whoever writes the page after an interruption
shows the numbers that were decided on, and not what would be found by now.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.evaluation.decision import Decision, decide, decision_of
from proxykd.evaluation.samples import worst_samples

if TYPE_CHECKING:
    from proxykd.evaluation.bars import Journals


class Champion(NamedTuple):
    """The present champion.

    Attributes:
        version: Its version in the registry.
        folder: Its model.
    """

    version: str
    folder: Path


@dataclass(frozen=True, slots=True)
class Basis:
    """A decision and what it was made on.

    Attributes:
        decision: What becomes of the candidate.
        report: ``report.json`` with the comparisons with the bars.
        samples: As ``worst_samples`` gives them.
    """

    decision: Decision
    report: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """The basis as JSON values; ``of_json`` reads them."""
        return {"decision": asdict(self.decision), "report": dict(self.report), "samples": list(self.samples)}

    @classmethod
    def of_json(cls, values: Mapping[str, Any]) -> "Basis":
        """The basis that ``to_json`` gave.

        Raises:
            KeyError, TypeError: if these are not the values of one.
        """
        return cls(decision_of(values["decision"]), values["report"], values["samples"])


def make_basis(
    evaluation: Evaluation,
    champion: Champion | None,
    validated: ValidatedSet,
    splits: SplitSet,
    run: RunSpec,
    *,
    scratch: Path,
    journals: "Journals",
) -> Basis:
    """Compare the candidate with its bars and decide: with the champion where there is one, else with the first bar.

    Args:
        evaluation: Of the candidate.
        champion: Who is to be beaten; None = there is none.
        validated: The teacher's texts.
        splits: Which prompts are held out.
        run: The specification.
        scratch: Folder for temporary files.
        journals: Where the champion's answers and the judge's are remembered.

    Raises:
        ModelError, GateError, TeacherError, BudgetError, StorageError: as ``compare_with_champion``.
    """
    from proxykd.evaluation.bars import CHAMPION_PREDICTIONS, compare_registered, compare_with_champion

    if champion is None:
        report = compare_registered(evaluation, run)
        decision = decide(report, run.gate, None)
    else:
        report = compare_with_champion(
            evaluation, champion.folder, validated, splits, run, scratch=scratch, journals=journals
        )
        decision = replace(decide(report, run.gate, {"version": champion.version}), expected_champion=champion.version)
    samples = worst_samples(evaluation, scratch / CHAMPION_PREDICTIONS, validated, splits)
    return Basis(decision, report, samples)
