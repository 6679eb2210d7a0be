"""The settings of billing: where the ledger is, what a second costs."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from services.billing.ledger import MICRO_PER_SECOND_MAX, PriceList, Rates
from services.common.settings import ServiceSettings, config

Micro = Annotated[int, Field(ge=0, le=MICRO_PER_SECOND_MAX, strict=True)]


class Price(BaseModel):
    """The price of a pipeline, in micro-units of the currency a second."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    micro_per_second: Micro
    hold_micro_per_second: Micro


class BillingSettings(ServiceSettings):
    """`SLUICE_BILLING_*`."""

    model_config = config("billing")

    listen: str = Field(
        "127.0.0.1:7003",
        description="gRPC, host:port. Loopback: whoever reaches it is trusted, so open it to neighbours.",
    )
    database_url: str = Field(
        "sqlite:///billing.sqlite3",
        description="SQLAlchemy URL of the ledger: a SQLite file, on a local disk because WAL shares memory.",
    )
    currency: str = Field(
        "USD",
        pattern="^[A-Z]{3}$",
        description="ISO 4217 code shown with prices. One for ever: a ledger cannot be converted.",
    )
    prices: dict[str, Price] = Field(
        {"*": Price(micro_per_second=1000, hold_micro_per_second=100)},
        description="JSON, pipeline -> {micro_per_second, hold_micro_per_second}: micro-units a second of "
        'delivered and of paused time; "*" is required and prices every pipeline without its own. '
        "An open session keeps the price it opened with.",
    )
    lapse_margin_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        description="Seconds after its paid time at which a reservation nobody renewed lapses: 60 s in which "
        "a stream may overdraw, and 60 s for its last windows on the way.",
    )
    key_pepper: SecretStr = Field(
        SecretStr(""),
        description="Keys the hashes of API keys, so that a stolen database alone verifies nothing. "
        "Changing it invalidates every key. Empty: the hashes are salted only.",
    )

    @field_validator("prices")
    @classmethod
    def _has_a_default(cls, prices: dict[str, Price]) -> dict[str, Price]:
        if "*" not in prices:
            raise ValueError('needs a default, "*"')
        return prices

    @property
    def price_list(self) -> PriceList:
        return PriceList(
            {
                name: Rates(price.micro_per_second, price.hold_micro_per_second)
                for name, price in self.prices.items()
            }
        )

    @property
    def lapse_margin_ms(self) -> int:
        return round(self.lapse_margin_s * 1000)
