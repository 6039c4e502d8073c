"""The seam to vLLM, against a scripted engine; the engine itself needs an accelerator and is not run here."""

from types import SimpleNamespace
from typing import Any

from proxykd.models.vllm_sampling import VllmSampler

EOS = 2


class Engine:
    """Answers as vLLM's offline engine does, from a script, and remembers what it was asked."""

    def __init__(self, *outputs: tuple[list[int], str, str | None]) -> None:
        self._outputs = outputs
        self.asked: list[Any] = []

    def generate(self, prompts: Any, params: Any, *, use_tqdm: bool) -> list[Any]:
        self.asked = list(zip(prompts, params, strict=True))
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason=reason, stop_reason=stop)])
            for ids, reason, stop in self._outputs
        ]


def test_completions_end_with_the_end_token_only_where_the_model_ended_them() -> None:
    engine = Engine(([5, EOS], "stop", None), ([5], "stop", None), ([5, 6], "length", None), ([5, 7], "stop", "x"))
    sampler = VllmSampler(engine, SimpleNamespace, eos_id=EOS)
    found = sampler.sample([[1]] * 4, max_new_tokens=2, temperature=0.0, seed=0)
    assert found == [[5, EOS], [5, EOS], [5, 6], [5, 7]]


def test_every_row_is_asked_with_its_own_seed_and_the_stops() -> None:
    engine = Engine(([5], "length", None), ([6], "length", None))
    sampler = VllmSampler(engine, SimpleNamespace, eos_id=EOS).with_stops(lambda _: False, ["\n"])
    sampler.sample([[1, 3], [4]], max_new_tokens=9, temperature=0.7, seed=10)
    assert [prompt for prompt, _ in engine.asked] == [{"prompt_token_ids": [1, 3]}, {"prompt_token_ids": [4]}]
    assert [(one.max_tokens, one.temperature, one.stop, one.seed) for _, one in engine.asked] == [
        (9, 0.7, ["\n"], 10),
        (9, 0.7, ["\n"], 11),
    ]
