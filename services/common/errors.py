"""The failures a caller can act on, one class each, with a machine-readable reason. Pure: no transport here.

Every class knows how each transport renders it; the translators (`grpc_server`, `http_server`, `bus`) hold no
table of their own. Anything that is not a `SluiceError` is a bug in this project: INTERNAL, 500, no ack.
"""

from __future__ import annotations

from typing import ClassVar, Final, Literal

JetStreamAnswer = Literal["ack", "nak", "term"]


class SluiceError(Exception):
    """A failure with a name. `reason` is UPPER_SNAKE and stable; `details` are short facts, never secrets."""

    grpc_status: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    jetstream: ClassVar[JetStreamAnswer] = "nak"
    default_reason: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, reason: str | None = None, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.details: dict[str, str] = {key: str(value) for key, value in details.items()}


class InvalidError(SluiceError):
    """The world sent something that can never work; `field` in the details names it where there is one."""

    grpc_status, http_status, jetstream, default_reason = "INVALID_ARGUMENT", 400, "term", "INVALID"


class NotFoundError(SluiceError):
    """There is no such thing, or the caller may not know that there is."""

    grpc_status, http_status, jetstream, default_reason = "NOT_FOUND", 404, "term", "NOT_FOUND"


class ConflictError(SluiceError):
    """The world moved on: the thing is not in a state in which this can be done."""

    grpc_status, http_status, jetstream, default_reason = "FAILED_PRECONDITION", 409, "ack", "CONFLICT"


class UnauthenticatedError(SluiceError):
    """No key, or one that nobody issued."""

    grpc_status, http_status, jetstream, default_reason = "UNAUTHENTICATED", 401, "term", "UNAUTHENTICATED"


class DeniedError(SluiceError):
    """A good key that may not do this."""

    grpc_status, http_status, jetstream, default_reason = "PERMISSION_DENIED", 403, "term", "DENIED"


class PaymentRequiredError(SluiceError):
    """The tenant's credit does not cover it."""

    grpc_status, http_status, jetstream = "FAILED_PRECONDITION", 402, "term"
    default_reason = "PAYMENT_REQUIRED"


class RateLimitedError(SluiceError):
    """Too often; the same call may be made later."""

    grpc_status, http_status, jetstream, default_reason = "RESOURCE_EXHAUSTED", 429, "nak", "RATE_LIMITED"
    retryable = True


class TooLargeError(SluiceError):
    """More bytes than the documented limit."""

    grpc_status, http_status, jetstream, default_reason = "INVALID_ARGUMENT", 413, "term", "TOO_LARGE"


class ExhaustedError(SluiceError):
    """No capacity now. `retry_after_s` in the details says when to ask again."""

    grpc_status, http_status, jetstream, default_reason = "RESOURCE_EXHAUSTED", 503, "nak", "EXHAUSTED"
    retryable = True


class UnavailableError(SluiceError):
    """A part that this call needs cannot be reached now."""

    grpc_status, http_status, jetstream, default_reason = "UNAVAILABLE", 503, "nak", "UNAVAILABLE"
    retryable = True


class DeadlineExceededError(SluiceError):
    """It did not finish in time; whether it took effect is unknown."""

    grpc_status, http_status, jetstream, default_reason = "DEADLINE_EXCEEDED", 504, "nak", "DEADLINE_EXCEEDED"


ERRORS: Final[tuple[type[SluiceError], ...]] = (
    InvalidError,
    NotFoundError,
    ConflictError,
    UnauthenticatedError,
    DeniedError,
    PaymentRequiredError,
    RateLimitedError,
    TooLargeError,
    ExhaustedError,
    UnavailableError,
    DeadlineExceededError,
)
