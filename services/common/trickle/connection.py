"""What both HTTP clients share: a fit session, their bounds in time, and a budget of failures in a row."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector
from yarl import URL

from services.common.errors import ERRORS, InvalidError, SluiceError, UnavailableError
from services.common.trickle.protocol import CLOSED, LATEST, RESUME, ChannelClosedError

TRANSPORT_ERRORS: Final = (ClientError, OSError, TimeoutError)


REFUSALS: Final[dict[int, type[SluiceError]]] = {error.http_status: error for error in ERRORS}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client waits for its server, and how often it tries again."""

    connect_s: float = 5.0
    answer_s: float = 10.0  # from the end of a body, or of a short request, to its answer
    write_s: float = (
        10.0  # for one write to leave: servers never stop reading, so a longer wait is a dead path
    )
    stall_s: float = 60.0  # between two reads inside a segment: JSON channels keep alive every 10 s
    poll_s: float = (
        25.0  # a parked GET is asked anew after this: intermediaries cut silent requests at 30 to 60 s
    )
    settled_s: float = (
        20.0  # a request that lived so long is no failure in a row; above the two waits for a server
    )
    failures: int = 5  # in a row; with the delays about 3 s, time for a server to restart
    first_delay_s: float = 0.1
    last_delay_s: float = 2.0


DEFAULT_PATIENCE: Final = Patience()


class Failures:
    """Counts failures in a row against the budget, and spaces the attempts."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._count = 0
        self._since = 0.0

    def attempt(self) -> None:
        """Note that an attempt begins."""
        self._since = asyncio.get_running_loop().time()

    async def failed(self, error: BaseException) -> None:
        """Wait before the next attempt, or raise UnavailableError when the budget is spent."""
        if asyncio.get_running_loop().time() - self._since > self._patience.settled_s:
            self._count = 0
        self._count += 1
        if self._count >= self._patience.failures:
            raise UnavailableError("The trickle server cannot be reached") from error
        delay_s = min(self._patience.first_delay_s * 2 ** (self._count - 1), self._patience.last_delay_s)
        await asyncio.sleep(delay_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


def trickle_session() -> ClientSession:
    """A session for many long-polls: aiohttp's own cap of 100 connections would park the 101st for ever."""
    return ClientSession(connector=TCPConnector(limit=0))


def segment_url(channel_url: str, index: int | str) -> URL:
    return URL(f"{channel_url.rstrip('/')}/{index}", encoded=True)


def long_request(patience: Patience) -> ClientTimeout:
    """The bounds of a request that may be parked: none in total, for its body is live."""
    return ClientTimeout(total=None, sock_connect=patience.connect_s, sock_read=patience.stall_s)


def check(response: ClientResponse) -> None:
    """Raise, and let go of the response, when its status or the header that says "closed" means an end."""
    if response.status < 400 and CLOSED not in response.headers:
        return
    response.release()
    if response.status == 404 or CLOSED in response.headers:
        raise ChannelClosedError("The channel is closed")
    if response.status >= 500 or response.status == 429:
        raise UnavailableError("The trickle server is busy", status=response.status)
    refusal = REFUSALS.get(response.status, InvalidError)
    raise refusal("The trickle server refused", status=response.status)


def index_header(response: ClientResponse, name: str) -> int | None:
    """A header that carries an index, where it is there and is one."""
    text = response.headers.get(name, "")
    return int(text) if text.isdecimal() and text.isascii() else None


async def find_head(session: ClientSession, channel_url: str, patience: Patience) -> tuple[int, int | None]:
    """Ask a channel for its head, and for where a new reader starts best (other servers do not say).

    Raises ChannelClosedError, InvalidError, UnavailableError.
    """
    failures = Failures(patience)
    timeout = ClientTimeout(total=patience.answer_s, sock_connect=patience.connect_s)
    while True:
        failures.attempt()
        try:
            async with session.get(segment_url(channel_url, "next"), timeout=timeout) as response:
                check(response)
                head = index_header(response, LATEST)
                resume = index_header(response, RESUME)
        except (*TRANSPORT_ERRORS, UnavailableError) as error:
            await failures.failed(error)
            continue
        if head is None:
            raise InvalidError("The trickle server does not tell its head")
        return head, resume
