"""AdamW and the course of its learning rate."""

import math

import torch

from proxykd.config.models import OptimizerSpec


def build_optimizer(model: torch.nn.Module, spec: OptimizerSpec, *, learning_rate: float) -> torch.optim.AdamW:
    """AdamW over the trainable weights; only matrices decay (norms and biases have no direction to shrink in)."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)


def learning_rate_factor(step: int, *, num_steps: int, spec: OptimizerSpec) -> float:
    """Share of the peak learning rate in step ``step`` = 0 .. num_steps - 1, in (0, 1].

    Rises linearly over the warm-up (its last step has the peak), then follows ``spec.schedule``; cosine and linear
    would reach 0 in step ``num_steps``.

    Example:
        >>> spec = OptimizerSpec(warmup_ratio=0.5, schedule="linear")
        >>> [learning_rate_factor(step, num_steps=4, spec=spec) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    num_warmup = math.ceil(spec.warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / (num_steps - num_warmup)
    if spec.schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0 - progress if spec.schedule == "linear" else 1.0
