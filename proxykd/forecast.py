"""What a run will take, as arithmetic: calls, tokens, USD, steps, memory, disk. Reads nothing and asks nobody."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from proxykd.config import RunSpec
from proxykd.config.estimation import TargetsSpec
from proxykd.config.living import GkdSpec, MiniLlmSpec, OkdSpec
from proxykd.config.models import OptimizerSpec, ProxySpec, StudentSpec
from proxykd.config.prices import price_list_date
from proxykd.config.teacher import ApiTeacherSpec, RecordedTeacherSpec, TeacherSpec
from proxykd.data.splits import sides_for
from proxykd.models.sizes import ModelSize
from proxykd.records import Side

GIB = 2**30
_LIBRARIES_BYTES = int(1.1 * GIB)
"""Interpreter, torch, transformers, ZenML, MLflow and Great Expectations together (measured)."""
_LOGITS_COPIES = 3
"""Scores, their log-probabilities and their gradient, float32 each."""
_REQUEST_TOKENS = 200
"""Tokens of the wording of a request to the judge."""
_BACKWARD = 2
"""Arithmetic of a backward pass, in forward passes."""
WRITTEN_TOGETHER = 16_384
"""Tokens of the texts that a student writes side by side: ``models.sampling.SAMPLING_BATCH_TOKENS``, without torch."""
_DENSE_BYTES = 10 * 2**26
"""Scores of a chunk of positions of both models, and a divergence of them (``student.dense_pass``)."""
_FUSED_BYTES = 2 * 5 * 2**26
"""The buffers in which the student's scores are worked off (``proxykd.fused``), whatever the batch."""
_MICRO_BATCH_TOKENS = 2**14
"""Completion tokens of the student's that are in memory together (``proxykd.student.module``)."""
_WORKER_BYTES = int(0.45 * GIB)
"""Interpreter, torch and transformers of a further process (measured)."""


@dataclass(frozen=True, slots=True)
class TextLengths:
    """Lengths of prompts and completions in tokens.

    Attributes:
        prompt: Mean prompt.
        completion: Mean completion where the texts are known, else the most that one may have.
        longest: Longest prompt and completion together.
        are_exact: Counted with the proxy's tokenizer; False = estimated from characters.
    """

    prompt: float
    completion: float
    longest: float
    are_exact: bool


class Asked(NamedTuple):
    """What a teacher of a run is asked.

    Attributes:
        teacher: Its section of the specification.
        sides: Prompts that it is asked, by side.
        calls_left: Calls that the journal has no answer to.
    """

    teacher: TeacherSpec
    sides: Mapping[Side, int]
    calls_left: int


@dataclass(frozen=True, slots=True)
class TeacherForecast:
    """What one teacher will take.

    Attributes:
        model: Its name.
        num_prompts: Prompts that it is asked.
        calls: Calls on an empty journal; 0 = it is a recorded one.
        calls_left: Those that the journal has no answer to.
        prompt_tokens: Expected prompt tokens of its texts.
        completion_tokens: Completion tokens of its texts: expected where they are known, else the most there can be.
        usd_left: Price of the calls that are left, at most; None = no price is known.
        is_listed: Whether that is computed from the package's list of prices.
    """

    model: str
    num_prompts: int
    calls: int
    calls_left: int
    prompt_tokens: int
    completion_tokens: int
    usd_left: float | None
    is_listed: bool


class LivingForecast(NamedTuple):
    """What a living teacher adds to the distilled arm, over all its seeds and learning rates.

    Attributes:
        own_tokens: Tokens that the students write themselves, at most; 0 = they write none.
        own_passes: Forward passes that this takes one after another, at most: a token of every text of a batch each.
        arithmetic: Of a step, against one of plain fine-tuning; time grows by more, because texts are written token by
            token and distributions compared over the whole vocabulary.
    """

    own_tokens: int
    own_passes: int
    arithmetic: float


