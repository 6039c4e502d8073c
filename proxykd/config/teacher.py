"""Teachers: which black box answers, how it is asked, what it may cost."""

import math
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from proxykd.config.base import Count, InputPath, PositiveFloat, SecretName, Spec
from proxykd.config.prices import PriceSpec, listed_price
from proxykd.config.sampling import SamplingSpec
from proxykd.config.terms import TermsSpec


class BudgetSpec(Spec):
    """Hard caps on all that the run's calls cost, over all its restarts; None = no cap."""

    usd: PositiveFloat | None = None
    """Most US dollars; needs a known price."""
    tokens: Count | None = None
    """Most prompt and completion tokens together."""
    requests: Count | None = None
    """Most calls that are, or may be, paid for."""

    @property
    def is_set(self) -> bool:
        """Whether any cap is."""
        return any(cap is not None for cap in (self.usd, self.tokens, self.requests))


class LimitsSpec(Spec):
    """How fast the endpoint may be asked; None = what it tells in its headers, or no limit.

    Refusals (429, 503) lower rates and calls in flight, and both grow back. All processes of one machine that ask the
    same model with the same variable's key share the limits.
    """

    requests_per_minute: PositiveFloat | None = None
    """Calls."""
    tokens_per_minute: PositiveFloat | None = None
    """Prompt and completion tokens together."""
    input_tokens_per_minute: PositiveFloat | None = None
    """Prompt tokens."""
    output_tokens_per_minute: PositiveFloat | None = None
    """Completion tokens."""
    share: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Part of every rate that this machine may use: 0.25 for one of four shards on machines of their own."""


_CALLS = ("/chat/completions", "/completions", "/messages", ":generateContent")


def _check_address(value: str) -> str:
    try:
        address = urlsplit(value)
        is_plain = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        is_plain = False
    # What stands before an @ or after a ? may be a key: the message must not repeat it.
    if not is_plain or not value.isprintable() or " " in value:
        raise ValueError("expected an address such as https://host:port/v1")
    if "@" in address.netloc or "?" in value or "#" in value:
        raise ValueError(
            "expected an address without user, password, query or fragment; a key goes into an environment "
            "variable, whose name goes into teacher.api_key as ${NAME}"
        )
    if address.path.rstrip("/").endswith(_CALLS):
        raise ValueError(
            "expected the address up to and including the version, https://host:port/v1 say; leave out what follows "
            "it: that is added for each call"
        )
    return value


OnUnanswered = Literal["stop", "fail_rows"]


BaseUrl = Annotated[str, AfterValidator(_check_address), Field(json_schema_extra={"pattern": "^https?://"})]


def _check_key_file(value: Any) -> Any:
    # What has no slash may be a key pasted by mistake: the message must not repeat it.
    if isinstance(value, str | Path) and "/" not in str(value):
        raise ValueError("expected the path of a file with a slash in it, ./key say, never the key itself")
    return value


KeyFile = Annotated[InputPath, BeforeValidator(_check_key_file)]


class BatchSpec(Spec):
    """How requests go through a batch API: cheaper, and answered within a day."""

    max_requests: Annotated[int, Field(ge=1, le=50_000)] = 10_000
    """Most requests of one batch; OpenAI takes 50,000, Anthropic 100,000."""
    max_megabytes: Annotated[float, Field(gt=0.0, le=200.0)] = 100.0
    """Largest batch, in 10^6 bytes; OpenAI takes 200, Anthropic 256."""
    poll_s: PositiveFloat = 30.0
    """Seconds between two looks at a batch; after twice as long one that was submitted is in the endpoint's list."""
    give_up: tuple[str, ...] = ()
    """Ids of batches whose answers are lost, deleted at the endpoint say: their requests are asked again."""


