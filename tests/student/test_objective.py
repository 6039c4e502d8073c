"""The student's objective: its limits first, then linearity, then numbers worked out by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from proxykd.config.objective import DivergenceSpec, ObjectiveSpec
from proxykd.divergences import dense_divergence, forward_kl, outcomes
from proxykd.exceptions import ConfigError
from proxykd.factored_logits import FactoredLogits
from proxykd.student.objective import TargetBatch, build_divergence, collate_targets, student_objective
from proxykd.targets.reader import SparseTarget

NUM_TOKENS, VOCAB, TOP_K = 6, 11, 3


def random_logits(seed: int) -> Tensor:
    return torch.randn(NUM_TOKENS, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def targets_of(logits: Tensor, *, weights: Tensor | None = None, top_k: int = TOP_K) -> TargetBatch:
    logprobs, ids = logits.log_softmax(-1).topk(top_k)
    tail = (1 - logprobs.exp().sum(-1)).log() if top_k < VOCAB else torch.full((NUM_TOKENS,), -torch.inf)
    return TargetBatch(ids, logprobs, tail, torch.ones(NUM_TOKENS) if weights is None else weights)


KINDS = (
    "forward_kl",
    "reverse_kl",
    "generalized_jsd",
    "skew_kl",
    "skew_reverse_kl",
    "total_variation",
    "adaptive_kl",
)
every_kind = pytest.mark.parametrize("kind", KINDS)


def objective_of(kind: str, **terms: object) -> ObjectiveSpec:
    return ObjectiveSpec.model_validate({"divergence": {"kind": kind}, **terms})


LABELS = torch.arange(NUM_TOKENS)


def gradient(logits: Tensor, targets: TargetBatch | None, alpha: float, **terms: Any) -> Tensor:
    leaf = logits.clone().requires_grad_()
    student_objective(leaf, LABELS, targets, alpha=alpha, **terms).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def test_targets_equal_to_the_students_own_distribution_leave_the_gradient_of_the_nll() -> None:
    logits = random_logits(0)
    own = gradient(logits, targets_of(logits), alpha=5.0)
    torch.testing.assert_close(own, gradient(logits, None, alpha=0.0), atol=3e-6, rtol=1e-5)


def test_alpha_zero_is_supervised_fine_tuning_bit_for_bit() -> None:
    logits, targets = random_logits(0), targets_of(random_logits(1))
    assert torch.equal(gradient(logits, targets, alpha=0.0), gradient(logits, None, alpha=1.0))


def test_hard_labels_agree_with_cross_entropy() -> None:
    logits = random_logits(0)
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, LABELS, reduction="sum")
    expected.backward()
    totals = student_objective(logits, LABELS, None, alpha=1.0)
    torch.testing.assert_close(totals.loss, expected.detach())
    torch.testing.assert_close(gradient(logits, None, alpha=0.0), leaf.grad)
    assert (totals.kl.item(), totals.num_tokens.item()) == (0.0, NUM_TOKENS)


def test_the_whole_vocabulary_as_targets_gives_the_dense_kl() -> None:
    student, teacher = random_logits(0), random_logits(1)
    totals = student_objective(student, LABELS, targets_of(teacher, top_k=VOCAB), alpha=1.0)
    torch.testing.assert_close(totals.kl, forward_kl(student, teacher.log_softmax(-1)).sum())


def test_the_weighted_kl_is_linear_in_the_weights_and_in_alpha() -> None:
    logits, teacher = random_logits(0), random_logits(1)
    weights = torch.tensor([0.1, 0.5, 0.9, 0.0, 1.0, 0.3])
    nll = gradient(logits, None, alpha=0.0)
    plain = gradient(logits, targets_of(teacher), alpha=1.0) - nll
    weighted = gradient(logits, targets_of(teacher, weights=weights), alpha=3.0) - nll
    torch.testing.assert_close(weighted, 3.0 * weights[:, None] * plain, atol=1e-5, rtol=1e-5)


def test_one_huge_weight_pulls_its_own_sample_only() -> None:
    logits, teacher = random_logits(0), random_logits(1)
    weights = torch.ones(NUM_TOKENS)
    weights[2] = 1e6
    before = gradient(logits, targets_of(teacher), alpha=1.0)
    after = gradient(logits, targets_of(teacher, weights=weights), alpha=1.0)
    others = torch.arange(NUM_TOKENS) != 2
    torch.testing.assert_close(after[others], before[others])
    assert after[2].norm() > 1e5 * before[2].norm()


def test_hand_computed_loss() -> None:
    # Student (1/2, 1/4, 1/4), label 1: nll = log 4 = 1.386294.
    # Proxy: token 0 has 3/4, the tail 1/4: KL = 0.130812. Weight 1/2, alpha 2: 1.386294 + 2 * 1/2 * 0.130812 = 1.517106
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    targets = TargetBatch(
        torch.tensor([[0]]), torch.tensor([[0.75]]).log(), torch.tensor([0.25]).log(), torch.tensor([0.5])
    )
    totals = student_objective(logits, torch.tensor([1]), targets, alpha=2.0)
    assert totals.nll.item() == pytest.approx(math.log(4), abs=1e-6)
    assert totals.kl.item() == pytest.approx(0.130812, abs=1e-6)
    assert totals.weighted_divergence.item() == pytest.approx(0.065406, abs=1e-6)
    assert totals.loss.item() == pytest.approx(1.517106, abs=1e-6)


def test_targets_of_samples_are_put_one_after_the_other() -> None:
    def target(length: int, weight: float) -> SparseTarget:
        ids = np.full((length, 2), length, np.int32)
        return SparseTarget(ids, np.zeros((length, 2), np.float32), np.zeros(length, np.float32), weight)

    batch = collate_targets([target(2, 0.25), target(1, 0.75)], device=torch.device("cpu"))
    assert batch.token_ids.tolist() == [[2, 2], [2, 2], [1, 1]]
    assert batch.weights.tolist() == [0.25, 0.25, 0.75]
    assert batch.token_ids.dtype == torch.long


def test_samples_with_fewer_slots_are_filled_up() -> None:
    wide = SparseTarget(
        np.array([[3, 4]], np.int32), np.log([[0.5, 0.5]]).astype(np.float32), np.zeros(1, np.float32), 1
    )
    narrow = SparseTarget(np.array([[7]], np.int32), np.zeros((1, 1), np.float32), np.full(1, -np.inf, np.float32), 1)
    batch = collate_targets([wide, narrow], device=torch.device("cpu"))
    assert batch.token_ids.tolist() == [[3, 4], [7, -1]]
    assert batch.logprobs[1].tolist() == [0.0, -math.inf]
    assert batch.logprobs.dtype == torch.float32


def test_the_specification_names_every_divergence_and_no_other() -> None:
    names = {"forward_kl", "reverse_kl", "generalized_jsd", "skew_kl", "skew_reverse_kl", "total_variation"}
    functions = {getattr(build_divergence(objective_of(kind).divergence), "func", None) for kind in KINDS}
    functions |= {build_divergence(objective_of(kind).divergence) for kind in KINDS}
    assert functions >= {getattr(outcomes, name) for name in (*names, "adaptive_kl")}
    tags = TypeAdapter(DivergenceSpec).json_schema()["discriminator"]["mapping"]
    assert set(tags) == set(KINDS)
    with pytest.raises(ValidationError, match="hellinger"):
        objective_of("hellinger")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"kind": "generalized_jsd", "beta": 0.9}, lambda q, p: outcomes.generalized_jsd(q, p, beta=0.9)),
        ({"kind": "skew_kl", "skew": 0.3}, lambda q, p: outcomes.skew_kl(q, p, skew=0.3)),
        ({"kind": "skew_reverse_kl", "skew": 0.3}, lambda q, p: outcomes.skew_reverse_kl(q, p, skew=0.3)),
        ({"kind": "adaptive_kl", "tail_mass": 0.2}, lambda q, p: outcomes.adaptive_kl(q, p, tail_mass=0.2)),
    ],
)
def test_the_parameters_reach_the_divergence(spec: dict[str, Any], expected: Any) -> None:
    student, teacher = random_logits(0), random_logits(1)
    objective = ObjectiveSpec.model_validate({"divergence": spec})
    totals = student_objective(student, LABELS, targets_of(teacher, top_k=VOCAB), alpha=1.0, objective=objective)
    dense = dense_divergence(student, teacher.log_softmax(-1), expected)
    torch.testing.assert_close(totals.divergence, dense.sum())
    torch.testing.assert_close(totals.loss, totals.nll + dense.sum())


@every_kind
def test_every_divergence_vanishes_with_its_gradient_at_the_students_own_distribution(kind: str) -> None:
    logits = random_logits(0)
    own = gradient(logits, targets_of(logits), alpha=5.0, objective=objective_of(kind))
    if kind != "total_variation":  # it has a kink there: a rounding error decides on which side the gradient is taken
        torch.testing.assert_close(own, gradient(logits, None, alpha=0.0), atol=1e-5, rtol=1e-5)
    totals = student_objective(logits, LABELS, targets_of(logits), alpha=5.0, objective=objective_of(kind))
    torch.testing.assert_close(totals.loss, totals.nll, atol=1e-5, rtol=0)


@every_kind
def test_every_divergence_is_linear_in_the_weights_of_tokens_and_in_alpha(kind: str) -> None:
    logits, teacher, spec = random_logits(0), random_logits(1), objective_of(kind)
    weights = torch.tensor([0.1, 0.5, 0.9, 0.0, 1.0, 0.3])
    nll = gradient(logits, None, alpha=0.0)
    plain = gradient(logits, targets_of(teacher), alpha=1.0, objective=spec) - nll
    weighted = gradient(logits, targets_of(teacher, weights=weights), alpha=3.0, objective=spec) - nll
    torch.testing.assert_close(weighted, 3.0 * weights[:, None] * plain, atol=1e-5, rtol=1e-5)


@every_kind
def test_the_forward_kl_is_reported_whatever_is_minimised(kind: str) -> None:
    logits, targets = random_logits(0), targets_of(random_logits(1))
    totals = student_objective(logits, LABELS, targets, alpha=1.0, objective=objective_of(kind))
    plain = student_objective(logits, LABELS, targets, alpha=1.0)
    assert totals.kl.item() == plain.kl.item() == plain.divergence.item()
    assert (totals.divergence.item() == plain.divergence.item()) == (kind == "forward_kl")


@every_kind
def test_a_batch_without_tokens_has_a_loss_of_zero(kind: str) -> None:
    logits = torch.zeros(0, VOCAB, requires_grad=True)
    ids = torch.zeros(0, TOP_K, dtype=torch.long)
    targets = TargetBatch(ids, torch.zeros(0, TOP_K), torch.zeros(0), torch.zeros(0))
    totals = student_objective(logits, LABELS[:0], targets, alpha=1.0, objective=objective_of(kind))
    totals.loss.backward()
    assert (totals.loss.item(), totals.num_tokens.item()) == (0.0, 0)


def test_the_priors_term_adds_its_weighted_divergence_and_its_gradient() -> None:
    logits, targets = random_logits(0), targets_of(random_logits(1))
    prior = targets_of(random_logits(2), weights=torch.full((NUM_TOKENS,), 0.5), top_k=2)
    spec = objective_of("forward_kl", prior_alpha=3.0, prior_divergence={"kind": "total_variation"})
    totals = student_objective(logits, LABELS, targets, alpha=2.0, prior=prior, objective=spec)
    first = student_objective(logits, LABELS, targets, alpha=2.0)
    alone = student_objective(logits, LABELS, prior, alpha=1.0, objective=objective_of("total_variation"))
    torch.testing.assert_close(totals.loss, first.loss + 3.0 * (alone.loss - alone.nll))
    torch.testing.assert_close(totals.prior_divergence, alone.divergence)
    assert totals.divergence.item() == first.divergence.item()
    nll = gradient(logits, None, alpha=0.0)
    prior_pull = gradient(logits, prior, alpha=1.0, objective=objective_of("total_variation")) - nll
    both = gradient(logits, targets, alpha=2.0, prior=prior, objective=spec)
    torch.testing.assert_close(both, gradient(logits, targets, alpha=2.0) + 3.0 * prior_pull, atol=1e-5, rtol=1e-5)


def test_the_prior_can_be_the_only_term_and_its_weight_of_zero_switches_it_off() -> None:
    logits, prior = random_logits(0), targets_of(random_logits(2))
    alone = gradient(logits, None, alpha=0.0, prior=prior, objective=objective_of("forward_kl", prior_alpha=0.7))
    torch.testing.assert_close(alone, gradient(logits, prior, alpha=0.7))
    off = gradient(logits, None, alpha=0.0, prior=prior, objective=ObjectiveSpec())
    assert torch.equal(off, gradient(logits, None, alpha=0.0))


@every_kind
def test_targets_at_a_temperature_meet_the_student_at_it_and_leave_the_nll_alone(kind: str) -> None:
    student, teacher, temperature = random_logits(0), random_logits(1), 2.0
    tempered = targets_of(teacher / temperature)._replace(temperature=temperature)
    totals = student_objective(student, LABELS, tempered, alpha=1.0, objective=objective_of(kind))
    at_one = student_objective(
        student / temperature, LABELS, targets_of(teacher / temperature), alpha=1.0, objective=objective_of(kind)
    )
    scale = temperature if kind == "total_variation" else temperature**2
    torch.testing.assert_close(totals.divergence, at_one.divergence)
    torch.testing.assert_close(totals.weighted_divergence, scale * at_one.divergence)
    torch.testing.assert_close(totals.nll, torch.nn.functional.cross_entropy(student, LABELS, reduction="sum"))


@every_kind
def test_the_pull_keeps_its_size_as_the_temperature_grows(kind: str) -> None:
    # The reason for T^2 (T for the total variation): in the limit the gradient no longer depends on T.
    student, teacher = random_logits(0).double(), random_logits(1).double()
    nll, pulls = gradient(student, None, alpha=0.0), []
    for temperature in (200.0, 400.0):
        targets = targets_of(teacher / temperature, top_k=VOCAB)._replace(temperature=temperature)
        pulls.append(gradient(student, targets, alpha=1.0, objective=objective_of(kind)) - nll)
    assert (pulls[1].norm() / pulls[0].norm()).item() == pytest.approx(1.0, abs=0.1)


def one_hot_targets() -> TargetBatch:
    ids = torch.stack([LABELS, torch.full_like(LABELS, -1)], -1)
    logprobs = torch.tensor([[0.0, -torch.inf]]).expand(NUM_TOKENS, 2)
    return TargetBatch(ids, logprobs, torch.full((NUM_TOKENS,), -torch.inf), torch.ones(NUM_TOKENS))


@every_kind
def test_targets_that_exclude_tokens_are_refused_where_the_divergence_is_infinite_on_them(kind: str) -> None:
    logits, spec = random_logits(0), objective_of(kind)
    excluded = targets_of(random_logits(1))
    excluded = excluded._replace(logprobs=excluded.logprobs.clone())
    excluded.logprobs[3, 1] = -torch.inf
    for targets, num_bad in ((one_hot_targets(), NUM_TOKENS), (excluded, 1)):
        if spec.divergence.needs_full_support:
            with pytest.raises(ConfigError, match=f"kind={kind} .* {num_bad} of {NUM_TOKENS} positions"):
                student_objective(logits, LABELS, targets, alpha=1.0, objective=spec)
        else:
            assert torch.isfinite(gradient(logits, targets, alpha=1.0, objective=spec)).all()
            assert torch.isfinite(student_objective(logits, LABELS, targets, alpha=1.0, objective=spec).loss)


def test_one_hot_targets_with_the_forward_kl_are_the_hard_labels_again() -> None:
    logits = random_logits(0)
    torch.testing.assert_close(gradient(logits, one_hot_targets(), alpha=1.0), 2.0 * gradient(logits, None, alpha=0.0))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not objective_of(kind).divergence.needs_full_support])
def test_only_a_linear_divergence_has_the_right_gradient_on_average_over_samples(kind: str) -> None:
    # All one-hot samples of a distribution, each as often as it comes up, against the distribution itself.
    logits, spec = random_logits(0)[:1], objective_of(kind)
    probs = random_logits(1)[:1].softmax(-1)

    def pull(ids: Tensor, logprobs: Tensor) -> Tensor:
        leaf = logits.clone().requires_grad_()
        rest = torch.full((1,), -torch.inf)
        totals = student_objective(
            leaf, LABELS[:1], TargetBatch(ids, logprobs, rest, torch.ones(1)), alpha=1.0, objective=spec
        )
        (totals.loss - torch.nn.functional.cross_entropy(leaf, LABELS[:1])).backward()
        return leaf.grad  # type: ignore[return-value]

    samples = [pull(torch.tensor([[token]]), torch.zeros(1, 1)) for token in range(VOCAB)]
    mean = sum(p * sample for p, sample in zip(probs[0], samples, strict=True))
    dense = pull(torch.arange(VOCAB)[None], probs.log())
    assert torch.allclose(mean, dense, atol=1e-5) == spec.divergence.is_linear


@every_kind
@pytest.mark.parametrize(("temperature", "softcap"), [(1.0, None), (2.0, None), (2.0, 4.0)])
def test_the_factored_scores_give_the_same_sums_and_gradients(
    kind: str, temperature: float, softcap: float | None
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(rows, 5, generator=generator) for rows in (NUM_TOKENS, VOCAB))
    targets = targets_of(random_logits(1), weights=torch.rand(NUM_TOKENS, generator=generator))
    targets = targets._replace(temperature=temperature)
    prior = targets_of(random_logits(2), top_k=2)
    spec, found = objective_of(kind, prior_alpha=0.7), []
    for is_factored in (False, True):
        leaves = [one.clone().requires_grad_() for one in (hidden, weight)]
        factored = FactoredLogits((leaves[0],), (leaves[1],), softcap=softcap)
        scores = factored if is_factored else factored.dense()
        totals = student_objective(scores, LABELS, targets, alpha=2.0, prior=prior, objective=spec)
        totals.loss.backward()
        found.append(([one.detach() for one in totals], [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=1e-4)
