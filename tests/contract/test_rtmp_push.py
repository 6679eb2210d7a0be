"""RTMP out: a real session's output, at our own RTMP server as the target, and at targets that misbehave."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import trustme

from services.common.media.mpegts import AccessUnit, Codec
from services.common.media.sound import AudioDecoder, AudioEncoder
from services.ingest.transports.rtmp import push
from services.ingest.transports.rtmp.chunks import ChunkWriter, Message
from services.ingest.transports.rtmp.push import Phase, RtmpPush
from tests.support.bridge import IDENTITY, Stage, output, staged
from tests.support.ingest import until
from tests.support.media import FRAME, pictures, sound
from tests.support.rtmp import PLATFORM_KEY, Platform


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(IDENTITY) as found:
        found.open()
        yield found


@asynccontextmanager
async def pushing(stage: Stage, url: str) -> AsyncIterator[RtmpPush]:
    pushed = RtmpPush(stage.session, url, private=True)
    running = asyncio.ensure_future(pushed.run())
    try:
        yield pushed
    finally:
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled() or running.exception() is None


async def show(stage: Stage, seconds: float, while_: Callable[[], object] = lambda: None) -> None:
    """The runner returns pictures for so long, with a key frame each fifth."""
    begin = stage.session.out_pts // FRAME
    for index in range(round(seconds * 25)):
        (unit,) = pictures(1, start=(begin + index + 25) * FRAME)
        await stage.reply([unit])
        while_()
        await asyncio.sleep(0.01)


async def shown(stage: Stage, look: Callable[[], object]) -> None:
    """Go on until it happened."""
    async with asyncio.timeout(10):
        while not look():
            await show(stage, 0.04)


async def retrying(pushed: RtmpPush) -> None:
    await until(lambda: pushed.state.phase is Phase.RETRYING)


def url(port: int, key: str = PLATFORM_KEY) -> str:
    return f"rtmp://127.0.0.1:{port}/live/{key}"


async def test_a_session_goes_to_its_target_and_ends_there_in_order(stage: Stage) -> None:
    platform = Platform()
    async with platform.serving() as port, pushing(stage, url(port)) as pushed:
        assert pushed.state.phase is Phase.CONNECTING
        await until(lambda: pushed.state.phase is Phase.LIVE)
        stage.push([*pictures(50), *sound(2)])
        await stage.reply(output(50))
        await until(lambda: len(platform.pictures) == 50)
        assert [unit.pts for unit in platform.pictures] == [index * FRAME for index in range(50)]
        assert pushed.state.host == "127.0.0.1"
        assert (pushed.state.attempts, pushed.state.error) == (1, "")
        stage.session.close("stopped", "")
        await until(lambda: pushed.state.phase is Phase.ENDED)
        await until(lambda: platform.ended == 1)


async def test_sound_goes_with_the_pictures(stage: Stage) -> None:
    platform = Platform()
    async with platform.serving() as port, pushing(stage, url(port)) as pushed:
        await until(lambda: pushed.state.phase is Phase.LIVE)
        stage.session.announce((Codec.H264, Codec.AAC))
        units = sorted([*pictures(50), *sound(90)], key=lambda unit: unit.pts)
        stage.push(units)
        await stage.reply(output(50))
        await until(lambda: len(platform.pictures) == 50)
        heard = [unit for unit in platform.units if unit.codec is Codec.AAC]
        assert len(heard) > 80
        assert heard[0].data == sound(1)[0].data


async def test_opus_is_heard_as_aac(stage: Stage) -> None:
    platform = Platform()
    encoder = AudioEncoder(Codec.OPUS)
    wave = np.sin(np.arange(96_000) * 2 * np.pi * 440 / 48_000).astype(np.float32)
    packets = encoder.encode(np.stack([wave, wave]), 0)
    async with platform.serving() as port, pushing(stage, url(port)) as pushed:
        await until(lambda: pushed.state.phase is Phase.LIVE)
        stage.session.announce((Codec.H264, Codec.OPUS))
        stage.push(sorted([*pictures(50), *packets], key=lambda unit: unit.pts))
        await stage.reply(output(50))
        await until(lambda: len([unit for unit in platform.units if unit.codec is Codec.AAC]) > 80)
    ear = AudioDecoder(Codec.AAC)
    heard = [
        part for unit in platform.units if unit.codec is Codec.AAC for part in ear.decode(unit.data, unit.pts)
    ]
    assert ear.errors == 0
    loud = np.concatenate([part.samples for part in heard], axis=1)
    assert np.abs(loud[:, 20_000:60_000]).max() > 0.8


async def test_a_target_that_is_down_is_tried_again_until_it_is_up_and_again_when_it_dies(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(push, "LONGEST_RETRY_S", 0.1)
    platform = Platform()
    async with platform.serving() as port:
        pass
    async with pushing(stage, url(port)) as pushed:
        await until(lambda: pushed.state.attempts >= 2 and pushed.state.phase is Phase.RETRYING)
        assert "refused" in pushed.state.error
        async with platform.serving(port):
            await shown(stage, lambda: len(platform.pictures) > 5)
            assert pushed.state.error == ""
        await until(lambda: pushed.state.phase is Phase.RETRYING)
        count = len(platform.pictures)
        async with platform.serving(port):
            await shown(stage, lambda: len(platform.pictures) > count + 5)
        assert platform.pictures[count].keyframe, "each connection begins at a key frame"
        assert platform.publishers == 2


async def test_a_target_that_says_no_is_quoted_without_the_key(stage: Stage) -> None:
    platform = Platform()
    async with platform.serving() as port, pushing(stage, url(port, "wrong-key")) as pushed:
        await until(lambda: pushed.state.phase is Phase.RETRYING)
        assert "NetStream.Publish.Denied" in pushed.state.error
        assert "no stream ..." in pushed.state.error
        assert "wrong-key" not in repr(pushed.state)


@asynccontextmanager
async def stubborn(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    open_: list[asyncio.StreamWriter] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_.append(writer)
        await serve(reader, writer)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_:
            writer.transport.abort()
        await server.wait_closed()


async def test_a_target_that_never_answers_is_given_up_in_time(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "CALL_S", 0.1)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Accepts, and says nothing."""

    async with stubborn(silent) as port, pushing(stage, url(port)) as pushed:
        await until(lambda: pushed.state.phase is Phase.RETRYING)
        assert pushed.state.error == "the server does not answer"


