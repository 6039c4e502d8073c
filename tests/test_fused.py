"""The fused loss against the dense function in float64: all shapes, dtypes, edges; then what it must never do."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxykd import fused
from proxykd.divergences import BucketedLogprobs, bucketed_forward_kl, bucketed_logprobs
from proxykd.exceptions import ShapeError
from proxykd.factored_logits import FactoredLogits
from proxykd.fused import fused_loss
from proxykd.student.objective import TargetBatch, student_objective

ALPHA = 0.7


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_targets(num_rows: int, vocab: int, k: int, *, seed: int = 0, unused: bool = True) -> TargetBatch:
    """Distinct tokens, some slots unused, some rows without a tail."""
    rng = generator(seed)
    ids = torch.rand(num_rows, vocab, generator=rng).argsort(dim=-1)[:, :k]
    probs = torch.rand(num_rows, k + 1, generator=rng)
    probs[::3, k] = 0.0
    if unused:
        used = torch.randint(k + 1, (num_rows, 1), generator=rng)
        is_unused = torch.arange(k)[None] >= used
        ids, probs[:, :k] = ids.masked_fill(is_unused, -1), probs[:, :k].masked_fill(is_unused, 0.0)
    logprobs = (probs / probs.sum(-1, keepdim=True).clamp_min(1e-30)).log()
    return TargetBatch(ids, logprobs[:, :k], logprobs[:, k], torch.rand(num_rows, generator=rng))


def leaves(*tensors: Tensor | None, dtype: torch.dtype) -> list[Any]:
    return [None if tensor is None else tensor.detach().to(dtype).requires_grad_() for tensor in tensors]


def gradients(
    tensors: list[Any], labels: Tensor, targets: TargetBatch | None, *, dense: bool, **settings: Any
) -> tuple[Tensor, list[Tensor]]:
    """Loss, and its gradients towards hidden states, weight and bias, of the mean over rows."""
    hidden, weight, bias = tensors
    logits = FactoredLogits((hidden,), (weight,), bias, **settings)
    scale = 1.0 / max(1, len(labels))
    totals = student_objective(logits.dense() if dense else logits, labels, targets, alpha=ALPHA, scale=scale)
    (totals.loss * scale).backward()  # type: ignore[no-untyped-call]
    return totals.loss.detach(), [tensor.grad for tensor in tensors if tensor is not None]


def assert_close(
    ours: list[Tensor], reference: list[Tensor], relative: float, terms: list[Tensor] | None = None
) -> None:
    """Errors within ``relative`` of the gradient's norm, and of a tenth of its terms' norm where these cancel out."""
    for idx, (own, expected) in enumerate(zip(ours, reference, strict=True)):
        error, allowed = (own.double() - expected.double()).norm(), relative * expected.double().norm()
        if terms is not None:
            allowed = allowed + 0.1 * relative * terms[idx].norm()
        assert error <= allowed + 1e-12, (error, allowed)


def summed_terms(tensors: list[Any], labels: Tensor, targets: TargetBatch, **settings: Any) -> list[Tensor]:
    """What the gradients are sums of, without signs: no float32 sum is more exact than its largest terms."""
    hidden, weight, bias = (None if tensor is None else tensor.detach() for tensor in tensors)
    scores = FactoredLogits((hidden,), (weight,), bias, **settings).dense().requires_grad_()  # type: ignore[arg-type]
    loss = student_objective(scores, labels, targets, alpha=ALPHA).loss / max(1, len(labels))
    pull = torch.autograd.grad(loss, scores)[0].abs() * settings["scale"]
    assert hidden is not None
    assert weight is not None
    head = weight[: settings["vocab_size"]]
    return [pull @ head.abs(), pull.T @ hidden.abs(), pull.sum(dim=0)]


@settings(max_examples=40, deadline=None)
@given(
    num_rows=st.integers(0, 9),
    vocab=st.integers(2, 40),
    width=st.integers(1, 6),
    k=st.integers(0, 5),
    rows_a_chunk=st.integers(1, 10),
    softcap=st.sampled_from([None, 2.0]),
    padding=st.integers(0, 3),
    has_bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_float32_gradients_are_those_of_the_dense_function_in_float64(
    num_rows: int,
    vocab: int,
    width: int,
    k: int,
    rows_a_chunk: int,
    softcap: float | None,
    padding: int,
    has_bias: bool,
    seed: int,
) -> None:
    k, rng = min(k, vocab), generator(seed)
    hidden = torch.randn(num_rows, width, generator=rng)
    weight = torch.randn(vocab + padding, width, generator=rng)
    bias = torch.randn(vocab + padding, generator=rng) if has_bias else None
    labels = torch.randint(vocab, (num_rows,), generator=rng)
    targets = random_targets(num_rows, vocab, k, seed=seed)
    common: dict[str, Any] = {"softcap": softcap, "vocab_size": vocab, "scale": 0.5}
    expected, reference = gradients(
        leaves(hidden, weight, bias, dtype=torch.float64), labels, targets, dense=True, **common
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_CHUNK_BYTES_CPU", rows_a_chunk * vocab * 4)
        loss, ours = gradients(
            leaves(hidden, weight, bias, dtype=torch.float32), labels, targets, dense=False, **common
        )
    torch.testing.assert_close(loss, expected.float(), rtol=1e-5, atol=1e-5)
    terms = summed_terms(leaves(hidden, weight, bias, dtype=torch.float64), labels, targets, **common)
    assert_close(ours, reference, 1e-5, terms)
    assert all(not gradient[vocab:].any() for gradient in ours[1:])


@pytest.fixture
def problem() -> tuple[list[Tensor | None], Tensor, TargetBatch]:
    """13 rows, 301 tokens, of which every chunk takes 4 rows or fewer."""
    rng = generator(5)
    hidden, weight = torch.randn(13, 8, generator=rng), torch.randn(301, 8, generator=rng)
    return [hidden, weight, None], torch.randint(301, (13,), generator=rng), random_targets(13, 301, 6)


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_CHUNK_BYTES_CPU", 4 * 301 * 4)
    monkeypatch.setattr(fused, "_TILE_BYTES", 100 * 8 * 2)


def test_totals_are_those_of_the_dense_function(problem: Any) -> None:
    tensors, labels, targets = problem
    logits = FactoredLogits((tensors[0],), (tensors[1],))
    for alpha, some in ((ALPHA, targets), (0.0, targets), (ALPHA, None)):
        ours = student_objective(logits, labels, some, alpha=alpha)
        for own, expected in zip(ours, student_objective(logits.dense(), labels, some, alpha=alpha), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-6, check_dtype=False)


def test_alpha_zero_is_cross_entropy(problem: Any) -> None:
    (hidden, weight, _), labels, targets = problem
    hidden, weight = leaves(hidden, weight, dtype=torch.float32)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, labels, reduction="sum")
    reference = torch.autograd.grad(expected, (hidden, weight))
    totals = student_objective(FactoredLogits((hidden,), (weight,)), labels, targets, alpha=0.0)
    torch.testing.assert_close(totals.loss, expected)
    assert_close(list(torch.autograd.grad(totals.loss, (hidden, weight))), list(reference), 1e-5)


@pytest.mark.parametrize("factor", [1.0, -3.0, 1 / 13])
@pytest.mark.parametrize("scale", [1.0, 1 / 13])
def test_any_factor_before_the_backward_pass_is_right(problem: Any, factor: float, scale: float) -> None:
    (hidden, weight, _), labels, targets = problem
    results = []
    for dense in (False, True):
        own, head = leaves(hidden, weight, dtype=torch.float32)
        logits = FactoredLogits((own,), (head,))
        totals = student_objective(logits.dense() if dense else logits, labels, targets, alpha=ALPHA, scale=scale)
        (totals.loss * factor).backward()
        results.append([own.grad, head.grad])
    assert_close(results[0], results[1], 1e-5)


def test_micro_batches_add_up_to_the_batch(problem: Any) -> None:
    (hidden, weight, _), labels, targets = problem
    whole = leaves(hidden, weight, None, dtype=torch.float32)
    gradients(whole, labels, targets, dense=False)
    own, head = leaves(hidden, weight, dtype=torch.float32)
    for rows in (slice(0, 5), slice(5, 6), slice(6, 13)):
        part = targets.rows(rows)
        totals = student_objective(FactoredLogits((own[rows],), (head,)), labels[rows], part, alpha=ALPHA)
        (totals.loss / len(labels)).backward()
    assert_close([own.grad, head.grad], [whole[0].grad, whole[1].grad], 1e-5)


def test_weights_of_zero_leave_the_hard_labels_alone(problem: Any) -> None:
    tensors, labels, targets = problem
    silent = targets._replace(weights=torch.zeros(13))
    first = gradients(leaves(*tensors, dtype=torch.float32), labels, silent, dense=False)
    second = gradients(leaves(*tensors, dtype=torch.float32), labels, None, dense=False)
    assert_close(first[1], second[1], 1e-6)


def test_a_tied_embedding_collects_both_gradients(problem: Any) -> None:
    (_, weight, _), labels, targets = problem
    results = []
    for dense in (False, True):
        (tied,) = leaves(weight, dtype=torch.float32)
        logits = FactoredLogits((torch.nn.functional.embedding(labels, tied).tanh(),), (tied,))
        student_objective(logits.dense() if dense else logits, labels, targets, alpha=ALPHA).loss.backward()
        results.append([tied.grad])
    assert_close(results[0], results[1], 1e-5)


def test_an_adapter_on_the_head_gets_the_gradient_of_the_merged_weight(problem: Any) -> None:
    (hidden, weight, _), labels, targets = problem
    down, up = torch.randn(3, 8, generator=generator(1)), torch.randn(301, 3, generator=generator(2))
    results = []
    for dense in (False, True):
        own, a, b = leaves(hidden, down, up, dtype=torch.float32 if not dense else torch.float64)
        if dense:
            logits: Any = own @ (weight.double() + 2.0 * b @ a).T
        else:
            logits = FactoredLogits((own, 2.0 * own @ a.T), (weight, b))
        student_objective(logits, labels, targets, alpha=ALPHA).loss.backward()
        results.append([own.grad, a.grad, b.grad])
    assert_close(results[0], results[1], 1e-5)


@pytest.mark.parametrize("is_autocast", [True, False])
def test_bfloat16_gradients_are_as_near_as_those_of_the_dense_path(problem: Any, is_autocast: bool) -> None:
    # Weights in bfloat16, or float32 weights under autocast.
    tensors, labels, targets = problem
    dtype = torch.float32 if is_autocast else torch.bfloat16
    rounded = [None if tensor is None else tensor.bfloat16() for tensor in tensors]
    _, reference = gradients(leaves(*rounded, dtype=torch.float64), labels, targets, dense=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_autocast):
        _, ours = gradients(leaves(*rounded, dtype=dtype), labels, targets, dense=False)
        _, dense = gradients(leaves(*rounded, dtype=dtype), labels, targets, dense=True)
    for own, other, expected in zip(ours, dense, reference, strict=True):
        assert own.dtype == dtype
        error, usual = (own.double() - expected).norm(), (other.double() - expected).norm()
        assert error <= 1.5 * usual + 1e-9
        assert error <= 0.02 * expected.norm()


def test_the_weights_gradient_does_not_lose_small_chunks_in_bfloat16() -> None:
    # 256 equal contributions: a sum kept in bfloat16 stops growing, one kept in float32 does not.
    hidden = torch.ones(1024, 1, dtype=torch.bfloat16)
    weight = torch.zeros(301, 1, dtype=torch.bfloat16).requires_grad_()
    student_objective(FactoredLogits((hidden,), (weight,)), torch.zeros(1024).long(), None, alpha=0.0).loss.backward()
    torch.testing.assert_close(weight.grad[0, 0].float().item(), -1024 * 300 / 301, rtol=5e-3, atol=0)  # type: ignore[index]


def two_terms(targets: TargetBatch, prior: TargetBatch) -> Any:
    def objective(student: tuple[BucketedLogprobs, ...], rows: slice) -> tuple[Tensor, Tensor]:
        main = bucketed_forward_kl(student[0], targets.logprobs[rows], targets.tail_logprob[rows])
        other = bucketed_forward_kl(student[1], prior.logprobs[rows], prior.tail_logprob[rows])
        loss = (main + 0.3 * other - 0.2 * student[0].label_logprobs).sum()
        return loss, torch.stack([main.detach().sum(), other.detach().sum()])

    return objective


@pytest.mark.parametrize("vocab", [8, 301])  # 8: the two sets overlap in most of their tokens
def test_two_sets_of_tokens_are_two_dense_terms(vocab: int) -> None:
    rng = generator(3)
    hidden, weight = torch.randn(13, 8, generator=rng), torch.randn(vocab, 8, generator=rng)
    labels = torch.randint(vocab, (13,), generator=rng)
    targets, prior = random_targets(13, vocab, 6), random_targets(13, vocab, 4, seed=9)
    own, head = leaves(hidden, weight, dtype=torch.float64)
    logits = own @ head.T
    student = tuple(bucketed_logprobs(logits, some.token_ids, labels) for some in (targets, prior))
    expected, sums = two_terms(targets, prior)(student, slice(None))
    reference = torch.autograd.grad(expected, (own, head))
    own, head = leaves(hidden, weight, dtype=torch.float32)
    ids = [targets.token_ids, prior.token_ids]
    loss, report = fused_loss(FactoredLogits((own,), (head,)), ids, labels, two_terms(targets, prior))
    torch.testing.assert_close(report.double(), sums, rtol=1e-4, atol=1e-5)
    assert_close(list(torch.autograd.grad(loss, (own, head))), list(reference), 1e-5)


def test_a_small_tail_keeps_its_relative_precision() -> None:
    scores = torch.tensor([[0.0, -40.0, -41.0]])
    student: list[BucketedLogprobs] = []

    def objective(buckets: tuple[BucketedLogprobs, ...], rows: slice) -> tuple[Tensor, Tensor]:
        student.append(buckets[0])
        return buckets[0].tail_logprob.sum(), torch.zeros(1)

    fused_loss(FactoredLogits((scores,), (torch.eye(3),)), [torch.tensor([[0]])], torch.tensor([0]), objective)
    expected = scores.double()[0, 1:].logsumexp(-1) - scores.double()[0].logsumexp(-1)
    assert student[0].tail_logprob.item() == pytest.approx(expected.item(), rel=1e-6)


def test_tokens_without_a_chance_cost_nothing(problem: Any) -> None:
    # A bias of -inf takes a token out; the others' gradients are those of the smaller vocabulary.
    (hidden, weight, _), labels, _ = problem
    labels = labels % 300
    bias = torch.zeros(301)
    bias[300] = -torch.inf
    _, ours = gradients(leaves(hidden, weight, bias, dtype=torch.float32), labels, None, dense=False)
    _, less = gradients(leaves(hidden, weight, None, dtype=torch.float32), labels, None, dense=False, vocab_size=300)
    assert_close(ours[:2], less, 1e-6)
    assert all(torch.isfinite(gradient).all() for gradient in ours)


class Watch(torch.utils._python_dispatch.TorchDispatchMode):
    """Shapes of all tensors that operations return, views of ``known`` left out."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.shapes = known.data_ptr(), list[tuple[int, ...]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        outputs = [out for out in (result if isinstance(result, tuple | list) else [result]) if isinstance(out, Tensor)]
        self.shapes += [tuple(out.shape) for out in outputs if out.data_ptr() != self.known]
        return result


