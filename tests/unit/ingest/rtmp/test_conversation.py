"""The server's half: keys wherever clients put them, the answers that clients wait for, good ends."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
)
from services.ingest.transports.rtmp import amf
from services.ingest.transports.rtmp.chunks import ChunkReader, ChunkWriter, Kind, Message
from services.ingest.transports.rtmp.commands import (
    LARGEST_COMMAND,
    PING,
    PONG,
    Command,
    command,
    number,
    read_command,
    user_control,
)
from services.ingest.transports.rtmp.conversation import (
    PREFACE_BYTES,
    Conversation,
    Event,
    Finished,
    Phase,
    PublishAsked,
)
from services.ingest.transports.rtmp.handshake import ClientHandshake

URL = "rtmp://here/live"


class Client:
    """The other end: says things, and reads what the server answered."""

    def __init__(self, *, greeted: bool = True) -> None:
        self.server = Conversation()
        self.chunks = ChunkWriter()
        self._reader = ChunkReader(1 << 20)
        if greeted:
            handshake = ClientHandshake()
            self.server.feed(handshake.hello)
            self.server.feed(handshake.feed(self.server.take()))

    def say(self, *messages: Message) -> list[Event]:
        return self.server.feed(b"".join(self.chunks.write(3, one) for one in messages))

    def call(self, name: str, *arguments: Any, transaction: float = 1) -> list[Event]:
        return self.say(command(name, transaction, *arguments))

    def messages(self) -> list[Message]:
        return self._reader.feed(self.server.take())

    def answers(self) -> list[Command]:
        return [read_command(one) for one in self.messages() if one.kind == Kind.COMMAND]

    def connect(self, app: str = "live", url: str = URL) -> None:
        self.call("connect", {"app": app, "tcUrl": url})

    def publish(self, name: str = "key", **facts: str) -> list[Event]:
        self.connect(**facts)
        self.call("createStream", None)
        return self.call("publish", None, name, "live")


@pytest.mark.parametrize(
    ("app", "name", "url"),
    [
        ("live", "stk_a", URL),
        ("anything", "stk_a", URL),
        ("live/", "/stk_a", URL),
        ("live", "stk_a?token=1", URL),
        ("live", "obs?key=stk_a", URL),
        ("live?key=stk_a", "obs", URL),
        ("live", "obs", f"{URL}?key=stk_a"),
        ("live", "", f"{URL}?a=b&key=stk_a"),
        ("live/stk_a", "", URL),
        ("live/stk_a?x=1", "", URL),
        ("live", "deeper/stk_a", URL),
    ],
)
def test_the_key_is_found_wherever_clients_put_it(app: str, name: str, url: str) -> None:
    assert Client().publish(name, app=app, url=url) == [PublishAsked("stk_a")]


def test_a_publisher_gets_every_answer_that_clients_wait_for() -> None:
    client = Client()
    client.connect()
    messages = client.messages()
    assert [one.kind for one in messages] == [Kind.WINDOW_SIZE, Kind.PEER_BANDWIDTH, Kind.COMMAND]
    result = read_command(messages[-1])
    assert (result.name, result.transaction) == ("_result", 1)
    assert result.fields(1)["code"] == "NetConnection.Connect.Success"
    client.call("releaseStream", None, "key", transaction=2)
    client.call("FCPublish", None, "key", transaction=3)
    client.call("createStream", None, transaction=4)
    answers = [(one.name, one.transaction) for one in client.answers()]
    assert answers == [("_result", 2), ("_result", 3), ("onFCPublish", 0), ("_result", 4)]
    client.call("publish", None, "key", "live", transaction=5)
    assert client.answers() == [], "not before somebody looked at the key"
    client.server.accept()
    (status,) = client.answers()
    assert (status.name, status.fields(1)["code"]) == ("onStatus", "NetStream.Publish.Start")


def test_media_is_passed_on_only_once_something_is_published() -> None:
    client = Client()
    client.connect()
    picture = Message(Kind.VIDEO, b"x", 40, 1)
    assert client.say(picture) == []
    client.call("publish", None, "key", "live")
    assert client.say(picture, Message(Kind.DATA, b"what nobody reads"), picture) == [picture, picture]


@pytest.mark.parametrize("name", ["FCUnpublish", "deleteStream", "closeStream"])
def test_a_publisher_that_says_goodbye_is_done_once(name: str) -> None:
    client = Client()
    client.publish()
    assert client.call(name, None, 1) == [Finished()]
    assert client.call("deleteStream", None, 1) == []
    assert client.say(Message(Kind.VIDEO, b"late")) == []
    client.answers()
    client.server.confirm()
    (status,) = client.answers()
    assert status.fields(1)["code"] == "NetStream.Unpublish.Success"


def test_amf3_commands_are_read_as_the_amf0_that_they_are() -> None:
    client = Client()
    payload = b"\x00" + amf.encode("connect", 1, {"app": "live", "objectEncoding": 3})
    client.say(Message(Kind.COMMAND_AMF3, payload))
    assert client.answers()[0].fields(1)["objectEncoding"] == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (NotFoundError("no such key"), "NetStream.Publish.Denied"),
        (PaymentRequiredError("no credit"), "NetStream.Publish.Denied"),
        (ConflictError("busy"), "NetStream.Publish.Rejected"),
        (ExhaustedError("no slot", reason="NO_CAPACITY"), "NetStream.Publish.Rejected"),
        (InvalidError("HEVC"), "NetStream.Publish.Rejected"),
    ],
)
def test_a_refusal_has_a_code_that_encoders_print_and_words_for_people(error: SluiceError, code: str) -> None:
    client = Client()
    client.publish()
    client.answers()
    client.server.refuse(error)
    (status,) = client.answers()
    assert status.name == "onStatus"
    assert status.fields(1) == {
        "level": "error",
        "code": code,
        "description": f"{error.message} ({error.reason})",
    }


def test_who_wants_to_watch_is_told_where_to() -> None:
    client = Client()
    client.connect()
    with pytest.raises(InvalidError) as refusal:
        client.call("play", None, "key")
    client.answers()
    client.server.refuse(refusal.value)
    (status,) = client.answers()
    assert status.fields(1)["code"] == "NetStream.Play.Failed"
    assert "HLS" in str(status.fields(1)["description"])


def test_who_cannot_understand_yet_is_told_nothing() -> None:
    client = Client(greeted=False)
    client.server.refuse(InvalidError("no"))
    assert client.server.take() == b""


def test_a_ping_is_answered_with_its_own_time() -> None:
    client = Client()
    client.connect()
    client.messages()
    client.say(user_control(PING, b"\x00\x00\x12\x34"), user_control(3, bytes(8)))
    assert client.messages() == [user_control(PONG, b"\x00\x00\x12\x34")]


def test_what_was_received_is_acknowledged_as_often_as_was_asked_for() -> None:
    client = Client()
    client.publish()
    client.messages()
    client.say(number(Kind.WINDOW_SIZE, 1000))
    client.messages()
    client.say(Message(Kind.VIDEO, bytes(900)))
    client.say(Message(Kind.VIDEO, bytes(900)))
    acknowledged = [one for one in client.messages() if one.kind == Kind.ACKNOWLEDGEMENT]
    assert len(acknowledged) in {1, 2}
    assert int.from_bytes(acknowledged[-1].payload, "big") > 1536 * 2 + 900


@pytest.mark.parametrize(
    "calls",
    [
        [("publish", None, "key")],
        [("connect", {}), ("publish", None, "key"), ("publish", None, "key")],
    ],
    ids=["before connect", "twice"],
)
def test_what_no_publisher_does_is_refused(calls: list[tuple[Any, ...]]) -> None:
    client = Client()
    *before, last = calls
    for call in before:
        client.call(*call)
    with pytest.raises(InvalidError):
        client.call(*last)


@pytest.mark.parametrize(
    "message",
    [
        Message(Kind.AGGREGATE, b"x"),
        Message(Kind.COMMAND, b""),
        Message(Kind.COMMAND, amf.encode(1, 2)),
        Message(Kind.COMMAND, amf.encode("x") + bytes(1)),
        Message(Kind.COMMAND, bytes(100_000)),
    ],
    ids=["aggregate", "empty", "no name", "cut off", "too long"],
)
def test_messages_that_make_no_sense_are_refused(message: Message) -> None:
    client = Client()
    client.publish()
    with pytest.raises(InvalidError):
        client.say(message)


def test_who_only_talks_and_publishes_nothing_is_cut_off() -> None:
    client = Client()
    client.connect()
    spam = Message(Kind.DATA, bytes(1000))
    for _ in range(PREFACE_BYTES // 1100 - 5):
        client.say(spam)
    with pytest.raises(InvalidError):
        client.say(*[spam] * 20)


def test_a_picture_may_be_large_and_what_comes_before_publishing_may_not() -> None:
    client = Client()
    client.connect()
    large = Message(Kind.VIDEO, bytes(LARGEST_COMMAND + 1))
    client.call("publish", None, "key")
    assert client.say(large) == [large]
    other = Client()
    other.connect()
    with pytest.raises(InvalidError):
        other.say(large)


@given(st.binary(max_size=4000), st.booleans(), st.integers(1, 1000))
def test_garbage_is_refused_and_nothing_worse(data: bytes, greeted: bool, step: int) -> None:
    client = Client(greeted=greeted)
    with contextlib.suppress(InvalidError):
        for at in range(0, len(data), step):
            client.server.feed(data[at : at + step])


names = st.sampled_from(["connect", "publish", "play", "createStream", "FCPublish", "deleteStream", "other"])
arguments = st.lists(st.none() | st.text(max_size=10) | st.floats() | st.just({"app": "live"}), max_size=4)
calls = st.builds(lambda name, rest: command(name, 1, *rest), names, arguments)


@given(st.lists(calls | st.builds(Message, st.integers(1, 25), st.binary(max_size=50)), max_size=12))
def test_any_order_of_commands_is_refused_or_answered_and_nothing_worse(said: list[Message]) -> None:
    client = Client()
    published = 0
    with contextlib.suppress(InvalidError):
        for message in said:
            published += sum(isinstance(event, PublishAsked) for event in client.say(message))
            client.answers()
    assert published <= 1
    assert client.server.phase in Phase
