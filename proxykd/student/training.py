"""All training runs of one arm: learning-rate search, seeds, record.

The arms ``sft`` (plain fine-tuning on the teacher's texts) and ``proxy_kd`` (NLL + alpha * weighted divergence) go
through the same code with the same number of steps, the same sampler and the same search, so that what differs between
them is the objective and the rows: ``sft`` sees every text that Proxy-KD spends on proxy and student together.
"""

import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from proxykd.artifacts import ProxyModel, SplitSet, StudentModel, Targets, ValidatedSet, seal, write_json
from proxykd.config import RunSpec
from proxykd.config.models import StudentSpec
from proxykd.data.splits import corpus_identity, select_rows, sides_for
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.data.trajectory_rows import TrajectoryRows, open_trajectories
from proxykd.exceptions import ConfigError, GateError, ModelError
from proxykd.launching.choice import choose_launcher
from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import InProcess, Launcher
from proxykd.models.tokenizers import load_tokenizer
from proxykd.progress import report
from proxykd.records import Side, ValidatedRow, hash_json
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import Job, Trained, TrainingRun
from proxykd.student.order import stage_steps

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Arm = Literal["sft", "proxy_kd"]


def distill_student(
    validated: ValidatedSet,
    splits: SplitSet,
    targets: Targets | None,
    run: RunSpec,
    *,
    arm: Arm,
    output: Path,
    scratch: Path,
    checkpoints: Path | None = None,
    proxy: ProxyModel | None = None,
    launcher: Launcher | None = None,
) -> StudentModel:
    """Train a student for every seed: ``seed-<seed>/model/`` each, and ``training.json``.

    Where ``student.learning_rates`` lists several, each is tried with the first seed, and the one with the lowest NLL
    on the development side is used for the others too; the first seed's winner is kept as it is.

    Args:
        validated: Rows with verdicts.
        splits: Side of each prompt.
        targets: The proxy's distributions; None = hard labels only. The arm ``sft`` does not open them.
        run: Its sections ``student`` and ``split`` are read; both arms learn from ``student.trajectories`` too.
        arm: ``sft`` = hard labels on all training sides; ``proxy_kd`` = the distillation side with targets.
        output: Folder of the new artifact.
        scratch: Folder for temporary files.
        checkpoints: Folder that outlives a kill: the same call goes on from what it finds there, and removes it at the
            end; None = a killed call begins anew.
        proxy: The proxy itself, which the arm ``proxy_kd`` asks where ``student.living_teacher`` is set; the targets
            are not opened then. Otherwise targets that another proxy made are refused; None = any proxy's will do.
        launcher: Who does the training runs; None = as ``student.processes`` or the environment says.

    Raises:
        GateError: if there are no rows to train on, or none on which to choose a learning rate, or none of the
            trajectories that are asked for may teach.
        ModelError: if every learning rate diverged.
        InputError: if a folder of ``student.trajectories`` holds none.
        ArtifactError: if the targets belong to another corpus, another proxy, or another tokenizer while
            ``student.cross_tokenizer`` is not set, or lack a text; if a living teacher has another tokenizer; or if
            trajectories were changed after they were written.
        ConfigError: if the objective does not fit the targets, or the living teacher is missing.
    """
    spec = run.student
    launcher = launcher or choose_launcher(spec.processes)
    _check_launcher(spec, launcher, arm)
    living = _living_teacher(spec, proxy) if arm == "proxy_kd" else None
    soft = targets if arm == "proxy_kd" and living is None else None
    alpha = spec.alpha if soft is not None or living is not None else 0.0
    prior_alpha = spec.objective.prior_alpha if soft is not None else 0.0
    tokenizer = load_tokenizer(spec.model)
    sides = sides_for("sft" if arm == "sft" else "distillation", run.split)
    rows = partial(select_rows, validated, splits, sides)
    found = open_trajectories(spec.trajectories)
    trajectories = TrajectoryRows(found, validated, splits, sides)
    corpus = _tokenize(trajectories.after(rows()), tokenizer, spec, scratch / f"{arm}.arrow")
    _check_rows(corpus, arm, spec, trajectories)
    folder = None if soft is None else soft.path
    expected = {"corpus": corpus_identity(validated, splits), **({} if proxy is None else {"proxy": proxy.hash})}
    data = TrainingData.open(corpus, folder, tokenizer, spec, rows=rows, scratch=scratch, expected=expected)
    if living is not None and spec.living_teacher is not None:
        from proxykd.student.living import LivingProxy

        data = replace(data, living=LivingProxy.open(living, spec.living_teacher, tokenizer))
    made_from = {
        "validated": validated.hash,
        "splits": splits.hash,
        **({} if targets is None or living is not None else {"targets": targets.hash}),
        **({} if living is None else {"proxy": living.hash}),
        **({f"trajectories-{number}": one.hash for number, one in enumerate(found)}),
    }
    own = None if checkpoints is None else checkpoints / hash_json([made_from, _resumable(arm, spec)])
    trainer = _ArmTrainer(spec, alpha, data, tokenizer, folder, output, own, launcher)
    searched = {Side.DEVELOPMENT} if len(spec.learning_rates) > 1 else set()
    development = _tokenize(select_rows(validated, splits, searched), tokenizer, spec, scratch / "development.arrow")
    weights = {"alpha": alpha, "prior_alpha": prior_alpha}
    record = {"arm": arm, **weights, "corpus": _describe(corpus, spec), **trainer.train_all(development)}
    record |= {} if data.alignment is None else {"alignment": data.alignment}
    record |= {"trajectories": _describe_trajectories(corpus, trajectories)} if found else {}
    write_json(output / "training.json", {**record, "settings": spec.model_dump(mode="json")})
    student = StudentModel(output)
    seal(student, {**made_from, "student": hash_json([arm, spec.model_dump(mode="json")])})
    if own is not None:
        shutil.rmtree(own, ignore_errors=True)
    return student


