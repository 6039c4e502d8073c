"""Validation: which rows may teach, and when the run stops for lack of them."""

from typing import Annotated

from pydantic import Field

from proxykd.config.base import Count, Fraction, Spec


class ValidationSpec(Spec):
    """Which rows may teach, and when the run stops for lack of them."""

    min_chars: Annotated[int, Field(ge=0)] = 1
    """Shortest usable completion, in characters."""
    max_chars: Count = 20_000
    """Longest usable completion, in characters."""
    drop_truncated: bool = True
    """Truncated completions do not teach."""
    drop_duplicates: bool = False
    """A row whose prompt and completion both occurred before does not teach."""
    near_duplicate_threshold: Fraction = 0.9
    """Estimated Jaccard similarity of 5-word shingles at which two prompts count as near duplicates; 1 = only equal."""
    drop_near_duplicates: bool = False
    """A row whose prompt nearly equals an earlier one's does not teach; otherwise it is only counted."""
    overlap_ngram: Annotated[int, Field(ge=3, le=50)] = 13
    """A training prompt that shares a run of so many words with an evaluation prompt overlaps with it."""
    drop_overlap: bool = False
    """A training row that overlaps with an evaluation prompt does not teach; otherwise it is only counted."""
    min_keep_fraction: Fraction = 0.5
    """The gate closes if fewer of the rows may teach."""
    max_failed_fraction: Fraction = 0.05
    """The gate closes if more of the rows failed."""
    max_refused_fraction: Fraction = 0.2
    """The gate closes if more of the rows are refusals."""
