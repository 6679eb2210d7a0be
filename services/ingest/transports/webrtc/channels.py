"""Data channels of a peer: aiortc's SCTP over our DTLS, bounded in number, size and what may wait.

aiortc's SCTP knows its transport by private names, and reports what it holds by one: these are all here, and
checked when this is imported or a connection made. The release is pinned for that.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import structlog
from aiortc.rtcdatachannel import RTCDataChannel
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcsctptransport import RTCSctpCapabilities, RTCSctpTransport
from prometheus_client import Counter

from services.common.errors import InvalidError
from services.common.telemetry import report_bug
from services.ingest.transports.webrtc.dtls import Dtls
from services.ingest.transports.webrtc.port import DROPPED

log = structlog.get_logger()
MESSAGE_DROPS: Final = Counter(
    "sluice_webrtc_messages_dropped_total", "Messages for data channels that were not sent.", ["reason"]
)
MOST_CHANNELS: Final = 8
WAITING_RECORDS: Final = 256  # SCTP sends again what is dropped
WAITING_BYTES: Final = 1 << 20  # of one channel, on their way to its client
RECEIVE_WINDOW: Final = 1 << 20  # aiortc's; a peer that sends much more than it was granted is let go

assert inspect.iscoroutinefunction(RTCSctpTransport._handle_data)  # noqa: SLF001 - see above


class Channel:
    """One channel that the client opened."""

    def __init__(self, channel: RTCDataChannel) -> None:
        self.label: str = channel.label
        self._channel = channel

    def send(self, text: str) -> bool:
        """Send a message; False, counted, when it is closed or too much waits for the client."""
        if self._channel.readyState != "open":
            MESSAGE_DROPS.labels("closed").inc()
            return False
        if self._channel.bufferedAmount + len(text) > WAITING_BYTES:
            MESSAGE_DROPS.labels("slow_client").inc()
            return False
        try:
            self._channel.send(text)
        except ValueError:
            MESSAGE_DROPS.labels("too_large").inc()  # than the client said that it takes
            return False
        return True

    def on_message(self, callback: Callable[[str | bytes], None]) -> None:
        """Call `callback` with each message; what it raises is a bug of ours, and costs that message."""

        def contained(message: str | bytes) -> None:
            try:
                callback(message)
            except Exception as error:  # noqa: BLE001 - else aiortc's SCTP would take it for its own
                report_bug("data_channel", error)

        self._channel.on("message", contained)

    def on_close(self, callback: Callable[[], None]) -> None:
        self._channel.on("close", callback)

    def close(self) -> None:
        self._channel.close()


class _Carrier:
    """Our DTLS under the names by which aiortc's SCTP calls its own."""

    def __init__(self, dtls: Dtls) -> None:
        self._dtls = dtls
        self._role = "client" if dtls.client else "server"

    @property
    def state(self) -> str:
        return "connected" if self._dtls.open else "closed"

    def _register_data_receiver(self, receiver: object) -> None:
        """Nothing to do: records are given to the transport by its owner."""

    def _unregister_data_receiver(self, receiver: object) -> None:
        """Nothing to do."""

    async def _send_data(self, data: bytes) -> None:
        self._dtls.write(data)


class Channels:
    """All channels of one peer. `run` is to be run by it; `opened` is called with each channel."""

    def __init__(
        self, dtls: Dtls, *, port: int, largest_message: int, opened: Callable[[Channel], None]
    ) -> None:
        self._sctp = RTCSctpTransport(cast("RTCDtlsTransport", _Carrier(dtls)), port)
        assert self._sctp._advertised_rwnd == RECEIVE_WINDOW  # noqa: SLF001 - see above
        self._port = port
        self._largest_message = largest_message
        self._opened = opened
        self._count = 0
        self._records: deque[bytes] = deque()
        self._ready = asyncio.Event()
        self._sctp.on("datachannel", self._take_channel)

    def _take_channel(self, channel: RTCDataChannel) -> None:
        self._count += 1
        if self._count > MOST_CHANNELS:
            raise InvalidError(f"more than {MOST_CHANNELS} data channels", reason="TOO_MANY_CHANNELS")
        try:
            self._opened(Channel(channel))
        except Exception as error:  # noqa: BLE001 - else aiortc's SCTP would take it for its own
            report_bug("data_channel", error)

    def take(self, record: bytes) -> None:
        """Take a record; never waits."""
        if len(self._records) >= WAITING_RECORDS:
            DROPPED.labels("data_queue").inc()
            return
        self._records.append(record)
        self._ready.set()

    async def run(self) -> None:
        """Work for ever. Raises InvalidError when the peer does what SCTP forbids."""
        await self._sctp.start(RTCSctpCapabilities(maxMessageSize=self._largest_message), self._port)
        while True:
            while not self._records:
                self._ready.clear()
                await self._ready.wait()
            await self._handle(self._records.popleft())

    async def _handle(self, record: bytes) -> None:
        sctp = self._sctp
        try:
            await sctp._handle_data(record)  # noqa: SLF001 - see above
        except InvalidError:
            raise
        except Exception as error:
            # It asserts what the world may send otherwise; the peer that did is let go, and only it.
            raise InvalidError("a data channel's peer broke SCTP", reason="BAD_SCTP") from error
        if sctp._advertised_rwnd < -RECEIVE_WINDOW:  # noqa: SLF001 - see above
            raise InvalidError("more than the receive window", reason="BAD_SCTP")

    async def close(self) -> None:
        """Tell the client, and stop all timers."""
        await self._sctp.stop()
