"""Weights of tokens in the NLL: what weighs 1 is plain fine-tuning, what weighs 0 is read and not learnt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import ByT5Tokenizer

from proxykd.artifacts import ProxyModel, SplitSet, StudentModel, Targets, TrajectorySet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.data.segments import Span, WeightedRow, render_trajectory, segment_spans, token_weights
from proxykd.data.splits import TRAINING_SIDES, select_rows
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.divergences import bucketed_logprobs
from proxykd.exceptions import GateError, ModelError
from proxykd.factored_logits import FactoredLogits
from proxykd.models.forward import collate, completion_labels, completion_logits
from proxykd.models.loading import load_tokenizer, load_trainable
from proxykd.records import ValidatedRow
from proxykd.student import loop
from proxykd.student import module as student_module
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.living import LivingModule, LivingProxy
from proxykd.student.loop import train, train_step
from proxykd.student.module import StudentModule
from proxykd.student.objective import divergence_totals, student_objective
from proxykd.student.training import distill_student
from tests.support.tokenizer_pairs import byte_level, sentence_piece
from tests.support.trajectories import corrected, write_trajectories

pytestmark = pytest.mark.integration

Corpus = tuple[ValidatedSet, SplitSet]
MakeRun = Callable[..., RunSpec]
State = dict[str, Tensor]
LIMIT = 200


def tokenized(rows: Any, run: RunSpec, path: Path, *, limit: int = LIMIT) -> TokenizedCorpus:
    return TokenizedCorpus.build(rows, load_tokenizer(run.student.model), max_seq_tokens=limit, path=path)


def trained(data: TrainingData, run: RunSpec, **more: Any) -> tuple[State, list[dict[str, float]]]:
    model = load_trainable(run.student.model, seed=0)
    result = train(model, data, run.student, alpha=1.0, learning_rate=1e-3, seed=0, **more)
    return dict(model.state_dict()), result.curve


def gradients(data: TrainingData, run: RunSpec, batch: list[int], *, alpha: float = 1.0) -> tuple[State, Any]:
    module = StudentModule(load_trainable(run.student.model, seed=0), run.student, alpha=alpha).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    means = train_step(module, optimizer, data, batch, run.student, learning_rate=0.0)
    return {name: value.grad for name, value in module.named_parameters() if value.grad is not None}, means


def weigh(row: ValidatedRow, *weights: float) -> WeightedRow:
    """A row cut into as many equal parts as there are weights."""
    bounds = [round(len(row.text) * part / len(weights)) for part in range(len(weights) + 1)]
    spans = tuple(Span(*one) for one in zip(bounds[:-1], bounds[1:], weights, strict=True))
    return WeightedRow(**{name: getattr(row, name) for name in row.schema.names}, spans=spans)


@pytest.mark.parametrize("options", [{}, {"packing": True}])
def test_weights_of_one_are_no_weights_to_the_bit(
    corpus: Corpus, make_run: MakeRun, tmp_path: Path, options: dict[str, Any]
) -> None:
    run, rows = make_run(student=options), list(select_rows(*corpus, TRAINING_SIDES))
    plain = TrainingData(tokenized(rows, run, tmp_path / "plain.arrow"), None, 0)
    ones = TrainingData(tokenized([weigh(row, 1.0, 1.0) for row in rows], run, tmp_path / "ones.arrow"), None, 0)
    assert ones.corpus.is_weighted.all()
    assert not plain.corpus.is_weighted.any()
    (state, curve), (other, again) = trained(plain, run), trained(ones, run)
    assert again == curve
    assert all(torch.equal(other[name], value) for name, value in state.items())


def test_one_weight_for_all_changes_nothing_and_doubling_it_neither(
    corpus: Corpus, make_run: MakeRun, tmp_path: Path
) -> None:
    # A weighted mean: what counts is one weight against another.
    run, rows = make_run(), list(select_rows(*corpus, TRAINING_SIDES))
    curves = []
    for factor in (1.0, 2.0):
        weighed = [weigh(row, 0.5 * factor, 1.5 * factor) for row in rows]
        path = tmp_path / f"{factor}.arrow"
        curves.append(trained(TrainingData(tokenized(weighed, run, path), None, 0), run)[1])
    assert curves[0] == [pytest.approx(point, rel=1e-6) for point in curves[1]]


@pytest.mark.parametrize("is_factored", [False, True])
def test_a_token_that_weighs_nothing_has_no_gradient_whatever_it_is(is_factored: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(12, 8, generator=rng), torch.randn(30, 8, generator=rng)
    labels = torch.randint(30, (12,), generator=rng)
    weights = torch.tensor([0.0, 1.0, 2.5, 0.0] * 3)

    def loss_and_gradient(labels: Tensor) -> tuple[Tensor, Tensor]:
        inputs = hidden.clone().requires_grad_()
        logits = FactoredLogits((inputs,), (head,)) if is_factored else inputs @ head.T
        totals = student_objective(logits, labels, None, alpha=0.0, weights=weights)
        totals.loss.backward()
        assert inputs.grad is not None
        return totals.loss.detach(), inputs.grad

    loss, gradient = loss_and_gradient(labels)
    other_loss, other_gradient = loss_and_gradient(torch.where(weights > 0.0, labels, (labels + 1) % 30))
    assert torch.equal(loss, other_loss)
    assert torch.equal(gradient, other_gradient)
    assert not gradient[weights == 0.0].any()
    assert gradient[weights > 0.0].any(dim=-1).all()
    impossible = (hidden @ head.T).index_fill(0, torch.tensor([0]), -torch.inf)
    assert torch.isfinite(student_objective(impossible, labels, None, alpha=0.0, weights=weights).loss)


def test_a_changed_wrong_attempt_at_the_end_changes_no_loss(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    # At the end it is nobody's context: nothing may depend on it.
    run, row = make_run(), next(corpus[0].rows())
    texts = [row.text + wrong for wrong in (" No: 1234567.", " No: 7654321.")]
    spans = (Span(0, len(row.text), 1.0), Span(len(row.text), len(texts[0]), 0.0))
    found = []
    for number, text in enumerate(texts):
        weighted = replace(weigh(row, 1.0), text=text, spans=spans)
        data = TrainingData(tokenized([weighted], run, tmp_path / f"{number}.arrow"), None, 0)
        found.append(gradients(data, run, [0]))
    (first, means), (second, again) = found
    assert means == again
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)


def slow_loss(data: TrainingData, run: RunSpec, batch: list[int], *, alpha: float) -> tuple[Tensor, torch.nn.Module]:
    """The formula, text by text and token by token."""
    model, total, weight_sum = load_trainable(run.student.model, seed=0), torch.zeros(()), 0.0
    for index in batch:
        example = data.corpus[index]
        one = collate([example._replace(weights=None)], pad_id=data.pad_id)
        logits, labels = completion_logits(model, one), completion_labels(one)
        logprobs = logits.log_softmax(dim=-1)
        weights = np.ones(len(labels)) if example.weights is None else example.weights
        for place, (label, weight) in enumerate(zip(labels.tolist(), weights.tolist(), strict=True)):
            total = total - weight * logprobs[place, label]
            weight_sum += weight
        if example.weights is None and alpha > 0.0:
            targets = data.targets_of([index], torch.device("cpu"))
            assert targets is not None
            students = bucketed_logprobs(logits, targets.token_ids, labels)
            total = total + alpha * divergence_totals(students, targets, run.student.objective.divergence).weighted
    return total / weight_sum, model


@pytest.mark.parametrize("way", ["padded", "packed", "one by one"])
@pytest.mark.parametrize("alpha", [0.0, 2.0])
def test_a_step_is_the_weighted_mean_of_the_formula(
    mixed: TrainingData, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, way: str, alpha: float
) -> None:
    run = make_run(student={"packing": way == "packed", "optimizer": {"batch_size": 4, "max_grad_norm": 1e9}})
    places = np.flatnonzero(mixed.corpus.is_weighted)
    batch = [0, int(places[0]), 3, int(places[4]), int(places[7])]
    loss, model = slow_loss(mixed, run, batch, alpha=alpha)
    loss.backward()
    if way == "one by one":
        monkeypatch.setattr(student_module, "_MICRO_BATCH_TOKENS", 1)
    found, means = gradients(mixed, run, batch, alpha=alpha)
    assert means["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[f"model.{name}"], parameter.grad, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("room", [30, 45, 60])
def test_a_cut_text_keeps_the_weights_of_what_is_left(
    validated: ValidatedSet, make_run: MakeRun, tmp_path: Path, room: int
) -> None:
    run, rows = make_run(), [weigh(row, 0.0, 0.5, 1.5, 1.0) for row in validated.rows()]
    whole, cut = (tokenized(rows, run, tmp_path / f"{size}.arrow", limit=size) for size in (10_000, room))
    by_prompt = {example.prompt_id: example for example in whole}
    assert cut.num_cut or cut.num_weightless
    for example in cut:
        full, length = by_prompt[example.prompt_id].weights, len(example.completion_ids)
        assert full is not None
        assert example.weights is not None
        assert np.array_equal(example.weights, full[:length])
    sums = [float(example.weights.sum(dtype=np.float64)) for example in cut if example.weights is not None]
    assert cut.weight_sums.tolist() == sums


def test_texts_of_which_nothing_is_left_that_weighs_are_left_out_and_counted(
    validated: ValidatedSet, make_run: MakeRun, tmp_path: Path
) -> None:
    first, second, third = list(validated.rows())[:3]
    rows = [weigh(first, 0.0), second, weigh(third, *[0.0] * 9, 1.0)]
    whole = tokenized(rows, make_run(), tmp_path / "whole.arrow")
    assert ([one.prompt_id for one in whole], whole.num_weightless) == ([second.prompt_id, third.prompt_id], 1)
    length = int(whole.prompt_lengths[1]) + 10
    cut = tokenized(rows, make_run(), tmp_path / "cut.arrow", limit=length)
    assert (len(cut), cut.num_weightless, cut.num_skipped) == (1, 2, 2)


def test_every_tokenizer_gives_each_character_its_own_weight(validated: ValidatedSet) -> None:
    # Character for character, the weights of two tokenizers differ only within tokens that lie across a border.
    row = next(validated.rows())
    trajectory = corrected(row)
    text, spans = render_trajectory(trajectory), segment_spans(trajectory)
    truth = np.concatenate([np.full(span.end - span.start, span.weight) for span in spans])
    for tokenizer in (byte_level([text]), sentence_piece([text])):
        offsets = tokenizer.encode(text).offsets
        for (start, end), weight in zip(offsets, token_weights(offsets, spans), strict=True):
            assert start == end or weight == truth[start]


def test_a_killed_run_with_trajectories_ends_as_if_nothing_had_happened(
    mixed: TrainingData, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path, real, done = make_run(student={"steps": 4}), tmp_path / "run.safetensors", loop.train_step, []
    whole, curve = trained(mixed, run)

    def step_or_die(*args: Any, **kwargs: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(0)
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_or_die)
        with pytest.raises(KeyboardInterrupt):
            trained(mixed, run, checkpoints=Checkpoints(path, every_s=0.0))
    again, resumed = trained(mixed, run, checkpoints=Checkpoints(path, every_s=1e9))
    assert resumed == curve
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def distill(corpus: Corpus, targets: Targets | None, run: RunSpec, folder: Path, *, arm: Any) -> StudentModel:
    return distill_student(*corpus, targets, run, arm=arm, output=folder / arm, scratch=folder / "scratch")


@pytest.mark.parametrize("arm", ["sft", "proxy_kd"])
def test_a_student_learns_from_the_trajectories_that_its_specification_names(
    corpus: Corpus, found: TrajectorySet, training_data: TrainingData, make_run: MakeRun, tmp_path: Path, arm: str
) -> None:
    targets = Targets(training_data.corpus.path.parent / "targets")
    used = targets if arm == "proxy_kd" else None
    run = make_run(student={"trajectories": [str(found.path.parent)]})
    student = distill(corpus, used, run, tmp_path, arm=arm)
    record, rows = read_json(student.path / "training.json"), list(select_rows(*corpus, TRAINING_SIDES))
    told = record["trajectories"]
    num_examples = told["num_examples"]
    assert 0 < num_examples + told["without_room_or_weight"] == len(rows)
    assert told["other_side"] == found.num_rows - len(rows)
    assert (told["barred"], told["unknown"]) == (0, 0)
    assert record["corpus"]["num_examples"] == training_data.corpus.lengths.size + num_examples
    assert student.manifest["made_from"]["trajectories-0"] == found.hash
    assert ("kl" in record["runs"][0]["curve"][0]) == (arm == "proxy_kd")
    without = distill(corpus, used, make_run(), tmp_path / "without", arm=arm)
    assert "trajectories" not in read_json(without.path / "training.json")


def test_the_prompts_of_the_examination_are_never_learnt(
    corpus: Corpus, found: TrajectorySet, mixed: TrainingData
) -> None:
    training = {row.prompt_id for row in corpus[1].rows() if row.side in TRAINING_SIDES}
    assert {example.prompt_id for example in mixed.corpus} == training
    assert {row.prompt_id for row in found.rows()} - training


def test_trajectories_of_which_none_may_teach_close_the_gate(corpus: Corpus, make_run: MakeRun, tmp_path: Path) -> None:
    examined = {row.prompt_id for row in corpus[1].rows() if row.side not in TRAINING_SIDES}
    rows = (row for row in corpus[0].rows() if row.prompt_id in examined)
    write_trajectories(map(corrected, rows), tmp_path)
    with pytest.raises(GateError, match=f"other_side {len(examined)}"):
        distill(corpus, None, make_run(student={"trajectories": [str(tmp_path)]}), tmp_path, arm="sft")


def test_a_tokenizer_that_cannot_tell_where_its_tokens_stand_is_refused(
    validated: ValidatedSet, tmp_path: Path
) -> None:
    row, slow = next(validated.rows()), ByT5Tokenizer()
    assert len(TokenizedCorpus.build([row], slow, max_seq_tokens=LIMIT, path=tmp_path / "plain.arrow")) == 1
    with pytest.raises(ModelError, match="fast tokenizer"):
        TokenizedCorpus.build([weigh(row, 1.0)], slow, max_seq_tokens=LIMIT, path=tmp_path / "weighed.arrow")


@pytest.mark.parametrize(
    "teacher",
    [
        {"kind": "gkd", "on_policy": 0.0},
        {"kind": "gkd", "on_policy": 1.0, "max_new_tokens": 8},
        {"kind": "minillm", "max_new_tokens": 8},
        {"kind": "okd", "rank": 2},
    ],
)
def test_a_living_teacher_has_no_say_in_trajectories_but_in_the_students_own_texts(
    corpus: Corpus, found: TrajectorySet, proxy_artifact: Any, student_run: MakeRun, tmp_path: Path,
    teacher: dict[str, Any],
) -> None:  # fmt: skip
    told = {"living_teacher": teacher, "optimizer": {"batch_size": 1}, "steps": 6}
    run = student_run(**told, trajectories=[str(found.path)])
    student = distill_student(
        *corpus, None, run, arm="proxy_kd", output=tmp_path / "out", scratch=tmp_path / "scratch", proxy=proxy_artifact
    )
    curve = read_json(student.path / "training.json")["runs"][0]["curve"]
    assert all(np.isfinite(list(point.values())).all() for point in curve)
    has_kl = [point["kl"] > 0.0 for point in curve]
    # One text a batch: where it is a trajectory, there is nothing that the proxy could teach on.
    assert all(has_kl) if teacher["kind"] == "minillm" or teacher.get("on_policy") else len(set(has_kl)) == 2


def test_a_step_beside_a_living_teacher_is_the_formula(
    mixed: TrainingData, proxy_artifact: ProxyModel, student_run: MakeRun
) -> None:
    # The weighted mean of the NLL over all, and the mean of the divergence over the teacher's tokens alone.
    teacher = {"kind": "gkd", "on_policy": 0.0, "divergence": {"kind": "forward_kl"}}
    run = student_run(living_teacher=teacher, optimizer={"batch_size": 4, "max_grad_norm": 1e9})
    assert run.student.living_teacher is not None
    tokenizer = load_tokenizer(run.student.model)
    living = LivingProxy.open(proxy_artifact, run.student.living_teacher, tokenizer)
    batch = [0, 5, *np.flatnonzero(mixed.corpus.is_weighted)[:2].tolist()]
    loss, model = slow_loss(mixed, run, batch, alpha=0.0)
    proxy, divergence = living.load(precision="float32", seed=0), torch.zeros(())
    for index in batch[:2]:
        one = collate([mixed.corpus[index]], pad_id=mixed.pad_id)
        with torch.no_grad():
            truth = completion_logits(proxy, one).log_softmax(dim=-1)
        own = completion_logits(model, one).log_softmax(dim=-1)  # type: ignore[arg-type]
        divergence = divergence + (truth.exp() * (truth - own)).sum()
    (loss + 2.0 * divergence / int(mixed.corpus.completion_lengths[batch[:2]].sum())).backward()
    module = LivingModule(load_trainable(run.student.model, seed=0), living, run.student, alpha=2.0, seed=0).train()
    optimizer = torch.optim.SGD(module.student.parameters(), lr=0.0)
    data = replace(mixed, targets=None, living=living)
    means = train_step(module, optimizer, data, batch, run.student, learning_rate=0.0)
    assert means["nll"] == pytest.approx(loss.item(), rel=1e-5)
    found = dict(module.student.model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=2e-3, atol=1e-6)
