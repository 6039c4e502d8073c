"""The alignment stage: warm-up on the teacher's text, then rounds of NLL + DPO (Proxy-KD, section "proxy alignment").

    proxy <- SFT(proxy, warm-up side)
    for each round k:   reference <- proxy;   rejected <- sample(proxy, prompts of the round)
                        minimise  nll_coef * NLL(teacher's text) + preference_coef * DPO(teacher's text > rejected)

After every stage the proxy is measured on text of the development side, so that settings can be chosen by it without
looking at the held-out prompts; only where that side is empty on text of the held-out side. ``fidelity.json`` has it
all, and says which side it was.
"""

import time
from collections.abc import Collection
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from proxykd.artifacts import SplitSet, ValidatedSet, write_json
from proxykd.config import RunSpec
from proxykd.config.models import OptimizerSpec, PreferenceSpec, WarmupSpec
from proxykd.data.splits import select_rows, sides_for
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.exceptions import GateError, ModelError
from proxykd.models.heads import is_head_adapted
from proxykd.models.loading import (
    default_device,
    is_lowered,
    load_tokenizer,
    load_trainable,
    lower_frozen,
    save_activation_memory,
    save_model,
)
from proxykd.models.sampling import TransformersSampler, sample_examples
from proxykd.models.sharding import gathered, in_turns, is_sharded, machines_mesh, shard_model
from proxykd.proxy.checkpoints import StageCheckpoint
from proxykd.proxy.fidelity import FIDELITY_EXAMPLES, measure_fidelity, measure_preference, sequence_scores
from proxykd.proxy.launch import told_settings
from proxykd.proxy.rounds import PairSet, ReferenceLogprobs, round_indices
from proxykd.records import Side
from proxykd.world import current_world, own_share, put_together


def align_here(
    validated: ValidatedSet, splits: SplitSet, run: RunSpec, *, output: Path, scratch: Path, checkpoint: Path | None
) -> None:
    """This process's part of the alignment; the first process writes ``model/`` and ``fidelity.json``.

    Args:
        validated: The teacher's texts.
        splits: Which stage sees which prompts.
        run: The specification.
        output: Folder of the artifact.
        scratch: Folder for tokenised texts, of this process alone.
        checkpoint: File with the last finished stage; None = there is none.
    """
    spec = run.proxy
    alignment = _Alignment(validated, splits, run, scratch, None if checkpoint is None else StageCheckpoint(checkpoint))
    if spec.warmup is not None:
        alignment.warm_up(spec.warmup)
    if spec.preference is not None:
        alignment.run_rounds(spec.preference)
    if (whole := alignment.finished_model()) is None:
        return
    save_model(whole, alignment.tokenizer, output / "model")
    told = {"side": alignment.side.value, "stages": alignment.stages, "settings": told_settings(run)}
    write_json(output / "fidelity.json", told)


