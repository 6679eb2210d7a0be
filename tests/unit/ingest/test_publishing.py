"""A stranger's bytes: nothing is allocated before a picture; what cannot work is refused with a sentence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from protos.inference.v1 import runner_pb2
from protos.ingest.v1 import bridge_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import (
    ConflictError,
    DeniedError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
    SluiceError,
    TooLargeError,
    UnavailableError,
)
from services.common.media.mpegts import AccessUnit, Codec
from services.common.trickle.registry import Registry
from services.ingest import source as source_module
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.identity import Closed
from services.ingest.bridge.outbox import Outbox
from services.ingest.bridge.presence import Publisher
from services.ingest.control_plane import ControlPlane
from services.ingest.publishing import Publishing, end_error, new_id
from services.ingest.settings import IngestSettings
from services.ingest.source import DAMAGE, PublisherVanishedError, TsSource
from services.ingest.stream_keys import StreamKeys
from services.ingest.transports.rtmp.pushes import Pushes
from tests.support.media import HEVC_TYPE, announced, pictures, sound, ts

KEYS = StreamKeys(b"a secret of this installation")
STREAM = "str_aaaaaaaa"


async def body(*chunks: bytes, then: float | None = None) -> AsyncIterator[bytes]:
    """Chunks, and then silence for so long."""
    for chunk in chunks:
        yield chunk
    if then is not None:
        await asyncio.sleep(then)


def pieces(data: bytes, size: int = 1316) -> list[bytes]:
    """As ffmpeg sends it: seven packets at a time."""
    return [data[place : place + size] for place in range(0, len(data), size)]


def source(of: AsyncIterator[bytes], fastest_mbps: float | None = 50.0) -> TsSource:
    return TsSource(of, first_within_s=10, fastest_mbps=fastest_mbps)


async def refused(of: AsyncIterator[bytes]) -> InvalidError:
    with pytest.raises(InvalidError) as refusal:
        await source(of).first_picture()
    return refusal.value


# --- the first picture


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage" * 5000,
        b"\x47" * 188 * 200,
        b"\x00" * 100_000,
        ts(pictures(25)[1:]),
        ts(pictures(1))[: 188 * 3],
    ],
    ids=["nothing", "text", "sync", "zeros", "no key frame", "half a key frame"],
)
async def test_a_body_without_a_picture_is_refused_and_told_what_to_send(data: bytes) -> None:
    error = await refused(body(*pieces(data)))
    assert error.reason == "NO_PICTURE"
    assert "H.264" in error.message
    assert str(len(data)) in error.message
    assert error.details["field"] == "body"


@pytest.mark.looptime
async def test_a_body_that_falls_silent_before_its_first_picture_is_refused_in_time() -> None:
    started_s = asyncio.get_running_loop().time()
    error = await refused(body(ts(pictures(1))[: 188 * 3], then=60))
    assert error.reason == "NO_PICTURE"
    assert "within 10 s (564 bytes did)" in error.message
    assert asyncio.get_running_loop().time() - started_s == pytest.approx(10)


async def test_h265_is_refused_by_its_name_as_soon_as_it_is_announced() -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        for piece in pieces(announced(HEVC_TYPE)):
            read += 1
            yield piece
        raise AssertionError("it was read on")

    error = await refused(endless())
    assert error.reason == "UNSUPPORTED_CODEC"
    assert "hevc" in error.message


async def test_no_more_is_read_for_a_first_picture_than_a_picture_can_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_module, "PREFACE_BYTES", 10_000)
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1316
            yield b"\x47\x1f\xff\x10" + bytes(184) + bytes(1128)

    assert (await refused(endless())).reason == "NO_PICTURE"
    assert read <= 10_000 + 1316


async def test_a_whole_first_picture_is_enough_however_it_is_cut() -> None:
    data = ts(pictures(1))
    for size in (1, 100, 188, 5000):
        units = await source(body(*pieces(data, size))).first_picture()
        assert [unit.keyframe for unit in units] == [True]


async def test_units_come_out_once_and_in_their_order() -> None:
    units = sorted([*pictures(30), *sound(50)], key=lambda unit: unit.pts)
    incoming = source(body(*pieces(ts(units, audio=Codec.AAC))))
    first = await incoming.first_picture()
    rest = [unit async for batch in incoming for unit in batch]
    got = [(unit.codec, unit.pts) for unit in (*first, *rest)]
    wanted = [(unit.codec, unit.pts) for unit in units]
    assert sorted(got) == sorted(wanted)
    assert [pts for codec, pts in got if codec is Codec.H264] == [n * 3600 for n in range(30)]


@pytest.mark.looptime
async def test_a_live_publisher_above_the_bit_rate_is_cut_off_and_a_burst_is_not() -> None:
    async def faucet(mbps: float, seconds: int) -> AsyncIterator[bytes]:
        for _ in range(seconds * 10):
            await asyncio.sleep(0.1)
            yield bytes(round(mbps * 1e6 / 8 / 10))

    for mbps, limit in ((2.2, 2.0), (1.8, None), (50.0, None)):
        incoming = source(faucet(mbps, 12), fastest_mbps=2.0 if mbps < 50 else None)
        if limit is None:
            assert [batch async for batch in incoming] == [[]]
        else:
            with pytest.raises(TooLargeError) as refusal:
                [batch async for batch in incoming]
            assert refusal.value.reason == "BITRATE_TOO_HIGH"
    burst = source(body(bytes(1_200_000)), fastest_mbps=2.0)
    assert [batch async for batch in burst] == [[]], "a key frame after a silence is no rate"


# --- a publisher's way in


class Plane:
    """The control plane as far as publishing goes."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.stream_record = sessions_pb2.Stream(id=STREAM, tenant="acme", pipeline="effects")
        self.error: SluiceError | None = None
        self.started: list[str] = []
        self.taken: list[str] = []
        self.records: dict[str, sessions_pb2.Session] = {}
        self.busy: SluiceError | None = None
        self.gate: asyncio.Event | None = None

    async def stream(self, stream: str, tenant: str = "") -> sessions_pb2.Stream:
        if stream != self.stream_record.id:
            raise NotFoundError("no such stream", reason="STREAM_NOT_FOUND")
        return self.stream_record

    async def session(self, session: str, tenant: str = "") -> sessions_pb2.Session:
        await asyncio.sleep(0)  # as a call does
        if session not in self.records:
            raise NotFoundError("no such session", reason="SESSION_NOT_FOUND")
        return self.records[session]

    async def rejoin(self, stream: str, bridge: str, signalling: str) -> sessions_pb2.RejoinResponse:
        found = self.hub.of_stream(stream)
        assert found is not None, "the bridge has it half open by then"
        self.taken.append(found.identity.session)
        if self.busy is not None:
            raise self.busy
        return sessions_pb2.RejoinResponse(session=self.records[found.identity.session])

    async def start_session(
        self, stream: sessions_pb2.Stream, session: str, bridge: str, signalling: str
    ) -> sessions_pb2.Session:
        self.started.append(session)
        assert self.hub.session(session).identity.stream == stream.id, "the bridge has it half open by then"
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return sessions_pb2.Session(id=session)


