"""Micro-units as people read money. Pure."""

from __future__ import annotations

from typing import Final

MICRO: Final = 1_000_000


def money(micro: int, currency: str) -> str:
    """`micro` with two to six decimals: as many as it needs, so that nothing small becomes 0.00."""
    whole, rest = divmod(abs(micro), MICRO)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{'-' if micro < 0 else ''}{whole:,}.{decimals} {currency}"
