"""Error of the fused loss's float32 gradients against float64: ``python benchmarks/objective/accuracy.py``.

The reference is the dense function with every tensor in float64, on the problem of ``compare.py`` with fewer tokens.
Printed for each vocabulary: the norm of the error over the norm of the gradient, and the largest error over the largest
gradient, of hidden states and weight; the same for the dense function in float32.
"""

import argparse

import torch
from torch import Tensor

from proxykd.factored_logits import FactoredLogits
from proxykd.student.objective import TargetBatch, student_objective


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-sizes", type=int, nargs="+", default=[32_000, 151_936, 262_144])
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=896)
    parser.add_argument("--top-k", type=int, default=50)
    given = parser.parse_args()
    print("| V | path | hidden: norm | hidden: largest | weight: norm | weight: largest |\n|---|---|---|---|---|---|")
    for vocab_size in given.vocab_sizes:
        compare(vocab_size, given.tokens, given.hidden, given.top_k)


def compare(vocab_size: int, tokens: int, hidden_size: int, top_k: int) -> None:
    """One vocabulary."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, hidden_size), torch.randn(vocab_size, hidden_size).mul_(0.05)
    labels = torch.randint(vocab_size, (tokens,))
    ids = (labels[:, None] + 7919 * torch.arange(top_k)) % vocab_size
    logprobs = torch.randn(tokens, top_k + 1).mul_(2.0).log_softmax(dim=-1)
    targets = TargetBatch(ids, logprobs[:, :-1], logprobs[:, -1], torch.full((tokens,), 0.5))
    reference = gradients(hidden.double(), weight.double(), labels, targets, is_fused=False)
    for name, is_fused in (("fused", True), ("dense", False)):
        errors = []
        for own, expected in zip(gradients(hidden, weight, labels, targets, is_fused=is_fused), reference, strict=True):
            error = own.double().sub_(expected)
            errors += [error.norm() / expected.norm(), error.abs().max() / expected.abs().max()]
        print(
            f"| {vocab_size:,} | {name} | " + " | ".join(f"{float(error):.1e}" for error in errors) + " |", flush=True
        )


def gradients(
    hidden: Tensor, weight: Tensor, labels: Tensor, targets: TargetBatch, *, is_fused: bool
) -> tuple[Tensor, ...]:
    """Of the mean loss, towards hidden states and weight."""
    hidden, weight = hidden.clone().requires_grad_(), weight.detach().requires_grad_()
    logits = FactoredLogits((hidden,), (weight,))
    loss = student_objective(logits if is_fused else logits.dense(), labels, targets, alpha=1.0).loss / len(labels)
    return torch.autograd.grad(loss, (hidden, weight))


if __name__ == "__main__":
    main()
