"""RTMP publishers: libav's own client, and clients that misbehave, at a whole ingest process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import trustme

from protos.inference.v1 import runner_pb2
from services.common.errors import (
    ExhaustedError,
    PaymentRequiredError,
    SluiceError,
    UnavailableError,
)
from services.common.media.clock import ORIGIN_TICKS
from services.common.media.mpegts import Codec
from services.ingest.transports.rtmp import server
from services.ingest.transports.rtmp.chunks import Kind, Message
from services.ingest.transports.rtmp.commands import PING, user_control
from tests.support.ingest import KEYS, STREAM, Ingest, ingesting, until
from tests.support.media import FRAME, shown, units_of
from tests.support.nats import NatsServer, nats_server
from tests.support.rtmp import Publishers, Talker, flv, messages_of, published

KEY = KEYS.publish(STREAM)


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as running:
        yield running


@pytest.fixture
async def ingest(nats: NatsServer, tmp_path: Path) -> AsyncIterator[Ingest]:
    async with ingesting(nats.url, tmp_path, viewer_wait_s=20) as found:  # a process starts slowly
        yield found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[Message]:
    """Two seconds of pictures and sound."""
    return messages_of(flv(tmp_path_factory.mktemp("clip") / "clip.flv", seconds=2.0))


def target(ingest: Ingest, stream: str = STREAM) -> str:
    return f"{ingest.rtmp_url}/{KEYS.publish(stream)}"


Meet = Callable[[Ingest], Awaitable[Talker]]


@pytest.fixture
async def meet() -> AsyncIterator[Meet]:
    """Connects a client that is gone when the test ends."""
    met: list[Talker] = []

    async def connect(ingest: Ingest) -> Talker:
        met.append(await Talker.open(ingest.rtmp_url))
        return met[-1]

    yield connect
    for talker in met:
        await talker.leave()


async def talking(meet: Meet, ingest: Ingest, clip: list[Message]) -> Talker:
    """A publisher that has sent a clip, and stays."""
    talker = await meet(ingest)
    assert (await talker.publish(KEY))["code"] == "NetStream.Publish.Start"
    talker.say(*clip)
    await until(lambda: (session := ingest.hub.of_stream(STREAM)) and session.frames_in == 50)
    return talker


async def replay(talker: Talker, messages: list[Message]) -> None:
    """Publish that, and say goodbye."""
    assert (await talker.publish(KEY))["code"] == "NetStream.Publish.Start"
    talker.say(*messages)
    talker.call("FCUnpublish", None, "", transaction=6)
    talker.call("deleteStream", None, 1, transaction=7)
    assert (await status(talker))["code"] == "NetStream.Unpublish.Success"


async def status(talker: Talker) -> dict[str, object]:
    return {**(await talker.hear("onStatus")).fields(1)}


# --- what publishers send


async def test_what_libav_publishes_comes_back_to_the_viewer_with_its_sound(ingest: Ingest) -> None:
    watching = asyncio.ensure_future(ingest.watch())
    outcome = await published(target(ingest))
    seen = await watching
    times = shown(seen)
    assert outcome.sent == [50]
    assert times == [ORIGIN_TICKS + index * FRAME for index in range(50)]
    heard = [unit.pts for unit in units_of(seen) if unit.codec is Codec.AAC]
    assert heard == sorted(set(heard))
    assert len(heard) > 80
    await until(lambda: len(ingest.hub) == 0)
    assert ingest.sessions.reports[-1].drained, "it ended in order"


@pytest.mark.parametrize(
    "facts",
    [
        {"begin_ms": 0xFFFFFF - 900},
        {"begin_ms": 0x7FFFFFFF - 900},
        {"audio": None},
        {"audio_rate": 44_100},
    ],
    ids=["past 24 bits", "past 31 bits", "no sound", "44.1 kHz"],
)
async def test_pictures_are_shown_at_their_times_whatever_the_publisher_does(
    ingest: Ingest, meet: Meet, tmp_path: Path, facts: dict[str, int | str | None]
) -> None:
    watching = asyncio.ensure_future(ingest.watch())
    await replay(await meet(ingest), messages_of(flv(tmp_path / "clip.flv", seconds=2.0, **facts)))
    times = shown(await watching)
    assert {later - earlier for earlier, later in pairwise(times)} == {FRAME}
    assert len(times) == 50


async def test_pictures_that_are_sent_out_of_their_order_reach_the_runner_with_both_times(
    ingest: Ingest, meet: Meet, tmp_path: Path
) -> None:
    clip = messages_of(flv(tmp_path / "clip.flv", seconds=2.0, b_frames=2))
    publishing = asyncio.ensure_future(replay(await meet(ingest), clip))
    session = await until(lambda: ingest.hub.of_stream(STREAM))
    reader = session._channels["in"].channel.read(0)
    units = units_of(b"".join([data async for segment in reader async for data in segment]))
    await publishing
    sent = [unit for unit in units if unit.codec is Codec.H264]
    assert [unit.pts for unit in sent] != sorted(unit.pts for unit in sent)
    assert sorted(unit.pts for unit in sent) == [ORIGIN_TICKS + index * FRAME for index in range(50)]
    assert [unit.dts for unit in sent] == sorted(unit.dts for unit in sent)


async def test_eight_publish_at_once_each_to_its_own_stream(ingest: Ingest) -> None:
    streams = [f"str_{letter * 8}" for letter in "bcdefghi"]
    ingest.sessions.others.update(streams)
    asked = [{"url": target(ingest, one), "speed": 2.0} for one in streams]
    publishing = asyncio.ensure_future(Publishers(*asked).outcome())
    sessions = [await until(partial(ingest.hub.of_stream, one), 15) for one in streams]
    outcome = await publishing
    assert outcome.sent == [50] * 8, outcome.said
    await until(lambda: [session.frames_in for session in sessions] == [50] * 8)
    assert all(session.sound is Codec.AAC for session in sessions)


async def test_sound_that_is_not_carried_is_left_out_and_pictures_go_on(
    ingest: Ingest, meet: Meet, tmp_path: Path
) -> None:
    clip = messages_of(flv(tmp_path / "clip.flv", seconds=2.0, audio="libmp3lame", audio_rate=44_100))
    left_out = server.LEFT_OUT._value.get()
    watching = asyncio.ensure_future(ingest.watch())
    await replay(await meet(ingest), clip)
    seen = await watching
    assert len(shown(seen)) == 50
    assert {unit.codec for unit in units_of(seen)} == {Codec.H264}
    assert server.LEFT_OUT._value.get() == left_out + 1


# --- who is refused


async def test_a_wrong_key_is_refused_at_once_in_words_that_libav_shows(ingest: Ingest) -> None:
    keys = ("stk_wrong-key", KEYS.playback(STREAM))
    outcome = await Publishers(*({"url": f"{ingest.rtmp_url}/{key}"} for key in keys)).outcome()
    assert all(isinstance(sent, str) for sent in outcome.sent), outcome.sent
    assert "Server error: there is no such stream key or playback id (KEY_NOT_FOUND)" in outcome.said
    assert "Server error: this is a playback id; publish with the stream key (PLAYBACK_ID)" in outcome.said
    assert ingest.sessions.requests("StartSession", object) == []  # type: ignore[type-var]


async def test_a_second_publisher_is_refused_and_the_first_goes_on(
    meet: Meet, ingest: Ingest, clip: list[Message]
) -> None:
    first = await talking(meet, ingest, clip)
    second = await meet(ingest)
    answer = await second.publish(KEY)
    assert answer["code"] == "NetStream.Publish.Rejected"
    assert "has a publisher already (STREAM_BUSY)" in answer["description"]
    assert await second.end() == b""
    first.say(*clip)
    await until(lambda: (session := ingest.hub.of_stream(STREAM)) and session.frames_in > 50)
    first.abort()


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PaymentRequiredError("the credit is used up", reason="NO_CREDIT"),
            "the credit is used up (NO_CREDIT)",
        ),
        (ExhaustedError("no runner is free", reason="NO_CAPACITY"), "no runner is free (NO_CAPACITY)"),
        (UnavailableError("away"), "away (UNAVAILABLE)"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, SluiceError) else "",
)
async def test_what_keeps_a_session_from_starting_is_said(
    ingest: Ingest, meet: Meet, clip: list[Message], error: SluiceError, words: str
) -> None:
    ingest.sessions.fail("StartSession", error)
    talker = await meet(ingest)
    assert (await talker.publish(KEY))["code"] == "NetStream.Publish.Start"
    talker.say(*clip)
    assert (await status(talker))["description"] == words
    assert await talker.end() == b""
    await until(lambda: len(ingest.hub) == 0)


async def test_libav_shows_what_kept_its_session_from_starting(ingest: Ingest) -> None:
    ingest.sessions.fail("StartSession", ExhaustedError("no runner is free", reason="NO_CAPACITY"))
    outcome = await published(target(ingest), seconds=15.0, speed=1.0)
    assert "Server error: no runner is free (NO_CAPACITY)" in outcome.said
    assert outcome.sent != [375]


async def test_other_codecs_are_refused_by_their_names(ingest: Ingest) -> None:
    streams = ["str_bbbbbbbb", "str_cccccccc"]
    ingest.sessions.others.update(streams)
    asked = [
        {"url": target(ingest, stream), "video": video, "seconds": 15.0, "speed": 1.0}
        for stream, video in zip(streams, ("libx265", "flv1"), strict=True)
    ]
    outcome = await Publishers(*asked).outcome()
    assert "the stream carries HEVC; send H.264 video (ffmpeg: -c:v libx264" in outcome.said, outcome.said
    assert "the stream carries Sorenson H.263" in outcome.said
    assert len(ingest.hub) == 0


async def test_a_complete_stream_is_not_published_by_what_cannot_be_held_back(
    ingest: Ingest, meet: Meet
) -> None:
    ingest.sessions.record.delivery = runner_pb2.DELIVERY_COMPLETE
    talker = await meet(ingest)
    assert "publish it to /ts (COMPLETE_NOT_SERVED)" in (await talker.publish(KEY))["description"]
    assert await talker.end() == b""


async def test_who_wants_to_watch_is_told_where_to(meet: Meet, ingest: Ingest) -> None:
    talker = await meet(ingest)
    await talker.connect()
    talker.call("createStream", None, transaction=2)
    talker.call("play", None, KEYS.playback(STREAM), transaction=3)
    said = await status(talker)
    assert said["code"] == "NetStream.Play.Failed"
    assert "output_rtmp_url" in str(said["description"])
    await talker.end()


async def test_a_publisher_above_the_bitrate_is_cut_off_and_told(
    meet: Meet, nats: NatsServer, tmp_path: Path, clip: list[Message]
) -> None:
    async with ingesting(nats.url, tmp_path, max_bitrate_mbps=0.5) as ingest:
        talker = await talking(meet, ingest, clip)
        talker.say(*[Message(Kind.VIDEO, b"\x27\x01" + bytes(50_000))] * 10)
        assert "BITRATE_TOO_HIGH" in str((await status(talker))["description"])
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        assert "Mbit/s" in session.report().fault


# --- ends


async def test_a_publisher_that_is_killed_may_come_back_into_its_session(ingest: Ingest) -> None:
    doomed = await Publishers({"url": target(ingest), "seconds": 60.0, "speed": 1.0}).start()
    session = await until(lambda: ingest.hub.of_stream(STREAM), 15)
    await until(lambda: session.frames_in > 10)
    await doomed.kill()
    await until(lambda: not session.connected)
    assert not session.drained, "nobody said that it is the end"
    before = session.frames_in
    assert (await published(target(ingest))).sent == [50]
    assert session.frames_in == before + 50
    await until(session.closed.done)
    assert session.closed.result().reason == "input_ended"


async def test_a_publisher_that_lost_its_network_may_come_back_before_that_is_noticed(
    nats: NatsServer, tmp_path: Path, meet: Meet, clip: list[Message]
) -> None:
    async with ingesting(nats.url, tmp_path, silent_after_s=0.3) as ingest:
        await talking(meet, ingest, clip)
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        early = await meet(ingest)
        assert "STREAM_BUSY" in (await early.publish(KEY))["description"]
        await asyncio.sleep(0.5)
        again = await meet(ingest)
        assert (await again.publish(KEY))["code"] == "NetStream.Publish.Start"
        again.say(*clip)
        await until(lambda: session.frames_in == 100)
        assert ingest.hub.of_stream(STREAM) is session


@pytest.mark.parametrize("word", ["FCUnpublish", "deleteStream", "closeStream"])
async def test_whoever_says_goodbye_ends_its_session_in_order(
    meet: Meet, ingest: Ingest, clip: list[Message], word: str
) -> None:
    talker = await talking(meet, ingest, clip)
    session = ingest.hub.of_stream(STREAM)
    assert session is not None
    talker.call(word, None, 1, transaction=9)
    assert (await status(talker))["code"] == "NetStream.Unpublish.Success"
    assert await talker.end() == b""
    await until(session.closed.done)
    assert session.closed.result().reason == "input_ended"


@pytest.mark.parametrize(
    ("reason", "code"),
    [("stopped", "NetStream.Publish.Rejected"), ("credit_exhausted", "NetStream.Publish.Denied")],
)
async def test_a_publisher_is_told_when_the_platform_ends_its_session(
    meet: Meet, ingest: Ingest, clip: list[Message], reason: str, code: str
) -> None:
    talker = await talking(meet, ingest, clip)
    session = ingest.hub.of_stream(STREAM)
    assert session is not None
    session.close(reason, "these words")
    assert await status(talker) == {
        "level": "error",
        "code": code,
        "description": f"these words ({reason.upper()})",
    }
    talker.say(*clip)  # an encoder sends on until it has read that
    assert await talker.end() == b""


async def test_libav_shows_why_the_platform_ended_its_session(ingest: Ingest) -> None:
    publishing = asyncio.ensure_future(published(target(ingest), seconds=30.0, speed=1.0))
    session = await until(lambda: ingest.hub.of_stream(STREAM), 15)
    await until(lambda: session.frames_in > 10)
    session.close("max_duration", "an hour is over")
    outcome = await publishing
    assert "Server error: an hour is over (MAX_DURATION)" in outcome.said
    assert outcome.sent != [750]


async def test_the_end_of_the_process_is_told_too(
    meet: Meet, nats: NatsServer, tmp_path: Path, clip: list[Message]
) -> None:
    async with ingesting(nats.url, tmp_path, shutdown_grace_s=1.0) as ingest:
        talker = await talking(meet, ingest, clip)
        told = asyncio.ensure_future(status(talker))
    assert "BRIDGE_LOST" in str((await told)["description"])


# --- strangers


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", bytes(5000), b"\x03" + bytes(3072) + b"\xff" * 5000],
    ids=["http", "tls", "zeros", "garbage behind the handshake"],
)
async def test_whatever_is_no_rtmp_is_let_go_at_once(meet: Meet, ingest: Ingest, data: bytes) -> None:
    talker = await meet(ingest)
    talker.writer.write(data)
    assert len(await talker.end()) in {0, 3073}


async def test_garbage_in_the_middle_ends_its_session_and_no_other(
    meet: Meet, ingest: Ingest, clip: list[Message]
) -> None:
    talker = await talking(meet, ingest, clip)
    session = ingest.hub.of_stream(STREAM)
    assert session is not None
    talker.writer.write(b"\x0f" + b"\xff" * 200)
    assert "RTMP_MALFORMED" in str((await status(talker))["description"])
    assert await talker.end() == b""
    assert session.fault


@pytest.mark.parametrize("steps", ["nothing", "half a handshake", "no publish"])
async def test_who_is_too_slow_to_publish_is_let_go(
    meet: Meet, ingest: Ingest, monkeypatch: pytest.MonkeyPatch, steps: str
) -> None:
    monkeypatch.setattr(server, "ASK_S", 0.3)
    talker = await meet(ingest)
    if steps == "half a handshake":
        talker.writer.write(b"\x03" + bytes(100))
    elif steps == "no publish":
        await talker.connect()
        assert "within 0.3 s" in str((await status(talker))["description"])
    assert await talker.end() == b""


async def test_a_handshake_byte_by_byte_is_good_enough(
    meet: Meet, ingest: Ingest, clip: list[Message]
) -> None:
    talker = await meet(ingest)
    hello = b"\x03" + bytes(1536)
    for at in range(0, len(hello), 96):
        talker.writer.write(hello[at : at + 96])
        await asyncio.sleep(0.002)
    answer = await talker.reader.readexactly(3073)
    talker.writer.write(answer[1:1537])
    talker.call("connect", {"app": "live"})
    assert (await talker.hear("_result")).fields(1)["level"] == "status"
    talker.abort()


async def test_a_publisher_that_sends_no_picture_is_told_so_and_nothing_was_allocated(
    meet: Meet, nats: NatsServer, tmp_path: Path
) -> None:
    async with ingesting(nats.url, tmp_path, first_picture_s=0.3) as ingest:
        talker = await meet(ingest)
        assert (await talker.publish(KEY))["code"] == "NetStream.Publish.Start"
        assert "NO_PICTURE" in str((await status(talker))["description"])
        assert len(ingest.hub) == 0


async def test_a_publisher_that_falls_silent_is_let_go_as_one_that_vanished(
    meet: Meet, ingest: Ingest, clip: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SILENT_S", 0.3)
    talker = await talking(meet, ingest, clip)
    session = ingest.hub.of_stream(STREAM)
    assert session is not None
    with pytest.raises((EOFError, ConnectionResetError)):
        await status(talker)
    await until(lambda: not session.connected)
    assert not session.closed.done(), "its grace has begun"


async def test_who_reads_no_answers_is_let_go(
    nats: NatsServer, tmp_path: Path, meet: Meet, clip: list[Message]
) -> None:
    deaf = server.REFUSED.labels("RTMP_DEAF")
    before = deaf._value.get()
    async with ingesting(nats.url, tmp_path, max_bitrate_mbps=1e5) as ingest:
        talker = await talking(meet, ingest, clip)
        talker.writer.transport.pause_reading()  # type: ignore[attr-defined]
        session = ingest.hub.of_stream(STREAM)
        assert session is not None
        pings = b"".join(talker.chunks.write(2, user_control(PING, bytes(4))) for _ in range(10_000))
        async with asyncio.timeout(20):
            while session.connected:
                talker.writer.write(pings)
                await asyncio.sleep(0.02)
    assert deaf._value.get() == before + 1


async def test_a_publisher_of_empty_messages_is_above_the_bitrate_too(
    nats: NatsServer, tmp_path: Path, meet: Meet, clip: list[Message]
) -> None:
    async with ingesting(nats.url, tmp_path, max_bitrate_mbps=1.0) as ingest:
        talker = await talking(meet, ingest, clip)
        talker.writer.write(talker.chunks.write(5, Message(Kind.DATA, b"")) + b"\xc5" * 20_000)
        assert "BITRATE_TOO_HIGH" in str((await status(talker))["description"])


async def test_more_connections_than_allowed_are_not_taken(
    meet: Meet, nats: NatsServer, tmp_path: Path
) -> None:
    for setting in ("rtmp_max_connections", "rtmp_max_connections_per_address"):
        async with ingesting(nats.url, tmp_path, **{setting: 2}) as ingest:
            talkers = [await meet(ingest) for _ in range(2)]
            for talker in talkers:
                await talker.connect()
            third = await meet(ingest)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionResetError)):
                await third.shake_hands()
            talkers[0].abort()
            await asyncio.sleep(0.1)
            fourth = await meet(ingest)
            await fourth.connect()
            for talker in (talkers[1], fourth):
                talker.abort()


async def test_the_same_is_served_over_tls(nats: NatsServer, tmp_path: Path, clip: list[Message]) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    certificate.private_key_pem.write_to_path(str(key))
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(str(chain), append=True)
    async with ingesting(nats.url, tmp_path, rtmp_tls_cert=str(chain), rtmp_tls_key=str(key)) as ingest:
        watching = asyncio.ensure_future(ingest.watch())
        outcome = await published(target(ingest).replace("rtmp://", "rtmps://"))
        assert outcome.sent == [50], outcome.said
        assert len(shown(await watching)) == 50
        refused = await published(f"{ingest.rtmp_url.replace('rtmp://', 'rtmps://')}/stk_wrong-key")
        assert "Server error: " in refused.said
