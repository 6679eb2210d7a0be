"""Clients that behave like the reference's: Go's on raw sockets, the Python ones on aiohttp.

What they do was taken from the description of the protocol: when they connect, what they send, what they make
of each answer, and where they give up.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from tests.contract.trickle.wire import Answer, Connection, Served, connect

GO_HEADERS = ("User-Agent: Go-http-client/1.1", "Accept-Encoding: gzip")
GO_POLL_S = 20.0  # a parked GET is cancelled and asked again
EVER_S = 1e6
EOS = "end of stream"
NOT_FOUND = "stream not found"


class GoneError(Exception):
    """What a Go client returns as an error."""


def meaning(answer: Answer) -> str:
    """What a Go client makes of an answer; "" is success."""
    if "lp-trickle-closed" in answer.headers:
        return EOS
    if answer.status == 404:
        return NOT_FOUND
    return "" if answer.status == 200 else f"status {answer.status}"


# --- Go


@dataclass
class GoHandle:
    """One POST of a Go publisher."""

    publisher: GoPublisher
    index: int
    connection: Connection
    used: bool = False

    async def write(self, *chunks: bytes) -> str:
        """Send the whole body and wait for the answer; a handle that was used is connected anew."""
        if self.used:
            self.connection = await self.publisher.park(self.index)
        self.used = True
        for chunk in chunks:
            self.connection.chunk(chunk)
            await asyncio.sleep(0)
        self.connection.end()
        answer = await self.answer()
        if answer.headers.get("connection") != "close":
            self.publisher.idle.append(self.connection)
        return meaning(answer)

    async def answer(self) -> Answer:
        """The answer, after however many times the server said to continue."""
        while (answer := await self.connection.answer(EVER_S)).status == 100:
            self.publisher.continued += 1
        return answer

    async def give_up(self) -> None:
        """End the body and delete the segment, on a fresh connection."""
        self.connection.end()
        async with connect(self.publisher.served) as other:
            other.request("DELETE", f"{self.publisher.path}/{self.index}", *GO_HEADERS)
            await other.answer()


@dataclass
class GoPublisher:
    """Two POSTs at a time: one that flows and one that is parked."""

    served: Served
    path: str
    stack: AsyncExitStack
    idle: list[Connection] = field(default_factory=list)
    continued: int = 0

    async def park(self, index: int) -> Connection:
        connection = (
            self.idle.pop() if self.idle else await self.stack.enter_async_context(connect(self.served))
        )
        connection.post(f"{self.path}/{index}", "Content-Type: video/MP2T", *GO_HEADERS)
        return connection

    async def start(self) -> None:
        self.parked = GoHandle(self, 0, await self.park(0))

    async def next(self) -> GoHandle:
        """Hand out the parked POST, and park the next one at once."""
        handle = self.parked
        self.parked = GoHandle(self, handle.index + 1, await self.park(handle.index + 1))
        return handle

    async def close(self) -> str:
        """Delete the channel, and only then end the parked body."""
        async with connect(self.served) as other:
            other.request("DELETE", self.path, *GO_HEADERS)
            await other.answer()
        self.parked.connection.end()
        return meaning(await self.parked.answer())


@asynccontextmanager
async def go_publisher(served: Served, path: str = "/c") -> AsyncIterator[GoPublisher]:
    async with AsyncExitStack() as stack:
        publisher = GoPublisher(served, path, stack)
        await publisher.start()
        yield publisher


class GoSubscriber:
    """Asks ahead for the next segment, asks anew every 20 s, and returns errors that its caller acts on."""

    def __init__(self, served: Served, stack: AsyncExitStack, path: str, start: int) -> None:
        self.served = served
        self.stack = stack
        self.path = path
        self.index = start
        self.polls = 0
        self.ahead = asyncio.ensure_future(self._ask())

    async def _ask(self) -> tuple[Connection, Answer]:
        while True:
            connection = await self.stack.enter_async_context(connect(self.served))
            connection.request("GET", f"{self.path}/{self.index}", *GO_HEADERS)
            self.polls += 1
            try:
                return connection, await connection.head(GO_POLL_S)
            except TimeoutError:
                connection.kill()

    def set_index(self, index: int) -> None:
        self.index = index
        self.ahead = asyncio.ensure_future(self._ask())

    async def read(self) -> tuple[int, bytes]:
        """The next segment, whole; the one after it is asked for before its body has come."""
        connection, answer = await self.ahead
        if answer.status == 470:
            self.set_index(int(answer.headers["lp-trickle-latest"]))
        if meaning(answer):
            raise GoneError(meaning(answer))
        index = int(answer.headers["lp-trickle-seq"])
        self.set_index(index + 1)
        return index, await connection.body_of(answer)

    async def everything(self) -> tuple[list[tuple[int, bytes]], str]:
        """All that can be read, and what was said in the end."""
        seen: list[tuple[int, bytes]] = []
        while True:
            try:
                seen.append(await self.read())
            except GoneError as gone:
                if str(gone) in {EOS, NOT_FOUND}:
                    return seen, str(gone)


@asynccontextmanager
async def go_subscriber(served: Served, path: str = "/c", start: int = -1) -> AsyncIterator[GoSubscriber]:
    async with AsyncExitStack() as stack:
        subscriber = GoSubscriber(served, stack, path, start)
        try:
            yield subscriber
        finally:
            subscriber.ahead.cancel()
            await asyncio.wait([subscriber.ahead])


# --- Python


class PythonSubscriber:
    """`Connection: close` on every request, from -2, a budget for each; dead after five attempts."""

    def __init__(self, session: ClientSession, url: str, *, budget_s: float = 30.0, start: int = -2) -> None:
        self.session = session
        self.url = url
        self.budget_s = budget_s
        self.index = start
        self.jumps = 0

    async def next(self) -> ClientResponse | None:
        """The next segment's response; None is the end, whatever it was."""
        for _ in range(5):
            try:
                response = await self.session.get(
                    f"{self.url}/{self.index}",
                    headers={"Connection": "close"},
                    timeout=ClientTimeout(total=self.budget_s),
                )
            except (TimeoutError, ClientError):
                await asyncio.sleep(0.5)
                continue
            if response.status == 200:
                if "Lp-Trickle-Closed" in response.headers:
                    response.release()
                    return None
                self.index = int(response.headers["Lp-Trickle-Seq"]) + 1
                return response
            response.release()
            if response.status == 404:
                return None
            if response.status == 470:
                self.jumps += 1
                self.index = int(response.headers.get("Lp-Trickle-Latest", "-1"))
                continue
            await asyncio.sleep(0.5)
        return None

    async def everything(self) -> list[bytes]:
        seen: list[bytes] = []
        while (response := await self.next()) is not None:
            seen.append(await response.read())
        return seen


