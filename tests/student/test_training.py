"""Training runs of the tiny student: the same seed gives the same bits, the arms differ by their objective alone."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from proxykd.artifacts import ProxyModel, SplitSet, StudentModel, Targets, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits, corpus_identity, select_rows, sides_for
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError, ConfigError, GateError, ModelError
from proxykd.models.forward import collate
from proxykd.models.loading import load_saved, load_tokenizer, load_trainable
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.student import loop, module
from proxykd.student.inputs import TrainingData
from proxykd.student.loop import train, train_step
from proxykd.student.module import StudentModule
from proxykd.student.training import distill_student
from proxykd.targets.codec import Positions
from proxykd.targets.reader import TargetReader
from proxykd.targets.summary import PRIOR_FOLDER
from proxykd.targets.writer import TargetWriter

pytestmark = pytest.mark.integration

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]
TOP_K = 4


@pytest.fixture(scope="module")
def data(training_data: TrainingData) -> TrainingData:
    """The training side with targets."""
    return training_data


def write_targets(
    texts: TokenizedCorpus, tokenizer: Any, folder: Path, *, seed: int, has_tail: bool = True, **more: Any
) -> None:
    """A store of random targets for the texts; ``more`` goes into its description."""
    writer = TargetWriter(folder, scratch=folder, top_k=TOP_K, vocab_size=len(tokenizer))
    rng = np.random.default_rng(seed)
    for example in texts:
        length = len(example.completion_ids)
        probs = rng.dirichlet(np.ones(TOP_K + 1), size=length).astype(np.float32)
        ids = np.stack([rng.choice(len(tokenizer), TOP_K, replace=False) for _ in range(length)]).astype(np.int32)
        if has_tail:
            positions = Positions(ids, np.log(probs[:, :TOP_K]), np.log(probs[:, TOP_K]))
        else:
            kept = probs[:, :TOP_K] / probs[:, :TOP_K].sum(axis=1, keepdims=True)
            positions = Positions(ids, np.log(kept), np.full(length, -np.inf, np.float32))
        writer.add(example.prompt_id, example.sample_idx, positions, sequence_logprob=-1.0)
    facts = {"tokenizer": tokenizer_fingerprint(tokenizer), "max_seq_tokens": 160, **more}
    writer.finish(lambda logprobs, lengths: np.full(len(lengths), 0.5), lambda: facts)


@pytest.fixture(scope="module")
def targets(data: TrainingData) -> Targets:
    """The same targets as an artifact."""
    return Targets(data.corpus.path.parent / "targets")


def train_tiny(data: TrainingData, run: RunSpec, *, alpha: float, seed: int = 0) -> tuple[dict[str, torch.Tensor], Any]:
    model = load_trainable(run.student.model, seed=0)
    result = train(model, data, run.student, alpha=alpha, learning_rate=1e-3, seed=seed)
    return {name: value.clone() for name, value in model.state_dict().items()}, result


def distance(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_order(
    data: TrainingData, make_run: MakeRun
) -> None:
    first, result = train_tiny(data, make_run(), alpha=1.0)
    again, repeated = train_tiny(data, make_run(), alpha=1.0)
    other, _ = train_tiny(data, make_run(), alpha=1.0, seed=1)
    assert distance(first, again) == 0.0
    assert result.curve == repeated.curve
    assert distance(first, other) > 0.0


def test_alpha_zero_equals_fine_tuning_on_the_same_rows_exactly(data: TrainingData, make_run: MakeRun) -> None:
    distilled, _ = train_tiny(data, make_run(), alpha=0.0)
    tuned, _ = train_tiny(replace(data, targets=None), make_run(), alpha=1.0)
    soft, _ = train_tiny(data, make_run(), alpha=1.0)
    assert distance(distilled, tuned) == 0.0
    assert distance(distilled, soft) > 0.0


def test_training_leaves_the_global_generator_alone(data: TrainingData, make_run: MakeRun) -> None:
    before = torch.random.get_rng_state()
    train_tiny(data, make_run(), alpha=1.0)
    assert torch.equal(before, torch.random.get_rng_state())


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def step_gradients(data: TrainingData, run: RunSpec, batch: list[int], *, alpha: float) -> dict[str, torch.Tensor]:
    """What one step hands to the optimiser: the learning rate is 0, and nothing is clipped."""
    model = load_trainable(run.student.model, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    module = StudentModule(model, run.student, alpha=alpha)
    train_step(module, optimizer, data, batch, run.student, learning_rate=0.0)
    return gradients(model)


@pytest.fixture
def unclipped(make_run: MakeRun) -> RunSpec:
    return make_run(student={"optimizer": {"batch_size": 4, "max_grad_norm": 1e9}})


def test_micro_batches_take_the_same_step_as_the_whole_batch(
    data: TrainingData, unclipped: RunSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = np.argsort(data.corpus.completion_lengths)[[0, 1, -2, -1]].tolist()  # of different lengths
    whole = step_gradients(data, unclipped, batch, alpha=1.0)
    monkeypatch.setattr(module, "_MICRO_BATCH_TOKENS", 1)  # every example on its own
    parts = step_gradients(data, unclipped, batch, alpha=1.0)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)


def test_without_targets_the_step_is_that_of_the_models_own_loss(data: TrainingData, unclipped: RunSpec) -> None:
    batch = [0, 1, 2, 3]
    model, plain = (
        load_trainable(unclipped.student.model, seed=0),
        collate([data.corpus[i] for i in batch], pad_id=data.pad_id),
    )
    labels = plain.input_ids.masked_fill(~plain.loss_mask, -100)
    model(input_ids=plain.input_ids, attention_mask=plain.attention_mask, labels=labels).loss.backward()
    ours = step_gradients(replace(data, targets=None), unclipped, batch, alpha=1.0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)


def test_padded_rows_contribute_nothing(data: TrainingData, make_run: MakeRun) -> None:
    # The padding token may be any: it is never attended, never scored.
    usual, _ = train_tiny(data, make_run(), alpha=1.0)
    other, _ = train_tiny(replace(data, pad_id=7), make_run(), alpha=1.0)
    assert distance(usual, other) < 1e-6


def test_a_tiny_student_learns_its_texts_by_heart(data: TrainingData, make_run: MakeRun) -> None:
    run = make_run(student={"steps": 100, "optimizer": {"batch_size": 8, "schedule": "constant"}})
    model = load_trainable(run.student.model, seed=0)
    result = train(model, replace(data, targets=None), run.student, alpha=0.0, learning_rate=2e-3, seed=0)
    assert result.curve[-1]["nll"] < 0.35 * result.curve[0]["nll"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_adapters_learn_while_the_weights_under_them_stay(
    corpus: Corpus, targets: Targets, make_run: MakeRun, tmp_path: Path, precision: str
) -> None:
    model = make_run().student.model.model_dump() | {"lora": {"rank": 2}, "precision": precision}
    run = make_run(student={"model": model})
    student = distill(corpus, targets, run, tmp_path, arm="proxy_kd")
    saved, _ = load_saved(student.path / "seed-0" / "model")
    start = load_trainable(make_run().student.model, seed=0)
    assert torch.equal(saved.get_input_embeddings().weight, start.get_input_embeddings().weight)
    changed = [name for name, value in saved.state_dict().items() if not torch.equal(value, start.state_dict()[name])]
    assert changed
    assert all("proj" in name for name in changed)


def distill(corpus: Corpus, targets: Targets | None, run: RunSpec, folder: Path, *, arm: Any) -> StudentModel:
    return distill_student(*corpus, targets, run, arm=arm, output=folder / arm, scratch=folder / "scratch")


def test_both_arms_leave_a_model_a_seed_and_a_record(
    corpus: Corpus, targets: Targets, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"seeds": [3, 5]})
    for arm, used in (("sft", None), ("proxy_kd", targets)):
        student = distill(corpus, used, run, tmp_path, arm=arm)
        student.verify()
        record = read_json(student.path / "training.json")
        assert (record["arm"], record["seeds"], record["search"]) == (arm, [3, 5], [])
        assert [len(result["curve"]) for result in record["runs"]] == [3, 3]
        assert record["alpha"] == (0.0 if arm == "sft" else 1.0)
        assert ("kl" in record["runs"][0]["curve"][0]) == (arm == "proxy_kd")
        models = [load_file(student.path / f"seed-{seed}" / "model" / "model.safetensors") for seed in (3, 5)]
        assert distance(*models) > 0.0
    assert "targets" in student.manifest["made_from"]


def test_the_search_takes_the_rate_with_the_lowest_development_nll_and_keeps_its_model(
    corpus: Corpus, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"learning_rates": [1e-6, 3e-3, 1e-5], "seeds": [0, 1], "steps": 6})
    student = distill(corpus, None, run, tmp_path, arm="sft")
    record = read_json(student.path / "training.json")
    tried = {entry["learning_rate"]: entry["development_nll"] for entry in record["search"]}
    assert list(tried) == [1e-6, 3e-3, 1e-5]
    assert record["learning_rate"] == min(tried, key=lambda rate: tried[rate]) == 3e-3
    assert [result["learning_rate"] for result in record["runs"]] == [3e-3, 3e-3]
    alone = distill(
        corpus,
        None,
        make_run(student={"optimizer": {"learning_rate": 3e-3, "batch_size": 4}, "steps": 6}),
        tmp_path / "alone",
        arm="sft",
    )
    models = [load_file(path / "seed-0" / "model" / "model.safetensors") for path in (student.path, alone.path)]
    assert distance(*models) == 0.0


def test_a_search_without_a_development_side_closes_the_gate(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(student={"learning_rates": [1e-4, 1e-3]})
    validated = ValidatedSet(tmp_path / "validated")
    training = select_rows(*corpus, sides_for("sft", run.split))
    validated.write(training)
    seal(validated)
    splits = build_splits(validated, run.split, output=tmp_path / "splits")
    with pytest.raises(GateError, match="development side"):
        distill((validated, splits), None, run, tmp_path, arm="sft")


def test_a_diverged_run_ends_at_once_and_leaves_no_student(
    corpus: Corpus, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether the loss says so, or nobody but the weights that the last step left."""
    steps, taken = loop.train_step, []
    monkeypatch.setattr(loop, "train_step", lambda *args, **more: taken.append(1) or steps(*args, **more))
    optimizer = {"batch_size": 4, "learning_rate": 1e38, "warmup_ratio": 0.0, "schedule": "constant"}
    for num_steps, num_taken, told in ((50, 2, "in step 2"), (1, 1, "in step 1")):
        taken.clear()
        run = make_run(student={"optimizer": optimizer, "steps": num_steps})
        with pytest.raises(ModelError, match=rf"diverged at learning rate 1e\+38 {told}; lower student"):
            distill(corpus, None, run, tmp_path / str(num_steps), arm="sft")
        assert len(taken) == num_taken
        assert not list(tmp_path.rglob("*.safetensors"))


