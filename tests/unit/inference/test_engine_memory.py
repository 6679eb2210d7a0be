"""What counts as want of memory, and what fits."""

from __future__ import annotations

import pytest

from services.inference.engine import memory


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


@pytest.mark.parametrize(
    ("error", "exhausted"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("CUDA out of memory"), True),
        (type("TheirError", (OutOfMemoryError,), {})(), True),
        (RuntimeError("out of memory"), False),
        (ValueError(), False),
    ],
)
def test_want_of_memory_is_told_by_its_kind(error: BaseException, exhausted: bool) -> None:
    assert memory.is_exhausted(error) is exhausted


def test_what_is_small_fits_and_what_nobody_has_does_not() -> None:
    assert memory.room_for(1 << 10, "cpu", None)
    assert not memory.room_for(1 << 60, "cpu", None)


def test_the_engines_own_limit_counts() -> None:
    used = memory.used_bytes("cpu")
    assert used > 10 << 20
    assert not memory.room_for(1 << 10, "cpu", used + (100 << 20))
    assert memory.room_for(1 << 10, "cpu", used + (2 << 30))


def test_memory_that_was_freed_may_be_used_again() -> None:
    memory.free()
