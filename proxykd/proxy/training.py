"""TRL's trainers, given token ids as they are and told to keep to the house's rules.

``SFTTrainer`` minimises the NLL of the teacher's text (Eq. 3) as a mean over the batch's completion tokens;
``DPOTrainer`` minimises nll_coef * that + preference_coef * the mean over pairs of Eq. 4 (Eq. 6). Neither tokenises,
adds an end token, cuts, drops, reports, pushes or saves anything here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from proxykd.artifacts import batched
from proxykd.config.models import OptimizerSpec, PreferenceSpec
from proxykd.data.tokenizing import Example
from proxykd.launching.stepped import note_step
from proxykd.models.heads import plain_model
from proxykd.models.loading import default_device
from proxykd.progress import Progress, stage
from proxykd.proxy.rounds import PairSet
from proxykd.proxy.sharing import OwnShares, pair_scales, shared_loader
from proxykd.world import current_world

_IGNORED = -100
_IDS = pa.list_(pa.int32())
_LABELLED = pa.schema([("input_ids", _IDS), ("labels", _IDS)])
_PAIRS = pa.schema(
    [
        ("prompt_ids", _IDS),
        ("chosen_ids", _IDS),
        ("rejected_ids", _IDS),
        ("ref_chosen_logps", pa.float32()),
        ("ref_rejected_logps", pa.float32()),
    ]
)
_BATCH_ROWS = 256


def train_nll(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    optimizer: OptimizerSpec,
    *,
    precision: str,
    seed: int,
    scratch: Path,
    description: str,
) -> dict[str, Any]:
    """Supervised fine-tuning on the teacher's text, one pass over ``examples`` in their order; changes ``model``.

    Args:
        model: The proxy.
        tokenizer: Its tokenizer: padding.
        examples: The teacher's texts; only completion tokens count.
        optimizer: Learning rate, batch size and schedule.
        precision: As in ``ModelSpec.precision``.
        seed: Of dropout.
        scratch: Folder for the token ids that the trainer reads.
        description: What the progress line says, unique in ``scratch``.

    Returns:
        ``training_loss`` (mean over the steps, nats a token), ``steps``, ``num_examples`` and ``curve`` (``step`` and
        ``loss``, the mean over the steps since the last point).
    """
    arguments = _arguments(optimizer, len(examples), precision=precision, seed=seed, scratch=scratch)
    config = SFTConfig(**arguments, dataset_kwargs={"skip_prepare_dataset": True})
    rows = chain(map(_labelled, examples), map(_unlabelled, _stand_ins(examples)))
    dataset = _store(rows, _LABELLED, scratch / f"{description}.arrow")
    trainer = _TextTrainer(plain_model(model), config, train_dataset=dataset, processing_class=tokenizer)
    trainer.shares = OwnShares(len(examples), optimizer.batch_size)
    return _train(trainer, len(examples), optimizer, description)


def train_preference(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: PairSet,
    preference: PreferenceSpec,
    *,
    precision: str,
    seed: int,
    scratch: Path,
    description: str,
) -> dict[str, Any]:
    """One round of NLL + DPO over ``pairs`` in their order; changes ``model``.

    Args:
        model: The proxy; dropout is off, as in the scores of the reference.
        tokenizer: Its tokenizer: padding.
        pairs: Teacher's texts, own samples, and the scores of both under the reference.
        preference: Coefficients, beta and optimizer.
        precision: As in ``ModelSpec.precision``.
        seed: Nothing is drawn here; recorded by the trainer.
        scratch: Folder for the token ids that the trainer reads.
        description: What the progress line says, unique in ``scratch``.

    Returns:
        ``training_loss`` (mean over the steps of the combined loss), ``steps``, ``num_examples`` and ``curve``.
    """
    config = DPOConfig(
        **_arguments(preference.optimizer, len(pairs), precision=precision, seed=seed, scratch=scratch),
        beta=preference.beta,
        loss_type=["sigmoid", "sft"],
        loss_weights=[preference.preference_coef, preference.nll_coef],
        precompute_ref_log_probs=True,
    )
    rows = chain(pairs.rows(), islice(pairs.rows(), len(_stand_ins(pairs.chosen))))
    dataset = _store(rows, _PAIRS, scratch / f"{description}.arrow")
    # Without its peft wrapper: TRL would copy the adapters for a reference whose scores it has already.
    with _unhashed(plain_model(model)) as plain:
        trainer = _PairTrainer(plain, args=config, train_dataset=dataset, processing_class=tokenizer)
    trainer.shares = OwnShares(len(pairs), preference.optimizer.batch_size)
    return _train(trainer, len(pairs), preference.optimizer, description)


class _TextTrainer(SFTTrainer):  # type: ignore[misc]
    """``SFTTrainer``, whose processes share each batch; it divides by the batch's tokens, whoever has them.

    Attributes:
        shares: This process's part of each batch.
    """

    shares: OwnShares

    def get_train_dataloader(self) -> DataLoader[Any]:
        if current_world().size == 1:
            whole: DataLoader[Any] = super().get_train_dataloader()
            return whole
        return shared_loader(self.train_dataset, self.shares, self.data_collator)


class _PairTrainer(DPOTrainer):  # type: ignore[misc]
    """``DPOTrainer`` on pairs that are token ids already and know their scores under the reference.

    The stock trainer tokenises prompt + completion as one text and adds an end token to completions that were cut;
    its own scoring of the reference would also take as long as one more pass in the batch size of the training.

    Attributes:
        shares: This process's part of each batch.
    """

    shares: OwnShares

    def get_train_dataloader(self) -> DataLoader[Any]:
        if current_world().size == 1:
            whole: DataLoader[Any] = super().get_train_dataloader()
            return whole
        return shared_loader(self.train_dataset, self.shares, self.data_collator)

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        if current_world().size == 1:
            return super()._compute_loss(model, inputs, return_outputs)
        preference, nll = pair_scales(inputs, self.shares, self.state.global_step)
        self.loss_weights = [self.args.loss_weights[0] * preference, self.args.loss_weights[1] * nll]
        with _no_metrics_exchanged(self.accelerator):
            return super()._compute_loss(model, inputs, return_outputs)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


class _ReportSteps(TrainerCallback):  # type: ignore[misc]
    """Hands the trainer's steps and its latest loss to the house's progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_step_end(self, *_: Any, **__: Any) -> None:
        note_step()
        self._progress.advance()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self._progress.advance(0, loss=float(logs["loss"]))