def test_no_rows_close_the_gate(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    empty = ValidatedSet(tmp_path / "validated")
    empty.write([])
    seal(empty)
    with pytest.raises(GateError, match="arm sft"):
        distill((empty, corpus[1]), None, make_run(), tmp_path, arm="sft")


@pytest.mark.parametrize(
    ("fact", "message"),
    [
        ({"tokenizer": "other"}, "another tokenizer"),
        ({"max_seq_tokens": 32}, "max_seq_tokens=160"),
        ({"corpus": "other"}, "corpus"),
    ],
)
def test_targets_of_another_tokenizer_or_of_shorter_texts_are_refused(
    corpus: Corpus, data: TrainingData, make_run: MakeRun, tmp_path: Path, fact: dict[str, Any], message: str
) -> None:
    told = data.targets.description  # type: ignore[union-attr]
    facts = {name: told[name] for name in ("tokenizer", "corpus", "max_seq_tokens")} | fact
    writer = TargetWriter(tmp_path / "targets", scratch=tmp_path, top_k=TOP_K, vocab_size=50)
    writer.finish(lambda logprobs, lengths: np.ones(len(lengths)), lambda: facts)
    with pytest.raises(ArtifactError, match=message):
        distill(corpus, Targets(tmp_path / "targets"), make_run(), tmp_path, arm="proxy_kd")


def rewritten(data: TrainingData, folder: Path, num_samples: int, **facts: Any) -> Targets:
    """The first samples of the shared targets as a store of their own; facts of None are left out."""
    assert data.targets is not None
    names = ("tokenizer", "corpus", "max_seq_tokens")
    told = {name: data.targets.description[name] for name in names} | facts
    writer = TargetWriter(folder, scratch=folder, top_k=TOP_K, vocab_size=data.targets.description["vocab_size"])
    for example in data.corpus[:num_samples]:
        target = data.targets.get(example.prompt_id, example.sample_idx)
        positions = Positions(target.token_ids, target.logprobs, target.tail_logprob)
        writer.add(example.prompt_id, example.sample_idx, positions, sequence_logprob=0.0)
    kept = {name: value for name, value in told.items() if value is not None}
    writer.finish(lambda logprobs, lengths: np.ones(len(lengths)), lambda: kept)
    seal(Targets(folder))
    return Targets(folder)


def test_targets_of_another_proxy_are_refused(
    corpus: Corpus, data: TrainingData, make_run: MakeRun, proxy_artifact: ProxyModel, tmp_path: Path
) -> None:
    folders = {"output": tmp_path / "out", "scratch": tmp_path / "scratch"}
    other = rewritten(data, tmp_path / "other", len(data.corpus), proxy="another")
    with pytest.raises(ArtifactError, match=r"proxy='[0-9a-f]{64}'.*found 'another'"):
        distill_student(*corpus, other, make_run(), arm="proxy_kd", proxy=proxy_artifact, **folders)
    own = rewritten(data, tmp_path / "own", len(data.corpus), proxy=proxy_artifact.hash)
    distill_student(*corpus, own, make_run(), arm="proxy_kd", proxy=proxy_artifact, **folders)


def test_texts_without_targets_are_counted_before_the_first_step(
    corpus: Corpus, data: TrainingData, make_run: MakeRun, tmp_path: Path
) -> None:
    few = rewritten(data, tmp_path / "few", len(data.corpus) - 3)
    missing = data.corpus[len(data.corpus) - 3].prompt_id
    run = make_run(student={"steps": 1, "optimizer": {"batch_size": 1}})  # one step would not meet them
    with pytest.raises(ArtifactError, match=rf"none for 3 of them \(prompt {missing}, .*estimate the targets again"):
        distill(corpus, few, run, tmp_path, arm="proxy_kd")


@pytest.mark.parametrize("name", ["tokenizer", "max_seq_tokens"])
def test_a_store_that_does_not_say_what_a_student_must_agree_with_is_refused(
    corpus: Corpus, data: TrainingData, make_run: MakeRun, tmp_path: Path, name: str
) -> None:
    silent = rewritten(data, tmp_path / "silent", 2, **{name: None})
    with pytest.raises(ArtifactError, match=f"to tell their {name}"):
        distill(corpus, silent, make_run(), tmp_path, arm="proxy_kd")


def test_the_gate_tells_empty_completions_from_prompts_without_room(
    corpus: Corpus, make_run: MakeRun, tmp_path: Path
) -> None:
    empty = ValidatedSet(tmp_path / "validated")
    rows = list(corpus[0].rows())
    empty.write(replace(row, text="") for row in rows)
    seal(empty)
    num_rows = sum(1 for _ in select_rows(empty, corpus[1], sides_for("sft", make_run().split)))
    with pytest.raises(GateError, match=f"{num_rows} with an empty completion, and 0 whose prompt leaves no room"):
        distill((empty, corpus[1]), None, make_run(), tmp_path, arm="sft")


def test_a_target_shorter_than_its_text_is_refused(data: TrainingData, tmp_path: Path) -> None:
    example = data.corpus[0]
    writer = TargetWriter(tmp_path / "targets", scratch=tmp_path, top_k=1, vocab_size=50)
    one = Positions(np.zeros((1, 1), np.int32), np.zeros((1, 1), np.float32), np.full(1, -np.inf, np.float32))
    writer.add(example.prompt_id, example.sample_idx, one, sequence_logprob=0.0)
    writer.finish(lambda logprobs, lengths: np.ones(len(lengths)), dict)
    short = replace(data, targets=TargetReader(tmp_path / "targets"))
    with pytest.raises(ArtifactError, match="render and cut"):
        short.targets_of([0], torch.device("cpu"))


def staged(corpus: Corpus, folder: Path, *, tell: Callable[[str, int], str]) -> Corpus:
    """The corpus with every other prompt's text written by a second teacher, as ``tell`` has it."""
    validated = ValidatedSet(folder / "validated")
    stages = cycle((0, 1))
    validated.write(
        replace(row, stage=stage, text=tell(row.text, stage))
        for row, stage in zip(corpus[0].rows(), stages, strict=False)
    )
    seal(validated)
    return validated, corpus[1]


def test_the_student_has_not_seen_a_later_teacher_before_its_steps_come(
    corpus: Corpus, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"steps": 6})
    curves, stages = [], []
    for name, later in (("one", "One two three."), ("other", "Something else altogether.")):
        told = staged(corpus, tmp_path / name, tell=lambda text, stage, later=later: later if stage else text)
        student = distill(told, None, run, tmp_path / f"{name}-out", arm="sft")
        record = read_json(student.path / "training.json")
        curves.append(record["runs"][0]["curve"])
        stages.append(record["corpus"]["stages"])
    (first, second) = stages[0]
    assert first["num_steps"] + second["num_steps"] == 6
    assert first["num_examples"] + second["num_examples"] == sum(
        1 for _ in select_rows(*corpus, sides_for("sft", run.split))
    )
    border = first["num_steps"]
    assert curves[0][:border] == curves[1][:border]
    assert all(one["loss"] != other["loss"] for one, other in zip(curves[0][border:], curves[1][border:], strict=True))


