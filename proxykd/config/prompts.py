"""Prompts: where the questions come from, and what is put before each of them."""

from collections.abc import Collection
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from proxykd.config.base import Count, InputPath, ModelSource, Spec
from proxykd.config.elicitation import ExampleSpec, SystemMessageSpec, read_examples, read_system_messages
from proxykd.config.templates import TemplateText
from proxykd.config.terms import TermsSpec

SystemPolicy = Literal["one", "all"]

_OWN_FIELD = "prompt"


class FilePromptsSpec(Spec):
    """What all prompts have in common that are read from data of the user's."""

    reference_field: str | None = None
    """Column of the reference answer for exact-match tasks; None = there are none."""
    system: str | None = None
    """System message put before every question; None = none."""
    system_template: TemplateText | None = None
    """Template of the system message, over the row's columns; where it comes out blank there is none. None = not
    made from columns."""
    system_messages: Annotated[
        tuple[SystemMessageSpec, ...],
        BeforeValidator(read_system_messages, json_schema_input_type=str | tuple[SystemMessageSpec, ...]),
    ] = ()
    """System messages to elicit explanations with (Orca): a list, or the name of one that the package ships,
    explanation_traces. Empty = none."""
    system_policy: SystemPolicy | dict[str, SystemPolicy] = "one"
    """one = each question gets one of the system messages that apply to its task, drawn by weight; all = each
    question is asked once with each of them. By task: a mapping of the task's name to either; a task that is not
    named has one."""
    examples: Annotated[
        tuple[ExampleSpec, ...],
        Field(max_length=64),
        BeforeValidator(read_examples, json_schema_input_type=str | tuple[ExampleSpec, ...]),
    ] = ()
    """Examples shown to the teacher before every question, as turns of user and assistant: a list, or the path of a
    JSONL file with the keys prompt and completion. The models are trained without them."""
    task: str = ""
    """Name of the task that the prompts belong to."""
    task_field: str | None = None
    """Column of the task's name, in place of task; None = all belong to task."""
    on_duplicate: Literal["error", "drop"] = "error"
    """What to do with a question that occurs twice: stop with its places, or keep the first."""
    limit: Count | None = None
    """Take only the first so many questions, before system messages multiply them; None = all."""
    terms: TermsSpec = TermsSpec()
    """Terms of the prompts, for the lineage and the model card."""

    @property
    def is_expanded(self) -> bool:
        """Whether prompts are made from questions by putting more before them than one system message."""
        return bool(self.system_messages or self.examples)

    def policy_for(self, task: str) -> SystemPolicy:
        """How the system messages are given out in a task."""
        return self.system_policy if isinstance(self.system_policy, str) else self.system_policy.get(task, "one")

    def named_columns(self) -> set[str]:
        """The columns that the specification names, but for those in templates."""
        return {name for name in (self.reference_field, self.task_field) if name is not None}

    def templates(self) -> dict[str, str]:
        """The templates that are set, by their key."""
        return {} if self.system_template is None else {"system_template": self.system_template}

    @field_validator("system_messages")
    @classmethod
    def _are_distinct(cls, messages: tuple[SystemMessageSpec, ...]) -> tuple[SystemMessageSpec, ...]:
        texts = [message.text for message in messages]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise ValueError(f"expected distinct texts, found one twice: {twice:.60}; give it one entry and a weight")
        return messages

    @model_validator(mode="after")
    def _keys_fit(self) -> Self:
        _refuse_together(self, ("system", "system_template", "system_messages"))
        _refuse_together(self, ("task", "task_field"))
        tasks = {task for message in self.system_messages for task in message.tasks or ()}
        if isinstance(self.system_policy, dict):
            tasks |= set(self.system_policy)
        if self.task_field is None and (unknown := sorted(tasks - {self.task})):
            raise ValueError(
                f"expected no task but task={self.task!r}, because there is no task_field; system_messages or "
                f"system_policy name {unknown}"
            )
        return self


