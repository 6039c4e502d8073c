"""Validation: which rows may teach, what is measured of them, and when the run warns or stops."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from proxykd.config.base import Count, Fraction, InputPath, PositiveFloat, Spec

Action = Literal["warn", "fail"]

TEXTLESS_RULES = ("failed", "filtered", "empty")
"""Rules about rows without a text: those can never teach."""


class RuleSpec(Spec):
    """What one rule does to a row that breaks it, and to the run when too many do."""

    rows: Literal["keep", "drop"] = "keep"
    """drop = the row does not teach; keep = it is only counted."""
    max_fraction: Fraction | None = 0.0
    """Largest share of the measured rows that may break the rule; None = any."""
    on_breach: Action = "warn"
    """What happens above max_fraction: warn = it is reported; fail = the gate closes."""
    max_drift: Fraction | None = 0.05
    """Largest change of that share against the last accepted run, as a difference; None = not compared."""
    on_drift: Action = "warn"
    """What happens above max_drift, if the change is significant as well: warn, or fail = the run stops."""


def _rule(rows: Literal["keep", "drop"], max_fraction: float | None, on_breach: Action = "warn") -> RuleSpec:
    return RuleSpec(rows=rows, max_fraction=max_fraction, on_breach=on_breach)


class RulesSpec(Spec):
    """The rules in the order in which they give a row its verdict; a key that is left out keeps its own default."""

    failed: RuleSpec = _rule("drop", 0.05, "fail")
    """The teacher gave no usable answer. Such rows always drop."""
    filtered: RuleSpec = _rule("drop", None)
    """The teacher's content filter took the answer away. Such rows always drop."""
    refused: RuleSpec = _rule("drop", 0.2, "fail")
    """The teacher refused, by its own word, by how its text opens, or in the eyes of refusal_model."""
    truncated: RuleSpec = _rule("drop", 0.2)
    """The teacher said that it was cut off."""
    cut_off: RuleSpec = _rule("keep", 0.05)
    """The text looks cut off: a code block never closes, or it ends on a comma, an opening bracket or a hyphen."""
    empty: RuleSpec = _rule("drop", 0.0)
    """Nothing but white space. Such rows always drop."""
    too_short: RuleSpec = _rule("drop", 0.0)
    """Below min_chars or min_tokens."""
    too_long: RuleSpec = _rule("drop", 0.0)
    """Above max_chars or max_tokens."""
    damaged: RuleSpec = _rule("keep", 0.01)
    """Broken encoding: replacement characters, control characters, lone surrogates, UTF-8 read as something else."""
    other_language: RuleSpec = _rule("keep", 0.05)
    """The text is in a language that `languages` does not list."""
    secret: RuleSpec = _rule("keep", 0.0)
    """The text holds what looks like a key, a token or a password in an address."""
    personal_data: RuleSpec = _rule("keep", 0.01)
    """The text holds an e-mail address, a telephone number, a payment card, an IBAN or a US social security number."""
    unverified: RuleSpec = _rule("keep", 0.5)
    """The prompt's verifier says that the text is wrong; measured where a prompt has one."""
    duplicate: RuleSpec = _rule("keep", 0.0)
    """Prompt and completion both occurred before, but for white space."""
    near_duplicate: RuleSpec = _rule("keep", 0.0)
    """The prompt nearly equals an earlier one."""
    overlap: RuleSpec = _rule("keep", 0.0)
    """A training row that shares a run of words with an evaluation prompt or its reference."""

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Each rule has defaults of its own: naming one key of it must not change the others."""
        if not isinstance(values, dict):
            return values
        return {
            name: {**cls.model_fields[name].default.model_dump(), **value}
            if isinstance(value, dict) and name in cls.model_fields
            else value
            for name, value in values.items()
        }

    @model_validator(mode="after")
    def _textless_rows_drop(self) -> Self:
        for name in TEXTLESS_RULES:
            if self[name].rows == "keep":
                raise ValueError(f"rows without a text cannot teach: leave {name}.rows=drop")
        return self

    def __getitem__(self, name: str) -> RuleSpec:
        """The rule called ``name``."""
        rule: RuleSpec = getattr(self, name)
        return rule


class ValidationSpec(Spec):
    """Which rows may teach, what is measured of them, and when the run warns or stops."""

    min_chars: Annotated[int, Field(ge=0)] = 1
    """Shortest usable completion, in characters."""
    max_chars: Count = 20_000
    """Longest usable completion, in characters."""
    min_tokens: Count | None = None
    """Shortest usable completion, in tokens of the student; None = tokens are not counted for this."""
    max_tokens: Count | None = None
    """Longest usable completion, in tokens of the student; None = tokens are not counted for this."""
    languages: Annotated[tuple[Annotated[str, Field(pattern="^[a-z]{2,3}$")], ...], Field(min_length=1)] | None = None
    """Languages that completions may have, as ISO 639 codes, e.g. [en, de]; None = not checked."""
    phone_region: Annotated[str, Field(pattern="^[A-Z]{2}$")] | None = None
    """Country (ISO 3166, e.g. US) whose national telephone numbers count as personal data; None = numbers with a
    country code (+44 ...) only, because any longer number in a text can look like a national one."""
    refusal_model: InputPath | None = None
    """Folder of a transformers text-classification model that finds refusals which no pattern does; None = patterns
    alone."""
    refusal_label: str = "refusal"
    """The label by which refusal_model names a refusal."""
    near_duplicate_threshold: Fraction = 0.9
    """Estimated Jaccard similarity of 5-word shingles at which two prompts count as near duplicates; 1 = only equal."""
    overlap_ngram: Annotated[int, Field(ge=3, le=50)] = 13
    """A training row that shares a run of so many words with an evaluation prompt or its reference overlaps with it."""
    evaluation_files: tuple[InputPath, ...] = ()
    """Further texts that must not be trained on: .jsonl (every string in it, at any depth) or text, one a line."""
    min_keep_fraction: Fraction = 0.5
    """The gate closes if fewer of the rows may teach."""
    rules: RulesSpec = RulesSpec()
    """What each rule does to a row and to the run."""
    max_length_psi: PositiveFloat = 0.25
    """Largest population stability index of the lengths against the last accepted run; above 0.25 two populations are
    commonly held to differ."""
    on_length_drift: Action = "warn"
    """What happens above max_length_psi: warn, or fail = the run stops."""
    drift_significance: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.01
    """A share has drifted only if a two-proportion test finds its change significant at this level, divided by the
    number of shares compared."""
    release: InputPath | None = None
    """File of rows that a person lets teach although a rule drops them: a JSON object a line with prompt_id,
    sample_idx (left out = all samples), by and reason; None = none."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> Self:
        for low, high, unit in (
            (self.min_chars, self.max_chars, "chars"),
            (self.min_tokens or 0, self.max_tokens or float("inf"), "tokens"),
        ):
            if low > high:
                raise ValueError(f"min_{unit} must not be above max_{unit}, got {low} and {high}")
        return self

    def files(self) -> tuple[Path, ...]:
        """The files and folders whose content counts as well as their names."""
        return tuple(filter(None, (self.release, self.refusal_model, *self.evaluation_files)))

    @property
    def counts_tokens(self) -> bool:
        """Whether a length in tokens is asked for, so that a tokenizer is needed."""
        return self.min_tokens is not None or self.max_tokens is not None
