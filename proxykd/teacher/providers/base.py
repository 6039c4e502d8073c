"""What the asking needs to know about an API's shape, and nothing of how bytes travel."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from proxykd.config.sampling import SamplingSpec
from proxykd.records import Message, Prompt, canonical_json, hash_text
from proxykd.teacher.replies import Request, Verdict


class Provider(Protocol):
    """An API's shape."""

    def url(self, base_url: str, model: str) -> str:
        """Where calls are POSTed.

        Args:
            base_url: Address up to and including the version, without a slash at its end.
            model: Model name as the endpoint knows it.
        """

    def headers(self, secret: str | None) -> dict[str, str]:
        """The headers that identify us; None = no key is sent."""

    def body(self, messages: Sequence[Message], *, model: str, sampling: SamplingSpec, seed: int) -> dict[str, Any]:
        """The JSON object of a call.

        What the messages say stands in it as it is, alone or joined, and decides nothing else: ``RequestKeys`` puts
        other texts in their places.

        Args:
            messages: The chat turns.
            model: Model name as the endpoint knows it.
            sampling: How the teacher is asked to generate.
            seed: Of this call; an API that takes none is not told it.
        """

    def judge(self, status: int, body: bytes) -> Verdict:
        """What an HTTP response means; never raises."""

    def prompt_tokens_of(self, body: Mapping[str, Any]) -> int:
        """The most tokens that a call can be billed for as input."""

    def max_tokens_of(self, body: Mapping[str, Any]) -> int:
        """The most tokens that a call can be billed for as output.

        Raises:
            ValueError: if the body states no bound.
        """

    def with_max_tokens(self, body: Mapping[str, Any], max_tokens: int) -> dict[str, Any]:
        """The same call with another bound on its completion, at most ``max_tokens`` tokens."""


def build_request(
    prompt: Prompt,
    sample_idx: int,
    *,
    provider: Provider,
    model: str,
    sampling: SamplingSpec,
    seed: int,
    endpoint: str = "",
) -> Request:
    """The request for one sample of one prompt.

    Its key is the hash of the body and of what decides the answer without being in it: the sample's index, the
    endpoint, and the model and the seed where the API's bodies do not hold them.

    Args:
        prompt: The prompt.
        sample_idx: 0 .. num_samples - 1.
        provider: The API's shape.
        model: Model name as the endpoint knows it.
        sampling: How the teacher is asked to generate.
        seed: Seed of the run; each sample of each prompt gets a seed of its own from it.
        endpoint: Who answers; tells models of one name apart in the journal. "" = the name is enough.
    """
    return request_about(
        prompt.messages,
        sample_idx,
        provider=provider,
        model=model,
        sampling=sampling,
        own_seed=seed_of(prompt.prompt_id, sample_idx, seed=seed),
        endpoint=endpoint,
    )


def seed_of(prompt_id: str, sample_idx: int, *, seed: int) -> int:
    """The seed of one sample of one prompt in a run with ``seed``, in [0, 2**31)."""
    return int(hash_text(f'[{seed},"{prompt_id}",{sample_idx}]')[:8], 16) % 2**31


def request_about(
    messages: Sequence[Message],
    sample_idx: int,
    *,
    provider: Provider,
    model: str,
    sampling: SamplingSpec,
    own_seed: int,
    endpoint: str,
) -> Request:
    """The request for one sample of a conversation; see ``build_request``.

    Args:
        messages: The chat turns.
        sample_idx: 0 .. num_samples - 1.
        provider: The API's shape.
        model: Model name as the endpoint knows it.
        sampling: How the teacher is asked to generate.
        own_seed: Seed of this very sample.
        endpoint: Who answers; "" = the model's name is enough.
    """
    body = provider.body(messages, model=model, sampling=sampling, seed=own_seed)
    identity: dict[str, Any] = {"provider": endpoint} if endpoint else {}
    if "model" not in body:
        identity["model"] = model
    if "seed" not in body:
        identity["seed"] = own_seed
    return request_of(body, {"sample_idx": sample_idx, **identity})


def request_of(body: Mapping[str, Any], identity: Mapping[str, Any]) -> Request:
    """A request of a body and of what decides the answer without being in it.

    Args:
        body: The JSON object to send.
        identity: Name -> value in JSON types.
    """
    payload = canonical_json(body)
    texts = {name: str(value) if type(value) is int else canonical_json(value) for name, value in identity.items()}
    texts["request"] = payload
    asked = "{" + ",".join(f'"{name}":{texts[name]}' for name in sorted(texts)) + "}"
    return Request(hash_text(asked), body, payload, asked)


def num_bytes(value: Any) -> int:
    """Bytes of a value as JSON: no byte-level tokenizer makes more tokens of the texts in it."""
    return len(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
