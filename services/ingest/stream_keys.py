"""Stream keys and playback ids: a stream's id and a MAC, verified by any pod without a look-up. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from services.common.errors import NotFoundError

STREAM_PREFIX: Final = "str_"
PUBLISH_PREFIX: Final = "stk_"
PLAYBACK_PREFIX: Final = "pbk_"
MAC_BYTES: Final = 15  # 120 bits, 24 characters of base32


@dataclass(frozen=True, slots=True)
class StreamKeys:
    """Mints and verifies; `secret` is the installation's, the same on every pod."""

    secret: bytes

    def publish(self, stream: str) -> str:
        """The key that allows to publish `stream`: a secret of its owner."""
        return self._mint(PUBLISH_PREFIX, stream)

    def playback(self, stream: str) -> str:
        """The id that allows to watch `stream`."""
        return self._mint(PLAYBACK_PREFIX, stream)

    def stream_of(self, key: str) -> tuple[str, str]:
        """Return (prefix, stream) of a genuine key. Raises NotFoundError for any other text."""
        for prefix in (PUBLISH_PREFIX, PLAYBACK_PREFIX):
            name, dot, _ = key.removeprefix(prefix).partition("-")
            if key.startswith(prefix) and dot:
                stream = STREAM_PREFIX + name
                if hmac.compare_digest(self._mint(prefix, stream).encode(), key.encode()):
                    return prefix, stream
        raise NotFoundError("there is no such stream key or playback id", reason="KEY_NOT_FOUND")

    def _mint(self, prefix: str, stream: str) -> str:
        mac = hmac.digest(self.secret, f"{prefix}{stream}".encode(), hashlib.sha256)[:MAC_BYTES]
        name = stream.removeprefix(STREAM_PREFIX)
        return f"{prefix}{name}-{base64.b32encode(mac).decode().lower()}"
