"""proxykd: a black-box LLM, reached through its API alone, becomes a small model that you own.

The way data takes, one room a stage (see ``docs/``):

    prompts -> teacher -> validation -> split -> proxy -> estimation -> student -> evaluation -> registry

Rooms:
    config       the run specification: one YAML file, frozen models, nothing heavy imported
    records      what a prompt and a completion are, in Python and in Parquet
    artifacts    folders with a manifest: the only thing that one stage hands to the next
    teacher      black-box access: engine, journal, and the recorded and the embedded teacher
    data         prompts in, chat rendering, tokenising, splits, quality verdicts
    models       loading, pruning, LoRA, batched forward passes and sampling of open models
    proxy        alignment of an open model to the teacher: warm-up, preference rounds, fidelity
    estimation   the teacher's next-token distributions: proxy, n-gram prior, posterior, evidence; sample weights
    targets      the sparse target store
    student      the objective (NLL + alpha * weighted divergence), other tokenizers, and the training run
    evaluation   held-out NLL, exact KL, tasks, statistics, the promotion decision, the report

Pure maths: divergences, fused (loss and gradients without all logits), factored_logits, transport, reductions,
logprobs, preferences. Use of a part alone: querying (the teacher engine), preview, plan.

The library never imports an orchestrator or a tracker: ZenML, MLflow and Great Expectations live in ``steps/``.
"""

__version__ = "0.1.0"
