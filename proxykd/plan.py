"""Everything that can be known before the first call is paid: checks, and a forecast of calls, tokens, USD, steps, GB.

A plan reads every line of the input and the small files of the models, never the weights, and asks the teacher nothing.
It imports neither torch nor, in most cases, transformers, so that it answers at once.
"""

import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.artifacts import PromptSet
from proxykd.config import RunSpec
from proxykd.config.prompts import FilePromptsSpec, where_is
from proxykd.config.teacher import ApiTeacherSpec, RecordedTeacherSpec
from proxykd.data.prompts import iter_recorded
from proxykd.data.release import check_files
from proxykd.data.segments import render_trajectory
from proxykd.data.splits import side_of, sides_for, split_keys_of
from proxykd.data.trajectory_rows import count_kept, open_trajectories
from proxykd.evaluation.measurable import check_gate
from proxykd.exceptions import ConfigError, InputError, StorageError
from proxykd.forecast import GIB, Asked, Forecast, JudgeForecast, LivingForecast, TextLengths, forecast_run
from proxykd.models.sizes import model_size
from proxykd.models.source_files import source_identity
from proxykd.models.sources import resolve_source
from proxykd.models.token_counter import CHARACTERS_A_TOKEN, TokenCounter
from proxykd.models.tokenizer_pairs import describe_pair, measure_pair
from proxykd.models.tokenizers import check_same_tokenizer, first_difference
from proxykd.records import Side
from proxykd.teacher.budget import describe_caps
from proxykd.teacher.live import secret_of
from proxykd.teacher.query import Outlook, collect_prompts, inputs_of, look_ahead_all
from proxykd.teacher.stages import shares_of, teachers_of
from proxykd.workspace import Workspace

if TYPE_CHECKING:
    from rich.table import Table

SAMPLED_PROMPTS = 200
"""Texts whose tokens are counted for the forecast."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A run that passed every check.

    Attributes:
        name: Name of the run.
        inputs_hash: 64 hex digits over the prompts; with the specification it decides what is in the cache.
        models: Role -> identity of the model behind its source, which counts in the same way.
        forecast: What it will take.
        outlooks: What each teacher has answered already; none for recorded texts.
        budget: The caps and what is spent of each; "" = there are none.
        tokenizers: How the proxy's targets become the student's.
        num_trajectories: Trajectories that may teach; those at prompts that must not are not counted out.
    """

    name: str
    inputs_hash: str
    models: Mapping[str, str]
    forecast: Forecast
    outlooks: tuple[Outlook, ...] = ()
    budget: str = ""
    tokenizers: str = ""
    num_trajectories: int = 0


def make_plan(run: RunSpec, *, workspace: Workspace, is_elsewhere: bool = False) -> Plan:
    """Check a run and forecast what it takes.

    Args:
        run: The specification, ablations applied.
        workspace: Where the run keeps its state; need not exist.
        is_elsewhere: Whether the steps run on other machines, which have the keys, the memory and the disk.

    Raises:
        ProxykdError: for the first check that fails; nothing has been spent.
    """
    check_gate(run)
    if not is_elsewhere:
        _check_keys(run)
    sizes = {role: model_size(spec) for role, spec in run.models().items()}
    _check_translatable(run)
    if run.student.cross_tokenizer is None:
        is_living = run.student.living_teacher is not None
        check_same_tokenizer(run.proxy.model, run.student.model, is_living=is_living)
    check_files(run.validation)
    num_trajectories = _count_trajectories(run)
    _check_writable(workspace.root)
    with workspace.temporary_folder("plan") as folder:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "prompts")
        lengths = _with_trajectories(measure_lengths(run, prompts), run)
        pair = measure_pair(run.proxy.model, run.student.model, _sample_texts(run, prompts))
        sides, sides_asked = _count_sides(run, prompts)
        outlooks = look_ahead_all(prompts, run, journal_path=workspace.journal, portions=workspace.portions)
        inputs_hash = inputs_of(prompts)
    left = [outlook.num_requests - outlook.num_known for outlook in outlooks] or [0]
    asked = [Asked(*one) for one in zip(teachers_of(run), sides_asked, left, strict=True)]
    forecast = forecast_run(run, sides=sides, sizes=sizes, lengths=lengths, asked=asked)
    if not is_elsewhere:
        _check_machine(forecast, workspace.root)
    models = {role: source_identity(resolve_source(spec.source)) for role, spec in run.models().items()}
    return Plan(
        run.name,
        inputs_hash,
        models,
        forecast,
        outlooks,
        _describe_budgets(run, outlooks),
        describe_pair(pair),
        num_trajectories,
    )


