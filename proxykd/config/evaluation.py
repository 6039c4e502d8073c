"""How the arms are compared: tasks, calibration, drift, speed, and the intervals of all of them."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from proxykd.config.base import Count, InputPath, Spec
from proxykd.config.judge import JudgeSpec
from proxykd.config.slices import SlicesSpec
from proxykd.config.statistics import StatisticsSpec
from proxykd.config.verifiers import AnswerPattern, SandboxSpec

TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
"""Name in tables and metrics; no slash, which separates a metric from its task."""


class ExactMatchTaskSpec(Spec):
    """Greedy generation; right if the extracted answer equals the reference."""

    kind: Literal["exact_match"] = "exact_match"
    """Compare an extracted answer with a reference."""
    name: TaskName
    """Name in tables."""
    answer_pattern: AnswerPattern
    """Regular expression whose first group is the answer; the last match counts."""
    file: InputPath | None = None
    """JSONL file of questions, one JSON object a line; None = the held-out prompts that have a reference answer."""
    prompt_field: str = "prompt"
    """Key of the question in the file: a string, or a list of messages with role and content."""
    reference_field: str = "reference"
    """Key of the right answer in the file."""
    slice_field: str | None = None
    """Key whose values divide the file's questions into slices; None = no slices of its own."""
    max_new_tokens: Count = 128
    """Longest generated completion, in tokens."""
    limit: Count | None = None
    """Ask only so many prompts, the first ones; None = all."""


class MultipleChoiceTaskSpec(Spec):
    """The choice that the model finds likeliest is its answer; nothing is generated."""

    kind: Literal["multiple_choice"] = "multiple_choice"
    """Compare the log-likelihoods of given choices."""
    name: TaskName
    """Name in tables."""
    file: InputPath
    """JSONL file of questions, one JSON object a line."""
    prompt_field: str = "prompt"
    """Key of the question: a string, or a list of messages with role and content."""
    choices_field: str = "choices"
    """Key of the choices: a list of at least two strings, each put behind the rendered prompt as it is."""
    answer_field: str = "answer"
    """Key of the right choice: its place in the list, from 0, or its text."""
    slice_field: str | None = None
    """Key whose values divide the questions into slices; None = no slices of its own."""
    limit: Count | None = None
    """Ask only so many questions, the first ones; None = all."""


class NllTaskSpec(Spec):
    """How well the model predicts given texts."""

    kind: Literal["nll"] = "nll"
    """Score texts by their negative log-likelihood."""
    name: TaskName
    """Name in tables."""
    file: InputPath
    """JSONL file of texts, one JSON object a line."""
    text_field: str = "text"
    """Key of the text that is scored."""
    prompt_field: str | None = None
    """Key of a question that the text answers, a string or messages, which is read but not scored; None = plain
    texts, scored from their first token on."""
    slice_field: str | None = None
    """Key whose values divide the texts into slices; None = no slices of its own."""
    limit: Count | None = None
    """Score only so many texts, the first ones; None = all."""


class PassAtKTaskSpec(Spec):
    """The share of problems that at least one of k sampled programs solves (Chen et al. 2021, arXiv:2107.03374)."""

    kind: Literal["pass_at_k"] = "pass_at_k"
    """Run sampled programs against tests, in the sandbox."""
    name: TaskName
    """Name in tables."""
    file: InputPath
    """JSONL file of problems, one JSON object a line."""
    prompt_field: str = "prompt"
    """Key of the question: a string, or a list of messages with role and content."""
    tests_field: str = "tests"
    """Key of the tests: Python with assert statements, run among the program's names."""
    slice_field: str | None = None
    """Key whose values divide the problems into slices; None = no slices of its own."""
    num_samples: Count = 10
    """Programs sampled for each problem; the estimate is unbiased for every k up to it."""
    k: Annotated[tuple[Count, ...], Field(min_length=1)] = (1,)
    """Which k are reported, each as a metric pass@k."""
    temperature: Annotated[float, Field(ge=0.0)] = 0.8
    """Divides the logits; 0 = greedy, which gives num_samples times the same program."""
    max_new_tokens: Count = 512
    """Longest generated completion, in tokens."""
    limit: Count | None = None
    """Ask only so many problems, the first ones; None = all."""
    sandbox: SandboxSpec = SandboxSpec()
    """What each program may use, its tests included."""

    @model_validator(mode="after")
    def _samples_suffice(self) -> Self:
        if max(self.k) > self.num_samples:
            raise ValueError(f"expected num_samples of at least the largest k, got {self.num_samples} and k={self.k}")
        if self.temperature == 0.0 and self.num_samples > 1:
            raise ValueError(
                f"expected num_samples=1 with temperature=0, which gives the same program each time; got "
                f"{self.num_samples}"
            )
        return self


