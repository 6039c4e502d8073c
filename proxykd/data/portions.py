"""Parts of a run's prompts that are worked on apart, each by a process of its own: shards, on a cluster.

A prompt's portion is a function of its question's hash and the number of portions alone, so that a portion that died is
done again alone, and that all prompts made from one question are in the same one.
"""

from dataclasses import dataclass
from pathlib import Path

from proxykd.artifacts import PromptSet, seal
from proxykd.data.splits import uniform_of


@dataclass(frozen=True, slots=True)
class Portion:
    """One of several parts of the prompts.

    Attributes:
        number: 0 .. of - 1.
        of: How many there are, at least 1.

    Raises:
        ValueError: if there is no such portion.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        """Refuse a portion that does not exist."""
        if not 0 <= self.number < self.of:
            raise ValueError(f"expected the number of a portion in 0..{self.of - 1}, got {self.number}")

    def __str__(self) -> str:
        """For people and file names: ``3-of-8``, counted from 1."""
        return f"{self.number + 1}-of-{self.of}"

    def has(self, split_key: str) -> bool:
        """Whether a prompt is in it.

        Args:
            split_key: ``Prompt.split_key``.
        """
        return int(uniform_of(f"portion/{split_key}") * self.of) == self.number

    def select(self, prompts: PromptSet, *, output: Path) -> PromptSet:
        """The prompts that are in it, in their order.

        Args:
            prompts: All prompts.
            output: Folder of the new artifact.
        """
        selected = PromptSet(output)
        selected.write(prompt for prompt in prompts.rows() if self.has(prompt.split_key))
        seal(selected, {"prompts": prompts.hash})
        return selected
