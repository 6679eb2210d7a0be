"""The two commands from their first call of the platform to their last; Ctrl-C ends either in order."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from services.common.errors import InvalidError
from sluice.client import ApiError, SluiceClient, Stream, UnreachableError
from sluice.live import play, publish
from sluice.live.display import Display
from sluice.live.inputs import Input
from sluice.settings import Access
from sluice.transform.exchange import Worker

STREAM_PREFIX: Final = "str_"
PLAYBACK_PREFIX: Final = "pbk_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The stream to publish to: an existing one, or what a new one is to be."""

    stream: str | None
    pipeline: str | None
    params: Mapping[str, Any]
    name: str


async def published(
    source: Input, wish: Wish, found: Access, *, loop: bool, announce: Callable[[Stream], None]
) -> publish.Report:
    """Publish until the input ends. `announce` is told of the stream before anything is sent."""
    console = Console(stderr=True)
    async with SluiceClient(found.url, found.key) as client:
        stream = await _stream(client, wish)
        announce(stream)
        with Display(console, source.place.name) as display:
            display.say(f"{source.place.name}: {source.described()}")
            run = publish.Publication(source, loop=loop, client=client, stream=stream, display=display)
            with _stopped_by_signals(run.stop):
                return await run.run()


async def _stream(client: SluiceClient, wish: Wish) -> Stream:
    if wish.stream is None:
        return await client.create_stream(pipeline=wish.pipeline, params=wish.params, name=wish.name[:200])
    if wish.pipeline is not None:
        raise InvalidError("--stream has a pipeline already; leave --pipeline out")
    if wish.params:
        return await client.update_stream(wish.stream, wish.params)
    return await client.get_stream(wish.stream)


async def played(target: str, found: Access, *, output: str | None) -> play.Report:
    """Play `target`, a stream's id or a playback id, into `output`, or in a player without one."""
    async with SluiceClient(found.url, found.key) as client:
        stream = None
        url = f"{found.url.rstrip('/')}/ts/{target}"
        if target.startswith(STREAM_PREFIX):
            stream = target
            url = (await client.get_stream(stream)).play_url
        with Display(Console(stderr=True), target) as display:
            watching = play.Watching(display)
            failure: ApiError | UnreachableError | None = None
            with _stopped_by_signals(watching.stop):
                try:
                    await _into(output, watching, client, url)
                except (ApiError, UnreachableError) as error:
                    if not watching.frames:
                        raise
                    failure = error
            if failure is not None:
                display.say(f"{watching.frames} frames, {watching.seconds:.1f} s came before it broke")
                raise failure
            reason = None
            if stream is not None and not watching.stopped:
                reason = await play.end_of(client, stream)
            return watching.report(reason)


async def _into(output: str | None, watching: play.Watching, client: SluiceClient, url: str) -> None:
    if output is None:
        async with play.playing(play.player()) as sink:
            await watching.run(client, url, sink)
    elif output == play.STDOUT:
        with Worker() as writing:
            await watching.run(client, url, play.FileSink(1, writing))
    else:
        await _into_file(Path(output), watching, client, url)


async def _into_file(path: Path, watching: play.Watching, client: SluiceClient, url: str) -> None:
    """What came is under its name at the end, also if the end was early; nothing is, if nothing came."""
    container = play.container_of(path)
    received = path.with_name(f".{path.name}.{os.getpid()}.ts.part")
    made = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(received, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    except OSError as error:
        raise InvalidError(f"{path} cannot be written ({error.strerror})") from error
    try:
        with Worker() as writing:
            try:
                await watching.run(client, url, play.FileSink(descriptor, writing))
            finally:
                os.close(descriptor)
                if watching.frames:
                    if container is None:
                        received.replace(path)
                    else:
                        await writing(play.repacked, received, made, container)
                        made.replace(path)
    finally:
        received.unlink(missing_ok=True)
        made.unlink(missing_ok=True)


@contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM in the block calls `stop`; a second one is for people in a hurry."""
    loop = asyncio.get_running_loop()
    signals = (signal.SIGINT, signal.SIGTERM)

    def first() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
        stop()

    with suppress(NotImplementedError):  # Windows has none of it
        for number in signals:
            loop.add_signal_handler(number, first)
    try:
        yield
    finally:
        with suppress(NotImplementedError):
            for number in signals:
                loop.remove_signal_handler(number)