def _check_rows(corpus: TokenizedCorpus, arm: Arm, spec: StudentSpec, trajectories: TrajectoryRows) -> None:
    """There is something to learn from, and something among the trajectories, if any are named."""
    limit = f"student.model.max_seq_tokens={spec.model.max_seq_tokens}"
    if not len(corpus):
        raise GateError(
            f"expected rows for the arm {arm}, found none, {corpus.num_empty} with an empty completion, and "
            f"{corpus.num_skipped - corpus.num_empty} whose prompt leaves no room within {limit}; raise it, change the "
            "split or add prompts"
        )
    if not spec.trajectories:
        return
    found = _describe_trajectories(corpus, trajectories)
    if not (num_examples := found.pop("num_examples")):
        raise GateError(
            f"expected trajectories for the arm {arm} in student.trajectories, found none that may teach "
            f"({_reasons(found)}); correct attempts at prompts of this run's training sides, or leave the folders out"
        )
    report(f"{arm}: learning from {num_examples} trajectories too, others passed over: {_reasons(found)}")


def _reasons(found: Mapping[str, int | float]) -> str:
    """Why trajectories do not teach, each with its number."""
    names = ("other_side", "barred", "unknown", "without_room_or_weight")
    return ", ".join(f"{name} {found[name]}" for name in names)


def _living_teacher(spec: StudentSpec, proxy: ProxyModel | None) -> ProxyModel | None:
    """The proxy, where it is asked in person."""
    if spec.living_teacher is None or spec.alpha == 0.0:
        return None
    if proxy is None:
        raise ConfigError(
            f"expected the proxy, as student.living_teacher={spec.living_teacher.kind} asks it while the student "
            "learns, got none; give distill_student the proxy's artifact, or leave living_teacher out"
        )
    return proxy


_NOT_OF_A_RUN = {"processes", "checkpoint_s", "seeds", "learning_rates"}


def _resumable(arm: Arm, spec: StudentSpec) -> list[Any]:
    """What a checkpoint must agree with; seed and learning rate are in its name."""
    return [arm, spec.model_dump(mode="json", exclude=_NOT_OF_A_RUN)]


def _check_launcher(spec: StudentSpec, launcher: Launcher, arm: Arm) -> None:
    """One accelerator a process, and nothing that only one process can do is asked of several."""
    if arm == "proxy_kd" and not isinstance(launcher, InProcess):
        spec.check_one_process()
    if isinstance(launcher, Torchrun) and torch.accelerator.is_available():
        found_devices = torch.accelerator.device_count()
        if found_devices < launcher.processes:
            raise ConfigError(
                f"expected an accelerator for each of {launcher.processes} processes, found {found_devices}; lower "
                "student.processes, or processes_per_node in the placement"
            )