def test_a_run_with_one_teacher_says_nothing_of_stages(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    student = distill(corpus, None, make_run(), tmp_path, arm="sft")
    assert "stages" not in read_json(student.path / "training.json")["corpus"]


KINDS = (
    "forward_kl",
    "reverse_kl",
    "generalized_jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "adaptive_kl",
)


KEPT = {"estimator": {"kind": "posterior", "keep_prior": True}}


def step_on(data: TrainingData, run: RunSpec, *, num_steps: int, alpha: float = 100.0) -> list[dict[str, float]]:
    """What is reported of so many steps on one and the same batch."""
    model = load_trainable(run.student.model, seed=0)
    student = StudentModule(model, run.student, alpha=alpha)
    optimizer = torch.optim.AdamW(model.parameters())
    batch = [0, 1, 2, 3]
    return [train_step(student, optimizer, data, batch, run.student, learning_rate=2e-3) for _ in range(num_steps)]


@pytest.mark.parametrize("kind", KINDS)
def test_three_steps_on_a_batch_lower_the_loss_and_the_divergence_of_every_kind(
    data: TrainingData, make_run: MakeRun, kind: str
) -> None:
    run = make_run(student={"objective": {"divergence": {"kind": kind}}})
    before, *_, after = step_on(data, run, num_steps=4)
    name = "kl" if kind == "forward_kl" else "divergence"
    assert set(before) == {"loss", "nll", "kl", name}
    assert after["loss"] < before["loss"]
    assert after[name] < before[name]
    assert before["loss"] == pytest.approx(before["nll"] + 100.0 * 0.5 * before[name], rel=1e-5)


def test_a_divergence_that_is_not_measured_is_not_recorded(
    data: TrainingData, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"objective": {"prior_alpha": 1.0}}, targets=KEPT)
    write_targets(data.corpus, load_tokenizer(run.student.model), tmp_path / "prior", seed=1, has_tail=False)
    prior_alone = replace(data, targets=None, prior=TargetReader(tmp_path / "prior"))
    found, *_ = step_on(prior_alone, run, num_steps=1, alpha=0.0)
    assert set(found) == {"loss", "nll", "prior_divergence"}
    assert set(step_on(data, make_run(), num_steps=1, alpha=0.0)[0]) == {"loss", "nll"}