def _check_keys(run: RunSpec) -> None:
    for teacher in teachers_of(run):
        secret_of(teacher)
    if run.evaluation.judge is not None:
        secret_of(run.evaluation.judge.teacher)


def _count_trajectories(run: RunSpec) -> int:
    """How many the corrections kept, of all folders."""
    count = count_kept(open_trajectories(run.student.trajectories))
    if run.student.trajectories and not count:
        raise InputError(
            "expected trajectories that teach in student.trajectories, found none; let `proxykd correct` work on more "
            "attempts, or leave the folders out"
        )
    return count


def _check_translatable(run: RunSpec) -> None:
    """What ``student.target_source`` will translate, known before anything is spent."""
    student, targets = run.student, run.targets
    if student.cross_tokenizer is None or student.alpha == 0.0:
        return
    if targets.reduction.kind == "top_k" and targets.temperature == 1.0:
        return
    if (difference := first_difference(run.proxy.model, student.model)) is not None:
        raise ConfigError(
            f"targets of another tokenizer are translated from targets.reduction.kind=top_k at targets.temperature=1 "
            f"alone; got {targets.reduction.kind} at {targets.temperature:g}, and proxy and student differ in "
            f"{difference}: change them, or choose a proxy and a student of one family"
        )


def _describe_budgets(run: RunSpec, outlooks: Sequence[Outlook]) -> str:
    """The caps of all teachers, each with what is spent of it."""
    parts = []
    for teacher, outlook in zip(teachers_of(run), outlooks, strict=False):
        if isinstance(teacher, ApiTeacherSpec) and (caps := describe_caps(teacher.budget, outlook.spent)):
            parts.append(f"{teacher.model}: {caps}" if run.staging else caps)
    return "; ".join(parts)


