"""The student's own texts, written while it learns, alone or with the proxy's help."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from proxykd.config.living import GkdSpec, MiniLlmSpec
from proxykd.data.tokenizing import Example
from proxykd.models.sampling import Mixture, TransformersSampler, sample_examples
from proxykd.student.dense_pass import ModelPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def write_own_texts(
    models: ModelPair,
    tokenizer: "PreTrainedTokenizerBase",
    spec: GkdSpec | MiniLlmSpec,
    examples: Sequence[Example],
    *,
    vocab_size: int,
    max_seq_tokens: int,
    seed: int,
) -> list[Example]:
    """A text of the student's own for the prompt of every example.

    Args:
        models: The student, put back into training mode afterwards if it was in it, and the proxy.
        tokenizer: Theirs.
        spec: Longest text; at which temperature (``gkd``), or with how much of the proxy (``minillm``).
        examples: The teacher's texts of the same prompts.
        vocab_size: The first so many tokens alone are drawn.
        max_seq_tokens: Longest prompt plus text.
        seed: Same models, prompts and seed: same texts.

    Returns:
        One for each, of one token at least; it ends with eos unless it was cut.
    """
    mix, temperature = 0.0, 1.0
    if isinstance(spec, MiniLlmSpec):
        mix = spec.teacher_mix
    else:
        temperature = spec.sampling_temperature
    sampler = TransformersSampler(
        models.student,
        tokenizer,
        precision=models.precision,
        description=None,
        mixture=Mixture(models.proxy, mix) if mix > 0.0 else None,
        vocab_size=vocab_size,
    )
    room = max_seq_tokens - min(len(example.prompt_ids) for example in examples)
    return sample_examples(
        examples,
        sampler,
        max_new_tokens=min(spec.max_new_tokens, room),
        max_seq_tokens=max_seq_tokens,
        temperature=temperature,
        seed=seed,
    )