def test_the_prior_is_learnt_from_beside_the_posterior(data: TrainingData, make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(student={"objective": {"prior_alpha": 4.0}}, targets=KEPT)
    write_targets(data.corpus, load_tokenizer(run.student.model), tmp_path / "prior", seed=1, has_tail=False)
    both = replace(data, prior=TargetReader(tmp_path / "prior"))
    before, *_, after = step_on(both, run, num_steps=4, alpha=1.0)
    assert set(before) == {"loss", "nll", "kl", "prior_divergence"}
    assert after["prior_divergence"] < before["prior_divergence"]
    expected = before["nll"] + 0.5 * before["kl"] + 4.0 * 0.5 * before["prior_divergence"]
    assert before["loss"] == pytest.approx(expected, rel=1e-5)


def test_micro_batches_take_the_same_step_with_a_prior_and_another_divergence(
    data: TrainingData, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = {"divergence": {"kind": "generalized_jsd"}, "prior_alpha": 1.0}
    student = {"objective": objective, "optimizer": {"batch_size": 4, "max_grad_norm": 1e9}}
    run = make_run(student=student, targets=KEPT)
    write_targets(data.corpus, load_tokenizer(run.student.model), tmp_path / "prior", seed=1, has_tail=False)
    both = replace(data, prior=TargetReader(tmp_path / "prior"))
    whole = step_gradients(both, run, [0, 1, 2, 3], alpha=1.0)
    monkeypatch.setattr(module, "_MICRO_BATCH_TOKENS", 1)
    for name, gradient in step_gradients(both, run, [0, 1, 2, 3], alpha=1.0).items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-3, atol=1e-6)


def test_both_terms_and_their_weights_stand_in_the_record(
    corpus: Corpus, data: TrainingData, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"alpha": 0.0, "objective": {"prior_alpha": 2.0}}, targets=KEPT)
    tokenizer, folder = load_tokenizer(run.student.model), tmp_path / "targets"
    write_targets(data.corpus, tokenizer, folder, seed=0, corpus=corpus_identity(*corpus))
    write_targets(
        data.corpus, tokenizer, folder / PRIOR_FOLDER, seed=1, has_tail=False, corpus=corpus_identity(*corpus)
    )
    seal(Targets(folder))
    for arm, prior_alpha in (("proxy_kd", 2.0), ("sft", 0.0)):
        record = read_json(distill(corpus, Targets(folder), run, tmp_path, arm=arm).path / "training.json")
        assert (record["alpha"], record["prior_alpha"]) == (0.0, prior_alpha)
        assert ("prior_divergence" in record["runs"][0]["curve"][0]) == (arm == "proxy_kd")


