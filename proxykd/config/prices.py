"""What a token costs: as a specification states it, or as the package's dated list has it."""

from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, model_validator

from proxykd.config.base import Fraction, Spec


class PriceSpec(Spec):
    """What a call costs."""

    input_usd_per_million: Annotated[float, Field(ge=0.0)]
    """USD per million prompt tokens."""
    output_usd_per_million: Annotated[float, Field(ge=0.0)]
    """USD per million completion tokens, hidden reasoning included."""
    cached_input_usd_per_million: Annotated[float, Field(ge=0.0)] | None = None
    """USD per million prompt tokens that the API read from its cache; None = they cost what the others do."""
    batch_discount: Fraction = 0.5
    """Share of the price that a batch API takes off; OpenAI and Anthropic publish one half."""

    @model_validator(mode="after")
    def _cached_tokens_are_not_dearer(self) -> Self:
        if self.cached_input_usd_per_million is not None and (
            self.cached_input_usd_per_million > self.input_usd_per_million
        ):
            raise ValueError(
                f"cached_input_usd_per_million={self.cached_input_usd_per_million:g} is above input_usd_per_million="
                f"{self.input_usd_per_million:g}; a cap could not be kept then"
            )
        return self


@cache
def _price_list() -> dict[str, Any]:
    listed: dict[str, Any] = yaml.safe_load(files("proxykd.config").joinpath("prices.yaml").read_text("utf-8"))
    return listed


def price_list_date() -> str:
    """Day of the package's price list, ISO 8601."""
    return str(_price_list()["as_of"])


def listed_price(base_url: str, model: str) -> PriceSpec | None:
    """Price of a model in the package's list; None = it is not there.

    Args:
        base_url: Address of the endpoint: its host decides.
        model: Name as the endpoint knows it.
    """
    found = _price_list().get(urlsplit(base_url).hostname or "", {}).get(model)
    return found and PriceSpec(input_usd_per_million=found[0], output_usd_per_million=found[1])