class _Alignment:
    """The proxy on its way.

    Attributes:
        model: The proxy as it is now, adapters included.
        tokenizer: Its tokenizer.
        side: The side on which it is measured.
        stages: What was measured so far, one mapping a stage: ``stage``, the numbers of ``measure_fidelity``,
            ``seconds`` by part, ``training`` and, for a preference round, ``preference``.
    """

    def __init__(
        self, validated: ValidatedSet, splits: SplitSet, run: RunSpec, scratch: Path, checkpoint: StageCheckpoint | None
    ) -> None:
        """Load the proxy, attach its adapters and measure it as it is, or put it where its checkpoint was."""
        self._validated, self._splits, self._run, self._scratch = validated, splits, run, scratch
        self._spec, clock = run.proxy.model, _Clock()
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(self._spec)
        self.model: PreTrainedModel = self._load()
        clock.lap("loading_s")
        self._scoring = {"pad_id": self.tokenizer.pad_token_id, "precision": self._spec.precision}
        self.side, self._measured = self._choose_side()
        self._checkpoint = checkpoint
        self.stages: list[dict[str, Any]] = checkpoint.load(self.model) if checkpoint is not None else []
        self._done = {stage["stage"] for stage in self.stages}
        if not self._done:
            self._measure("unaligned", clock)

    def _load(self) -> PreTrainedModel:
        mesh = machines_mesh() if self._run.proxy.fsdp and current_world().size > 1 else None
        model = in_turns(partial(self._load_part, mesh))
        if self._run.proxy.gradient_checkpointing:
            save_activation_memory(model)
        return model

    def _load_part(self, mesh: DeviceMesh | None) -> PreTrainedModel:
        """The whole model comes into the host's memory; this process's part of it, or all, onto its device."""
        model = load_trainable(self._spec, seed=self._run.seed, device=torch.device("cpu"))
        if is_head_adapted(model):
            raise ModelError(
                "expected adapters on the proxy's layers alone, found them on its head, by whose own weights the "
                "trainers multiply; take it out of proxy.model.lora.target_modules"
            )
        lower_frozen(model, self._spec.precision)
        if mesh is None:
            return model.to(default_device())
        shard_model(model, mesh)
        return model

    def finished_model(self) -> PreTrainedModel | None:
        """The aligned proxy, whole and in float32, adapters included; None in all processes but the first."""
        if not is_sharded(self.model) and not is_lowered(self.model):
            return self.model if current_world().rank == 0 else None
        return gathered(
            self.model, partial(load_trainable, self._spec, seed=self._run.seed, device=torch.device("cpu"))
        )

    def warm_up(self, warmup: WarmupSpec) -> None:
        """Supervised fine-tuning on the warm-up side (Eq. 3)."""
        if "warmup" in self._done:
            return
        corpus = self._training_corpus("warmup")
        (indices,) = round_indices(len(corpus), epochs=warmup.epochs, rounds=1, seed=self._run.seed)
        clock = _Clock()
        training = self._minimise_nll("proxy warm-up", _take(corpus, indices), warmup.optimizer, seed=self._run.seed)
        clock.lap("training_s")
        self._measure("warmup", clock, training=training)

    def run_rounds(self, preference: PreferenceSpec) -> None:
        """All rounds over the alignment side; without a preference term nothing is sampled."""
        corpus = self._training_corpus("alignment")
        parts = round_indices(len(corpus), epochs=preference.epochs, rounds=preference.rounds, seed=self._run.seed)
        for round_idx, indices in enumerate(parts, start=1):
            if len(indices) == 0:
                raise GateError(
                    f"expected a text for each of {preference.rounds} rounds, found {len(corpus)} on the alignment "
                    "side; lower proxy.preference.rounds"
                )
            name = f"round {round_idx} of {preference.rounds}"
            seed = self._run.seed + round_idx
            if name in self._done:
                continue
            if preference.preference_coef == 0.0:
                self._run_nll_round(name, _take(corpus, indices), preference, seed=seed)
            else:
                self._run_preference_round(name, _take(corpus, indices), preference, seed=seed)

    def _run_nll_round(self, name: str, examples: list[Example], preference: PreferenceSpec, *, seed: int) -> None:
        clock = _Clock()
        training = self._minimise_nll(f"proxy {name}", examples, preference.optimizer, seed=seed)
        clock.lap("training_s")
        self._measure(name, clock, training=training)

    def _run_preference_round(
        self, name: str, examples: list[Example], preference: PreferenceSpec, *, seed: int
    ) -> None:
        from proxykd.proxy.training import train_preference

        clock = _Clock()
        pairs = self._build_pairs(name, examples, preference, clock, seed=seed)
        training = train_preference(
            self.model,
            self.tokenizer,
            pairs,
            preference,
            precision=self._spec.precision,
            seed=seed,
            scratch=self._scratch,
            description=f"proxy {name}",
        )
        clock.lap("training_s")
        moved = measure_preference(self.model, pairs, beta=preference.beta, **self._scoring)
        self._measure(name, clock, training=training, preference=moved)

    def _build_pairs(
        self, name: str, chosen: list[Example], preference: PreferenceSpec, clock: "_Clock", *, seed: int
    ) -> PairSet:
        """Sample the present proxy, the reference of this round, and score both sides under it."""
        rejected = self._sample(f"sampling for {name}", chosen, preference, seed=seed)
        clock.lap("sampling_s")
        scores = ReferenceLogprobs(*(sequence_scores(self.model, side, **self._scoring) for side in (chosen, rejected)))
        clock.lap("reference_s")
        return PairSet(chosen, rejected, scores, eos_id=self.tokenizer.eos_token_id)

    def _sample(
        self, description: str, chosen: list[Example], preference: PreferenceSpec, *, seed: int
    ) -> list[Example]:
        """The present proxy's completions; each process draws those of its share, with a seed of its own."""
        world = current_world()
        sampled = sample_examples(
            [chosen[idx] for idx in own_share(len(chosen))],
            TransformersSampler(
                self.model,
                self.tokenizer,
                precision=self._spec.precision,
                max_tokens=preference.sampling_batch_tokens,
                description=description,
            ),
            max_new_tokens=preference.max_new_tokens,
            max_seq_tokens=self._spec.max_seq_tokens,
            temperature=preference.temperature,
            seed=seed if world.size == 1 else seed * 1_000_003 + world.rank,
        )
        if world.size == 1:
            return sampled
        completions = put_together([one.completion_ids.tolist() for one in sampled], len(chosen))
        return [
            example._replace(completion_ids=np.asarray(completion, np.int32), weights=None)
            for example, completion in zip(chosen, completions, strict=True)
        ]

    def _minimise_nll(
        self,
        description: str,
        examples: list[Example],
        optimizer: OptimizerSpec,
        *,
        seed: int,
    ) -> dict[str, float]:
        from proxykd.proxy.training import train_nll

        return train_nll(
            self.model,
            self.tokenizer,
            examples,
            optimizer,
            precision=self._spec.precision,
            seed=seed,
            scratch=self._scratch,
            description=description,
        )

    def _measure(self, name: str, clock: "_Clock", **facts: dict[str, Any]) -> None:
        fidelity = measure_fidelity(self.model, self._measured, side=self.side, **self._scoring)
        clock.lap("measuring_s")
        self.stages.append({"stage": name, **fidelity, "seconds": clock.laps, **facts})
        if self._checkpoint is not None:
            self._checkpoint.save(self.model, self.stages)

    def _choose_side(self) -> tuple[Side, TokenizedCorpus]:
        development = self._tokenize("development", {Side.DEVELOPMENT}, limit=FIDELITY_EXAMPLES)
        if len(development) > 0:
            return Side.DEVELOPMENT, development
        return Side.HELDOUT, self._tokenize("heldout", {Side.HELDOUT}, limit=FIDELITY_EXAMPLES)

    def _training_corpus(self, name: Literal["warmup", "alignment"]) -> TokenizedCorpus:
        corpus = self._tokenize(name, sides_for(name, self._run.split))
        if len(corpus) == 0:
            raise GateError(
                f"expected texts on the {name} side, found none, {corpus.num_empty} with an empty completion, and "
                f"{corpus.num_skipped - corpus.num_empty} whose prompt leaves no room within "
                f"proxy.model.max_seq_tokens={self._spec.max_seq_tokens}; raise it, split.{name} or the number of "
                "prompts, or leave the stage out"
            )
        return corpus

    def _tokenize(self, name: str, sides: Collection[Side], limit: int | None = None) -> TokenizedCorpus:
        # The proxy stands in for the main teacher: nobody else's texts are its business.
        rows = islice(select_rows(self._validated, self._splits, sides, stage=self._run.main_stage), limit)
        path = self._scratch / f"{name}.arrow"
        return TokenizedCorpus.build(rows, self.tokenizer, max_seq_tokens=self._spec.max_seq_tokens, path=path)


def _take(corpus: TokenizedCorpus, indices: NDArray[np.int64]) -> list[Example]:
    return [corpus[idx] for idx in indices.tolist()]


class _Clock:
    """Seconds between laps, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 3), now
