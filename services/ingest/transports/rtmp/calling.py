"""The client's half of a connection, for pushing to a server: its bytes in, how far it is out. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from services.common.errors import UnavailableError
from services.ingest.transports.rtmp.amf import Value
from services.ingest.transports.rtmp.chunks import ChunkReader, ChunkWriter, Kind, Message
from services.ingest.transports.rtmp.commands import (
    CHUNK_SIZE,
    COMMAND_CHUNKS,
    CONTROL_CHUNKS,
    LARGEST_COMMAND,
    MEDIA_CHUNKS,
    Acknowledger,
    Command,
    command,
    pong,
    read_command,
)
from services.ingest.transports.rtmp.handshake import ClientHandshake
from services.ingest.transports.rtmp.target import Target

CONNECT, RELEASE, PREPARE, CREATE, PUBLISH = 1.0, 2.0, 3.0, 4.0, 5.0  # transactions, in their order
COMMANDS: Final = frozenset({Kind.COMMAND, Kind.COMMAND_AMF3})
FAULT: Final = "RTMP_PUSH_REFUSED"


class Step(enum.Enum):
    """How far a call is."""

    HANDSHAKE = "handshake"
    CONNECT = "connect"
    CREATE = "create a stream"
    PUBLISH = "publish"
    LIVE = "live"


class Calling:
    """`feed` what comes, send what `take` gives; from `Step.LIVE` on `write` what is to be published."""

    def __init__(self, target: Target) -> None:
        self.step = Step.HANDSHAKE
        self.stream = 0  # the message stream that the server made
        self._target = target
        self._handshake = ClientHandshake()
        self._reader = ChunkReader(LARGEST_COMMAND)
        self._writer = ChunkWriter()
        self._acknowledger = Acknowledger()
        self._outgoing = [self._handshake.hello]

    def take(self) -> bytes:
        """What is to be sent, once."""
        outgoing, self._outgoing = b"".join(self._outgoing), []
        return outgoing

    def write(self, messages: Iterable[Message]) -> None:
        self._outgoing += [self._writer.write(MEDIA_CHUNKS[Kind(one.kind)], one) for one in messages]

    def finish(self) -> None:
        """Say that this is the end."""
        name = self._target.name
        self._call(command("FCUnpublish", PUBLISH + 1, None, name))
        self._call(command("deleteStream", PUBLISH + 2, None, self.stream))

    def feed(self, data: bytes) -> None:
        """Raises UnavailableError with the server's words, and InvalidError for what is no RTMP."""
        if self.step is Step.HANDSHAKE:
            self._outgoing.append(self._handshake.feed(data))
            if not self._handshake.done:
                return
            data = self._handshake.rest
            self._connect()
        self._control(self._acknowledger.received(len(data)))
        for message in self._reader.feed(data):
            if message.kind == Kind.WINDOW_SIZE:
                self._acknowledger.obey(message)
            elif message.kind == Kind.USER_CONTROL:
                self._control(pong(message))
            elif message.kind in COMMANDS:
                self._obey(read_command(message))

    def _connect(self) -> None:
        self.step = Step.CONNECT
        self._outgoing.append(self._writer.set_chunk_size(CHUNK_SIZE))
        facts: dict[str, Value] = {
            "app": self._target.app,
            "type": "nonprivate",
            "flashVer": "FMLE/3.0 (compatible; Sluice)",
            "tcUrl": self._target.url,
        }
        self._call(command("connect", CONNECT, facts))

    def _obey(self, called: Command) -> None:
        if called.name == "_error" and called.transaction in {CONNECT, CREATE, PUBLISH}:
            raise self._refused(called)
        if called.name == "_result" and called.transaction == CONNECT and self.step is Step.CONNECT:
            self.step = Step.CREATE
            self._call(command("releaseStream", RELEASE, None, self._target.name))
            self._call(command("FCPublish", PREPARE, None, self._target.name))
            self._call(command("createStream", CREATE, None))
        elif called.name == "_result" and called.transaction == CREATE and self.step is Step.CREATE:
            number = called.arguments[1] if len(called.arguments) > 1 else None
            self.stream = int(number) if isinstance(number, int | float) and 0 <= number < 1 << 32 else 1
            self.step = Step.PUBLISH
            self._call(command("publish", PUBLISH, None, self._target.name, "live", stream=self.stream))
        elif called.name == "onStatus":
            facts = called.fields(1)
            if facts.get("level") == "error":
                raise self._refused(called)
            if facts.get("code") == "NetStream.Publish.Start" and self.step is Step.PUBLISH:
                self.step = Step.LIVE

    def _refused(self, called: Command) -> UnavailableError:
        facts = called.fields(1)
        words = [text for name in ("code", "description") if isinstance(text := facts.get(name), str)]
        told = self._target.redact(": ".join(words)) or "no reason given"
        return UnavailableError(f"the server refused at {self.step.value}: {told}", reason=FAULT)

    def _call(self, message: Message) -> None:
        self._outgoing.append(self._writer.write(COMMAND_CHUNKS, message))

    def _control(self, messages: Iterable[Message]) -> None:
        self._outgoing += [self._writer.write(CONTROL_CHUNKS, message) for message in messages]
