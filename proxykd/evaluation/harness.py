"""lm-evaluation-harness with our model behind it: its tasks, its prompts, its filters, its verdicts.

The harness asks an ``LM`` three things; all three go through a ``Respondent``, so that they are batched and journaled.
Contexts and continuations are split into tokens by the harness's own rule (``TemplateLM``). The harness is part of the
extra ``pipeline`` and is imported when a task runs, not before.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from proxykd.evaluation.generation import Generation, Respondent
from proxykd.exceptions import ModelError

NEW_TOKENS = 256
"""Longest completion where a task of the harness says nothing (the harness's own default)."""


def run_tasks(
    tasks: Mapping[str, Any], answering: Respondent | Sequence[str], **settings: Any
) -> dict[str, list[dict[str, Any]]]:
    """The harness's samples of each task, in the order of its documents.

    Args:
        tasks: Name -> task object.
        answering: The model; or the texts that a model has written, one for each document of the one task.
        settings: Of ``lm_eval.evaluator.evaluate``.

    Raises:
        ModelError: if lm-evaluation-harness is not installed.
    """
    harness = load_harness()
    model = _model_class()(answering) if isinstance(answering, Respondent) else _recorded_class()(answering)
    with quiet():
        results = harness.evaluate(model, {"tasks": dict(tasks)}, bootstrap_iters=0, **settings)
    return {
        name: sorted(samples, key=lambda sample: int(sample["doc_id"])) for name, samples in results["samples"].items()
    }


def local_task(name: str, documents: Sequence[Mapping[str, Any]], **config: Any) -> Any:
    """A ``ConfigurableTask`` over documents in memory; nothing is downloaded.

    Args:
        name: Of the task.
        documents: Its rows.
        config: Further keys of the harness's task configuration.

    Raises:
        ModelError: if lm-evaluation-harness is not installed.
    """
    import datasets

    rows = datasets.Dataset.from_list([dict(document) for document in documents])
    common = {"task": name, "custom_dataset": lambda **_: {"test": rows}, "test_split": "test", "num_fewshot": 0}
    harness = load_harness()
    with quiet():
        return harness.ConfigurableTask(config={**common, **config})


class _Harness:
    """The names of the harness that are used here."""

    def __init__(self) -> None:
        try:
            from lm_eval.api.model import LM, TemplateLM
            from lm_eval.api.task import ConfigurableTask
            from lm_eval.evaluator import evaluate
            from lm_eval.tasks import TaskManager
            from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
        except ImportError as error:
            raise ModelError("tasks need lm-evaluation-harness: pip install 'proxykd[pipeline]'") from error
        self.LM, self.TemplateLM = LM, TemplateLM
        self.ConfigurableTask, self.TaskManager = ConfigurableTask, TaskManager
        self.evaluate, self.rolling_windows, self.disjoint = evaluate, get_rolling_token_windows, make_disjoint_window


@cache
def load_harness() -> Any:
    """The harness, imported now.

    Raises:
        ModelError: if it is not installed.
    """
    with quiet():
        return _Harness()


@cache
def _recorded_class() -> Any:
    harness = load_harness()

    class Recorded(harness.LM):  # type: ignore[misc, name-defined]
        """Texts that were written before, as a model of the harness: it judges them, and asks nobody."""

        def __init__(self, texts: Sequence[str]) -> None:
            super().__init__()
            self.texts = texts

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [self.texts[request.doc_id] for request in requests]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise NotImplementedError("recorded texts have no likelihood")

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("recorded texts have no likelihood")

    return Recorded


@cache
def _model_class() -> Any:
    harness = load_harness()

    class HarnessModel(harness.TemplateLM):  # type: ignore[misc, name-defined]
        """A ``Respondent`` as the harness wants it."""

        def __init__(self, respondent: Respondent) -> None:
            super().__init__()
            self.respondent, self.tokenizer = respondent, respondent.tokenizer

        @property
        def eot_token_id(self) -> int:
            return int(self.tokenizer.eos_token_id)

        @property
        def prefix_token_id(self) -> int:
            bos = self.tokenizer.bos_token_id
            return self.eot_token_id if bos is None else int(bos)

        @property
        def tokenizer_name(self) -> str:
            return str(self.tokenizer.name_or_path).replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return _encode(self.tokenizer, string, add_special_tokens)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return _chat(self.tokenizer, chat_history, add_generation_prompt)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            found = self.respondent.likelihoods([(context, continuation) for _, context, continuation in requests])
            return [(one.logprob, one.is_greedy) for one in found]

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [str(request.args[0]) for request in requests]
            return [_rolling(self.respondent, self.tok_encode(text), self.prefix_token_id) for text in texts]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return _generate(self.respondent, requests)

    return HarnessModel


def _chat(tokenizer: Any, history: list[dict[str, str]], add_generation_prompt: bool) -> str:
    how = {"add_generation_prompt": add_generation_prompt, "continue_final_message": not add_generation_prompt}
    return str(tokenizer.apply_chat_template(history, tokenize=False, **how))


def _rolling(respondent: Respondent, token_ids: list[int], prefix_id: int) -> float:
    """The log-likelihood of a whole text, in the harness's own windows where it is long."""
    harness = load_harness()
    windows = harness.rolling_windows(
        token_list=token_ids, prefix_token=prefix_id, max_seq_len=respondent.max_tokens - 1, context_len=1
    )
    found = respondent.likelihoods([harness.disjoint(window) for window in windows])
    return sum(one.logprob for one in found)


def _generate(respondent: Respondent, requests: list[Any]) -> list[str]:
    """Answers to requests that may each have settings of their own; those with the same are asked together."""
    texts = [""] * len(requests)
    groups: dict[Generation, list[int]] = {}
    for position, request in enumerate(requests):
        groups.setdefault(_generation_of(dict(request.args[1])), []).append(position)
    for how, positions in groups.items():
        prompts = [_encode(respondent.tokenizer, str(requests[position].args[0]), None) for position in positions]
        for position, completion in zip(positions, respondent.generate(prompts, how), strict=True):
            texts[position] = respondent.decode(completion, how.stops)
    return texts


def _generation_of(settings: dict[str, Any]) -> Generation:
    until = settings.get("until") or []
    stops = tuple(stop for stop in ([until] if isinstance(until, str) else until) if stop)
    temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
    return Generation(int(settings.get("max_gen_toks") or NEW_TOKENS), temperature, stops=stops)


def _encode(tokenizer: Any, text: str, add_special_tokens: bool | None) -> list[int]:
    """The harness's rule: special tokens as the tokenizer adds them, but no second one at the start."""
    bos = tokenizer.bos_token
    if add_special_tokens is None and bos and text.startswith(bos):
        add_special_tokens = False
    extra = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
    return list(tokenizer(text, **extra).input_ids)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No bars and hints of the harness; our own progress writes to the real stream."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
