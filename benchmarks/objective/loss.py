"""One contender's loss over a head, forward and backward, once: writes ``report.json`` into ``--folder``.

Each gets hidden states [tokens, hidden] and a head's weight [vocab, hidden] that wants gradients, and the teacher in
the form that it takes: k tokens and a tail a position for ours, a second head with its own hidden states for the peers,
which know no other, the label for cross-entropy. The peers' term is forward KL (``beta=0``); ours has the NLL of the
label besides. Run by ``compare.py``, in a process of its own.
"""

import argparse
import json
import resource
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


class Problem:
    """What all contenders are given.

    Attributes:
        hidden: float32 [tokens, hidden].
        weight: float32 [vocab, hidden].
        labels: int64 [tokens].
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.top_k, self.liger_chunk = given.top_k, given.liger_chunk
        self.hidden = self.random(given.tokens, given.hidden, scale=1.0).requires_grad_()
        self.weight = self.random(given.vocab_size, given.hidden, scale=0.05).requires_grad_()
        self.labels = torch.randint(given.vocab_size, (given.tokens,), generator=self.generator)

    def random(self, *shape: int, scale: float) -> Tensor:
        """Normal values; filled in place, so that no second copy adds to the peak."""
        return torch.empty(shape).normal_(0.0, scale, generator=self.generator)

    def teacher(self) -> tuple[Tensor, Tensor]:
        """Hidden states and weight of a live teacher head."""
        return self.random(*self.hidden.shape, scale=1.0), self.random(*self.weight.shape, scale=0.05)


def ours(problem: Problem) -> Callable[[int], Tensor]:
    """``student_objective`` of proxykd: NLL + KL on sparse cached targets."""
    from proxykd.factored_logits import FactoredLogits
    from proxykd.student.objective import TargetBatch, student_objective

    tokens, vocab_size = len(problem.hidden), len(problem.weight)
    # Distinct within a row, for the step is a prime that divides no vocabulary here.
    ids = (problem.labels[:, None] + 7919 * torch.arange(problem.top_k)) % vocab_size
    logprobs = problem.random(tokens, problem.top_k + 1, scale=2.0).log_softmax(dim=-1)
    targets = TargetBatch(ids, logprobs[:, :-1], logprobs[:, -1], torch.full((tokens,), 0.5))

    def loss(count: int) -> Tensor:
        logits = FactoredLogits((problem.hidden[:count],), (problem.weight,))
        part = targets.rows(slice(count))
        return student_objective(logits, problem.labels[:count], part, alpha=1.0, scale=1 / count).loss / count

    return loss


def dense(problem: Problem) -> Callable[[int], Tensor]:
    """Plain cross-entropy on all logits: no distillation at all."""
    return lambda count: cross_entropy(problem.hidden[:count] @ problem.weight.t(), problem.labels[:count])


def trl_gkd(problem: Problem) -> Callable[[int], Tensor]:
    """``GKDTrainer.generalized_jsd_loss`` on both models' logits."""
    from trl.experimental.gkd import GKDTrainer

    hidden, weight = problem.teacher()

    def loss(count: int) -> Tensor:
        student = problem.hidden[:count] @ problem.weight.t()
        teacher = hidden[:count] @ weight.t()
        return GKDTrainer.generalized_jsd_loss(student[None], teacher[None], problem.labels[None, :count], beta=0.0)

    return loss


def trl_chunked(problem: Problem) -> Callable[[int], Tensor]:
    """``ChunkedDivergenceFunction`` as TRL's trainers call it."""
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    hidden, weight = problem.teacher()

    def loss(count: int) -> Tensor:
        student, teacher = (problem.hidden[:count], problem.weight, None), (hidden[:count], weight, None)
        divergence: Tensor = ChunkedDivergenceFunction.apply(*student, *teacher, 0.0)[0]
        return divergence.sum() / count

    return loss


def liger(problem: Problem) -> Callable[[int], Tensor]:
    """``LigerFusedLinearJSDLoss``, soft term alone, not compiled: there is no GPU."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    hidden, weight = problem.teacher()
    function = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False, chunk_size=problem.liger_chunk
    )
    return lambda count: function(
        problem.hidden[:count], problem.weight, hidden[:count], weight, problem.labels[:count]
    )


CONTENDERS = {"proxykd": ours, "dense-ce": dense, "trl-gkd": trl_gkd, "trl-chunked": trl_chunked, "liger-jsd": liger}


def main() -> None:
    """Build the problem, take a small step to wake the libraries, then time a whole one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", choices=CONTENDERS, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--top-k", type=int, required=True)
    parser.add_argument("--liger-chunk", type=int, required=True)
    given = parser.parse_args()
    problem = Problem(given)
    loss = CONTENDERS[given.contender](problem)
    before_mb = _peak_mb()
    loss(min(8, given.tokens)).backward()
    problem.hidden.grad = problem.weight.grad = None
    start, start_cpu = time.perf_counter(), time.process_time()
    loss(given.tokens).backward()
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    report = {"seconds": seconds, "cpu_s": cpu_s, "before_mb": before_mb, "peak_mb": _peak_mb()}
    report["gradient_norm"] = float(problem.weight.grad.norm())  # type: ignore[union-attr]
    report["threads"], report["versions"] = torch.get_num_threads(), _versions("torch", "trl", "liger-kernel")
    (given.folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def _peak_mb() -> float:
    """Largest resident memory of this process so far, in units of 10^6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _versions(*packages: str) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