def plan_table(plan: Plan) -> "Table":
    """The forecast as a table for the terminal."""
    from rich.table import Table

    found, live = plan.forecast, plan.forecast.calls > 0
    known, bound = found.calls - found.calls_left, "at most" if live else "about"
    sides = ", ".join(f"{count:,} {side}" for side, count in found.sides.items())
    how = "" if found.lengths.are_exact else f" (estimated: {CHARACTERS_A_TOKEN} characters a token)"
    calls = f"{found.calls_left:,}" + (f" ({known:,} more are in the journal)" if known else "")
    rows = {
        "prompts": f"{sum(found.sides.values()):,} ({sides})",
        "teacher calls": calls if live else "none: the texts are recorded",
        **_stage_rows(found),
        "prompt tokens": f"about {found.prompt_tokens:,}{how}",
        "completion tokens": f"{bound} {found.completion_tokens:,}{'' if live else how}",
        "USD": _price_text(found),
        **({"hard caps": plan.budget} if plan.budget else {}),
        **({"tokenizers": plan.tokenizers} if plan.tokenizers and found.has_targets else {}),
        **({"trajectories": f"{plan.num_trajectories:,} beside the answers"} if plan.num_trajectories else {}),
        "proxy steps": f"{found.proxy_steps:,}",
        **({} if found.has_targets else {"targets": "none are estimated: the student learns from none"}),
        "student steps": f"{found.student_steps:,} ({found.student_runs} runs: both arms, seeds, learning rates)",
        **_living_rows(found.living),
        **({} if found.judge is None else {"judge": _judge_text(found.judge)}),
        "memory": f"{bound} {found.memory_bytes / GIB:.1f} GiB",
        "disk": f"about {found.disk_bytes / GIB:.2f} GiB",
    }
    table = Table("forecast", "value", title=f"{plan.name}: every check passed, nothing spent", title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _living_rows(living: LivingForecast | None) -> dict[str, str]:
    """What a living teacher adds; nothing where there is none."""
    if living is None:
        return {}
    written = f"at most {living.own_tokens:,} tokens, in {living.own_passes:,} passes one after another"
    return {
        **({"students' own texts": written} if living.own_tokens else {}),
        "living teacher": f"about {living.arithmetic:.1f} times the SFT arm's arithmetic in its arm, more in time",
    }


def _judge_text(judge: JudgeForecast) -> str:
    price = "price unknown" if judge.usd is None else f"at most {judge.usd:,.2f} USD"
    return f"{judge.model}: at most {judge.calls:,} calls, {price}"


def _stage_rows(forecast: Forecast) -> dict[str, str]:
    """What each teacher of a staged run takes; nothing for a run with one teacher."""
    if len(forecast.teachers) == 1:
        return {}
    return {
        f"- from {one.model}": f"{one.calls_left:,} of {one.calls:,} calls on {one.num_prompts:,} prompts, about "
        f"{one.prompt_tokens:,} tokens in, at most {one.completion_tokens:,} out, "
        + ("price unknown" if one.usd_left is None else f"at most {one.usd_left:,.2f} USD")
        for one in forecast.teachers
    }


def _price_text(forecast: Forecast) -> str:
    if forecast.usd_left is None:
        unknown = [one.model for one in forecast.teachers if one.usd_left is None]
        if len(forecast.teachers) > 1:
            return f"unknown: the package lists no price of {', '.join(unknown)}, and its price is not set"
        return "unknown: the package lists no price of the model, and teacher.price is not set"
    source = f" (list price of {forecast.price_date})" if forecast.price_date else ""
    return f"at most {forecast.usd_left:,.2f}{source}" if forecast.usd_left else "0.00"


def _count_sides(run: RunSpec, prompts: PromptSet) -> tuple[dict[Side, int], list[dict[Side, int]]]:
    """Prompts on each side, of all and of those that each teacher is asked."""
    counts: Counter[Side] = Counter()
    shares = shares_of(run)
    asked: list[Counter[Side]] = [Counter() for _ in shares]
    num_references = 0
    for batch in prompts.batches(columns=["prompt_id", "group", "reference"]):
        keys = split_keys_of(batch)
        sides = [side_of(key, run.split) for key in keys]
        counts.update(sides)
        for counter, share in zip(asked, shares, strict=True):
            counter.update(sides if share is None else (sides[row] for row in share.rows(batch)))
        references = batch["reference"].is_valid().to_pylist()
        num_references += sum(has and side is Side.HELDOUT for has, side in zip(references, sides, strict=True))
    _check_sides(run, asked[-1])
    _check_stages(run, asked)
    if run.evaluation.asks_heldout_references and not num_references:
        raise InputError(
            "expected held-out prompts with a reference answer, because one of evaluation.tasks asks them, found "
            "none; name their key in prompts.reference_field, or give the task a file of its own"
        )
    return _ordered(counts), [_ordered(counter) for counter in asked]


def _ordered(counts: Mapping[Side, int]) -> dict[Side, int]:
    return {side: counts[side] for side in Side}


def _check_stages(run: RunSpec, asked: Sequence[Mapping[Side, int]]) -> None:
    """Every teacher of a staged run has something for the student to learn."""
    for place, sides in enumerate(asked[:-1]):
        if not sum(sides[side] for side in sides_for("distillation", run.split)):
            raise InputError(
                f"expected prompts on the distillation side for staging.earlier[{place}], found none; raise its "
                "fraction or add prompts"
            )


def _check_sides(run: RunSpec, sides: Mapping[Side, int]) -> None:
    if sides[Side.HELDOUT] < run.split.min_heldout:
        raise InputError(
            f"expected at least split.min_heldout={run.split.min_heldout} held-out prompts, got "
            f"{sides[Side.HELDOUT]} of {sum(sides.values())}; add prompts, raise split.heldout or lower the minimum"
        )
    if len(run.student.learning_rates) > 1 and not sides[Side.DEVELOPMENT]:
        raise InputError(
            f"expected prompts on the development side to choose among student.learning_rates, found none of "
            f"{sum(sides.values())}; raise split.development or list one learning rate"
        )
    if run.targets.estimator.mixes and not sides[Side.DEVELOPMENT]:
        raise InputError(
            f"expected prompts on the development side to fit targets.estimator.kappa to, found none of "
            f"{sum(sides.values())}; raise split.development or give kappa a number"
        )
    stages: list[tuple[Any, object]] = [
        ("warmup", run.proxy.warmup),
        ("alignment", run.proxy.preference),
        ("distillation", run.student),
    ]
    for stage, section in stages:
        if section is not None and not sum(sides[side] for side in sides_for(stage, run.split)):
            raise InputError(
                f"expected prompts on the {stage} side, found none of {sum(sides.values())}; add prompts or raise "
                f"split.{stage}{' or staging.fraction' if run.staging else ''}"
            )


def measure_lengths(run: RunSpec, prompts: PromptSet) -> TextLengths:
    """Lengths of a sample of the texts, counted where the proxy's tokenizer can be read quickly.

    Args:
        run: The proxy and the teacher are read.
        prompts: The questions.

    Raises:
        InputError: if a recorded teacher has no texts.
    """
    counter = TokenCounter.of(run.proxy.model)
    sampled = [counter.count_prompt(prompt.messages) for prompt in islice(prompts.rows(), SAMPLED_PROMPTS)]
    if isinstance(run.teacher, RecordedTeacherSpec):
        assert isinstance(run.prompts, FilePromptsSpec)  # the specification allows no other
        completions = _measure_recorded(run.prompts, run.teacher.completion_field, counter)
    else:
        completions = [run.teacher.sampling.max_tokens] * len(sampled)
    longest = max(map(sum, zip(sampled, completions, strict=True))) + _more_than_the_main_one(run)
    return TextLengths(
        sum(sampled) / len(sampled), sum(completions) / len(completions), longest, counter.backend is not None
    )


def _with_trajectories(lengths: TextLengths, run: RunSpec) -> TextLengths:
    """The lengths with the longest text of a sample of the trajectories among them."""
    found = open_trajectories(run.student.trajectories)
    sampled = list(islice((one for folder in found for one in folder.rows() if one.is_kept), SAMPLED_PROMPTS))
    if not sampled:
        return lengths
    counter = TokenCounter.of(run.proxy.model)
    longest = max(counter.count_prompt(one.messages) + counter.count(render_trajectory(one)) for one in sampled)
    return replace(lengths, longest=max(lengths.longest, longest))


def _sample_texts(run: RunSpec, prompts: PromptSet) -> list[str]:
    """Some of the recorded texts; where nothing is recorded, some of the questions."""
    if isinstance(run.teacher, RecordedTeacherSpec):
        assert isinstance(run.prompts, FilePromptsSpec)  # the specification allows no other
        texts = (text for _, text in iter_recorded(run.prompts, run.teacher.completion_field) if text.strip())
    else:
        texts = (prompt.messages[-1].content for prompt in prompts.rows())
    return list(islice(texts, SAMPLED_PROMPTS))


def _more_than_the_main_one(run: RunSpec) -> int:
    """Tokens by which an earlier teacher's texts may be longer than the main one's."""
    if run.staging is None or isinstance(run.teacher, RecordedTeacherSpec):
        return 0
    longest = max(one.teacher.sampling.max_tokens for one in run.staging.earlier)
    return max(longest - run.teacher.sampling.max_tokens, 0)


def _measure_recorded(spec: FilePromptsSpec, completion_field: str, counter: TokenCounter) -> list[int]:
    """Tokens of a sample of the completions; every line is read, so that a malformed one is found."""
    lengths, num_texts = [], 0
    for position, (_, text) in enumerate(iter_recorded(spec, completion_field)):
        num_texts += bool(text.strip())
        if position < SAMPLED_PROMPTS:
            lengths.append(counter.count(text))
    if not num_texts:
        raise InputError(
            f"expected texts under {completion_field!r} in {where_is(spec)}, found every one empty; name the right "
            "key in teacher.completion_field"
        )
    return lengths


def _check_writable(folder: Path) -> None:
    parent = _existing_parent(folder)
    if not parent.is_dir():
        raise StorageError(f"expected to write the run's state in {folder}, but {parent} is a file; set PROXYKD_HOME")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"expected to write the run's state in {folder}, may not; set PROXYKD_HOME elsewhere")


def _existing_parent(folder: Path) -> Path:
    return next(candidate for candidate in (folder, *folder.parents) if candidate.exists())


def _check_machine(forecast: Forecast, workspace: Path) -> None:
    parent = _existing_parent(workspace)
    free = shutil.disk_usage(parent).free
    if free < forecast.disk_bytes:
        raise StorageError(
            f"the run needs about {forecast.disk_bytes / GIB:.2f} GiB on the disk of {parent}, {free / GIB:.2f} GiB "
            "are free; free some space or set PROXYKD_HOME to another disk"
        )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if memory < forecast.memory_bytes:
        raise ConfigError(
            f"the run needs about {forecast.memory_bytes / GIB:.1f} GiB of memory, this machine has "
            f"{memory / GIB:.1f}; choose smaller models, LoRA, or a smaller batch_size or max_seq_tokens"
        )
