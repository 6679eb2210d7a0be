"""The server's half of a connection with a publisher: its bytes in, what they mean out. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, TypeAlias
from urllib.parse import parse_qs

from services.common.errors import (
    DeniedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    UnauthenticatedError,
)
from services.common.media.mpegts import LARGEST_UNIT
from services.ingest.transports.rtmp.amf import Value
from services.ingest.transports.rtmp.chunks import ChunkReader, ChunkWriter, Kind, Message
from services.ingest.transports.rtmp.commands import (
    CHUNK_SIZE,
    COMMAND_CHUNKS,
    CONTROL_CHUNKS,
    LARGEST_COMMAND,
    STATUS_CHUNKS,
    STREAM_BEGIN,
    WINDOW,
    Acknowledger,
    Command,
    command,
    number,
    peer_bandwidth,
    pong,
    read_command,
    status,
    user_control,
)
from services.ingest.transports.rtmp.handshake import ServerHandshake

PREFACE_BYTES: Final = 16 * 1024  # before a stream is published: handshake and a few commands
STREAM: Final = 1  # the one message stream that a connection has
MEDIA: Final = frozenset({Kind.AUDIO, Kind.VIDEO})
COMMANDS: Final = frozenset({Kind.COMMAND, Kind.COMMAND_AMF3})
# Words that OBS prints with their description; of others, BadName among them, it says nothing.
DENIED: Final = "NetStream.Publish.Denied"
REJECTED: Final = "NetStream.Publish.Rejected"
NO_PLAY: Final = "NetStream.Play.Failed"


class Phase(enum.Enum):
    """How far a connection is."""

    HANDSHAKE = "handshake"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    PUBLISHING = "publishing"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PublishAsked:
    """The client wants to publish with `key`: `accept` it or `refuse` it."""

    key: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The client is done publishing, in order."""


Event: TypeAlias = PublishAsked | Finished | Message
"""A `Message` is one of sound or pictures."""


