"""The living proxy: its steps are those of the dense objective, its texts are drawn as told, killed runs go on."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet, read_json, seal
from proxykd.config import RunSpec
from proxykd.exceptions import ArtifactError, ConfigError
from proxykd.models.forward import collate, completion_labels, completion_logits
from proxykd.models.loading import load_tokenizer, load_trainable, save_model
from proxykd.student import dense_pass, living, loop
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.dense_pass import ModelPair
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import TrainingRun
from proxykd.student.living import LivingModule, LivingProxy
from proxykd.student.loop import train, train_step
from proxykd.student.objective import TargetBatch, student_objective
from proxykd.student.training import distill_student

pytestmark = pytest.mark.integration

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]
State = dict[str, torch.Tensor]
OFF_POLICY = {"kind": "gkd", "on_policy": 0.0, "divergence": {"kind": "forward_kl"}}
KINDS: list[dict[str, Any]] = [
    {"kind": "gkd", "max_new_tokens": 12},
    {"kind": "minillm", "max_new_tokens": 12},
    {"kind": "okd", "rank": 2},
]


def specify(student_run: MakeRun, teacher: dict[str, Any], **student: Any) -> RunSpec:
    return student_run(**{"living_teacher": teacher, "optimizer": {"batch_size": 4, "max_grad_norm": 1e9}, **student})


def taught(data: TrainingData, proxy: ProxyModel, run: RunSpec) -> TrainingData:
    assert run.student.living_teacher is not None
    tokenizer = load_tokenizer(run.student.model)
    return replace(data, targets=None, living=LivingProxy.open(proxy, run.student.living_teacher, tokenizer))


def step_gradients(data: TrainingData, run: RunSpec, *, alpha: float) -> tuple[State, dict[str, float]]:
    """Gradients of the student (and of the proxy's adapters) after one step at a learning rate of 0."""
    assert data.living is not None
    module = LivingModule(
        load_trainable(run.student.model, seed=0), data.living, run.student, alpha=alpha, seed=0
    ).train()
    optimizer = torch.optim.SGD([one for one in module.parameters() if one.requires_grad], lr=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        means = train_step(module, optimizer, data, [0, 1, 2, 3], run.student, learning_rate=0.0)
    return {name: one.grad.clone() for name, one in module.named_parameters() if one.grad is not None}, means


def dense_gradients(data: TrainingData, run: RunSpec, *, alpha: float) -> tuple[State, Any]:
    """The same by the stored objective, with targets that list the whole vocabulary."""
    assert data.living is not None
    model, proxy = load_trainable(run.student.model, seed=0), data.living.load(precision="float32", seed=0)
    batch = collate([data.corpus[index] for index in range(4)], pad_id=data.pad_id)
    with torch.no_grad():
        logprobs = completion_logits(proxy, batch).log_softmax(dim=-1)
    length, vocab = logprobs.shape
    ids = torch.arange(vocab).expand(length, vocab)
    targets = TargetBatch(ids, logprobs, torch.full((length,), -torch.inf), torch.ones(length))
    totals = student_objective(completion_logits(model, batch), completion_labels(batch), targets, alpha=alpha)
    (totals.loss / length).backward()
    found = {f"student.model.{name}": one.grad for name, one in model.named_parameters() if one.grad is not None}
    return found, totals


def test_off_policy_is_the_objective_of_stored_targets_that_list_the_whole_vocabulary(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    run = specify(student_run, OFF_POLICY)
    data = taught(training_data, proxy_artifact, run)
    ours, means = step_gradients(data, run, alpha=2.0)
    oracle, totals = dense_gradients(data, run, alpha=2.0)
    assert ours.keys() == oracle.keys()
    for name, gradient in oracle.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6)
    num_tokens = float(totals.num_tokens)
    expected = {"loss": totals.loss, "nll": totals.nll, "kl": totals.kl, "divergence": totals.kl}
    for name, value in expected.items():
        assert means[name] == pytest.approx(float(value.detach()) / num_tokens, rel=1e-4)
    assert means["own_tokens"] == 0.0


@pytest.mark.parametrize("teacher", [*KINDS, OFF_POLICY, KINDS[0] | {"on_policy": 1.0}])
def test_chunks_and_micro_batches_take_the_same_step_as_the_whole_batch(
    training_data: TrainingData,
    proxy_artifact: ProxyModel,
    student_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
    teacher: dict[str, Any],
) -> None:
    run = specify(student_run, teacher)
    data = taught(training_data, proxy_artifact, run)
    whole, means = step_gradients(data, run, alpha=1.0)
    monkeypatch.setattr(living, "_MICRO_BATCH_TOKENS", 1)
    monkeypatch.setattr(dense_pass, "_CHUNK_SCORES", 1)
    parts, again = step_gradients(data, run, alpha=1.0)
    assert again == pytest.approx(means, rel=1e-4)
    assert whole.keys() == parts.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=2e-3, atol=1e-6)


def slow_minillm_gradients(data: TrainingData, run: RunSpec, *, discount: float, teacher_mix: float) -> State:
    """The policy gradient text by text and token by token, on the texts that the step wrote."""
    assert data.living is not None
    assert run.student.living_teacher is not None
    model, proxy = load_trainable(run.student.model, seed=0), data.living.load(precision="float32", seed=0)
    examples = [data.corpus[index] for index in range(4)]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        seed = int(torch.randint(2**62, ()))
    own = living.write_own_texts(
        ModelPair(model, proxy, "float32"),
        data.living.tokenizer,
        run.student.living_teacher,  # type: ignore[arg-type]
        examples,
        vocab_size=len(data.living.tokenizer),
        max_seq_tokens=160,
        seed=seed,
    )
    total = torch.zeros(())
    for text in own:
        batch = collate([text], pad_id=data.pad_id)
        logprobs = completion_logits(model, batch).log_softmax(dim=-1)
        with torch.no_grad():
            proxy_logprobs = completion_logits(proxy, batch).log_softmax(dim=-1)
        tokens, length = completion_labels(batch).tolist(), len(text.completion_ids)
        assert len(tokens) == length
        log_q = torch.stack([logprobs[place, token] for place, token in enumerate(tokens)])
        log_p = torch.stack([proxy_logprobs[place, token] for place, token in enumerate(tokens)])
        rewards = (log_p - log_q).tolist()
        for place in range(length):
            later = range(place + 1, length)
            coef = sum(discount ** (other - place) * rewards[other] for other in later) / max(1, len(later))
            q, p = log_q[place].exp().detach(), log_p[place].exp()
            weight = q / ((1 - teacher_mix) * q + teacher_mix * p)
            exact = (logprobs[place].exp() * (logprobs[place] - proxy_logprobs[place])).sum()
            total = total - weight * coef * log_q[place] + exact
    nll = collate(examples, pad_id=data.pad_id)
    labels = completion_labels(nll)
    teacher = completion_logits(model, nll).log_softmax(dim=-1).gather(1, labels[:, None])
    (total / sum(len(text.completion_ids) for text in own) - teacher.mean()).backward()
    return {f"student.model.{name}": one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_a_policy_gradient_step_is_that_of_a_slow_loop_over_its_texts(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    run = specify(student_run, KINDS[1] | {"discount": 0.9, "teacher_mix": 0.3})
    data = taught(training_data, proxy_artifact, run)
    ours, _ = step_gradients(data, run, alpha=1.0)
    oracle = slow_minillm_gradients(data, run, discount=0.9, teacher_mix=0.3)
    assert ours.keys() == oracle.keys()
    for name, value in oracle.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-3, atol=1e-6)


def train_with(
    data: TrainingData, run: RunSpec, *, seed: int = 3, checkpoints: Checkpoints | None = None
) -> tuple[State, TrainingRun]:
    model = load_trainable(run.student.model, seed=0)
    result = train(model, data, run.student, alpha=1.0, learning_rate=1e-3, seed=seed, checkpoints=checkpoints)
    return {name: value.clone() for name, value in model.state_dict().items()}, result


@pytest.mark.parametrize("teacher", KINDS)
def test_saving_activation_memory_changes_no_bit_worth_mentioning(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun, teacher: dict[str, Any]
) -> None:
    run = specify(student_run, teacher, steps=2)
    data = taught(training_data, proxy_artifact, run)
    (whole, result), (saved, again) = (
        train_with(data, one) for one in (run, specify(student_run, teacher, steps=2, gradient_checkpointing=True))
    )
    assert [step["own_tokens"] for step in again.curve if "own_tokens" in step] == [
        step["own_tokens"] for step in result.curve if "own_tokens" in step
    ]
    for name, value in whole.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("teacher", KINDS)
def test_a_student_with_adapters_learns_by_them_alone(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun, teacher: dict[str, Any]
) -> None:
    run = specify(student_run, teacher, steps=2, model={"lora": {"rank": 2, "dropout": 0.1}})
    start = load_trainable(run.student.model, seed=0).state_dict()
    learnt, _ = train_with(taught(training_data, proxy_artifact, run), run)
    changed = {name for name, value in learnt.items() if not torch.equal(value, start[name])}
    assert changed
    assert all("lora_" in name for name in changed)


def test_the_students_own_texts_may_have_a_divergence_of_their_own(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    pair = {"divergence": {"kind": "skew_kl"}, "own_divergence": {"kind": "skew_reverse_kl"}}
    for on_policy, kind in ((0.0, "skew_kl"), (1.0, "skew_reverse_kl")):
        found, expected = (
            step_gradients(taught(training_data, proxy_artifact, run), run, alpha=1.0)
            for run in (
                specify(student_run, {**KINDS[0], "on_policy": on_policy, **one})
                for one in (pair, {"divergence": {"kind": kind}})
            )
        )
        assert found[1] == expected[1]
        assert all(torch.equal(found[0][name], one) for name, one in expected[0].items())


class Killed(Exception):
    """The process was killed."""


@pytest.mark.parametrize("teacher", KINDS)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    training_data: TrainingData,
    proxy_artifact: ProxyModel,
    student_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    teacher: dict[str, Any],
) -> None:
    run = specify(student_run, teacher, steps=4)
    data, path = taught(training_data, proxy_artifact, run), tmp_path / "run.safetensors"
    before = torch.random.get_rng_state()
    whole, result = train_with(data, run)
    assert torch.equal(before, torch.random.get_rng_state())
    real, done = loop.train_step, []

    def step_or_die(*args: Any, **kwargs: Any) -> Any:
        if len(done) == 2:
            raise Killed
        done.append(None)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_or_die)
        with pytest.raises(Killed):
            train_with(data, run, checkpoints=Checkpoints(path, every_s=0.0))
    again, resumed = train_with(data, run, checkpoints=Checkpoints(path, every_s=1e9))
    assert resumed.curve == result.curve
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_the_share_of_steps_with_own_texts_is_the_one_asked_for(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    run = specify(student_run, KINDS[0] | {"max_new_tokens": 1}, steps=40)
    data = taught(training_data, proxy_artifact, run)
    _, result = train_with(data, run)
    own = [step["own_tokens"] for step in result.curve]
    assert set(own) == {0.0, 4.0}, "none, or a token for each of the batch's four prompts"
    assert 8 < own.count(4.0) < 32, "four standard deviations around half of the steps"


def proxy_weights(module: LivingModule, *, trainable: bool) -> State:
    return {
        name: one.detach().clone() for name, one in module.proxy.named_parameters() if one.requires_grad == trainable
    }


def test_okd_moves_the_proxys_adapters_and_never_its_weights(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    run = specify(student_run, {"kind": "okd", "rank": 2, "learning_rate": 1e-2}, steps=6)
    data = taught(training_data, proxy_artifact, run)
    assert data.living is not None
    module = LivingModule(
        load_trainable(run.student.model, seed=0), data.living, run.student, alpha=1.0, seed=0
    ).train()
    optimizer = module.build_optimizer(learning_rate=1e-3)
    adapters, weights = (proxy_weights(module, trainable=trainable) for trainable in (True, False))
    assert all("lora_" in name for name in adapters)
    curve = [train_step(module, optimizer, data, [0, 1, 2, 3], run.student, learning_rate=1e-3) for _ in range(6)]
    assert [group["lr"] for group in optimizer.param_groups][-1] == pytest.approx(1e-2)
    assert not any(torch.equal(proxy_weights(module, trainable=True)[name], one) for name, one in adapters.items())
    assert all(torch.equal(proxy_weights(module, trainable=False)[name], one) for name, one in weights.items())
    for name in ("loss", "nll", "proxy_nll"):
        assert curve[-1][name] < curve[0][name]
    assert curve[0]["loss"] == pytest.approx(curve[0]["nll"] + curve[0]["kl"] + curve[0]["proxy_nll"], rel=1e-5)


def test_steep_adapters_leave_the_students_step_as_long_as_it_is(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    norms = []
    for anchor in (1.0, 1e4):
        run = specify(student_run, {"kind": "okd", "rank": 2, "anchor": anchor}, optimizer={"max_grad_norm": 0.1})
        data = taught(training_data, proxy_artifact, run)
        found, _ = step_gradients(data, run, alpha=1.0)
        parts = ([one for name, one in found.items() if name.startswith(side)] for side in ("student.", "proxy."))
        norms.append([float(torch.cat([one.flatten() for one in part]).norm()) for part in parts])
    assert norms[0] == pytest.approx([0.1, 0.1], rel=1e-3)
    assert norms[1] == pytest.approx([0.1, 0.1], rel=1e-3)


def test_okd_moves_the_proxy_towards_a_student_that_stands_still(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    run = specify(student_run, {"kind": "okd", "rank": 2, "learning_rate": 1e-2, "anchor": 0.0})
    data = taught(training_data, proxy_artifact, run)
    assert data.living is not None
    module = LivingModule(
        load_trainable(run.student.model, seed=0), data.living, run.student, alpha=1.0, seed=0
    ).train()
    optimizer = module.build_optimizer(learning_rate=1e-12)
    curve = [train_step(module, optimizer, data, [0, 1, 2, 3], run.student, learning_rate=1e-12) for _ in range(5)]
    assert curve[-1]["kl"] < 0.9 * curve[0]["kl"]
    assert curve[-1]["nll"] == pytest.approx(curve[0]["nll"], abs=1e-5)


def test_without_an_anchor_the_proxys_own_nll_has_no_say(
    training_data: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    free, held = (
        step_gradients(taught(training_data, proxy_artifact, run), run, alpha=1e-9)[0]
        for run in (specify(student_run, {"kind": "okd", "anchor": anchor}) for anchor in (0.0, 1.0))
    )
    adapters = [name for name in free if "lora_B" in name]
    assert adapters
    assert all(float(free[name].abs().max()) < 1e-9 < float(held[name].abs().max()) for name in adapters)


@pytest.mark.parametrize("teacher", [*KINDS[:2], KINDS[1] | {"discount": 0.0, "single_step": False}])
def test_a_student_that_is_the_proxy_has_nothing_to_learn_from_it(
    training_data: TrainingData, make_run: MakeRun, student_run: MakeRun, tmp_path: Path, teacher: dict[str, Any]
) -> None:
    run = specify(student_run, teacher | {"on_policy": 1.0} if teacher["kind"] == "gkd" else teacher)
    save_model(load_trainable(run.student.model, seed=0), load_tokenizer(run.student.model), tmp_path / "model")
    seal(ProxyModel(tmp_path))
    data = taught(training_data, ProxyModel(tmp_path), run)
    weak, means = step_gradients(data, run, alpha=1e-9)
    strong, _ = step_gradients(data, run, alpha=100.0)
    assert means["divergence"] == pytest.approx(0.0, abs=1e-5)
    for name, gradient in weak.items():
        torch.testing.assert_close(strong[name], gradient, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "teacher",
    [
        *KINDS,
        KINDS[0] | {"on_policy": 1.0, "divergence": {"kind": "reverse_kl"}},
        KINDS[0] | {"on_policy": 0.0, "divergence": {"kind": "adaptive_kl"}, "temperature": 2.0},
        KINDS[1] | {"discount": 0.0, "single_step": False, "teacher_mix": 0.0, "length_norm": False},
    ],
)
def test_every_kind_lowers_its_own_loss(
    corpus: Corpus,
    proxy_artifact: ProxyModel,
    student_run: MakeRun,
    tmp_path: Path,
    teacher: dict[str, Any],
    precision: str,
) -> None:
    model = {"precision": precision}
    optimizer = {"batch_size": 8, "schedule": "constant", "learning_rate": 3e-3}
    run = specify(student_run, teacher, steps=24, optimizer=optimizer, model=model)
    student = distill_student(
        *corpus, None, run, arm="proxy_kd", proxy=proxy_artifact, output=tmp_path / "out", scratch=tmp_path / "scratch"
    )
    record = read_json(student.path / "training.json")
    losses = [step["loss"] for step in record["runs"][0]["curve"]]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.1
    assert record["alpha"] == 1.0
    assert student.manifest["made_from"]["proxy"] == proxy_artifact.hash


def test_the_baseline_does_not_open_the_proxy(corpus: Corpus, student_run: MakeRun, tmp_path: Path) -> None:
    run = specify(student_run, KINDS[0])
    student = distill_student(*corpus, None, run, arm="sft", output=tmp_path / "out", scratch=tmp_path / "scratch")
    assert set(read_json(student.path / "training.json")["runs"][0]["curve"][0]) == {"step", "loss", "nll", "lr"}
    assert "proxy" not in student.manifest["made_from"]


def test_a_living_teacher_that_is_not_there_is_missed(corpus: Corpus, student_run: MakeRun, tmp_path: Path) -> None:
    run = specify(student_run, KINDS[0])
    with pytest.raises(ConfigError, match="expected the proxy"):
        distill_student(*corpus, None, run, arm="proxy_kd", output=tmp_path / "out", scratch=tmp_path / "scratch")


def test_a_proxy_of_another_tokenizer_is_refused(
    proxy_artifact: ProxyModel, student_run: MakeRun, tmp_path: Path
) -> None:
    run = specify(student_run, KINDS[0])
    tokenizer = load_tokenizer(run.student.model)
    tokenizer.add_tokens(["neverseen"])
    assert run.student.living_teacher is not None
    with pytest.raises(ArtifactError, match="the student's tokenizer"):
        LivingProxy.open(proxy_artifact, run.student.living_teacher, tokenizer)
