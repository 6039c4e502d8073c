"""What a distillation takes at any size, as arithmetic: FLOP, hours, bytes, USD. Reads nothing.

Units are in the names: tokens, bytes, GB (1e9 bytes), hours, USD. N is a model's number of parameters; a pass over a
token costs 2 N FLOP forward and 4 N backward (Kaplan et al., arXiv:2001.08361), half of the backward pass where the
weights are frozen (LoRA: gradients of activations alone), and 2 N more where activations are computed again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

HOUR_S = 3600.0
LOADED, SAMPLED = 4.0, 2.0
"""Bytes a parameter: of any loaded model (float32, whatever its file holds); of the copy that writes in bfloat16."""
GB = 1e9
FORWARD, FULL_STEP, LORA_STEP, RECOMPUTE = 2.0, 6.0, 4.0, 2.0
"""FLOP a parameter and token: forward; forward and backward of all weights; of adapters alone; the second forward."""


@dataclass(frozen=True, slots=True)
class Device:
    """An accelerator.

    Attributes:
        name: As people say it.
        tflops: Dense bfloat16, 1e12 FLOP a second, by the data sheet.
        gb_per_s: Memory bandwidth.
        gb: Memory.
        usd_per_hour: List price of one, on demand.
        place: Where that price is asked, and when it was read.
    """

    name: str
    tflops: float
    gb_per_s: float
    gb: float
    usd_per_hour: float
    place: str


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Which share of the data sheet's rate is reached; assumptions, in (0, 1]."""

    training: float = 0.40
    forward: float = 0.50
    sampling: float = 0.15


@dataclass(frozen=True, slots=True)
class Account:
    """What the teacher's provider allows and asks.

    Attributes:
        requests_per_minute: Calls.
        tokens_per_minute: Tokens in and out together.
        usd_in: USD a million prompt tokens.
        usd_out: USD a million completion tokens.
    """

    requests_per_minute: float
    tokens_per_minute: float
    usd_in: float
    usd_out: float


@dataclass(frozen=True, slots=True)
class Model:
    """A transformer.

    Attributes:
        name: As people say it.
        parameters: N.
        kv_bytes: Keys and values of a token in bfloat16, all layers; 0 where it writes nothing.
    """

    name: str
    parameters: float
    kv_bytes: float = 0.0