class Disk:
    source = "here"

    async def put(self, window: object) -> None:
        """Nothing is billed here: no epoch is ever opened."""


class House:
    def __init__(self, hub: Hub, settings: IngestSettings) -> None:
        self.hub = hub
        self.plane = Plane(hub)
        self.publishing = Publishing(
            hub=hub,
            plane=cast("ControlPlane", self.plane),
            keys=KEYS,
            bridge_address="here:7000",
            pushes=Pushes(settings),
            settings=settings,
        )

    async def publish(self, *chunks: bytes, key: str = KEYS.publish(STREAM), **facts: Any) -> Any:
        return await self.publishing.publish_ts(key, body(*chunks, **facts))


@pytest.fixture
async def house() -> AsyncIterator[House]:
    settings = IngestSettings(stream_secret="x" * 16, max_sessions=1, max_bitrate_mbps=1.0)
    async with Hub(Registry(), cast("Outbox", Disk()), settings) as hub:
        yield House(hub, settings)


def media(count: int = 50) -> list[bytes]:
    return pieces(ts(pictures(count)))


async def test_a_body_that_ends_in_order_finishes_the_input_and_not_yet_the_session(house: House) -> None:
    published = await house.publish(*media())
    session = house.hub.session(published.session)
    assert published.ended is None
    assert session.publisher() is Publisher.FINISHED
    assert session.frames_in == 50
    assert session.identity.tenant == "acme"