class JudgeForecast(NamedTuple):
    """What the judge of the evaluation takes, at most, the asking again for scores included.

    Attributes:
        model: Its name.
        calls: Calls.
        usd: Their price, were none in the journal; None = no price is known.
    """

    model: str
    calls: int
    usd: float | None


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        sides: Prompts on each side.
        teachers: What each teacher will take, in the order in which the student learns from them.
        lengths: What the tokens were computed from.
        price_date: Day of the price list that it was computed from; "" = the prices are the specification's own.
        proxy_steps: Optimiser steps of the proxy's alignment.
        student_runs: Student trainings: arms, seeds and learning rates.
        student_steps: Optimiser steps of all of them.
        memory_bytes: Estimated peak memory.
        disk_bytes: Estimated size of the artifacts.
        has_targets: Whether distributions are estimated and stored.
        living: What a living teacher adds; None = there is none.
        judge: What the judge takes; None = there is none.
    """

    sides: dict[Side, int]
    teachers: tuple[TeacherForecast, ...]
    lengths: TextLengths
    price_date: str
    proxy_steps: int
    student_runs: int
    student_steps: int
    memory_bytes: int
    disk_bytes: int
    has_targets: bool = True
    living: LivingForecast | None = None
    judge: JudgeForecast | None = None

    @property
    def calls(self) -> int:
        """Calls to all teachers on an empty journal."""
        return sum(one.calls for one in self.teachers)

    @property
    def calls_left(self) -> int:
        """Those that the journal has no answer to."""
        return sum(one.calls_left for one in self.teachers)

    @property
    def prompt_tokens(self) -> int:
        """Expected prompt tokens of all texts."""
        return sum(one.prompt_tokens for one in self.teachers)

    @property
    def completion_tokens(self) -> int:
        """Completion tokens of all texts: expected where they are known, else the most there can be."""
        return sum(one.completion_tokens for one in self.teachers)

    @property
    def usd_left(self) -> float | None:
        """Price of the calls that are left, at most; None = one of the prices is not known."""
        return add_prices([one.usd_left for one in self.teachers])


def forecast_run(
    run: RunSpec, *, sides: dict[Side, int], sizes: dict[str, ModelSize], lengths: TextLengths, asked: Sequence[Asked]
) -> Forecast:
    """Forecast a run.

    Args:
        run: The specification, ablations applied.
        sides: Prompts on each side.
        sizes: The models by role.
        lengths: Of the main teacher's texts.
        asked: What each teacher is asked, the main one last.
    """
    teachers = tuple(_forecast_teacher(one, lengths_of(one.teacher, run, lengths)) for one in asked)
    student_runs = 2 * (len(run.student.seeds) + max(len(run.student.learning_rates) - 1, 0))
    widest = replace(lengths, completion=max(lengths_of(one.teacher, run, lengths).completion for one in asked))
    return Forecast(
        sides=sides,
        teachers=teachers,
        lengths=lengths,
        price_date=price_list_date() if any(one.is_listed for one in teachers) else "",
        proxy_steps=_proxy_steps(run, asked[-1].sides),
        student_runs=student_runs,
        student_steps=run.student.steps * student_runs,
        memory_bytes=_memory(run, sizes, widest),
        disk_bytes=_disk(run, sizes, sum(one.completion_tokens for one in teachers)),
        has_targets=run.student.reads_targets,
        living=_living(run, sizes, lengths, runs=student_runs // 2),
        judge=_forecast_judge(run, sides[Side.HELDOUT], lengths),
    )


def _living(run: RunSpec, sizes: Mapping[str, ModelSize], lengths: TextLengths, *, runs: int) -> LivingForecast | None:
    """Matrix products alone are counted: of a model's pass over n tokens as often as it has weights, n times."""
    student, spec = run.student, run.student.living_teacher
    if spec is None:
        return None
    limit, num_texts = student.model.max_seq_tokens, student.optimizer.batch_size
    own, proxy = sizes["student"].num_parameters, sizes["proxy"].num_parameters
    length = min(lengths.prompt + lengths.completion, limit)
    learning = (1 + _BACKWARD) * own
    if isinstance(spec, OkdSpec):
        return LivingForecast(0, 0, (learning + (1 + _BACKWARD) * proxy) / learning)
    share = spec.on_policy if isinstance(spec, GkdSpec) else 1.0
    written = max(1.0, min(spec.max_new_tokens, limit - min(lengths.prompt, limit)))
    helped = proxy if isinstance(spec, MiniLlmSpec) and spec.teacher_mix > 0.0 else 0
    own_length = min(lengths.prompt, limit) + written
    on_policy = learning * length + (own + helped + learning + proxy) * own_length
    off_policy = (learning + proxy) * length
    steps = runs * student.steps * share
    batches = math.ceil(num_texts * own_length / WRITTEN_TOGETHER)
    return LivingForecast(
        round(steps * num_texts * written),
        round(steps * batches * written),
        (share * on_policy + (1.0 - share) * off_policy) / (learning * length),
    )


