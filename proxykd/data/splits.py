"""On which side of the corpus a prompt falls, and the rows of some sides.

The side is a function of the prompt's id (where one question is asked as several prompts: of the question's) and the
specification alone: the same prompt never changes sides, whatever else is in the corpus, and every sample of a prompt
is on its side. With disjoint sides each stage of Proxy-KD sees
prompts of its own (arXiv:2401.07013, section 4.1: 10 % warm-up, 45 % alignment, 45 % distillation).
"""

import hashlib
from collections.abc import Collection, Iterator
from functools import cache
from itertools import accumulate, groupby
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from proxykd.artifacts import SplitSet, ValidatedSet, seal
from proxykd.config.specification import DataSplitSpec
from proxykd.exceptions import ArtifactError
from proxykd.records import Side, SplitRow, ValidatedRow, hash_json

Stage = Literal["warmup", "alignment", "distillation", "sft"]

TRAINING_SIDES = frozenset({Side.WARMUP, Side.ALIGNMENT, Side.DISTILLATION})


def uniform_of(prompt_id: str) -> float:
    """A number in [0, 1) from the SHA-256 of ``prompt_id``: uniform over ids, the same for ever.

    Example:
        >>> round(uniform_of("0123456789abcdef"), 4)
        0.6235
    """
    digest = hashlib.sha256(prompt_id.encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def split_keys_of(batch: pa.RecordBatch) -> list[str]:
    """``Prompt.split_key`` of a batch of prompts.

    Args:
        batch: The columns ``prompt_id`` and ``group`` are read.
    """
    keys: list[str] = pc.if_else(pc.equal(batch["group"], ""), batch["prompt_id"], batch["group"]).to_pylist()
    return keys


def side_of(split_key: str, spec: DataSplitSpec) -> Side:
    """The side on which a prompt falls, and all others that are made from the same question.

    [0, 1) is cut into held-out, then development, then the three training sides over what remains.

    Args:
        split_key: ``Prompt.split_key``, or any string; the same one always gives the same side.
        spec: Shares of the sides.
    """
    position, (edges, last) = uniform_of(split_key), _edges(spec)
    return next((side for edge, side in edges if position < edge), last)  # the shares add up to 1 but for rounding


@cache
def _edges(spec: DataSplitSpec) -> tuple[list[tuple[float, Side]], Side]:
    """Where each side ends in [0, 1], and the last one that is not empty."""
    rest = 1.0 - spec.heldout - spec.development
    shares = {
        Side.HELDOUT: spec.heldout,
        Side.DEVELOPMENT: spec.development,
        Side.WARMUP: rest * spec.warmup,
        Side.ALIGNMENT: rest * spec.alignment,
        Side.DISTILLATION: rest * spec.distillation,
    }
    last = max(
        (side for side, share in shares.items() if share > 0.0), key=list(shares).index, default=Side.DISTILLATION
    )
    return list(zip(accumulate(shares.values()), shares, strict=True)), last


def sides_for(stage: Stage, spec: DataSplitSpec) -> frozenset[Side]:
    """The sides whose rows a stage may train on.

    Args:
        stage: The SFT baseline sees all that the method spends on proxy and student together.
        spec: In shared mode, every stage sees all three training sides.
    """
    if stage == "sft" or spec.mode == "shared":
        return TRAINING_SIDES
    return frozenset({Side(stage)})


def build_splits(validated: ValidatedSet, spec: DataSplitSpec, *, output: Path) -> SplitSet:
    """Write the side of every prompt, one row a prompt, in the order in which the rows name them.

    Args:
        validated: Rows; those of one prompt stand together.
        spec: Shares of the sides.
        output: Folder of the new artifact.
    """
    splits = SplitSet(output)
    splits.write(
        SplitRow(prompt_id, side_of(split_key, spec))
        for (prompt_id, split_key), _ in groupby((row.prompt_id, row.split_key) for row in validated.rows())
    )
    seal(splits, {"validated": validated.hash, "split": hash_json(spec.model_dump(mode="json"))})
    return splits


def count_sides(splits: SplitSet) -> dict[Side, int]:
    """Number of prompts on each side, every side named."""
    counts = dict.fromkeys(Side, 0)
    for row in splits.rows():
        counts[row.side] += 1
    return counts


def select_rows(
    validated: ValidatedSet,
    splits: SplitSet,
    sides: Collection[Side],
    *,
    stage: int | None = None,
    verdicts: Collection[str] = ("keep",),
) -> Iterator[ValidatedRow]:
    """The rows on ``sides`` that validation kept, in order; both artifacts are read once, in step.

    Args:
        validated: Rows; those of one prompt stand together.
        splits: Made from ``validated``.
        sides: Sides to take.
        stage: Take the texts of this teacher alone; None = of all.
        verdicts: Verdicts of the rows to take; by default those that may teach.

    Raises:
        ArtifactError: if ``splits`` was made from other rows.
    """
    split_rows = splits.rows()
    for prompt_id, rows in groupby(validated.rows(), key=lambda row: row.prompt_id):
        split = next(split_rows, None)
        if split is None or split.prompt_id != prompt_id:
            found = "the end" if split is None else f"prompt {split.prompt_id}"
            raise ArtifactError(f"expected the side of prompt {prompt_id} in {splits.path}, found {found}; split again")
        if split.side in sides:
            yield from (row for row in rows if row.verdict in verdicts and stage in (None, row.stage))


def corpus_identity(validated: ValidatedSet, splits: SplitSet) -> str:
    """Which texts stages learn from: what is made from others does not fit."""
    return hash_json([validated.hash, splits.hash])
