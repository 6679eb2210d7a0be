from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.stack import Stack, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "e2e" in str(item.path):
            item.add_marker(pytest.mark.timeout(180))


@pytest.fixture(scope="session")
def shared_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    settings = {"SLUICE_INGEST_PUBLISHER_GRACE_S": "4", "SLUICE_INGEST_FIRST_PICTURE_S": "3"}
    with running(tmp_path_factory.mktemp("stack"), **settings) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Stack:
    """The platform with a free slot."""
    shared_stack.until_free(20)
    return shared_stack


@pytest.fixture
def sample() -> Path:
    return Path(__file__).parents[1] / "data" / "bigbuckbunny.mp4"