@dataclass(frozen=True, slots=True)
class Corpus:
    """The teacher's texts.

    Attributes:
        texts: How many.
        prompt_tokens: Mean prompt.
        completion_tokens: Mean completion.
        most_heldout: Held-out texts at most; fewer where a tenth is fewer.
    """

    texts: int
    prompt_tokens: int = 200
    completion_tokens: int = 300
    most_heldout: int = 20_000

    @property
    def heldout(self) -> int:
        """Texts that no model learns from."""
        return min(self.texts // 10, self.most_heldout)

    @property
    def training(self) -> int:
        """Texts that models learn from."""
        return self.texts - self.heldout

    @property
    def length(self) -> int:
        """Tokens of a text with its prompt."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def training_tokens(self) -> int:
        """Tokens of all training texts with their prompts."""
        return self.training * self.length

    @property
    def positions(self) -> int:
        """Positions of the target store: completion tokens of the training texts."""
        return self.training * self.completion_tokens


@dataclass(frozen=True, slots=True)
class Rates:
    """What was measured on two cores (docs name where).

    Attributes:
        asked_per_s: Calls of the query engine, one process.
        journal_bytes: A journaled answer without its text.
        validated_per_s: Rows through every rule, two cores.
        store_bytes: k -> bytes a position of the coded target store.
        encoded_per_s: k -> positions written a second, one core.
        ngram_bytes: Bytes a counted token of the n-gram prior, on disk.
        counted_per_s: Tokens counted a second, two cores.
        characters_per_token: Of a text.
    """

    asked_per_s: float
    journal_bytes: float
    validated_per_s: float
    store_bytes: Mapping[int, float]
    encoded_per_s: Mapping[int, float]
    ngram_bytes: float
    counted_per_s: float
    characters_per_token: float = 4.0


def gpu_hours(flop: float, device: Device, utilisation: float) -> float:
    """Hours of one device; linear in the work.

    Raises:
        ValueError: if the utilisation is not in (0, 1].
    """
    if not 0.0 < utilisation <= 1.0:
        raise ValueError(f"expected a utilisation in (0, 1], got {utilisation}")
    return flop / (device.tflops * 1e12 * utilisation) / HOUR_S


def query_hours(corpus: Corpus, account: Account, rates: Rates) -> float:
    """The slowest of three: the account's calls, its tokens, and the engine."""
    by_calls = corpus.texts / account.requests_per_minute / 60
    by_tokens = corpus.texts * corpus.length / account.tokens_per_minute / 60
    return max(by_calls, by_tokens, corpus.texts / rates.asked_per_s / HOUR_S)


def query_usd(corpus: Corpus, account: Account, *, discount: float = 0.0) -> float:
    """The teacher's bill, each prompt answered once."""
    a_text = corpus.prompt_tokens * account.usd_in + corpus.completion_tokens * account.usd_out
    return corpus.texts * a_text * (1.0 - discount) / 1e6


def journal_gb(corpus: Corpus, rates: Rates, *, is_sharded: bool = False) -> float:
    """The journal with all answers; shards keep their own copies of them beside it."""
    text = corpus.completion_tokens * rates.characters_per_token
    return (2 if is_sharded else 1) * corpus.texts * (rates.journal_bytes + text) / GB


def validation_hours(corpus: Corpus, rates: Rates) -> float:
    """Two cores."""
    return corpus.texts / rates.validated_per_s / HOUR_S


def warmup_flop(corpus: Corpus, proxy: Model) -> float:
    """SFT of adapters on every training text once, activations computed again."""
    return corpus.training_tokens * (LORA_STEP + RECOMPUTE) * proxy.parameters


def preference_flop(corpus: Corpus, proxy: Model) -> float:
    """DPO of adapters on a pair for every training text: policy and reference see the chosen and the rejected text."""
    return 2 * corpus.training_tokens * (LORA_STEP + RECOMPUTE + FORWARD) * proxy.parameters


def sampling_tokens_per_s(
    proxy: Model, device: Device, *, devices: int, texts: int, length: int, utilisation: float
) -> float:
    """Tokens that a model writes on a group of devices, by the roofline.

    A pass writes one token of each text; it takes as long as reading all weights, keys and values, or as the
    arithmetic, whichever is longer.

    Args:
        proxy: Who writes.
        device: On what.
        devices: How many share the model.
        texts: Written together.
        length: Tokens of a text so far, on average.
        utilisation: Share of the roofline.

    Raises:
        ValueError: if weights, keys and values do not fit.
    """
    weights, cache = SAMPLED * proxy.parameters, texts * length * proxy.kv_bytes
    if (held := LOADED * proxy.parameters + weights + cache) > devices * device.gb * GB:
        raise ValueError(
            f"expected {devices} {device.name} to hold {held / GB:.0f} GB, they have "
            f"{devices * device.gb:.0f}; take more of them or write fewer texts together"
        )
    reading = (weights + cache) / (devices * device.gb_per_s * GB)
    arithmetic = texts * FORWARD * proxy.parameters / (devices * device.tflops * 1e12)
    return texts * utilisation / max(reading, arithmetic)


def sampling_hours(corpus: Corpus, proxy: Model, device: Device, utilisation: float) -> float:
    """Hours of one device for one text of the proxy's own a training text; eight devices share the model."""
    rate = sampling_tokens_per_s(proxy, device, devices=8, texts=256, length=corpus.length, utilisation=utilisation)
    return 8 * corpus.training * corpus.completion_tokens / rate / HOUR_S


def estimation_flop(corpus: Corpus, proxy: Model) -> float:
    """One forward pass over every training text with its prompt."""
    return corpus.training_tokens * FORWARD * proxy.parameters


def store_gb(corpus: Corpus, rates: Rates, k: int) -> float:
    """The coded target store."""
    return corpus.positions * rates.store_bytes[k] / GB


def encoding_core_hours(corpus: Corpus, rates: Rates, k: int) -> float:
    """Processor time of writing it."""
    return corpus.positions / rates.encoded_per_s[k] / HOUR_S


def ngram_gb(corpus: Corpus, rates: Rates) -> float:
    """The n-gram prior's counts; an upper bound, because contexts repeat more in a larger corpus."""
    return corpus.positions * rates.ngram_bytes / GB


def ngram_hours(corpus: Corpus, rates: Rates) -> float:
    """Counting, two cores."""
    return corpus.positions / rates.counted_per_s / HOUR_S


def distillation_flop(corpus: Corpus, student: Model, *, arms: int = 2) -> float:
    """Every training text once, in every arm, activations computed again."""
    return arms * corpus.training_tokens * (FULL_STEP + RECOMPUTE) * student.parameters


def evaluation_flop(corpus: Corpus, proxy: Model, student: Model) -> float:
    """Held-out texts scored by the proxy and by three students: untrained, SFT, Proxy-KD."""
    return corpus.heldout * corpus.length * FORWARD * (proxy.parameters + 3 * student.parameters)


def weights_gb(model: Model, *, is_sampled: bool = False) -> float:
    """A loaded model, with the copy that writes while it does."""
    return (LOADED + (SAMPLED if is_sampled else 0.0)) * model.parameters / GB


def most_parameters(device: Device, *, is_sampled: bool = False, usable: float = 0.8) -> float:
    """The largest model whose weights one device holds; the proxy is on one device whole, in every process."""
    return usable * device.gb * GB / (LOADED + (SAMPLED if is_sampled else 0.0))


def texts_gb(corpus: Corpus, rates: Rates) -> float:
    """Prompts and completions as one artifact, not compressed: an upper bound."""
    return corpus.texts * corpus.length * rates.characters_per_token / GB


def artifacts_gb(corpus: Corpus, rates: Rates, *, proxy: Model, student: Model, k: int = 50) -> dict[str, float]:
    """Step -> the artifacts that its pod brings out of an object store and keeps on its node's disk while it runs.

    The texts count twice where a step reads both what was said and what was validated; students are one seed's, of
    two arms.
    """
    texts, targets = texts_gb(corpus, rates), store_gb(corpus, rates, k)
    weights, learned = weights_gb(proxy), weights_gb(student)
    return {
        "align_proxy": texts,
        "estimate_distributions": 2 * texts + weights + targets,
        "distill_student": texts + weights + targets,
        "evaluate_student": 2 * texts + weights + targets + 2 * learned,
        "promote_model": 2 * texts + learned,
    }


def training_gb(student: Model) -> float:
    """Weights, gradients and AdamW's two moments in float32, without activations."""
    return 16 * student.parameters / GB


def checkpoint_gb(student: Model) -> float:
    """Trainable weights and moments in float32."""
    return 12 * student.parameters / GB


def least_devices(gb: float, device: Device, *, usable: float = 0.8) -> int:
    """How many devices hold so much, activations in the rest."""
    return max(1, math.ceil(gb / (device.gb * usable)))
