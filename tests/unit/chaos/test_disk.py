"""A disk of our own is full when a test says so, for whoever is in its cell, and nobody else sees it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.disk import NotPermittedError, disks

WRITE = "import sys; open(sys.argv[1], 'wb').write(bytes(100_000))"


def test_a_full_disk_takes_nothing_until_it_is_emptied() -> None:
    try:
        with disks("some") as (_, made):
            some = made["some"]
            with pytest.raises(AssertionError, match="nobody writes"):
                some.fill()
            some.run(sys.executable, "-c", WRITE, str(some.path / "before"))
            some.fill()
            with pytest.raises(subprocess.CalledProcessError) as refusal:
                some.run(sys.executable, "-c", WRITE, str(some.path / "while"))
            assert b"No space left" in refusal.value.stderr
            some.empty()
            some.run(sys.executable, "-c", WRITE, str(some.path / "behind"))
            assert not any(some.path.iterdir()), "it is mounted in the cell alone"
    except NotPermittedError as kernel:
        pytest.skip(f"the kernel mounts no disk, not even in namespaces of our own: {kernel}")
