"""Everything that can be known before the first call is paid: checks, and a forecast of calls, tokens, USD, steps, GB.

A plan reads the prompts and the tokenizers, never the weights, and asks the teacher nothing.
"""

import hashlib
import math
import os
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.artifacts import PromptSet
from proxykd.config import RunSpec
from proxykd.config.base import read_secret
from proxykd.config.teacher import JsonlPromptsSpec, OpenAITeacherSpec, RecordedTeacherSpec
from proxykd.data.chat import render_prompt
from proxykd.data.prompts import iter_recorded
from proxykd.data.splits import side_of, sides_for
from proxykd.exceptions import ConfigError, InputError, StorageError
from proxykd.models.sizes import ModelSize, model_size
from proxykd.models.tokenizers import check_same_tokenizer, load_tokenizer
from proxykd.records import Side
from proxykd.teacher.query import collect_prompts

if TYPE_CHECKING:
    from rich.table import Table

SAMPLED_PROMPTS = 200
"""Prompts that are tokenised for the forecast."""
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Plan:
    """The forecast of a run that passed every check.

    Attributes:
        name: Name of the run.
        inputs_hash: 64 hex digits over the input files; with the specification it decides what is in the cache.
        sides: Prompts on each side.
        calls: Calls to the teacher if none is in the journal.
        prompt_tokens: Expected prompt tokens, counted with the proxy's tokenizer.
        completion_tokens: Completion tokens: expected where the texts are known, else the most there can be.
        completion_tokens_are_bound: Whether ``completion_tokens`` is an upper bound.
        usd: Price of the calls at those tokens; None = no price is stated.
        proxy_steps: Optimiser steps of the proxy's alignment.
        student_steps: Optimiser steps of all student runs: arms, seeds and learning rates.
        memory_bytes: Estimated peak memory.
        disk_bytes: Estimated size of the artifacts.
    """

    name: str
    inputs_hash: str
    sides: dict[Side, int]
    calls: int
    prompt_tokens: int
    completion_tokens: int
    completion_tokens_are_bound: bool
    usd: float | None
    proxy_steps: int
    student_steps: int
    memory_bytes: int
    disk_bytes: int


def make_plan(run: RunSpec, *, workspace: Path) -> Plan:
    """Check a run and forecast what it takes.

    Args:
        run: The specification, ablations applied.
        workspace: Folder of the run's state; need not exist.

    Raises:
        ProxykdError: for the first check that fails; nothing has been spent.
    """
    if isinstance(run.teacher, OpenAITeacherSpec) and run.teacher.api_key is not None:
        read_secret(run.teacher.api_key)
    with tempfile.TemporaryDirectory(prefix="proxykd-plan-") as folder:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=Path(folder) / "prompts")
        sides = _count_sides(run, prompts)
        sizes = {role: model_size(spec) for role, spec in run.models().items()}
        check_same_tokenizer(run.proxy.model, run.student.model)
        prompt_length, completion_length = _mean_lengths(run, prompts)
        inputs_hash = _hash_inputs(run, prompts)
    plan = _forecast(run, sides, sizes, prompt_length, completion_length, inputs_hash)
    _check_machine(plan, workspace)
    return plan


def plan_table(plan: Plan) -> "Table":
    """The forecast as a table for the terminal."""
    from rich.table import Table

    bound = "at most " if plan.completion_tokens_are_bound else ""
    sides = ", ".join(f"{count:,} {side}" for side, count in plan.sides.items())
    rows = {
        "prompts": f"{sum(plan.sides.values()):,} ({sides})",
        "teacher calls": f"{plan.calls:,} (fewer if the journal has some)",
        "tokens in": f"about {plan.prompt_tokens:,}",
        "tokens out": f"{bound or 'about '}{plan.completion_tokens:,}",
        "USD": "no price stated" if plan.usd is None else f"{bound}{plan.usd:,.2f}",
        "proxy steps": f"{plan.proxy_steps:,}",
        "student steps": f"{plan.student_steps:,} (arms x seeds, and the search over learning rates)",
        "memory": f"about {plan.memory_bytes / GIB:.1f} GiB",
        "disk": f"about {plan.disk_bytes / GIB:.2f} GiB",
    }
    table = Table("forecast", "value", title=f"{plan.name}: every check passed, nothing spent")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _count_sides(run: RunSpec, prompts: PromptSet) -> dict[Side, int]:
    counts = Counter(side_of(prompt.prompt_id, run.split) for prompt in prompts.rows())
    sides = {side: counts[side] for side in Side}
    if sides[Side.HELDOUT] < run.split.min_heldout:
        raise InputError(
            f"expected at least split.min_heldout={run.split.min_heldout} held-out prompts, got "
            f"{sides[Side.HELDOUT]} of {sum(sides.values())}; add prompts, raise split.heldout or lower the minimum"
        )
    if run.student.learning_rates and not sides[Side.DEVELOPMENT]:
        raise InputError("student.learning_rates needs prompts on the development side; raise split.development")
    for stage in _training_stages(run):
        if not sum(sides[side] for side in sides_for(stage, run.split)):
            raise InputError(f"no prompt falls on the side of the stage {stage}; add prompts or raise split.{stage}")
    return sides


