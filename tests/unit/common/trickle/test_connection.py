"""When a client of trickle gives up."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import UnavailableError
from services.common.trickle.connection import DEFAULT_PATIENCE, Failures

pytestmark = pytest.mark.looptime


@pytest.mark.parametrize("takes_s", [0.0, DEFAULT_PATIENCE.connect_s, DEFAULT_PATIENCE.answer_s])
async def test_a_server_that_never_answers_is_given_up_however_it_does_so(takes_s: float) -> None:
    failures = Failures(DEFAULT_PATIENCE)
    for _ in range(DEFAULT_PATIENCE.failures - 1):
        failures.attempt()
        await asyncio.sleep(takes_s)
        await failures.failed(TimeoutError())
    failures.attempt()
    await asyncio.sleep(takes_s)
    with pytest.raises(UnavailableError):
        await failures.failed(TimeoutError())


async def test_failures_between_requests_that_lived_are_not_in_a_row() -> None:
    failures = Failures(DEFAULT_PATIENCE)
    for _ in range(3 * DEFAULT_PATIENCE.failures):
        failures.attempt()
        await asyncio.sleep(DEFAULT_PATIENCE.poll_s)
        await failures.failed(TimeoutError())
