"""What a distillation takes at any size, as arithmetic: FLOP, hours, bytes, USD. Reads nothing.

Units are in the names: tokens, bytes, GB (1e9 bytes), hours, USD. N is a model's number of parameters; a pass over a
token costs 2 N FLOP forward and 4 N backward (Kaplan et al., arXiv:2001.08361), half of the backward pass where the
weights are frozen (LoRA: gradients of activations alone), and 2 N more where activations are computed again.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

HOUR_S = 3600.0
LOADED, FROZEN = 4.0, 2.0
"""Bytes a parameter: of any loaded model (float32, whatever its file holds); of the layers of one that is frozen, or
under adapters, in bfloat16. Its embeddings and its head stay float32."""
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
        link_gb_per_s: To the other devices of its node, in one direction.
        usd_per_hour: List price of one, on demand.
        place: Where that price is asked, and when it was read.
    """

    name: str
    tflops: float
    gb_per_s: float
    gb: float
    link_gb_per_s: float
    usd_per_hour: float
    place: str


@dataclass(frozen=True, slots=True)
class Utilisation:
    """Which share of the data sheet's rate is reached; assumptions, in (0, 1]."""

    training: float = 0.40
    forward: float = 0.50
    sampling: float = 0.15
    link: float = 0.50


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
        layers: Decoder layers.
        embeddings: Of N, those of the embeddings and the head.
        kv_bytes: Keys and values of a token in bfloat16, all layers; 0 where it writes nothing.
    """

    name: str
    parameters: float
    layers: int = 1
    embeddings: float = 0.0
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


def gathering_s(proxy: Model, device: Device, *, devices: int, utilisation: float) -> float:
    """Seconds in which a device has all weights of a sharded model once, those of the others over its link.

    Args:
        proxy: Whose weights, frozen.
        device: One of those that share it.
        devices: How many do.
        utilisation: Share of the link's rate.
    """
    return weights_gb(proxy, is_frozen=True) * (devices - 1) / devices / (device.link_gb_per_s * utilisation)


def hiding_tokens(proxy: Model, device: Device, *, devices: int, utilisation: Utilisation) -> float:
    """Tokens of a training step on each device whose arithmetic takes as long as gathering the weights.

    They are gathered forward and backward; the arithmetic is that of adapters, activations computed again.
    """
    seconds = 2 * gathering_s(proxy, device, devices=devices, utilisation=utilisation.link)
    return seconds * device.tflops * 1e12 * utilisation.training / ((LORA_STEP + RECOMPUTE) * proxy.parameters)


def sampling_pass_s(
    proxy: Model, device: Device, *, devices: int, texts: int, length: int, utilisation: Utilisation
) -> float:
    """Seconds of a pass of a model that is sharded over some devices, each of which writes texts of its own.

    It takes as long as gathering the weights, or as reading them with the keys and values, or as the arithmetic,
    whichever is longest: they overlap.

    Args:
        proxy: Who writes.
        device: On what.
        devices: How many share the model.
        texts: Written together on each.
        length: Tokens of a text at its end.
        utilisation: Shares of the link's rate and of the roofline.

    Raises:
        ValueError: if weights, keys and values do not fit.
    """
    cache = texts * length * proxy.kv_bytes
    if (held := sharded_gb(proxy, devices) + cache / GB) > device.gb:
        raise ValueError(
            f"expected a {device.name} of {devices} to hold {held:.0f} GB, it has {device.gb:.0f}; take more of them, "
            "or write fewer texts together"
        )
    reading = (weights_gb(proxy, is_frozen=True) + cache / GB) / device.gb_per_s
    arithmetic = texts * FORWARD * proxy.parameters / (device.tflops * 1e12)
    gathering = gathering_s(proxy, device, devices=devices, utilisation=utilisation.link)
    return max(gathering, max(reading, arithmetic) / utilisation.sampling)


def sampling_hours(
    corpus: Corpus,
    proxy: Model,
    device: Device,
    utilisation: Utilisation,
    *,
    devices: int = 8,
    batch_tokens: int = 81_920,
    max_new_tokens: int = 512,
) -> float:
    """Hours of one device for one text of the proxy's own a training text, written by batches that wait for their last.

    Args:
        corpus: Whose prompts are continued.
        proxy: Who writes; shared out.
        device: On what.
        utilisation: As for ``sampling_pass_s``.
        devices: How many share the model, each with texts of its own.
        batch_tokens: Bound on texts * (prompt + ``max_new_tokens``) of a device.
        max_new_tokens: Passes of a batch: one of its texts is as long.
    """
    longest = corpus.prompt_tokens + max_new_tokens
    texts = batch_tokens // longest
    a_pass = sampling_pass_s(proxy, device, devices=devices, texts=texts, length=longest, utilisation=utilisation)
    return corpus.training / texts * max_new_tokens * a_pass / HOUR_S


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


def weights_gb(model: Model, *, is_frozen: bool = False) -> float:
    """A loaded model in float32, or frozen in bfloat16."""
    low = model.parameters - model.embeddings if is_frozen else 0.0
    return (LOADED * (model.parameters - low) + FROZEN * low) / GB


def sharded_gb(proxy: Model, devices: int) -> float:
    """What one of several devices holds of a proxy under adapters (FSDP), at most, adapters and activations left out.

    Its share, and what is in one piece during a pass: embeddings and head, which are there twice while they come, and
    two layers, of which one is on its way.
    """
    layer = FROZEN * (proxy.parameters - proxy.embeddings) / proxy.layers / GB
    return weights_gb(proxy, is_frozen=True) / devices + 2 * LOADED * proxy.embeddings / GB + 2 * layer


def most_parameters(device: Device, *, precision: str = "bfloat16", usable: float = 0.8) -> float:
    """The largest model, embeddings left out, whose frozen weights one device holds."""
    return usable * device.gb * GB / (FROZEN if precision == "bfloat16" else LOADED)


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


def claim_gb(corpus: Corpus, rates: Rates, *, proxy: Model, student: Model, k: int = 50) -> float:
    """The journal, and the most that a step has on the workspace's claim beside it until it is in a bucket.

    A TrainJob's inputs and outputs lie there too: links to the same files, and copies of the targets, which come out of
    a bucket onto another disk. A checkpoint is written beside the one before it.
    """
    targets = store_gb(corpus, rates, k)
    making = (weights_gb(proxy), targets, targets + weights_gb(student) + 2 * checkpoint_gb(student))
    return journal_gb(corpus, rates, is_sharded=True) + max(making)


def training_gb(student: Model) -> float:
    """Weights, gradients and AdamW's two moments in float32, without activations."""
    return 16 * student.parameters / GB


def checkpoint_gb(student: Model) -> float:
    """Trainable weights and moments in float32."""
    return 12 * student.parameters / GB


def least_devices(gb: float, device: Device, *, usable: float = 0.8) -> int:
    """How many devices hold so much, activations in the rest."""
    return max(1, math.ceil(gb / (device.gb * usable)))