def _training_stages(run: RunSpec) -> list[Any]:
    stages = [("warmup", run.proxy.warmup), ("alignment", run.proxy.preference), ("distillation", run.student)]
    return [name for name, section in stages if section is not None]


def _mean_lengths(run: RunSpec, prompts: PromptSet) -> tuple[float, float | None]:
    """Mean prompt tokens, and mean completion tokens where the texts are known."""
    tokenizer = load_tokenizer(run.proxy.model)
    texts = [render_prompt(tokenizer, prompt.messages) for prompt in islice(prompts.rows(), SAMPLED_PROMPTS)]
    prompt_length = _mean_tokens(tokenizer, texts)
    if not isinstance(run.teacher, RecordedTeacherSpec) or not isinstance(run.prompts, JsonlPromptsSpec):
        return prompt_length, None
    recorded = iter_recorded(run.prompts, run.teacher.completion_field)
    sampled = [text for position, (_, text) in enumerate(recorded) if position < SAMPLED_PROMPTS]
    return prompt_length, _mean_tokens(tokenizer, sampled)


def _mean_tokens(tokenizer: Any, texts: list[str]) -> float:
    return sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]) / max(len(texts), 1)


def _hash_inputs(run: RunSpec, prompts: PromptSet) -> str:
    if not isinstance(run.prompts, JsonlPromptsSpec):
        return prompts.hash
    with run.prompts.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forecast(
    run: RunSpec,
    sides: dict[Side, int],
    sizes: dict[str, ModelSize],
    prompt_length: float,
    completion_length: float | None,
    inputs_hash: str,
) -> Plan:
    recorded = isinstance(run.teacher, RecordedTeacherSpec)
    sampling = None if isinstance(run.teacher, RecordedTeacherSpec) else run.teacher.sampling
    texts = sum(sides.values()) * (sampling.num_samples if sampling else 1)
    length = completion_length if completion_length is not None else float(sampling.max_tokens if sampling else 0)
    prompt_tokens, completion_tokens = round(texts * prompt_length), round(texts * length)
    return Plan(
        name=run.name,
        inputs_hash=inputs_hash,
        sides=sides,
        calls=0 if recorded else texts,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        completion_tokens_are_bound=not recorded,
        usd=_price(run, prompt_tokens, completion_tokens),
        proxy_steps=_proxy_steps(run, sides),
        student_steps=run.student.steps * 2 * (len(run.student.seeds) + max(len(run.student.learning_rates) - 1, 0)),
        memory_bytes=_memory(run, sizes, prompt_length + length),
        disk_bytes=_disk(run, sizes, completion_tokens),
    )


def _price(run: RunSpec, prompt_tokens: int, completion_tokens: int) -> float | None:
    if not isinstance(run.teacher, OpenAITeacherSpec):
        return 0.0
    if (price := run.teacher.price) is None:
        return None
    paid = prompt_tokens * price.input_usd_per_million + completion_tokens * price.output_usd_per_million
    return paid / 1e6


def _proxy_steps(run: RunSpec, sides: dict[Side, int]) -> int:
    def steps(stage: Any, epochs: float, batch_size: int) -> int:
        return math.ceil(sum(sides[side] for side in sides_for(stage, run.split)) * epochs / batch_size)

    warmup, preference = run.proxy.warmup, run.proxy.preference
    return (steps("warmup", warmup.epochs, warmup.optimizer.batch_size) if warmup else 0) + (
        steps("alignment", preference.epochs, preference.optimizer.batch_size) if preference else 0
    )


def _memory(run: RunSpec, sizes: dict[str, ModelSize], sequence_tokens: float) -> int:
    """Interpreter and libraries, the larger model in training, its reference, and a batch of logits three times."""
    larger = max(sizes.values(), key=lambda size: size.training_bytes)
    batch = run.student.optimizer.batch_size
    longest = min(sequence_tokens, run.student.model.max_seq_tokens)
    logits = int(3 * 4 * batch * longest * sizes["student"].vocab_size)
    return int(1.2 * GIB) + larger.training_bytes + larger.saved_bytes + logits


def _disk(run: RunSpec, sizes: dict[str, ModelSize], completion_tokens: int) -> int:
    students = 2 * len(run.student.seeds) + 1  # both arms, and the copy that MLflow registers
    targets = completion_tokens * (run.targets.top_k * 6 + 4)
    return sizes["proxy"].saved_bytes + students * sizes["student"].saved_bytes + targets


def _check_machine(plan: Plan, workspace: Path) -> None:
    parent = next(folder for folder in (workspace, *workspace.parents) if folder.exists())
    if not os.access(parent, os.W_OK):
        raise StorageError(f"expected to write the run's state below {workspace}, may not; set PROXYKD_HOME elsewhere")
    free = shutil.disk_usage(parent).free
    if free < plan.disk_bytes:
        raise StorageError(
            f"the run needs about {plan.disk_bytes / GIB:.2f} GiB on the disk of {parent}, {free / GIB:.2f} GiB are "
            "free; free some space or set PROXYKD_HOME to another disk"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < plan.memory_bytes:
        raise ConfigError(
            f"the run needs about {plan.memory_bytes / GIB:.1f} GiB of memory, this machine has {memory / GIB:.1f}; "
            "choose smaller models, LoRA, or a smaller student.optimizer.batch_size"
        )
