"""Which prompts a teacher is asked, where a run has several: a function of the prompt's hash and its side alone.

The hash is another one than that of the sides, so that a share is spread over all of them alike, and it is the same
for every teacher, so that the prompts of a smaller share are among those of a larger one.
"""

from dataclasses import dataclass

import pyarrow as pa

from proxykd.artifacts import PromptSet
from proxykd.config.specification import DataSplitSpec
from proxykd.data.splits import TRAINING_SIDES, side_of, split_keys_of, uniform_of


@dataclass(frozen=True, slots=True)
class Share:
    """The prompts that one teacher of a staged run is asked.

    Attributes:
        fraction: Of the training prompts, in (0, 1].
        is_main: Whether it is the main teacher, who is asked all other prompts, the held-out ones say.
        split: Tells which prompts are for training.
    """

    fraction: float
    is_main: bool
    split: DataSplitSpec

    def has(self, split_key: str) -> bool:
        """Whether a prompt is asked; all that are made from one question are, or none.

        Args:
            split_key: ``Prompt.split_key``.
        """
        if side_of(split_key, self.split) not in TRAINING_SIDES:
            return self.is_main
        return uniform_of(f"staging/{split_key}") < self.fraction

    def rows(self, batch: pa.RecordBatch) -> list[int]:
        """Which of a batch of prompts are asked.

        Args:
            batch: The columns ``prompt_id`` and ``group`` are read.
        """
        return [row for row, key in enumerate(split_keys_of(batch)) if self.has(key)]

    def count(self, prompts: PromptSet) -> int:
        """Number of prompts that are asked."""
        return sum(len(self.rows(batch)) for batch in prompts.batches(columns=["prompt_id", "group"]))
