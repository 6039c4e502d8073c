"""One model folder -> its sums for each prompt: what every statistic and every table is made of."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from proxykd.config import RunSpec
from proxykd.data.accepted import hash_files
from proxykd.evaluation.calibration import Reliability, bin_outcomes
from proxykd.evaluation.drift import run_drift
from proxykd.evaluation.exact_kl import kl_by_prompt
from proxykd.evaluation.generation import Respondent, build_sampler, journal_of
from proxykd.evaluation.heldout import HeldoutScores, score_heldout
from proxykd.evaluation.heldout_sets import HeldoutSet, HeldoutSets
from proxykd.evaluation.task_answers import TaskAnswer
from proxykd.evaluation.tasks import run_task
from proxykd.models.loading import load_to_ask

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENS = "tokens"
"""Name of the calibration of the model's next tokens in the teacher's held-out text."""

PREDICTIONS = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("prompt_id", pa.string()),
        ("nll_sum", pa.float64()),
        ("num_tokens", pa.int64()),
        ("num_top1", pa.int64()),
        ("kl_sum", pa.float64()),
        (
            "answers",
            pa.list_(
                pa.struct(
                    [
                        ("task", pa.string()),
                        ("text", pa.string()),
                        ("answer", pa.string()),
                        ("is_correct", pa.bool_()),
                        ("confidence", pa.float64()),
                    ]
                )
            ),
        ),
    ]
)
"""One row an arm, seed and held-out prompt; ``kl_sum`` is null, ``answers`` empty where they were not measured."""

ANSWERS = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("task", pa.string()),
        ("prompt_id", pa.string()),
        ("sample_idx", pa.int64()),
        ("question", pa.string()),
        ("reference", pa.string()),
        ("text", pa.string()),
        ("answer", pa.string()),
        ("is_correct", pa.bool_()),
        ("confidence", pa.float64()),
        ("slices", pa.list_(pa.string())),
        (
            "sums",
            pa.list_(pa.struct([("metric", pa.string()), ("numerator", pa.float64()), ("denominator", pa.float64())])),
        ),
    ]
)
"""One row an answer, of every task; ``sums`` is what it adds to the metrics."""


@dataclass(slots=True)
class AskedTasks:
    """What the answers of a model add up to; the answers themselves are passed on.

    Attributes:
        sums: Metric -> prompt id -> (numerator, denominator).
        slices: Slice -> ids of its prompts.
        heldout: Held-out prompt id -> rows of its judged answers, for ``PREDICTIONS``.
        judged: Task -> (prompt id, confidence, whether right) of the answers that have both.
    """

    sums: dict[str, dict[str, tuple[float, ...]]] = field(default_factory=dict)
    slices: dict[str, set[str]] = field(default_factory=dict)
    heldout: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    judged: dict[str, list[tuple[str, float, bool]]] = field(default_factory=dict)

    def add(self, answer: TaskAnswer, *, is_heldout: bool) -> None:
        """Count an answer.

        Args:
            answer: Of any task.
            is_heldout: Whether its question is a held-out prompt.
        """
        for metric, (above, below) in answer.sums.items():
            of_metric = self.sums.setdefault(metric, {})
            before = of_metric.get(answer.prompt_id, (0.0, 0.0))
            of_metric[answer.prompt_id] = (before[0] + above, before[1] + below)
        for name in answer.slices:
            self.slices.setdefault(name, set()).add(answer.prompt_id)
        if answer.is_correct is None:
            return
        if answer.confidence is not None:
            one = (answer.prompt_id, answer.confidence, answer.is_correct)
            self.judged.setdefault(answer.task, []).append(one)
        if is_heldout:
            names = ("task", "text", "answer", "is_correct", "confidence")
            self.heldout.setdefault(answer.prompt_id, []).append({name: getattr(answer, name) for name in names})

    def reliability(self, *, bins: int) -> dict[str, Reliability]:
        """Task -> outcomes by confidence."""
        found = {}
        for task, outcomes in self.judged.items():
            places: dict[str, int] = {}
            prompts = [places.setdefault(prompt_id, len(places)) for prompt_id, _, _ in outcomes]
            confidences, right = ([one[part] for one in outcomes] for part in (1, 2))
            sums = bin_outcomes(confidences, right, prompts, num_prompts=len(places), bins=bins)
            found[task] = Reliability(tuple(places), sums)
        return found


@dataclass(frozen=True, slots=True)
class ModelScores:
    """What one model makes of the held-out prompts and of the tasks.

    Attributes:
        prompt_ids: The held-out prompts; every vector below has one entry for each.
        heldout: NLL, tokens, top-1 agreement and reliability.
        kl_sum: KL(teacher || model), nats, NaN where it was not computed; None if it was computed nowhere.
        tasks: What the tasks' answers add up to.
        reliability: Task, or ``TOKENS``, -> outcomes by confidence.
        texts: What ``HeldoutSet.describe`` says of the texts that were scored.
    """

    prompt_ids: tuple[str, ...]
    heldout: HeldoutScores
    kl_sum: NDArray[np.float64] | None
    tasks: AskedTasks = field(default_factory=AskedTasks)
    reliability: Mapping[str, Reliability] = field(default_factory=dict)
    texts: Mapping[str, Any] = field(default_factory=dict)

    def sums(self) -> dict[str, dict[str, tuple[float, ...]]]:
        """Metric -> prompt id -> sums, as ``comparing.Sums`` has them; prompts that were not measured are absent."""
        nll, tokens, top1, _ = self.heldout
        found: dict[str, dict[str, tuple[float, ...]]] = {
            "heldout_nll": dict(zip(self.prompt_ids, zip(nll, tokens, strict=True), strict=True)),
            "top1_agreement": dict(zip(self.prompt_ids, zip(top1, tokens, strict=True), strict=True)),
        }
        if self.kl_sum is not None:
            triples = zip(self.prompt_ids, self.kl_sum, tokens, strict=True)
            found["exact_kl"] = {name: (kl, count) for name, kl, count in triples if not np.isnan(kl)}
        calibrations = {f"ece/{source}": self._gaps(source) for source in self.reliability}
        return {**found, **self.tasks.sums, **calibrations}

    def _gaps(self, source: str) -> dict[str, tuple[float, ...]]:
        """Prompt id -> (confidences minus outcomes, number) of each bin; zeros for questions without a confidence."""
        one = self.reliability[source]
        asked = self.tasks.sums.get(f"accuracy/{source}", {})
        gaps = np.stack([one.sums[..., 1] - one.sums[..., 2], one.sums[..., 0]], axis=-1).reshape(len(one.sums), -1)
        nothing = (0.0,) * gaps.shape[1]
        return {
            **dict.fromkeys(asked, nothing),
            **{name: tuple(row) for name, row in zip(one.prompt_ids, gaps.tolist(), strict=True)},
        }

    def rows(self, arm: str, seed: int) -> Iterator[dict[str, Any]]:
        """Rows of ``PREDICTIONS``."""
        for position, prompt_id in enumerate(self.prompt_ids):
            kl = None if self.kl_sum is None or np.isnan(self.kl_sum[position]) else float(self.kl_sum[position])
            yield {
                "arm": arm,
                "seed": seed,
                "prompt_id": prompt_id,
                "nll_sum": float(self.heldout.nll_sum[position]),
                "num_tokens": int(self.heldout.num_tokens[position]),
                "num_top1": int(self.heldout.num_top1[position]),
                "kl_sum": kl,
                "answers": self.tasks.heldout.get(prompt_id, []),
            }


def score_model(
    folder: Path,
    sets: HeldoutSets,
    run: RunSpec,
    *,
    journals: Path | None = None,
    keep: Callable[[TaskAnswer], None] = lambda answer: None,
) -> ModelScores:
    """Score the model in ``folder``.

    Args:
        folder: As ``save_model`` wrote it.
        sets: The held-out prompts.
        run: Tasks, and the student's precision: every arm is scored with the same.
        journals: Folder in which answers are journaled, so that a killed evaluation goes on where it was; None = they
            are not.
        keep: Told every answer, once, in order.

    Raises:
        ModelError: if the folder holds no model, or a package that a task needs is not installed.
        GateError: if no held-out prompt has a usable text.
        InputError: if a task's data cannot be had or used.
    """
    model, tokenizer = load_to_ask(folder)
    heldout, spec = sets.for_tokenizer(tokenizer), run.evaluation
    settings: dict[str, Any] = {"pad_id": tokenizer.pad_token_id, "precision": run.student.model.precision}
    scores = score_heldout(model, heldout.corpus, heldout.index, bins=spec.calibration_bins, **settings)
    reliability = {TOKENS: Reliability(heldout.index.prompt_ids, scores.reliability)}
    kl_sum = None
    if heldout.truth is not None:
        kl_sum = kl_by_prompt(model, heldout.truth, len(heldout.index.prompt_ids), **settings)
        kl_sum[spec.exact_kl_prompts :] = np.nan
    tasks = _ask(folder, model, tokenizer, heldout, run, journals, keep) if spec.tasks or spec.drift else AskedTasks()
    reliability |= tasks.reliability(bins=spec.calibration_bins)
    return ModelScores(heldout.index.prompt_ids, scores, kl_sum, tasks, reliability, heldout.describe())


def _ask(
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    heldout: HeldoutSet,
    run: RunSpec,
    journals: Path | None,
    keep: Callable[[TaskAnswer], None],
) -> AskedTasks:
    spec, asked, prompt_ids = run.evaluation, AskedTasks(), frozenset(heldout.index.prompt_ids)
    how: dict[str, Any] = {"precision": run.student.model.precision, "batch_tokens": spec.generation_batch_tokens}
    sampler = build_sampler(spec.engine, folder, model, tokenizer, **how)
    model_hash = "" if journals is None else hash_files([folder])
    own = None if journals is None else journal_of(journals, model_hash=model_hash, **_identity(run))
    with nullcontext() if own is None else own:
        respondent = Respondent(model, tokenizer, sampler=sampler, journal=own, **how)
        for task in spec.tasks:
            is_heldout = getattr(task, "file", True) is None
            for answer in run_task(task, respondent, heldout.task_prompts):
                asked.add(answer, is_heldout=is_heldout and answer.prompt_id in prompt_ids)
                keep(answer)
        if spec.drift is not None:
            for answer in run_drift(spec.drift, respondent, heldout.drift_prompts):
                asked.add(answer, is_heldout=True)
                keep(answer)
    return asked


def _identity(run: RunSpec) -> dict[str, str]:
    return {"precision": run.student.model.precision, "engine": run.evaluation.engine}


__all__ = ["ANSWERS", "PREDICTIONS", "TOKENS", "AskedTasks", "HeldoutSet", "HeldoutSets", "ModelScores", "score_model"]