class ApiTeacherSpec(Spec):
    """What all live APIs share."""

    base_url: BaseUrl
    """Address up to and including the version; no user, password, query or fragment."""
    model: str
    """Model name as the endpoint knows it."""
    api_key: SecretName | None = None
    """Environment variable of the key, as ${NAME}; None = the endpoint asks for none, or api_key_file is set."""
    api_key_file: KeyFile | None = None
    """File that holds the key and nothing else, as Kubernetes mounts a secret; None = api_key says where it is."""
    sampling: SamplingSpec = SamplingSpec()
    """How it is asked to generate."""
    on_truncated: Literal["keep", "retry", "continue"] = "keep"
    """What to do with a completion that ended at sampling.max_tokens: keep it as truncated, ask once more with
    truncated_max_tokens, or ask once for the rest. Never more than one further call, and none of them twice."""
    truncated_max_tokens: Count | None = None
    """Most tokens of that further call; None = twice sampling.max_tokens to retry, sampling.max_tokens to continue."""
    price: PriceSpec | None = None
    """Price of a token; None = that of the package's dated list, proxykd/config/prices.yaml, or unknown."""
    budget: BudgetSpec = BudgetSpec()
    """What the calls may cost; at a cap the asking stops, and goes on where it was when the cap is raised."""
    limits: LimitsSpec = LimitsSpec()
    """How fast the endpoint may be asked."""
    concurrency: Annotated[int, Field(ge=1, le=512)] = 16
    """Most calls in flight; fewer while the endpoint refuses some."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 8
    """Most tries of one call in one run."""
    retry_wait_s: PositiveFloat = 0.1
    """Longest wait before the second try, in seconds; it doubles with every further try, up to 30 s."""
    on_unanswered: OnUnanswered = "stop"
    """What to do where calls get no answer, a passing outage say: stop, so that the same command asks them again, or
    count their rows as failed for good."""
    timeout_s: PositiveFloat = 120.0
    """Seconds that one call may take."""
    terms: TermsSpec = TermsSpec()
    """Terms of its answers, for the lineage and the model card."""

    @property
    def known_price(self) -> PriceSpec | None:
        """``price``, else the listed one; None = not known."""
        return self.price or listed_price(self.base_url, self.model)

    @property
    def provider(self) -> str:
        """Host and path of the endpoint, without its port, which changes when a local server starts again."""
        address = urlsplit(self.base_url)
        return f"{address.hostname}{address.path.rstrip('/')}"

    @property
    def is_batched(self) -> bool:
        """Whether requests go through a batch API."""
        return False

    @model_validator(mode="after")
    def _a_cap_in_usd_needs_a_price(self) -> Self:
        if self.budget.usd is not None and self.known_price is None:
            raise ValueError(
                f"budget.usd={self.budget.usd:g} needs the price of a token, and the package's list has none for "
                f"{self.model!r}; set teacher.price"
            )
        return self

    @model_validator(mode="after")
    def _a_retry_needs_more_room(self) -> Self:
        if self.on_truncated == "retry" and (self.truncated_max_tokens or math.inf) <= self.sampling.max_tokens:
            raise ValueError(
                f"truncated_max_tokens={self.truncated_max_tokens} must be above sampling.max_tokens="
                f"{self.sampling.max_tokens} for on_truncated=retry: the same limit would cut the text again"
            )
        return self

    @model_validator(mode="after")
    def _the_key_is_in_one_place(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("set api_key or api_key_file, not both: the key is in one place")
        return self


class OpenAITeacherSpec(ApiTeacherSpec):
    """Any endpoint in the OpenAI chat-completions shape."""

    kind: Literal["openai"] = "openai"
    """A live endpoint in the OpenAI shape."""
    base_url: BaseUrl = "https://api.openai.com/v1"
    """Address up to and including the version, without /chat/completions; no user, password, query or fragment."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which the endpoint takes sampling.max_tokens: OpenAI's newer models want max_completion_tokens."""
    batch: BatchSpec | None = None
    """Ask through the Batch API; None = one call a request, at once."""

    @property
    def is_batched(self) -> bool:
        """Whether requests go through the Batch API."""
        return self.batch is not None


class AnthropicTeacherSpec(ApiTeacherSpec):
    """The Anthropic Messages API."""

    kind: Literal["anthropic"] = "anthropic"
    """A live endpoint in the shape of the Messages API."""
    base_url: BaseUrl = "https://api.anthropic.com/v1"
    """Address up to and including the version, without /messages; no user, password, query or fragment."""
    batch: BatchSpec | None = None
    """Ask through the Message Batches API; None = one call a request, at once."""

    @property
    def is_batched(self) -> bool:
        """Whether requests go through the Message Batches API."""
        return self.batch is not None

    @model_validator(mode="after")
    def _only_what_it_offers(self) -> Self:
        if self.sampling.top_logprobs:
            raise ValueError(
                f"sampling.top_logprobs={self.sampling.top_logprobs}: the Messages API tells no log-probabilities; set "
                "0, or choose a teacher that does (kind: openai, gemini)"
            )
        if self.sampling.temperature > 1.0:
            raise ValueError(
                f"sampling.temperature={self.sampling.temperature:g}: the Messages API takes 0 to 1; lower it"
            )
        return self


class GeminiTeacherSpec(ApiTeacherSpec):
    """The Gemini API's generateContent."""

    kind: Literal["gemini"] = "gemini"
    """A live endpoint in the shape of the Gemini API."""
    base_url: BaseUrl = "https://generativelanguage.googleapis.com/v1beta"
    """Address up to and including the version, without /models; no user, password, query or fragment."""


class RecordedTeacherSpec(Spec):
    """Completions that the user already has, in the same rows as the prompts."""

    kind: Literal["recorded"] = "recorded"
    """Texts of the user's."""
    completion_field: str = "completion"
    """Column that holds the teacher's text; a fine-tuning file (prompts.kind=openai_finetuning) has none."""
    model: str = "recorded"
    """Name of the model that wrote the texts, for the model card."""
    terms: TermsSpec = TermsSpec()
    """Terms of its answers, for the lineage and the model card."""


class EmbeddedTeacherSpec(Spec):
    """A stochastic teacher of word problems with known odds, served over HTTP by a process of its own."""

    kind: Literal["embedded"] = "embedded"
    """The built-in teacher."""
    sampling: SamplingSpec = SamplingSpec(max_tokens=256)
    """How it is asked to generate."""
    concurrency: Annotated[int, Field(ge=1, le=512)] = 32
    """Most calls in flight."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 6
    """Most tries of one call in one run."""
    on_unanswered: OnUnanswered = "stop"
    """What to do where calls get no answer, a passing outage say: stop, so that the same command asks them again, or
    count their rows as failed for good."""
    timeout_s: PositiveFloat = 30.0
    """Seconds that one call may take."""
    terms: TermsSpec = TermsSpec()
    """Terms of its answers, for the lineage and the model card."""

    @model_validator(mode="after")
    def _only_its_own_distribution(self) -> "EmbeddedTeacherSpec":
        if self.sampling.temperature != 1.0 or self.sampling.top_p != 1.0:
            raise ValueError(
                f"the embedded teacher's exact odds hold at temperature=1, top_p=1; got "
                f"temperature={self.sampling.temperature}, top_p={self.sampling.top_p}"
            )
        if self.sampling.json_schema is not None or self.sampling.stop:
            raise ValueError("the embedded teacher offers no sampling.json_schema or sampling.stop; leave them out")
        return self


TeacherSpec = Annotated[
    OpenAITeacherSpec | AnthropicTeacherSpec | GeminiTeacherSpec | RecordedTeacherSpec | EmbeddedTeacherSpec,
    Field(discriminator="kind"),
]
