"""From what nats-py raises to the error table: a lost race is Conflict, an unknown outcome Unavailable."""

from __future__ import annotations

from typing import Final

import nats.errors
import nats.js.errors
from prometheus_client import Counter

from services.common.errors import ConflictError, InvalidError, UnavailableError

CONFLICTS: Final = Counter("sluice_kv_conflicts_total", "Compare-and-set that lost a race.", ["bucket"])


class translated:  # noqa: N801 - used as a verb
    """Turns what nats-py raises into the error table."""

    def __init__(self, doing: str, *, bucket: str = "") -> None:
        self._doing = doing
        self._bucket = bucket

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if error is None:
            return
        if isinstance(error, nats.js.errors.KeyWrongLastSequenceError) or (
            isinstance(error, nats.js.errors.APIError) and error.err_code in {10071, 10164}
        ):
            if self._bucket:
                CONFLICTS.labels(self._bucket).inc()
            raise ConflictError(f"{self._doing}: somebody was faster", reason="CAS_CONFLICT") from error
        if isinstance(error, nats.js.errors.InvalidKeyError | nats.errors.MaxPayloadError):
            raise InvalidError(f"{self._doing}: {error}") from error
        if isinstance(error, nats.errors.Error | TimeoutError | OSError):
            raise UnavailableError(f"{self._doing}: {error!r}", reason="NATS_UNREACHABLE") from error
