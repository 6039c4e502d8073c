"""Completions from vLLM, where it is installed: a ``CompletionSampler`` over its offline engine.

Imported when a specification asks for it. The engine keeps its own batches (continuous batching), so the order and
the sizes of what is asked do not matter to it.
"""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from proxykd.exceptions import ConfigError
from proxykd.models.sampling import rooms_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VllmSampler:
    """Samples from a vLLM engine.

    Args:
        engine: A ``vllm.LLM``.
        sampling_params: The class ``vllm.SamplingParams``.
        eos_id: The end token.
    """

    def __init__(self, engine: Any, sampling_params: Callable[..., Any], *, eos_id: int) -> None:
        self._engine, self._sampling_params, self._eos_id = engine, sampling_params, eos_id
        self._stops: list[str] = []

    @classmethod
    def of_folder(cls, folder: Path, tokenizer: "PreTrainedTokenizerBase", *, precision: str) -> Self:
        """An engine over a model folder.

        Args:
            folder: As ``save_model`` wrote it.
            tokenizer: The model's.
            precision: Arithmetic, as in ``ModelSpec.precision``.

        Raises:
            ConfigError: if vLLM is not installed.
        """
        try:
            from vllm import LLM, SamplingParams
        except ImportError as error:
            raise ConfigError(
                "evaluation.engine=vllm needs vLLM, found none; install it (pip install vllm, on a machine with an "
                "accelerator) or set evaluation.engine=transformers"
            ) from error
        engine = LLM(model=str(folder), dtype=precision, seed=0, trust_remote_code=False)
        return cls(engine, SamplingParams, eos_id=tokenizer.eos_token_id)

    def with_stops(self, is_ended: Callable[[Sequence[int]], bool], stops: Sequence[str]) -> Self:
        """The same engine; completions also end at ``stops``, which vLLM looks for itself."""
        stopping = copy.copy(self)
        stopping._stops = list(stops)
        return stopping

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        max_seq_tokens: int | None = None,
    ) -> list[list[int]]:
        """See ``CompletionSampler.sample``; each row has a seed of its own, made from ``seed`` and its place."""
        asked = [{"prompt_token_ids": list(map(int, prompt))} for prompt in prompts]
        common = {"temperature": temperature, "stop": self._stops or None}
        params = [
            self._sampling_params(**common, max_tokens=room, seed=(seed + row) % (1 << 63))
            for row, room in enumerate(rooms_of(prompts, max_new_tokens, max_seq_tokens))
        ]
        outputs = self._engine.generate(asked, params, use_tqdm=False)
        return [self._completion(output.outputs[0]) for output in outputs]

    def _completion(self, output: Any) -> list[int]:
        # "stop" without a stop_reason = the end token, which vLLM may or may not leave among the tokens.
        completion = list(map(int, output.token_ids))
        is_ended = output.finish_reason == "stop" and output.stop_reason is None
        return [*completion, self._eos_id] if is_ended and completion[-1:] != [self._eos_id] else completion