@dataclass(frozen=True, slots=True)
class _ArmTrainer:
    """What all runs of an arm share."""

    spec: StudentSpec
    alpha: float
    data: TrainingData
    tokenizer: "PreTrainedTokenizerBase"
    targets: Path | None
    output: Path
    checkpoints: Path | None
    launcher: Launcher

    def train_all(self, development: TokenizedCorpus) -> dict[str, Any]:
        """Search, then train the remaining seeds; returns what goes into the record."""
        first, *others = self.spec.seeds
        rates = self.spec.learning_rates or (self.spec.optimizer.learning_rate,)
        if len(rates) == 1:
            search: list[dict[str, float | None]] = []
            learning_rate, runs = rates[0], [self._train_and_keep(first, rates[0])]
        else:
            learning_rate, best, search = self._search(first, rates, development)
            runs = [best]
        runs += [self._train_and_keep(seed, learning_rate) for seed in others]
        return {"learning_rate": learning_rate, "seeds": list(self.spec.seeds), "search": search, "runs": runs}

    def _search(
        self, seed: int, rates: tuple[float, ...], development: TokenizedCorpus
    ) -> tuple[float, dict[str, Any], list[dict[str, float | None]]]:
        if not len(development):
            raise GateError(
                f"expected rows on the development side to choose among student.learning_rates={list(rates)}, found "
                "none; raise split.development or list one learning rate"
            )
        best_nll, best_rate, best_run = math.inf, math.nan, {}
        search: list[dict[str, float | None]] = []
        for rate in rates:
            found = self._train(seed, rate, development)
            nll = found.development_nll
            report(f"learning rate {rate:g}: {nll:.4f} nats a token on the development side")
            search.append({"learning_rate": rate, "development_nll": nll if math.isfinite(nll) else None})
            if nll < best_nll:
                best_nll, best_rate, best_run = nll, rate, _describe_run(seed, rate, found.run)
                self._keep(seed)
        self._drop()
        if not best_run:
            raise ModelError(f"every learning rate of {list(rates)} diverged; list smaller student.learning_rates")
        return best_rate, best_run, search

    def _train_and_keep(self, seed: int, learning_rate: float) -> dict[str, Any]:
        found = self._train(seed, learning_rate)
        # The loss is that before the step, so that it does not tell what the last step did.
        if not (math.isfinite(found.run.curve[-1]["loss"]) and found.is_finite):
            self._drop()
            raise ModelError(
                f"expected finite weights after {self.spec.steps} steps, but training diverged at learning rate "
                f"{learning_rate:g} in step {len(found.run.curve)}; lower student.optimizer.learning_rate, or list "
                "smaller student.learning_rates"
            )
        self._keep(seed)
        return _describe_run(seed, learning_rate, found.run)

    def _train(self, seed: int, learning_rate: float, development: TokenizedCorpus | None = None) -> Trained:
        """Leaves the student in ``_candidate``."""
        path = None if self.checkpoints is None else self.checkpoints / f"seed-{seed}-lr-{learning_rate!r}.safetensors"
        job = Job(
            student=self.spec.model_dump(mode="json"),
            alpha=self.alpha,
            learning_rate=learning_rate,
            seed=seed,
            corpus=str(self.data.corpus.path),
            targets=None if self.targets is None else str(self.targets),
            checkpoint=None if path is None else str(path),
            development=None if development is None else str(development.path),
        )
        self._drop()
        return self.launcher.launch(job.as_work(self._candidate, partial(self._train_here, job)))

    def _train_here(self, job: Job) -> Trained:
        # A step whose training is done elsewhere has no room for what trains.
        from proxykd.student.one_run import train_student

        return train_student(job, self.spec, self.data, self.tokenizer, self._candidate)

    @property
    def _candidate(self) -> Path:
        return self.output / "candidate"

    def _drop(self) -> None:
        shutil.rmtree(self._candidate, ignore_errors=True)

    def _keep(self, seed: int) -> None:
        folder = self.output / f"seed-{seed}" / "model"
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(exist_ok=True)
        self._candidate.rename(folder)


def _tokenize(
    rows: Iterable[ValidatedRow], tokenizer: "PreTrainedTokenizerBase", spec: StudentSpec, path: Path
) -> TokenizedCorpus:
    return TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=spec.model.max_seq_tokens, path=path)


def _describe(corpus: TokenizedCorpus, spec: StudentSpec) -> dict[str, Any]:
    return {
        "num_examples": len(corpus),
        "prompt_tokens": int(corpus.prompt_lengths.sum()),
        "completion_tokens": int(corpus.completion_lengths.sum()),
        "num_cut": corpus.num_cut,
        "num_skipped": corpus.num_skipped,
        "num_empty": corpus.num_empty,
        **_describe_stages(corpus, spec),
    }


def _describe_trajectories(corpus: TokenizedCorpus, rows: TrajectoryRows) -> dict[str, int | float]:
    """What was learnt of the trajectories, all of it by NLL alone, and why the others were not."""
    counts = rows.counts._asdict()
    taught, places = counts.pop("taught"), corpus.is_weighted
    return {
        "num_examples": int(places.sum()),
        "completion_tokens": int(corpus.completion_lengths[places].sum()),
        "weight_sum": round(float(corpus.weight_sums[places].sum()), 3),
        "without_room_or_weight": taught - int(places.sum()),
        **counts,
    }


def _describe_stages(corpus: TokenizedCorpus, spec: StudentSpec) -> dict[str, Any]:
    """Examples and steps of each teacher's texts, in order; nothing where there is one teacher."""
    stages, sizes = (values.tolist() for values in np.unique(corpus.stages, return_counts=True))
    if stages == [0]:
        return {}
    steps = stage_steps(sizes, spec.steps)
    names = ("stage", "num_examples", "num_steps")
    return {"stages": [dict(zip(names, one, strict=True)) for one in zip(stages, sizes, steps, strict=True)]}


def _describe_run(seed: int, learning_rate: float, run: TrainingRun) -> dict[str, Any]:
    return {
        "seed": seed,
        "learning_rate": learning_rate,
        "seconds": round(run.seconds, 3),
        "num_tokens": run.num_tokens,
        "tokens_per_s": round(run.num_tokens / run.seconds, 1),
        "curve": run.curve,
    }