@pytest.mark.parametrize("is_frozen", [False, True])
def test_no_tensor_is_larger_than_a_chunk_and_a_frozen_weight_has_no_gradient(problem: Any, is_frozen: bool) -> None:
    (hidden, weight, _), labels, targets = problem
    hidden, weight = leaves(hidden, weight, dtype=torch.float32)
    weight.requires_grad_(not is_frozen)
    with Watch(weight) as watch:
        student_objective(FactoredLogits((hidden,), (weight,)), labels, targets, alpha=ALPHA).loss.backward()
    assert max(shape[0] for shape in watch.shapes if shape[1:] == (301,)) == 4
    assert ((301, 8) in watch.shapes) != is_frozen
    assert (weight.grad is None) == is_frozen


def test_without_gradients_only_the_loss_is_computed(problem: Any) -> None:
    (hidden, weight, _), labels, targets = problem
    hidden, weight = leaves(hidden, weight, dtype=torch.float32)
    logits = FactoredLogits((hidden,), (weight,))
    with torch.no_grad():
        quiet = student_objective(logits, labels, targets, alpha=ALPHA).loss
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, student_objective(logits, labels, targets, alpha=ALPHA).loss.detach())


def test_a_second_backward_pass_is_refused(problem: Any) -> None:
    (hidden, weight, _), labels, targets = problem
    (hidden,) = leaves(hidden, dtype=torch.float32)
    loss = student_objective(FactoredLogits((hidden,), (weight,)), labels, targets, alpha=ALPHA).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="compute the loss again"):
        loss.backward()


def test_shapes_and_tokens_that_do_not_fit_are_refused(problem: Any) -> None:
    (hidden, weight, _), labels, targets = problem
    good = FactoredLogits((hidden,), (weight,))
    wrong = [
        (good._replace(inputs=(hidden[:, :4],)), labels, targets),
        (good._replace(bias=torch.zeros(7)), labels, targets),
        (good._replace(vocab_size=302), labels, targets),
        (good, labels[:5], targets),
        (good, labels + 301, None),
        (good, labels - 301, None),
        (good._replace(vocab_size=10), labels % 10, targets._replace(token_ids=targets.token_ids.clamp_min(10))),
    ]
    for logits, some_labels, some_targets in wrong:
        with pytest.raises(ShapeError, match="expected"):
            student_objective(logits, some_labels, some_targets, alpha=ALPHA)