def _forecast_teacher(asked: Asked, lengths: TextLengths) -> TeacherForecast:
    teacher, num_prompts = asked.teacher, sum(asked.sides.values())
    texts = num_prompts * num_samples(teacher)
    return TeacherForecast(
        model=getattr(teacher, "model", "the embedded teacher"),
        num_prompts=num_prompts,
        calls=0 if isinstance(teacher, RecordedTeacherSpec) else texts,
        calls_left=asked.calls_left,
        prompt_tokens=round(texts * tokens_of_call(teacher, lengths)[0]),
        completion_tokens=round(texts * tokens_of_call(teacher, lengths)[1]),
        usd_left=price_of_calls(teacher, asked.calls_left, lengths),
        is_listed=isinstance(teacher, ApiTeacherSpec) and not teacher.price,
    )


def _forecast_judge(run: RunSpec, num_heldout: int, lengths: TextLengths) -> JudgeForecast | None:
    spec, free = run.evaluation.judge, run.evaluation.drift
    if spec is None or free is None:
        return None
    prompts = min(num_heldout, free.num_prompts, spec.limit or num_heldout)
    contestants = {name for duel in spec.duels for name in (duel.arm, duel.against)}
    requests = prompts * (2 * len(spec.duels) if spec.kind == "pairwise" else len(contestants))
    answers = 2 * max(free.max_new_tokens, lengths.completion) if spec.kind == "pairwise" else free.max_new_tokens
    first = lengths.prompt + answers + _REQUEST_TOKENS
    usd, tries = 0.0, spec.reasks + 1
    if (price := spec.teacher.known_price) is None:
        return JudgeForecast(spec.teacher.model, requests * tries, None)
    for number in range(tries):  # each time the conversation has one more reply in it
        prompt = first + number * (spec.sampling.max_tokens + _REQUEST_TOKENS)
        usd += prompt * price.input_usd_per_million + spec.sampling.max_tokens * price.output_usd_per_million
    return JudgeForecast(spec.teacher.model, requests * tries, requests * usd / 1e6)


def num_samples(teacher: TeacherSpec) -> int:
    """Completions a prompt."""
    return 1 if isinstance(teacher, RecordedTeacherSpec) else teacher.sampling.num_samples


def lengths_of(teacher: TeacherSpec, run: RunSpec, lengths: TextLengths) -> TextLengths:
    """Lengths of the texts of any teacher of a run, given those of the main one's."""
    if teacher == run.teacher or isinstance(teacher, RecordedTeacherSpec):
        return lengths
    return replace(lengths, completion=float(teacher.sampling.max_tokens))


def price_of_calls(teacher: TeacherSpec, calls: int, lengths: TextLengths) -> float | None:
    """USD that so many calls cost at most; 0 where nobody asks for money, None = no price is known."""
    if not isinstance(teacher, ApiTeacherSpec):
        return 0.0
    if (price := teacher.known_price) is None:
        return None
    prompt, completion = tokens_of_call(teacher, lengths)
    a_call = prompt * price.input_usd_per_million + completion * price.output_usd_per_million
    share = 1.0 - price.batch_discount if teacher.is_batched else 1.0
    return calls * a_call * share / 1e6


def tokens_of_call(teacher: TeacherSpec, lengths: TextLengths) -> tuple[float, float]:
    """Prompt and completion tokens of a call at most, with the further one that a text which is cut off asks for."""
    prompt, completion = lengths.prompt, lengths.completion
    if not isinstance(teacher, ApiTeacherSpec) or teacher.on_truncated == "keep":
        return prompt, completion
    if teacher.on_truncated == "retry":
        return 2 * prompt, completion + (teacher.truncated_max_tokens or 2 * teacher.sampling.max_tokens)
    further = teacher.truncated_max_tokens or teacher.sampling.max_tokens
    return 2 * prompt + completion, completion + further


def add_prices(prices: Sequence[float | None]) -> float | None:
    """The sum; None where one is not known."""
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


