"""The commands and control messages that both sides of a connection send (specification §5.4, §7). Pure."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from services.common.errors import InvalidError
from services.ingest.transports.rtmp import amf
from services.ingest.transports.rtmp.amf import Value
from services.ingest.transports.rtmp.chunks import Kind, Message

CONTROL_CHUNKS: Final = 2
COMMAND_CHUNKS: Final = 3
STATUS_CHUNKS: Final = 5
MEDIA_CHUNKS: Final = {Kind.AUDIO: 4, Kind.VIDEO: 6, Kind.DATA: 5}
CHUNK_SIZE: Final = 4096  # of what we send; OBS's, so every server has seen it
WINDOW: Final = 2_500_000  # bytes that may go unacknowledged: everybody's
DYNAMIC: Final = 2  # a limit of bandwidth that may be seen as either kind
LARGEST_COMMAND: Final = 16 * 1024

STREAM_BEGIN, PING, PONG = 0, 6, 7


@dataclass(frozen=True, slots=True)
class Command:
    """A call of the other side, or an answer. `arguments` come after the name and the transaction."""

    name: str
    transaction: float
    arguments: tuple[Value, ...]

    def fields(self, index: int) -> dict[str, Value]:
        """The object among the arguments, or none of its fields."""
        found = self.arguments[index] if index < len(self.arguments) else None
        return found if isinstance(found, dict) else {}

    def text(self, index: int) -> str:
        found = self.arguments[index] if index < len(self.arguments) else None
        return found if isinstance(found, str) else ""


def read_command(message: Message) -> Command:
    """Raises InvalidError."""
    payload = message.payload
    if len(payload) > LARGEST_COMMAND:
        raise InvalidError("a command that is too long", reason="RTMP_MALFORMED")
    # AMF3's commands are AMF0's behind a zero, for as long as nobody switches within them.
    values = amf.decode(payload[1:] if message.kind == Kind.COMMAND_AMF3 else payload)
    name = values[0] if values else None
    if not isinstance(name, str):
        raise InvalidError("a command without name", reason="RTMP_MALFORMED")
    transaction = values[1] if len(values) > 1 else 0.0
    if isinstance(transaction, bool) or not isinstance(transaction, int | float):
        transaction = 0.0
    return Command(name, transaction, tuple(values[2:]))


def command(name: str, transaction: float, *arguments: Value, stream: int = 0) -> Message:
    return Message(Kind.COMMAND, amf.encode(name, transaction, *arguments), stream=stream)


def status(level: str, code: str, description: str, stream: int) -> Message:
    facts: dict[str, Value] = {"level": level, "code": code, "description": description}
    return command("onStatus", 0, None, facts, stream=stream)


def number(kind: Kind, value: int) -> Message:
    """A control message that is one number of 32 bits."""
    return Message(kind, value.to_bytes(4, "big"))


def peer_bandwidth(value: int) -> Message:
    return Message(Kind.PEER_BANDWIDTH, struct.pack(">IB", value, DYNAMIC))


def user_control(event: int, value: bytes) -> Message:
    return Message(Kind.USER_CONTROL, struct.pack(">H", event) + value)


class Acknowledger:
    """Says to the other side how much was received, as often as it asked for. Nobody checks it, some wait."""

    def __init__(self) -> None:
        self._window = WINDOW
        self._received = 0
        self._said = 0

    def obey(self, message: Message) -> None:
        """Take the window that the other side wishes."""
        self._window = max(1, int.from_bytes(message.payload[:4], "big"))

    def received(self, count: int) -> list[Message]:
        self._received += count
        if self._received - self._said < self._window:
            return []
        self._said = self._received
        return [number(Kind.ACKNOWLEDGEMENT, self._received & 0xFFFFFFFF)]


def pong(message: Message) -> list[Message]:
    """The answer to a ping; nothing for other events."""
    event = int.from_bytes(message.payload[:2], "big")
    return [user_control(PONG, message.payload[2:6])] if event == PING else []