def _labelled(example: Example) -> dict[str, list[int]]:
    prompt, completion = example.prompt_ids.tolist(), example.completion_ids.tolist()
    return {"input_ids": prompt + completion, "labels": [_IGNORED] * len(prompt) + completion}


def _unlabelled(example: Example) -> dict[str, list[int]]:
    ids = example.prompt_ids.tolist() + example.completion_ids.tolist()
    return {"input_ids": ids, "labels": [_IGNORED] * len(ids)}


def _stand_ins(examples: Sequence[Example]) -> Sequence[Example]:
    """What a process works on that has no part of a batch: an example that is not counted."""
    return examples[:1] if current_world().size > 1 else []


def _store(rows: Iterable[Mapping[str, Any]], schema: pa.Schema, path: Path) -> Dataset:
    """Rows as the memory-mapped dataset that the trainers ask for."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batched(rows, _BATCH_ROWS):
            writer.write_batch(pa.RecordBatch.from_pylist(list(batch), schema=schema))
    return Dataset.from_file(str(path))


def _arguments(
    optimizer: OptimizerSpec, num_examples: int, *, precision: str, seed: int, scratch: Path
) -> dict[str, Any]:
    on_cpu = default_device().type == "cpu"
    constant = "constant_with_warmup" if optimizer.warmup_ratio > 0 else "constant"
    return {
        "output_dir": str(scratch),
        "per_device_train_batch_size": -(-optimizer.batch_size // current_world().size),
        "num_train_epochs": 1.0,
        "learning_rate": optimizer.learning_rate,
        "weight_decay": optimizer.weight_decay,
        "warmup_steps": math.ceil(optimizer.warmup_ratio * _num_steps(num_examples, optimizer)),
        "lr_scheduler_type": constant if optimizer.schedule == "constant" else optimizer.schedule,
        "max_grad_norm": optimizer.max_grad_norm,
        "train_sampling_strategy": "sequential",
        "max_length": None,
        "bf16": precision == "bfloat16",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "activation_checkpointing": False,
        "remove_unused_columns": False,
        "seed": seed,
        "logging_steps": min(10, max(1, _num_steps(num_examples, optimizer) // 40)),
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "ddp_find_unused_parameters": False,
        "push_to_hub": False,
    }


def _num_steps(num_examples: int, optimizer: OptimizerSpec) -> int:
    return -(-num_examples // optimizer.batch_size)


def _train(
    trainer: SFTTrainer | DPOTrainer, num_examples: int, optimizer: OptimizerSpec, description: str
) -> dict[str, Any]:
    steps = _num_steps(num_examples, optimizer)
    trainer.remove_callback(PrinterCallback)
    with stage(description, total=steps, unit="step") as progress:
        trainer.add_callback(_ReportSteps(progress))
        outcome = trainer.train()
    _restore(trainer.model)
    curve = [{"step": one["step"], "loss": float(one["loss"])} for one in trainer.state.log_history if "loss" in one]
    return {
        "training_loss": float(outcome.training_loss),
        "steps": outcome.global_step,
        "num_examples": num_examples,
        "curve": curve,
    }


@contextmanager
def _unhashed(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Keep TRL from hashing every weight, which names a file of the reference's scores that is not written here."""
    model.state_dict = dict
    try:
        yield model
    finally:
        del model.state_dict


@contextmanager
def _no_metrics_exchanged(accelerator: Any) -> Iterator[None]:
    """Leave TRL's own metrics, which nobody reads here, to each process: it would gather as many pairs from each."""
    accelerator.gather = accelerator.gather_for_metrics = lambda values: values
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _restore(model: PreTrainedModel) -> None:
    """Undo what a trainer leaves behind: patched forward methods (fused head, autocast).

    A model that still says it is prepared would be trained without autocast by the next trainer, that is in float32.
    """
    for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
        vars(model).pop(name, None)
