"""The page about the protocol names the tests that prove it; they must be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_page_names_exists() -> None:
    page = (ROOT / "docs" / "trickle.md").read_text()
    sources = [
        path.read_text()
        for folder in ("tests/contract/trickle", "tests/unit/common/trickle")
        for path in (ROOT / folder).rglob("test_*.py")
    ]
    named = set(re.findall(r"`((?:test_|Test)\w+)`", page))
    there = {
        name
        for source in sources
        for name in re.findall(r"def (test_\w+)|^(Test\w+) =", source, re.MULTILINE)
    }
    assert named <= {each for pair in there for each in pair}
    assert len(named) > 40