class HarnessTaskSpec(Spec):
    """A task of lm-evaluation-harness by its name there: shipped with it, or in a folder of the user's."""

    kind: Literal["harness"] = "harness"
    """Run the harness's own definition: prompt, few-shot examples, filters, metric."""
    name: TaskName
    """The harness's name of a task or of a group of tasks: arc_easy, mmlu, gsm8k."""
    folder: InputPath | None = None
    """Folder of the harness's YAML files that define the task, beside those that it ships; None = those alone."""
    metrics: tuple[str, ...] = ()
    """The harness's metrics to keep, by name; () = all that are numbers for each question."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    """Examples before each question; None = as the task says."""
    apply_chat_template: bool = False
    """Ask in the model's chat template, few-shot examples as turns; false = as plain text, as published tables do."""
    limit: Count | None = None
    """Ask only so many questions of each task, the first ones; None = all."""


class ReasoningGymTaskSpec(Spec):
    """Procedural problems of reasoning-gym, made anew from a seed and checked by the generator's own verifier."""

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    """Generate problems; score answers by the data set's own rule, from 0 to 1."""
    name: TaskName
    """Name in tables."""
    dataset: str
    """Name of the generator: chain_sum, syllogism, ..."""
    config: dict[str, Any] = Field(default_factory=dict)
    """Settings of the generator (min_terms, max_digits, ...); {} = its own."""
    size: Count = 100
    """Number of problems."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of the problems."""
    answer_pattern: AnswerPattern | None = None
    """Regular expression whose first group is the answer, the last match counts; None = the whole completion."""
    max_new_tokens: Count = 256
    """Longest generated completion, in tokens."""


TaskSpec = Annotated[
    ExactMatchTaskSpec
    | MultipleChoiceTaskSpec
    | NllTaskSpec
    | PassAtKTaskSpec
    | HarnessTaskSpec
    | ReasoningGymTaskSpec,
    Field(discriminator="kind"),
]


class DriftSpec(Spec):
    """Free greedy answers to held-out prompts, compared with the teacher's: length, refusals, agreement."""

    num_prompts: Count = 100
    """Held-out prompts that are asked, the first ones."""
    max_new_tokens: Count = 256
    """Longest answer, in tokens; the share of answers that reach it is reported."""
    answer_pattern: AnswerPattern | None = None
    """Regular expression whose first group is the answer, the last match counts, by which agreement with the teacher's
    answer is measured; None = agreement is measured where an exact-match task gives a pattern."""


class SpeedSpec(Spec):
    """Tokens a second, memory and size of the candidate, measured in a process of its own."""

    num_prompts: Count = 16
    """Prompts of the batched measurement, which are generated at once."""
    prompt_tokens: Count = 64
    """Tokens of each prompt."""
    new_tokens: Count = 32
    """Tokens generated for each prompt; the end token does not end an answer here."""
    repeats: Count = 3
    """Measurements of which the median counts."""


class EvaluationSpec(StatisticsSpec):
    """How the arms are compared."""

    tasks: tuple[TaskSpec, ...] = ()
    """What the arms are asked beside the teacher's held-out texts."""
    drift: DriftSpec | None = None
    """Free answers to held-out prompts; None = none are generated but those of the tasks."""
    judge: JudgeSpec | None = None
    """A model behind an API that compares or grades the free answers, so that drift must be set; None = nobody does."""
    slices: SlicesSpec = SlicesSpec()
    """Parts of the held-out prompts that have differences of their own."""
    speed: SpeedSpec | None = SpeedSpec()
    """Speed and size of the candidate, and of the champion that it is compared with; None = size alone."""
    calibration_bins: Annotated[int, Field(ge=2, le=100)] = 15
    """Bins of equal width in which confidence and outcome are compared (Guo et al. 2017)."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """What generates: transformers in the step's process, or vLLM, which must be installed and needs an accelerator."""
    generation_batch_tokens: Count = 16_384
    """Bound on rows * (prompt + new tokens) of a generated batch."""
    exact_kl: bool = False
    """Compute the true KL from the teacher; the embedded teacher alone allows it."""
    exact_kl_prompts: Count = 200
    """Held-out prompts on which the true KL is computed."""

    @field_validator("tasks")
    @classmethod
    def _names_differ(cls, tasks: tuple[TaskSpec, ...]) -> tuple[TaskSpec, ...]:
        names = [task.name for task in tasks]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected tasks with distinct names, found {twice} twice")
        return tasks

    @model_validator(mode="after")
    def _there_is_something_to_judge(self) -> Self:
        if self.judge is not None and self.drift is None:
            raise ValueError("judge reads the free answers to held-out prompts: set evaluation.drift, {} at least")
        return self

    def files(self) -> tuple[InputPath, ...]:
        """The files and folders that the tasks read."""
        paths = [getattr(task, "file", None) or getattr(task, "folder", None) for task in self.tasks]
        return tuple(path for path in paths if path is not None)

    def question_files(self) -> tuple[InputPath, ...]:
        """The files whose questions must not be trained on."""
        return tuple(file for task in self.tasks if (file := getattr(task, "file", None)) is not None)

    @property
    def asks_heldout_references(self) -> bool:
        """Whether a task needs held-out prompts with a reference answer."""
        return any(isinstance(task, ExactMatchTaskSpec) and task.file is None for task in self.tasks)
