"""What a run will take, as arithmetic: calls, tokens, USD, steps, memory, disk. Reads nothing and asks nobody."""

import math
from dataclasses import dataclass

from proxykd.config import RunSpec
from proxykd.config.models import ModelSpec, OptimizerSpec
from proxykd.config.prices import price_list_date
from proxykd.config.teacher import ApiTeacherSpec, RecordedTeacherSpec
from proxykd.data.splits import sides_for
from proxykd.models.sizes import ModelSize
from proxykd.records import Side

GIB = 2**30
_LIBRARIES_BYTES = int(1.1 * GIB)
"""Interpreter, torch, transformers, ZenML, MLflow and Great Expectations together (measured)."""
_LOGITS_COPIES = 3
"""Scores, their log-probabilities and their gradient, float32 each."""


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


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a run will take.

    Attributes:
        sides: Prompts on each side.
        calls: Calls to the teacher on an empty journal; 0 = it is a recorded one.
        calls_left: Those that the journal has no answer to.
        prompt_tokens: Expected prompt tokens of all texts.
        completion_tokens: Completion tokens of all texts: expected where they are known, else the most there can be.
        lengths: What the tokens were computed from.
        usd_left: Price of the calls that are left, at most; None = no price is known.
        price_date: Day of the price list that it was computed from; "" = the price is the specification's own.
        proxy_steps: Optimiser steps of the proxy's alignment.
        student_runs: Student trainings: arms, seeds and learning rates.
        student_steps: Optimiser steps of all of them.
        memory_bytes: Estimated peak memory.
        disk_bytes: Estimated size of the artifacts.
    """

    sides: dict[Side, int]
    calls: int
    calls_left: int
    prompt_tokens: int
    completion_tokens: int
    lengths: TextLengths
    usd_left: float | None
    price_date: str
    proxy_steps: int
    student_runs: int
    student_steps: int
    memory_bytes: int
    disk_bytes: int


def forecast_run(
    run: RunSpec, *, sides: dict[Side, int], sizes: dict[str, ModelSize], lengths: TextLengths, calls_left: int
) -> Forecast:
    """Forecast a run.

    Args:
        run: The specification, ablations applied.
        sides: Prompts on each side.
        sizes: The models by role.
        lengths: Of the texts.
        calls_left: Calls that the journal has no answer to.
    """
    texts = sum(sides.values()) * num_samples(run)
    student_runs = 2 * (len(run.student.seeds) + max(len(run.student.learning_rates) - 1, 0))
    return Forecast(
        sides=sides,
        calls=0 if isinstance(run.teacher, RecordedTeacherSpec) else texts,
        calls_left=calls_left,
        prompt_tokens=round(texts * lengths.prompt),
        completion_tokens=round(texts * lengths.completion),
        lengths=lengths,
        usd_left=price_of_calls(run, calls_left, lengths),
        price_date=price_list_date() if isinstance(run.teacher, ApiTeacherSpec) and not run.teacher.price else "",
        proxy_steps=_proxy_steps(run, sides),
        student_runs=student_runs,
        student_steps=run.student.steps * student_runs,
        memory_bytes=_memory(run, sizes, lengths),
        disk_bytes=_disk(run, sizes, texts * lengths.completion),
    )


def num_samples(run: RunSpec) -> int:
    """Completions a prompt."""
    return 1 if isinstance(run.teacher, RecordedTeacherSpec) else run.teacher.sampling.num_samples


def price_of_calls(run: RunSpec, calls: int, lengths: TextLengths) -> float | None:
    """USD that so many calls cost at most; 0 where nobody asks for money, None = no price is known."""
    if not isinstance(run.teacher, ApiTeacherSpec):
        return 0.0
    if (price := run.teacher.known_price) is None:
        return None
    a_call = lengths.prompt * price.input_usd_per_million + lengths.completion * price.output_usd_per_million
    share = 1.0 - price.batch_discount if run.teacher.is_batched else 1.0
    return calls * a_call * share / 1e6


def _proxy_steps(run: RunSpec, sides: dict[Side, int]) -> int:
    """Passes are laid end to end and cut into rounds of equal size; the last batch of a round may be smaller."""

    def steps(side_names: frozenset[Side], epochs: float, rounds: int, batch_size: int) -> int:
        wanted = math.ceil(sum(sides[side] for side in side_names) * num_samples(run) * epochs)
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
    stages = [_training(run.student.model, sizes["student"], run.student.optimizer, lengths)]
    if warmup is not None:
        stages.append(_training(run.proxy.model, sizes["proxy"], warmup.optimizer, lengths))
    if preference is not None:
        # Chosen and rejected go through the model together.
        stages.append(_training(run.proxy.model, sizes["proxy"], preference.optimizer, lengths, texts_a_row=2))
    return _LIBRARIES_BYTES + max(stages)


def _training(
    model: ModelSpec, size: ModelSize, optimizer: OptimizerSpec, lengths: TextLengths, *, texts_a_row: int = 1
) -> int:
    """Weights, gradients and optimiser state; activations of a batch; its scores where completions are."""
    rows = optimizer.batch_size * texts_a_row
    width = 2 if model.precision == "bfloat16" else 4
    activations = width * rows * min(lengths.longest, model.max_seq_tokens) * size.activation_floats
    scored = min(lengths.completion, model.max_seq_tokens - min(lengths.prompt, model.max_seq_tokens))
    return round(size.training_bytes + activations + _LOGITS_COPIES * 4 * rows * scored * size.vocab_size)


def _disk(run: RunSpec, sizes: dict[str, ModelSize], completion_tokens: float) -> int:
    """Proxy; both arms and the untrained student for every seed; the copy that is registered; targets; texts thrice."""
    students = 3 * len(run.student.seeds) + 1
    entry = 8 if sizes["proxy"].vocab_size > 2**16 else 6
    targets = completion_tokens * (run.targets.top_k * entry + 4)
    texts = 3 * 4 * completion_tokens
    return round(sizes["proxy"].saved_bytes + students * sizes["student"].saved_bytes + targets + texts)