def _proxy_steps(run: RunSpec, sides: Mapping[Side, int]) -> int:
    """Passes are laid end to end and cut into rounds of equal size; the last batch of a round may be smaller."""

    def steps(side_names: frozenset[Side], epochs: float, rounds: int, batch_size: int) -> int:
        wanted = math.ceil(sum(sides[side] for side in side_names) * num_samples(run.teacher) * epochs)
        parts = (wanted // rounds + (part < wanted % rounds) for part in range(rounds))
        return sum(math.ceil(part / batch_size) for part in parts)

    total, warmup, preference = 0, run.proxy.warmup, run.proxy.preference
    if warmup is not None:
        total += steps(sides_for("warmup", run.split), warmup.epochs, 1, warmup.optimizer.batch_size)
    if preference is not None:
        batch_size = preference.optimizer.batch_size
        total += steps(sides_for("alignment", run.split), preference.epochs, preference.rounds, batch_size)
    return total


def _memory(run: RunSpec, sizes: dict[str, ModelSize], lengths: TextLengths) -> int:
    """The libraries and the stage that needs most; stages follow each other and free what they held."""
    warmup, preference = run.proxy.warmup, run.proxy.preference
    stages = [_student(run.student, sizes, lengths)]
    if warmup is not None:
        stages.append(_alignment(run.proxy, sizes["proxy"], warmup.optimizer, lengths))
    if preference is not None:
        # Chosen and rejected go through the model together.
        stages.append(_alignment(run.proxy, sizes["proxy"], preference.optimizer, lengths, texts_a_row=2))
    return _LIBRARIES_BYTES + max(stages)


def _guest(spec: StudentSpec, sizes: Mapping[str, ModelSize]) -> int:
    """A living teacher beside the student."""
    if spec.living_teacher is None:
        return 0
    is_halved = spec.model.precision == "bfloat16" and not isinstance(spec.living_teacher, OkdSpec)
    return sizes["proxy"].num_parameters * (2 if is_halved else 4) + _DENSE_BYTES


def _student(spec: StudentSpec, sizes: dict[str, ModelSize], lengths: TextLengths) -> int:
    """A batch is worked off in micro-batches and never multiplied out."""
    size, limit = sizes["student"], spec.model.max_seq_tokens
    scored = min(lengths.completion, limit - min(lengths.prompt, limit))
    rows = min(spec.optimizer.batch_size, max(1, math.ceil(_MICRO_BATCH_TOKENS / max(scored, 1.0))))
    width = 2 if spec.model.precision == "bfloat16" else 4
    floats = size.checkpointed_floats if spec.gradient_checkpointing else size.activation_floats
    activations = width * rows * min(lengths.longest, limit) * floats
    scores = min(_LOGITS_COPIES * 4 * rows * scored * size.vocab_size, _FUSED_BYTES)
    # Each process has the whole model before it keeps its share.
    others = (spec.processes - 1) * (_WORKER_BYTES + 4 * size.num_parameters)
    return round(size.training_bytes + activations + scores + _guest(spec, sizes) + others)


def _alignment(
    spec: ProxySpec, size: ModelSize, optimizer: OptimizerSpec, lengths: TextLengths, *, texts_a_row: int = 1
) -> int:
    """Weights, gradients and optimiser state; activations of a batch; its scores where completions are."""
    model, rows = spec.model, optimizer.batch_size * texts_a_row
    width = 2 if model.precision == "bfloat16" else 4
    floats = size.checkpointed_floats if spec.gradient_checkpointing else size.activation_floats
    activations = width * rows * min(lengths.longest, model.max_seq_tokens) * floats
    scored = min(lengths.completion, model.max_seq_tokens - min(lengths.prompt, model.max_seq_tokens))
    is_low = model.precision == "bfloat16" and model.lora is not None
    held = size.aligning_bytes if is_low else size.training_bytes
    is_sharded = spec.fsdp and spec.processes > 1
    weights = held if is_sharded else spec.processes * held
    # Before the first step and after the last one a whole float32 model is there, too, in one process.
    whole = 4 * size.num_parameters if is_low or is_sharded else 0
    steps = activations + _LOGITS_COPIES * 4 * rows * scored * size.vocab_size
    return round(weights + (spec.processes - 1) * _WORKER_BYTES + max(steps, whole))


def _disk(run: RunSpec, sizes: dict[str, ModelSize], completion_tokens: float) -> int:
    """Proxy; both arms and the untrained student for every seed; the copy that is registered; targets; texts thrice."""
    students = 3 * len(run.student.seeds) + 1
    stored = completion_tokens if run.student.reads_targets else 0.0
    targets = stored * _position_bytes(run.targets, sizes["proxy"].vocab_size)
    texts = 3 * 4 * completion_tokens
    return round(sizes["proxy"].saved_bytes + students * sizes["student"].saved_bytes + targets + texts)


def _position_bytes(spec: TargetsSpec, vocab_size: int) -> float:
    """A position of the target store: exact for the plain format, an upper estimate for the coded one.

    ``benchmarks/targets/compare.py`` saw 33 bytes for 20 tokens and 166 for 128 (V = 49,152), 37 and 177 (V = 262,144).
    """
    tokens = spec.reduction.max_tokens
    plain = tokens * (8 if vocab_size > 2**16 else 6) + 4
    stored = plain if spec.store.kind == "plain" else min(plain, 12 + 1.4 * tokens)
    return stored * (2 if getattr(spec.estimator, "keep_prior", False) else 1)
