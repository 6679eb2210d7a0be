"""The client's half: it publishes at our own server's half, quotes refusals, survives what servers say."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidError, NotFoundError, UnavailableError
from services.ingest.transports.rtmp.amf import Value
from services.ingest.transports.rtmp.calling import CONNECT, CREATE, Calling, Step
from services.ingest.transports.rtmp.chunks import ChunkWriter, Kind, Message
from services.ingest.transports.rtmp.commands import WINDOW, command, number, status
from services.ingest.transports.rtmp.conversation import Conversation, Event, Finished, PublishAsked
from services.ingest.transports.rtmp.handshake import SIZE
from services.ingest.transports.rtmp.target import parse_target

TARGET = parse_target("rtmp://example.com/live/secret?token=word", private=False)


def met() -> tuple[Calling, Conversation, list[Event]]:
    """A client and a server that said to each other what there is to say."""
    calling, server = Calling(TARGET), Conversation()
    events: list[Event] = []
    exchange(calling, server, events)
    return calling, server, events


def exchange(calling: Calling, server: Conversation, events: list[Event]) -> None:
    while said := calling.take():
        events += server.feed(said)
        calling.feed(server.take())


def test_it_publishes_as_servers_expect_it() -> None:
    calling, server, events = met()
    asked: Step = calling.step
    assert asked is Step.PUBLISH
    assert events == [PublishAsked("secret")]
    server.accept()
    calling.feed(server.take())
    live: Step = calling.step
    assert live is Step.LIVE
    picture = Message(Kind.VIDEO, bytes(10_000), 40, calling.stream)
    calling.write([picture])
    calling.finish()
    exchange(calling, server, events)
    assert events[1:] == [picture, Finished()]


def test_a_refusal_is_quoted_without_the_key() -> None:
    calling, server, _ = met()
    server.refuse(NotFoundError("no stream secret", reason="NO_SUCH"))
    with pytest.raises(UnavailableError) as refusal:
        calling.feed(server.take())
    assert "at publish: NetStream.Publish.Denied: no stream ... (NO_SUCH)" in refusal.value.message


def greeted(calling: Calling) -> ChunkWriter:
    calling.take()
    calling.feed(b"\x03" + bytes(2 * SIZE))
    return ChunkWriter()


@pytest.mark.parametrize(
    ("transaction", "facts", "words"),
    [
        (CONNECT, {"code": "NetConnection.Connect.Rejected", "description": "not you"}, "Rejected: not you"),
        (CREATE, {}, "no reason given"),
    ],
)
def test_an_error_of_a_call_is_a_refusal(transaction: float, facts: dict[str, Value], words: str) -> None:
    calling = Calling(TARGET)
    writer = greeted(calling)
    with pytest.raises(UnavailableError, match=words):
        calling.feed(writer.write(3, command("_error", transaction, None, facts)))


def test_servers_that_refuse_what_nobody_needs_are_published_to() -> None:
    calling = Calling(TARGET)
    writer = greeted(calling)
    said = [
        number(Kind.WINDOW_SIZE, WINDOW),
        command("_result", CONNECT, {}, {"code": "NetConnection.Connect.Success"}),
        command("onBWDone", 0, None),
        command("_error", 2, None, {"description": "releaseStream is not known"}),
        command("onFCPublish", 0, None, {"code": "NetStream.Publish.Start"}),
        command("_result", CREATE, None, 5),
        status("status", "NetStream.Publish.Start", "go on", 5),
    ]
    for message in said:
        calling.feed(writer.write(3, message))
    assert calling.step is Step.LIVE
    assert calling.stream == 5


@given(st.binary(max_size=3000), st.booleans(), st.integers(1, 500))
def test_whatever_a_server_says_is_refused_or_passed_over_and_nothing_worse(
    data: bytes, shaken: bool, step: int
) -> None:
    calling = Calling(TARGET)
    if shaken:
        greeted(calling)
    with contextlib.suppress(InvalidError, UnavailableError):
        for at in range(0, len(data), step):
            calling.feed(data[at : at + step])


words = st.sampled_from(["_result", "_error", "onStatus", "onBWDone", "close"])
values = st.none() | st.floats() | st.text(max_size=5) | st.just({"level": "error", "code": "x"})


@given(st.lists(st.tuples(words, st.integers(0, 6), st.lists(values, max_size=3)), max_size=8))
def test_any_order_of_answers_is_refused_or_passed_over_and_nothing_worse(
    said: list[tuple[str, int, list[Value]]],
) -> None:
    calling = Calling(TARGET)
    writer = greeted(calling)
    with contextlib.suppress(InvalidError, UnavailableError):
        for name, transaction, arguments in said:
            calling.feed(writer.write(3, command(name, transaction, *arguments)))
    assert 0 <= calling.stream < 1 << 32