class Conversation:
    """`feed` what comes, send what `take` gives. An InvalidError of `feed` is to be told with `refuse`."""

    def __init__(self) -> None:
        self.phase = Phase.HANDSHAKE
        self._handshake = ServerHandshake()
        self._reader = ChunkReader(LARGEST_COMMAND)
        self._writer = ChunkWriter()
        self._acknowledger = Acknowledger()
        self._preface = 0
        self._app = ""
        self._url = ""
        self._refusal = REJECTED
        self._outgoing: list[bytes] = []

    @property
    def messages(self) -> int:
        """How many messages came, of whatever kind."""
        return self._reader.messages

    def take(self) -> bytes:
        """What is to be sent, once."""
        outgoing, self._outgoing = b"".join(self._outgoing), []
        return outgoing

    def feed(self, data: bytes) -> list[Event]:
        """Raises InvalidError for what a publisher does not send."""
        if self.phase not in {Phase.PUBLISHING, Phase.DONE}:
            self._preface += len(data)
            if self._preface > PREFACE_BYTES:
                raise InvalidError("too much before a stream is published", reason="RTMP_MALFORMED")
        self._send(CONTROL_CHUNKS, self._acknowledger.received(len(data)))
        if self.phase is Phase.HANDSHAKE:
            self._outgoing.append(self._handshake.feed(data))
            if not self._handshake.done:
                return []
            self.phase = Phase.CONNECTING
            data = self._handshake.rest
        events: list[Event] = []
        for message in self._reader.feed(data):
            if message.kind in MEDIA:
                if self.phase is Phase.PUBLISHING:
                    events.append(message)
            elif message.kind in COMMANDS:
                event = self._obey(read_command(message))
                if event is not None:
                    events.append(event)
            else:
                self._control(message)
        return events

    def _control(self, message: Message) -> None:
        if message.kind == Kind.WINDOW_SIZE:
            self._acknowledger.obey(message)
        elif message.kind == Kind.USER_CONTROL:
            self._send(CONTROL_CHUNKS, pong(message))
        elif message.kind == Kind.AGGREGATE:
            raise InvalidError("messages of several tags are not taken", reason="RTMP_AGGREGATE")

    def _obey(self, called: Command) -> Event | None:
        if self.phase is Phase.CONNECTING:
            self._connect(called)
        elif called.name in {"play", "play2"}:
            self._refusal = NO_PLAY
            raise InvalidError(
                "nothing is played over RTMP: watch with the stream's HLS or WHEP address,"
                " or give the stream an output_rtmp_url",
                reason="RTMP_NO_PLAY",
            )
        elif called.name == "createStream":
            self._answer(command("_result", called.transaction, None, STREAM))
        elif called.name == "releaseStream":
            self._answer(command("_result", called.transaction, None, None))
        elif called.name == "FCPublish":
            self._answer(command("_result", called.transaction, None, None))
            facts: dict[str, Value] = {"code": "NetStream.Publish.Start", "description": "go on"}
            self._answer(command("onFCPublish", 0, None, facts))
        elif called.name == "publish":
            return self._publish(called)
        elif called.name in {"FCUnpublish", "deleteStream", "closeStream"} and self.phase is Phase.PUBLISHING:
            self.phase = Phase.DONE
            return Finished()
        return None

    def _connect(self, called: Command) -> None:
        if called.name != "connect":
            raise InvalidError("the first command must be connect", reason="RTMP_MALFORMED")
        app, url = (called.fields(0).get(name) for name in ("app", "tcUrl"))
        self._app = app if isinstance(app, str) else ""
        self._url = url if isinstance(url, str) else ""
        self.phase = Phase.CONNECTED
        self._send(CONTROL_CHUNKS, [number(Kind.WINDOW_SIZE, WINDOW), peer_bandwidth(WINDOW)])
        self._outgoing.append(self._writer.set_chunk_size(CHUNK_SIZE))
        server: dict[str, Value] = {"fmsVer": "FMS/3,0,1,123", "capabilities": 31}
        facts: dict[str, Value] = {
            "level": "status",
            "code": "NetConnection.Connect.Success",
            "description": "connected",
            "objectEncoding": 0,
        }
        self._answer(command("_result", called.transaction, server, facts))

    def _publish(self, called: Command) -> Event:
        if self.phase is not Phase.CONNECTED:
            raise InvalidError("a connection publishes one stream", reason="RTMP_MALFORMED")
        self.phase = Phase.PUBLISHING
        self._reader.largest = LARGEST_UNIT
        return PublishAsked(_key(called.text(1), self._app, self._url))

    def accept(self) -> None:
        """Tell the client to begin."""
        self._send(CONTROL_CHUNKS, [user_control(STREAM_BEGIN, STREAM.to_bytes(4, "big"))])
        self._say("status", "NetStream.Publish.Start", "publishing")

    def refuse(self, error: SluiceError) -> None:
        """Tell the client why not, or why not any more, if it is so far that it understands."""
        if self.phase in {Phase.HANDSHAKE, Phase.CONNECTING}:
            return
        denials = (DeniedError, NotFoundError, PaymentRequiredError, UnauthenticatedError)
        code = DENIED if isinstance(error, denials) else self._refusal
        self._say("error", code, f"{error.message} ({error.reason})")

    def confirm(self) -> None:
        """Tell the client that it is done."""
        self._say("status", "NetStream.Unpublish.Success", "the stream is no longer published")

    def _say(self, level: str, code: str, description: str) -> None:
        self._send(STATUS_CHUNKS, [status(level, code, description, STREAM)])

    def _answer(self, message: Message) -> None:
        self._send(COMMAND_CHUNKS, [message])

    def _send(self, chunk_stream: int, messages: Iterable[Message]) -> None:
        self._outgoing += [self._writer.write(chunk_stream, message) for message in messages]


def _key(name: str, app: str, url: str) -> str:
    """The stream key: `?key=` wherever there is one, else the end of the path, whoever split it how."""
    for text in (name, app, url):
        given = parse_qs(text.partition("?")[2]).get("key")
        if given:
            return given[0]
    for text in (name, app):
        path = text.partition("?")[0].strip("/")
        if path:
            return path.rpartition("/")[2]
    return ""
