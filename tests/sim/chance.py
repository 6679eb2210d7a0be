"""Every dice of the interpreter, thrown from one seed."""

from __future__ import annotations

import base64
import random
import secrets
import uuid
from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

_RANDOM: Final = random.Random()


def seed(number: int) -> None:
    _RANDOM.seed(number)


def child(name: str) -> random.Random:
    """A dice of its own, so that more throws of one part do not change those of another."""
    return random.Random(f"{_RANDOM.getrandbits(64)} {name}")


class Drawn(random.Random):
    """In the place of `SystemRandom`: what the machine would draw, the seed draws."""

    def __init__(self) -> None:
        super().__init__(_RANDOM.getrandbits(64))


def _choice(sequence: Sequence[T]) -> T:
    return _RANDOM.choice(sequence)


def _token_bytes(nbytes: int | None = None) -> bytes:
    return _RANDOM.randbytes(32 if nbytes is None else nbytes)


def _token_urlsafe(nbytes: int | None = None) -> str:
    return base64.urlsafe_b64encode(_token_bytes(nbytes)).rstrip(b"=").decode()


def _uuid4() -> uuid.UUID:
    return uuid.UUID(int=_RANDOM.getrandbits(128), version=4)


def take_over() -> None:
    """To be called before production code is imported: some of it imports the names."""
    random.SystemRandom = Drawn  # type: ignore[assignment,misc]
    secrets.choice = _choice  # type: ignore[assignment]
    secrets.token_bytes = _token_bytes
    secrets.token_urlsafe = _token_urlsafe
    secrets.token_hex = lambda nbytes=None: _token_bytes(nbytes).hex()
    uuid.uuid4 = _uuid4
