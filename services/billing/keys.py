"""API keys, `sk_<key id>_<secret>`: the id is public and names the key in logs, the secret is only hashed."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Final, NewType

from services.common.errors import UnauthenticatedError

KeyId = NewType("KeyId", str)

PREFIX: Final = "sk"
KEY_ID_BYTES: Final = 8
SECRET_BYTES: Final = 24  # 192 bits: guessing is hopeless, so nothing needs to slow it down
KEY_MAX_CHARS: Final = 200


@dataclass(frozen=True, slots=True)
class PresentedKey:
    """A key as a caller showed it: well-formed, not yet verified."""

    id: KeyId
    secret: str


def mint() -> PresentedKey:
    """A new key from the system's randomness."""
    return PresentedKey(KeyId(secrets.token_hex(KEY_ID_BYTES)), secrets.token_hex(SECRET_BYTES))


def render(key: PresentedKey) -> str:
    return f"{PREFIX}_{key.id}_{key.secret}"


def parse(text: str) -> PresentedKey:
    """Read what `render` wrote. Raises UnauthenticatedError for anything else."""
    prefix, _, rest = text[:KEY_MAX_CHARS].partition("_")
    key_id, _, secret = rest.partition("_")
    key = PresentedKey(KeyId(key_id), secret)
    if prefix != PREFIX or not key_id or not secret or render(key) != text:
        raise unknown()
    return key


def digest(key: PresentedKey, pepper: str) -> bytes:
    """What is stored of a key: BLAKE2b of the secret, salted by the key's id, keyed by the pepper.

    A password needs a slow hash because people choose guessable ones. This secret is 192 random bits, for
    which a slow hash would buy nothing and cost every authentication some 100 ms of CPU.
    """
    return hashlib.blake2b(
        key.secret.encode(),
        digest_size=32,
        salt=hashlib.blake2b(key.id.encode(), digest_size=hashlib.blake2b.SALT_SIZE).digest(),
        key=hashlib.blake2b(pepper.encode()).digest() if pepper else b"",
    ).digest()


def matches(key: PresentedKey, stored: bytes, pepper: str) -> bool:
    """Whether `stored` is this key's digest, in constant time."""
    return hmac.compare_digest(digest(key, pepper), stored)


def unknown() -> UnauthenticatedError:
    """The one answer to a malformed key, an unknown id and a wrong secret: it teaches a guesser nothing."""
    return UnauthenticatedError("nobody issued this key", reason="UNKNOWN_KEY")