class PythonPublisher:
    """One request task per segment, the next one connected ahead, bodies fed through a queue of one."""

    def __init__(self, session: ClientSession, url: str, *, start: int = 0, budget_s: float = 300.0) -> None:
        self.session = session
        self.url = url
        self.index = start
        self.reset = start == -1
        self.budget_s = budget_s
        self.tasks: list[asyncio.Task[int]] = []
        self.parked: asyncio.Queue[bytes | None] | None = None

    async def _park(self) -> asyncio.Queue[bytes | None]:
        headers = {"Connection": "close", "Content-Type": "video/MP2T"}
        if self.index == -1:  # the SDK's way to go on where another publisher left off
            async with self.session.get(f"{self.url}/next") as response:
                self.index = int(response.headers["Lp-Trickle-Latest"])
        if self.reset:
            headers["Lp-Trickle-Reset"] = "1"
            self.reset = False
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self.tasks.append(asyncio.ensure_future(self._post(self.index, queue, headers)))
        self.index += 1
        return queue

    async def _post(self, index: int, queue: asyncio.Queue[bytes | None], headers: dict[str, str]) -> int:
        async def body() -> AsyncIterator[bytes]:
            while (data := await queue.get()) is not None:
                yield data

        timeout = ClientTimeout(total=self.budget_s)
        url = f"{self.url}/{index}"
        async with self.session.post(url, data=body(), headers=headers, timeout=timeout) as response:
            return response.status

    async def write(self, *chunks: bytes) -> None:
        queue = self.parked or await self._park()
        self.parked = await self._park()
        for chunk in (*chunks, None):
            await queue.put(chunk)

    async def close(self, *, delete: bool) -> list[int]:
        """End the parked body, which leaves an empty segment, and in some clients the channel."""
        if self.parked is not None:
            await self.parked.put(None)
        statuses = await asyncio.gather(*self.tasks)
        if delete:
            async with self.session.delete(self.url):
                pass
        return statuses