class ColumnPromptsSpec(FilePromptsSpec):
    """What all prompts have in common that are made from the columns of a row."""

    prompt_field: str = _OWN_FIELD
    """Column that holds the question: a string, or a list of messages with role and content."""
    input_field: str | None = None
    """Column of a second text appended to the question after a blank line where it is not empty; None = no such
    column."""
    template: TemplateText | None = None
    """Template of the question over the row's columns, in place of prompt_field and input_field; None = no template."""

    def named_columns(self) -> set[str]:
        """The columns that the specification names, but for those in templates."""
        of_question = (None, None) if self.template is not None else (self.prompt_field, self.input_field)
        return super().named_columns() | {name for name in of_question if name is not None}

    def templates(self) -> dict[str, str]:
        """The templates that are set, by their key."""
        return super().templates() | ({} if self.template is None else {"template": self.template})

    @model_validator(mode="after")
    def _question_has_one_source(self) -> Self:
        if self.template is not None and (self.prompt_field != _OWN_FIELD or self.input_field is not None):
            raise ValueError(
                "expected either template, or prompt_field and input_field, got both; a template names its columns "
                "itself: {{ question }}"
            )
        return self


class JsonlPromptsSpec(ColumnPromptsSpec):
    """Prompts from a JSONL file, one JSON object a line; its keys are the columns."""

    kind: Literal["jsonl"] = "jsonl"
    """A file of the user's."""
    path: InputPath
    """The file."""


class CsvPromptsSpec(ColumnPromptsSpec):
    """Prompts from a CSV file (RFC 4180) in UTF-8."""

    kind: Literal["csv"] = "csv"
    """A table as text."""
    path: InputPath
    """The file."""
    delimiter: Annotated[str, Field(pattern=r"^[^\"\r\n]$")] = ","
    """Character between two cells; "\\t" = a tab."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the columns of a file without a header row; None = the first row holds them."""

    @field_validator("columns")
    @classmethod
    def _are_distinct_columns(cls, columns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if columns is not None and len(set(columns)) < len(columns):
            raise ValueError(f"expected distinct names of columns, got {list(columns)}")
        return columns


class ParquetPromptsSpec(ColumnPromptsSpec):
    """Prompts from a Parquet file, or from all of a folder's in the order of their names."""

    kind: Literal["parquet"] = "parquet"
    """A table in columns."""
    path: InputPath
    """The file or the folder."""


class HuggingFacePromptsSpec(ColumnPromptsSpec):
    """Prompts from a split of a Hugging Face dataset: on the hub, or a folder of data files or of save_to_disk."""

    kind: Literal["huggingface"] = "huggingface"
    """A dataset that the datasets library reads; no code of a dataset's is ever run."""
    source: ModelSource
    """Name on the hub, owner/name, or a folder."""
    config: str | None = None
    """Name of the dataset's configuration (its subset); None = its default."""
    split: str = "train"
    """Name of the split."""
    revision: str | None = None
    """Commit, tag or branch on the hub; None = the main branch. It is resolved to a commit, which is recorded: a run
    whose dataset moves on between plan and start says so. A folder has none."""


class OpenAIFinetuningPromptsSpec(FilePromptsSpec):
    """Prompts from a file for OpenAI's fine-tuning: JSONL with messages, the last one the assistant's.

    That one is the recorded completion of teacher.kind=recorded; a live teacher is asked what stands before it.
    """

    kind: Literal["openai_finetuning"] = "openai_finetuning"
    """A fine-tuning file in the chat shape."""
    path: InputPath
    """The file."""


class EmbeddedPromptsSpec(Spec):
    """Word problems made by the embedded teacher's own generator; needs no file."""

    kind: Literal["embedded"] = "embedded"
    """The built-in generator."""
    count: Count = 1500
    """Number of distinct prompts."""
    terms: TermsSpec = TermsSpec()
    """Terms of the prompts, for the lineage and the model card."""


PromptsSpec = Annotated[
    JsonlPromptsSpec
    | CsvPromptsSpec
    | ParquetPromptsSpec
    | HuggingFacePromptsSpec
    | OpenAIFinetuningPromptsSpec
    | EmbeddedPromptsSpec,
    Field(discriminator="kind"),
]


def where_is(spec: FilePromptsSpec) -> str:
    """The file or the dataset, for messages."""
    return str(getattr(spec, "path", None) or getattr(spec, "source", ""))


def _refuse_together(spec: Spec, keys: Collection[str]) -> None:
    """Raise ValueError where more than one of ``keys`` is set."""
    if len(given := [key for key in keys if getattr(spec, key) not in (None, "", ())]) > 1:
        raise ValueError(f"expected at most one of {', '.join(keys)}, got {' and '.join(given)}; leave out the others")
