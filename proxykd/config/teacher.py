"""Teachers: which black box answers, how it is asked, what it may cost."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from proxykd.config.base import Count, PositiveFloat, SecretName, Spec
from proxykd.config.prices import PriceSpec, listed_price


class SamplingSpec(Spec):
    """How the teacher is asked to generate."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """Softmax temperature; 1 samples the teacher's own distribution, which is what distillation estimates."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass; 1 = whole distribution."""
    max_tokens: Count = 512
    """Most tokens a completion may have; longer ones end as truncated."""
    num_samples: Count = 1
    """Completions a prompt."""


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


def _check_address(value: str) -> str:
    try:
        address = urlsplit(value)
        is_plain = bool(address.hostname) and (address.port or 1) > 0
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
    return value


OnUnanswered = Literal["stop", "fail_rows"]


class OpenAITeacherSpec(Spec):
    """Any endpoint in the OpenAI chat-completions shape."""

    kind: Literal["openai"] = "openai"
    """A live endpoint."""
    base_url: Annotated[str, Field(pattern=r"^https?://"), AfterValidator(_check_address)] = "https://api.openai.com/v1"
    """Address up to and including the version, without /chat/completions; no user, password, query or fragment."""
    model: str
    """Model name as the endpoint knows it."""
    api_key: SecretName | None = None
    """Environment variable of the key, as ${NAME}; None = the endpoint asks for none."""
    sampling: SamplingSpec = SamplingSpec()
    """How it is asked to generate."""
    max_tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """Name under which the endpoint takes sampling.max_tokens: OpenAI's newer models want max_completion_tokens."""
    price: PriceSpec | None = None
    """Price of a token; None = that of the package's dated list, proxykd/config/prices.yaml, or unknown."""
    budget: BudgetSpec = BudgetSpec()
    """What the calls may cost; at a cap the asking stops, and goes on where it was when the cap is raised."""
    concurrency: Annotated[int, Field(ge=1, le=512)] = 16
    """Most calls in flight."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 6
    """Most tries of one call in one run."""
    on_unanswered: OnUnanswered = "stop"
    """What to do where calls get no answer, a passing outage say: stop, so that the same command asks them again, or
    count their rows as failed for good."""
    timeout_s: PositiveFloat = 120.0
    """Seconds that one call may take."""

    @property
    def known_price(self) -> PriceSpec | None:
        """``price``, else the listed one; None = not known."""
        return self.price or listed_price(self.base_url, self.model)

    @model_validator(mode="after")
    def _a_cap_in_usd_needs_a_price(self) -> "OpenAITeacherSpec":
        if self.budget.usd is not None and self.known_price is None:
            raise ValueError(
                f"budget.usd={self.budget.usd:g} needs the price of a token, and the package's list has none for "
                f"{self.model!r}; set teacher.price"
            )
        return self


class RecordedTeacherSpec(Spec):
    """Completions that the user already has, in the same rows as the prompts."""

    kind: Literal["recorded"] = "recorded"
    """Texts of the user's."""
    completion_field: str = "completion"
    """Column that holds the teacher's text; a fine-tuning file (prompts.kind=openai_finetuning) has none."""
    model: str = "recorded"
    """Name of the model that wrote the texts, for the model card."""


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

    @model_validator(mode="after")
    def _only_its_own_distribution(self) -> "EmbeddedTeacherSpec":
        if self.sampling.temperature != 1.0 or self.sampling.top_p != 1.0:
            raise ValueError(
                f"the embedded teacher's exact odds hold at temperature=1, top_p=1; got "
                f"temperature={self.sampling.temperature}, top_p={self.sampling.top_p}"
            )
        return self


TeacherSpec = Annotated[OpenAITeacherSpec | RecordedTeacherSpec | EmbeddedTeacherSpec, Field(discriminator="kind")]