async def test_garbage_asks_for_no_session(house: House) -> None:
    with pytest.raises(InvalidError):
        await house.publish(b"garbage" * 1000)
    assert house.plane.started == []
    assert len(house.hub) == 0


async def test_only_a_stream_key_of_a_stream_that_is_there_publishes(house: House) -> None:
    with pytest.raises(DeniedError) as refusal:
        await house.publish(*media(), key=KEYS.playback(STREAM))
    assert refusal.value.reason == "PLAYBACK_ID"
    with pytest.raises(NotFoundError):
        await house.publish(*media(), key=KEYS.publish("str_unknown"))
    with pytest.raises(NotFoundError):
        await house.publish(*media(), key="stk_forged-key")


async def nobody(house: House) -> None:
    async with asyncio.timeout(2):
        while len(house.hub):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    "error",
    [
        PaymentRequiredError("no credit"),
        ExhaustedError("no slot", reason="NO_CAPACITY", retry_after_s=5),
        UnavailableError("away"),
        InvalidError("params.strength"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_session_that_cannot_start_is_gone_and_the_publisher_is_told_why(
    house: House, error: SluiceError
) -> None:
    house.plane.error = error
    with pytest.raises(type(error)):
        await house.publish(*media())
    await nobody(house)


async def test_a_publisher_that_vanishes_may_come_back_into_its_session(house: House) -> None:
    async def breaks() -> AsyncIterator[bytes]:
        for chunk in media():
            yield chunk
        raise PublisherVanishedError

    with pytest.raises(PublisherVanishedError):
        await house.publishing.publish_ts(KEYS.publish(STREAM), breaks())
    session = house.hub.of_stream(STREAM)
    assert session is not None
    assert not session.connected
    published = await house.publish(*media())
    assert published.session == session.identity.session
    assert len(house.plane.started) == 1
    assert session.frames_in == 100


async def test_a_second_publisher_is_refused_before_its_bytes_are_read(house: House) -> None:
    first = asyncio.ensure_future(house.publish(*media(), then=60))
    while house.hub.of_stream(STREAM) is None:
        await asyncio.sleep(0.01)

    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    with pytest.raises(ConflictError) as refusal:
        await house.publishing.publish_ts(KEYS.publish(STREAM), never())
    assert refusal.value.reason == "STREAM_BUSY"
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    session = house.hub.of_stream(STREAM)
    assert session is not None
    assert not session.connected, "its grace has begun"


async def unplugged(house: House) -> asyncio.Future[Any]:
    """A publisher whose network broke: its connection says nothing, for ever."""
    publishing_ = asyncio.ensure_future(house.publish(*media(), then=60))
    async with asyncio.timeout(5):
        while (session := house.hub.of_stream(STREAM)) is None or session.frames_in < 50:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.15)
    return publishing_


@pytest.fixture
async def hasty() -> AsyncIterator[House]:
    settings = IngestSettings(stream_secret="x" * 16, silent_after_s=0.1, first_picture_s=0.2)
    async with Hub(Registry(), cast("Outbox", Disk()), settings) as hub:
        yield House(hub, settings)


async def test_who_comes_back_after_the_network_broke_takes_the_place_of_the_connection_that_hangs(
    hasty: House,
) -> None:
    first = await unplugged(hasty)
    session = hasty.hub.of_stream(STREAM)
    assert session is not None
    second = await unplugged(hasty)
    ended = (await first).ended
    assert end_error(ended).reason == "REPLACED"
    assert isinstance(end_error(ended), ConflictError)
    assert session.connected, "the second one is there"
    assert session.frames_in == 100
    assert session.report().fault == ""
    third = await unplugged(hasty)
    assert (await second).ended == ended
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert not session.connected
    assert hasty.plane.started == [session.identity.session]


async def test_who_has_just_come_back_is_given_the_time_to_send(hasty: House) -> None:
    first = await unplugged(hasty)
    session = await hasty.publishing.join(KEYS.publish(STREAM))
    await first
    await asyncio.sleep(0.15)
    with pytest.raises(ConflictError):
        await hasty.publishing.join(KEYS.publish(STREAM))
    await asyncio.sleep(0.15)
    assert await hasty.publishing.join(KEYS.publish(STREAM)) is session


async def test_of_two_publishers_at_once_one_is_refused(house: House) -> None:
    answers = await asyncio.gather(
        house.publish(*media(), then=0.1), house.publish(*media(), then=0.1), return_exceptions=True
    )
    assert [type(answer).__name__ for answer in answers].count("ConflictError") == 1
    assert len(house.plane.started) == 1


async def test_a_publisher_is_told_when_the_platform_ends_its_session(house: House) -> None:
    publishing_ = asyncio.ensure_future(house.publish(*media(), then=60))
    while (session := house.hub.of_stream(STREAM)) is None:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    session.close("stopped", "by hand")
    published = await publishing_
    assert published.ended == Closed("stopped", "by hand")


async def test_a_publisher_that_misbehaves_is_blamed_in_its_session(house: House) -> None:
    async def flood() -> AsyncIterator[bytes]:
        for chunk in media():
            yield chunk
        while True:
            yield bytes(188 * 100)

    with pytest.raises(TooLargeError):
        await house.publishing.publish_ts(KEYS.publish(STREAM), flood())
    session = house.hub.of_stream(STREAM)
    assert session is not None
    assert "Mbit/s" in session.report().fault


async def test_a_full_pod_refuses_a_session_and_says_when_to_come_back(house: House) -> None:
    published = await house.publish(*media())
    house.plane.stream_record = replace_stream("str_bbbbbbbb")
    with pytest.raises(ExhaustedError) as refusal:
        await house.publish(*media(), key=KEYS.publish("str_bbbbbbbb"))
    assert (refusal.value.reason, refusal.value.details["retry_after_s"]) == ("INGEST_FULL", "5")
    assert house.hub.session(published.session).frames_in == 50


def replace_stream(stream: str) -> sessions_pb2.Stream:
    return sessions_pb2.Stream(
        id=stream, tenant="acme", pipeline="effects", delivery=runner_pb2.DELIVERY_COMPLETE
    )


async def test_a_publisher_that_goes_away_while_its_session_starts_leaves_nothing(house: House) -> None:
    house.plane.gate = asyncio.Event()
    publishing_ = asyncio.ensure_future(house.publish(*media()))
    while not house.plane.started:
        await asyncio.sleep(0.01)
    publishing_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing_
    await nobody(house)


async def test_a_publisher_that_goes_away_in_the_moment_of_the_start_leaves_its_session(house: House) -> None:
    started = asyncio.Event()

    class Slow(TsSource):
        async def hold(self, first: list[AccessUnit]) -> None:
            try:
                await super().hold(first)
            finally:
                started.set()
                await asyncio.sleep(0.05)

    slow = Slow(body(*media(), then=60), first_within_s=10, fastest_mbps=50)
    publishing_ = asyncio.ensure_future(house.publishing.publish(house.plane.stream_record, slow))
    await started.wait()
    publishing_.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing_
    session = house.hub.of_stream(STREAM)
    assert session is not None
    assert session.publisher() is Publisher.GONE


async def test_a_complete_publisher_may_send_as_fast_as_it_is_read(house: House) -> None:
    house.plane.stream_record = replace_stream(STREAM)
    assert len(b"".join(media(25))) < 1e6 / 8 * 5 < 3_000_000
    padding = bytes((0x47, 0x1F, 0xFF, 0x10)) + bytes(184)
    published = await house.publish(*media(25), padding * 16_000)
    assert published.ended is None


# --- a publisher that comes back by another process


TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def elsewhere(house: House, phase: sessions_pb2.Phase.ValueType = sessions_pb2.PHASE_PAUSED) -> None:
    """The stream has a session at another ingest process."""
    record = sessions_pb2.Session(id="ses_there", stream=STREAM, phase=phase, traceparent=TRACE)
    house.plane.records["ses_there"] = record
    house.plane.stream_record.session = "ses_there"


async def test_a_session_that_is_elsewhere_goes_on_here_with_its_name_and_its_trace(house: House) -> None:
    elsewhere(house)
    published = await house.publish(*media())
    session = house.hub.session(published.session)
    assert published.session == "ses_there"
    assert session.identity.exemplar == {"trace_id": "0af7651916cd43dd8448eb211c80319c"}
    assert session.frames_in == 50
    assert (house.plane.taken, house.plane.started) == (["ses_there"], [])


@pytest.mark.parametrize("ended_when_asked", [False, True])
async def test_a_session_that_has_ended_meanwhile_gives_way_to_a_new_one(
    house: House, ended_when_asked: bool
) -> None:
    elsewhere(house, sessions_pb2.PHASE_ENDED if ended_when_asked else sessions_pb2.PHASE_PAUSED)
    house.plane.busy = NotFoundError("it has ended", reason="SESSION_NOT_FOUND")
    published = await house.publish(*media())
    assert house.plane.started == [published.session]
    assert house.plane.taken == ([] if ended_when_asked else ["ses_there"])


async def test_a_session_whose_publisher_is_still_there_stays_there_and_nothing_is_left_here(
    house: House,
) -> None:
    elsewhere(house)
    house.plane.busy = ConflictError("the stream has a publisher already", reason="STREAM_BUSY")
    with pytest.raises(ConflictError) as refusal:
        await house.publish(*media())
    assert refusal.value.reason == "STREAM_BUSY"
    assert len(house.hub) == 0
    assert house.plane.started == []


async def test_of_two_publishers_that_come_back_at_once_one_is_refused(house: House) -> None:
    elsewhere(house)
    answers = await asyncio.gather(
        house.publish(*media(), then=0.1), house.publish(*media(), then=0.1), return_exceptions=True
    )
    assert [type(answer).__name__ for answer in answers].count("ConflictError") == 1
    assert house.plane.taken == ["ses_there"]


async def test_a_publisher_that_comes_back_elsewhere_without_a_picture_ends_nothing(house: House) -> None:
    elsewhere(house)
    session = await house.publishing.join(KEYS.publish(STREAM))
    session.open(
        bridge_pb2.OpenRequest(
            session="ses_there", epoch=2, resume=bridge_pb2.Position(in_pts=900_000, session_ms=9000)
        )
    )
    with pytest.raises(PublisherVanishedError):
        await house.publishing.feed(session, source(body(b"garbage" * 5000)))
    assert session.report().fault == ""
    assert not session.connected, "its grace goes on"


# --- the line for a runner


async def wait_for_start(house: House) -> None:
    async with asyncio.timeout(2):
        while not house.plane.started:
            await asyncio.sleep(0.01)


async def test_a_publisher_that_vanishes_in_the_line_leaves_it_at_once(house: House) -> None:
    house.plane.gate = asyncio.Event()
    leaves = asyncio.Event()

    async def live() -> AsyncIterator[bytes]:
        for chunk in media():
            yield chunk
        await leaves.wait()
        raise PublisherVanishedError

    publishing_ = asyncio.ensure_future(house.publishing.publish_ts(KEYS.publish(STREAM), live()))
    await wait_for_start(house)
    leaves.set()
    with pytest.raises(PublisherVanishedError):
        async with asyncio.timeout(1):
            await publishing_
    await nobody(house)


async def test_what_is_sent_during_a_short_start_is_all_in_the_session(house: House) -> None:
    house.plane.gate = asyncio.Event()
    publishing_ = asyncio.ensure_future(house.publish(*media(75)))
    await wait_for_start(house)
    await asyncio.sleep(0.05)
    house.plane.gate.set()
    published = await publishing_
    assert house.hub.session(published.session).frames_in == 75


async def test_after_a_wait_a_live_session_begins_with_the_newest_key_frame(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "HOLD_S", 0.0)
    house.plane.gate = asyncio.Event()
    publishing_ = asyncio.ensure_future(house.publish(*media(60), then=0.3))
    await wait_for_start(house)
    await asyncio.sleep(0.1)
    house.plane.gate.set()
    published = await publishing_
    assert 0 < house.hub.session(published.session).frames_in <= 25, "a key frame comes each second"


async def test_nothing_of_a_complete_stream_is_lost_in_the_line(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "HOLD_S", 0.0)
    monkeypatch.setattr(source_module, "PREFACE_BYTES", 2000)
    house.plane.stream_record = replace_stream(STREAM)
    house.plane.gate = asyncio.Event()
    read = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal read
        for chunk in media(20):
            read += len(chunk)
            yield chunk

    publishing_ = asyncio.ensure_future(house.publishing.publish_ts(KEYS.publish(STREAM), counted()))
    await wait_for_start(house)
    await asyncio.sleep(0.05)
    held = read
    house.plane.gate.set()
    published = await publishing_
    assert house.hub.session(published.session).frames_in == 20
    assert held < read, "what is not yet wanted is not read either"


# --- words


@pytest.mark.parametrize(
    ("reason", "kind", "status"),
    [
        ("credit_exhausted", PaymentRequiredError, 402),
        ("input_unusable", InvalidError, 400),
        ("stopped", ConflictError, 409),
        ("stream_deleted", ConflictError, 409),
        ("max_duration", ConflictError, 409),
        ("publisher_gone", ConflictError, 409),
        ("runner_lost", UnavailableError, 503),
        ("engine_crashed", UnavailableError, 503),
        ("bridge_lost", UnavailableError, 503),
        ("internal_error", UnavailableError, 503),
    ],
)
def test_a_publisher_is_told_in_its_own_words_why_its_session_ended(
    reason: str, kind: type[SluiceError], status: int
) -> None:
    error = end_error(Closed(reason, "because"))
    assert (type(error), error.http_status, error.message) == (kind, status, "because")
    assert error.reason == reason.upper()
    assert end_error(Closed(reason, "")).message or reason == "input_unusable"


def test_ids_are_fresh_and_have_the_shape_that_others_check() -> None:
    ids = {new_id("ses") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(one.startswith("ses_") and len(one) == 27 and one[4:].isalnum() for one in ids)


async def test_what_a_publisher_sent_damaged_is_counted() -> None:
    clip = (Path(__file__).parents[2] / "data" / "key_frame.ts").read_bytes()

    async def body() -> AsyncIterator[bytes]:
        yield clip
        yield b"noise" * 100
        yield clip

    skipped = DAMAGE.labels("bytes_skipped")
    before = skipped._value.get()
    source = TsSource(body(), first_within_s=1, fastest_mbps=None)
    await source.first_picture()
    async for _ in source:
        pass
    source.close()
    assert skipped._value.get() - before >= 500