def test_a_prior_that_was_not_kept_is_missed_by_the_name_of_its_key(
    corpus: Corpus, targets: Targets, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"objective": {"prior_alpha": 0.5}}, targets=KEPT)
    with pytest.raises(ConfigError, match=r"student\.objective\.prior_alpha=0\.5"):
        distill(corpus, targets, run, tmp_path, arm="proxy_kd")


def test_targets_without_a_tail_are_refused_before_a_reverse_kl_would_be_infinite(
    data: TrainingData, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run(student={"objective": {"divergence": {"kind": "reverse_kl"}}})
    write_targets(
        data.corpus,
        load_tokenizer(run.student.model),
        tmp_path / "targets",
        seed=0,
        has_tail=False,
    )
    with pytest.raises(ConfigError, match="reverse_kl"):
        step_on(replace(data, targets=TargetReader(tmp_path / "targets")), run, num_steps=1)


def test_the_stores_temperature_reaches_the_objective(data: TrainingData, make_run: MakeRun, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(make_run().student.model)
    write_targets(data.corpus, tokenizer, tmp_path / "targets", seed=0, temperature=2.0)
    tempered = replace(data, targets=TargetReader(tmp_path / "targets"))
    batch = tempered.targets_of([0], torch.device("cpu"))
    assert batch is not None
    assert batch.temperature == 2.0
    (plain,), (warm,) = (step_on(one, make_run(), num_steps=1) for one in (data, tempered))
    assert warm["nll"] == pytest.approx(plain["nll"], rel=1e-6)
    assert warm["loss"] == pytest.approx(warm["nll"] + 100.0 * 4.0 * 0.5 * warm["kl"], rel=1e-5)
    assert warm["kl"] != plain["kl"]