async def test_a_target_that_talks_nonsense_or_hangs_up_is_said_so(stage: Stage) -> None:
    async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def curt(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    for serve, words in ((web, ["does not speak RTMP"]), (curt, ["closed", "reset"])):
        async with stubborn(serve) as port, pushing(stage, url(port)) as pushed:
            await retrying(pushed)
            assert any(one in pushed.state.error for one in words)


async def test_a_target_that_never_stops_talking_is_given_up(stage: Stage) -> None:
    async def chatter(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x03" + bytes(3072))
        said = ChunkWriter()
        with suppress(OSError):
            while True:
                writer.write(b"".join([said.write(3, Message(99, bytes(50)))] * 100))
                await writer.drain()
                await asyncio.sleep(0.001)

    async with stubborn(chatter) as port, pushing(stage, url(port)) as pushed:
        await retrying(pushed)
        assert "0.2 Mbit/s" in pushed.state.error


async def test_a_target_that_takes_nothing_is_given_up_and_the_session_does_not_notice(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push, "STALL_S", 0.2)
    monkeypatch.setattr(push, "UNSENT_BYTES", 0)
    platform = Platform()
    async with platform.serving() as port:
        stopped: list[bool] = []

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Everything, until something is live; then nothing any more."""
            there, back = await asyncio.open_connection("127.0.0.1", port)

            async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
                while data := await source.read(4096):
                    sink.write(data)

            tasks = [asyncio.ensure_future(carry(reader, back)), asyncio.ensure_future(carry(there, writer))]
            await until(lambda: bool(platform.pictures))
            tasks[0].cancel()
            stopped.append(True)
            await asyncio.wait(tasks)
            back.transport.abort()

        async with stubborn(relay) as between, pushing(stage, url(between)) as pushed:
            await shown(stage, lambda: bool(stopped))
            (key,) = output(1)
            begin = stage.session.out_pts
            for index in range(60):
                data = key.data + b"\x00\x00\x01\x0c" + b"\xff" * 200_000
                pts = begin + (index + 1) * FRAME
                stage.session._taps.write(AccessUnit(Codec.H264, pts, pts, data, keyframe=True))
                await asyncio.sleep(0.01)
            await until(lambda: pushed.state.phase is Phase.RETRYING)
            assert pushed.state.error == "the server does not answer"
            assert not stage.session.closed.done()


async def test_a_target_that_can_never_work_is_said_to_be_invalid_and_ends_nothing(stage: Stage) -> None:
    pushed = RtmpPush(stage.session, "rtmp://127.0.0.1/live/key", private=False)
    await pushed.run()
    assert pushed.state.phase is Phase.INVALID
    assert "public internet" in pushed.state.error
    assert not stage.session.closed.done()


async def test_a_session_that_ends_while_its_target_is_awaited_waits_for_nobody(stage: Stage) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        pushed = RtmpPush(stage.session, url(deaf.getsockname()[1]), private=True)
        running = asyncio.ensure_future(pushed.run())
        await until(lambda: pushed.state.attempts == 1)
        stage.session.close("stopped", "")
        async with asyncio.timeout(push.FAREWELL_S + 2):
            await running
        assert pushed.state.phase is Phase.ENDED


async def test_rtmps_works_with_a_certificate_that_is_trusted_and_not_without(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    chain, trusted = tmp_path / "chain.pem", tmp_path / "trusted.pem"
    certificate.private_key_and_cert_chain_pem.write_to_path(str(chain))
    authority.cert_pem.write_to_path(str(trusted))
    platform = Platform()
    async with platform.serving(rtmp_tls_cert=str(chain)) as port:
        secure = url(port).replace("rtmp://", "rtmps://")
        async with pushing(stage, secure) as pushed:
            await until(lambda: pushed.state.phase is Phase.RETRYING)
            assert "certificate" in pushed.state.error.lower()
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        assert ssl.get_default_verify_paths().cafile == str(trusted)
        async with pushing(stage, secure) as pushed:
            await shown(stage, lambda: len(platform.pictures) > 5)
            assert pushed.state.phase is Phase.LIVE


async def test_cancelling_a_push_ends_it_at_once_wherever_it_is(stage: Stage) -> None:
    platform = Platform()
    async with platform.serving() as port:
        for seconds in (0.0, 0.001, 0.01, 0.1, 0.3):
            running = asyncio.ensure_future(RtmpPush(stage.session, url(port), private=True).run())
            await asyncio.sleep(seconds)
            running.cancel()
            async with asyncio.timeout(1):
                await asyncio.wait({running})
            assert running.cancelled()
