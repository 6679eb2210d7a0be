"""A workflow that a ComfyUI runs, for a pipeline's thread: a frame up, its picture back; it may go away.

Its frames go one after the other: a second one in flight would gain what an upload takes, for a picture that
is older by a whole one. A frame does not wait for a ComfyUI that is away, nor for one that was started anew
and has to read its models: who loads a workflow does.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

import cv2
import numpy as np

from services.inference.engine.pipelines.comfyui.bridge import object_info
from services.inference.engine.pipelines.comfyui.bridge.connection import (
    ComfyUIError,
    Connection,
    LostError,
    Progress,
    Returned,
    SlowError,
)
from services.inference.engine.pipelines.comfyui.bridge.prompt import SEND, SHOW, Prompt
from services.inference.engine.pipelines.comfyui.checking import dangling, steered, unknown
from services.inference.engine.pipelines.comfyui.conversion import Converted
from services.inference.engine.pipelines.comfyui.declarations import Kind
from services.inference.engine.pipelines.comfyui.execution import Outcome, Picture
from services.inference.engine.pipelines.comfyui.gallery import Gallery
from services.inference.engine.pipelines.comfyui.refusals import WorkflowError
from services.inference.engine.pipelines.comfyui.settings import ComfyUISettings

T = TypeVar("T")
AGAIN_S: Final = 0.5  # between two tries to reach a ComfyUI that is away
SLACK_S: Final = 30.0  # beyond the bounds of what is waited for, which end it first
ANSWER_S: Final = 0.5  # what an upload and a prompt take that is only put into a queue
FORMAT: Final = ".bmp"  # nothing to compress or to lose; half of the time of an uncompressed PNG
WAITING: Final = "waiting for ComfyUI"
SENT_ALONG: Final = Gallery(None)


class Remote:
    """The ComfyUI of one stream, on an event loop in a thread of its own. Any thread may call."""

    def __init__(self, settings: ComfyUISettings, progress: Progress) -> None:
        self.settings = settings
        self._progress = progress
        self._frame = f"{uuid.uuid4().hex}{FORMAT}"
        self._uploaded: dict[str, int] = {}  # files, with the connection by which they went
        self.is_loading = False  # it is busy with the first run of a workflow
        self._under_way: set[Future[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._connection = Connection(settings.url, progress)
        self._thread = threading.Thread(target=self._loop.run_forever, name="comfyui", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Whoever still waits for something gets a CancelledError."""
        for future in tuple(self._under_way):
            future.cancel()
        self._waited(self._connection.close(), SLACK_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def kinds(self, patience_s: float) -> Mapping[str, Kind]:
        """Its nodes, with the stream's ends. Raises ComfyUIError."""
        described = self._there(self._connection.object_info, 0, patience_s)
        if SEND not in described:
            raise ComfyUIError(
                f"this ComfyUI has no {SEND}; its own custom_nodes/websocket_image_save.py is missing"
            )
        return object_info.kinds(described)

    def first(self, prompt: Prompt, rgb: Picture) -> int:
        """Run a prompt for which ComfyUI may have to read models; returns the connection that it ran by.

        Raises what `Connection.run` does, LostError if ComfyUI stays away.
        """
        data = _encoded(rgb)
        connection = 0

        async def once() -> None:
            nonlocal connection
            connection = await self._connection.connect()
            await self._run(prompt, data, self.settings.load_timeout_s)

        self.is_loading = True
        try:
            self._there(once, self.settings.load_timeout_s, self.settings.return_within_s)
        finally:
            self.is_loading = False
        return connection

    def frame(self, prompt: Prompt, rgb: Picture, connection: int) -> Returned:
        """Put a picture through a prompt that ran by `connection`. Raises what `Connection.run` does."""
        data = _encoded(rgb)

        limit_s = self.settings.frame_timeout_s

        async def once() -> Returned:
            try:
                async with asyncio.timeout(limit_s + ANSWER_S):
                    if await self._connection.connect() != connection:
                        raise LostError("ComfyUI was away, and has to load the workflow again")
                    return await self._run(prompt, data, limit_s)
            except TimeoutError:
                raise SlowError(f"ComfyUI did not answer within {limit_s + ANSWER_S:g} s") from None

        return self._waited(once(), limit_s + SLACK_S)

    async def _run(self, prompt: Prompt, data: bytes, within_s: float) -> Returned:
        connection = await self._connection.connect()
        for file, sent in prompt.pictures.items():
            if self._uploaded.get(file) != connection:
                await self._connection.upload(file, SENT_ALONG.read(sent))
                self._uploaded[file] = connection
        if prompt.frames:
            await self._connection.upload(self._frame, data)
        return await self._connection.run(
            prompt.with_frame(self._frame), prompt.picture, prompt.texts, within_s
        )

    def _there(self, work: Callable[[], Awaitable[T]], within_s: float, patience_s: float) -> T:
        return self._waited(self._persistent(work, patience_s), patience_s + within_s + SLACK_S)

    async def _persistent(self, work: Callable[[], Awaitable[T]], patience_s: float) -> T:
        """Again while it is away."""
        loop = asyncio.get_running_loop()
        until_s: float | None = None
        while True:
            try:
                result = await work()
            except LostError:
                until_s = until_s or loop.time() + patience_s
                left_s = until_s - loop.time()
                if left_s <= 0:
                    raise
                self._progress(WAITING, 1 - left_s / patience_s)
                await asyncio.sleep(AGAIN_S)
            else:
                if until_s is not None:
                    self._progress(WAITING, 1.0)
                return result

    def _waited(self, work: Coroutine[Any, Any, T], bound_s: float) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        self._under_way.add(future)
        try:
            return future.result(bound_s)
        finally:
            self._under_way.discard(future)
            future.cancel()


@dataclass(slots=True)
class _Ran:
    """What is known of a workflow that ran, with whatever constants."""

    connection: int = 0  # by which it ran
    shown: Outcome | None = None


class RemoteRun:
    """A workflow at work in a ComfyUI: what `OwnRun` is here."""

    def __init__(
        self,
        remote: Remote,
        converted: Converted,
        kinds: Mapping[str, Kind],
        changes: Mapping[str, Any],
        before: RemoteRun | None = None,
    ) -> None:
        """`before`: the same with other constants. Raises WorkflowError that names what ComfyUI lacks."""
        if missing := unknown(converted.workflow, kinds):
            raise WorkflowError("unknown nodes, which the ComfyUI here does not have", missing)
        if broken := dangling(converted.workflow):
            raise WorkflowError("the workflow cannot run", broken)  # ComfyUI itself says only where to
        if converted.texts and SHOW not in kinds:
            raise WorkflowError(f"the ComfyUI here is too old for texts: it has no {SHOW}")
        self._remote = remote
        self._converted = converted
        self._kinds = kinds
        self._ran: _Ran = before.ran if before is not None else _Ran()
        workflow = steered(converted.workflow, changes, kinds)
        self._prompt = Prompt.of(replace(converted, workflow=workflow))

    @property
    def nodes(self) -> int:
        return len(self._prompt.nodes)

    @property
    def ran(self) -> _Ran:
        return self._ran

    def steered(self, changes: Mapping[str, Any]) -> RemoteRun:
        """The same with other constants. Raises WorkflowError."""
        return RemoteRun(self._remote, self._converted, self._kinds, changes, self)

    def warm(self, rgb: Picture) -> None:
        """Have ComfyUI check the workflow, load what it needs and keep it. Raises what `frame` raises."""
        self._ran.connection = self._remote.first(self._prompt, rgb)

    def frame(self, rgb: Picture) -> Outcome:
        """Run the workflow on a picture, uint8 (H, W, 3).

        While ComfyUI loads the workflow that comes after this one, which may take minutes, and for which it
        leaves everything else, the picture before stays.
        """
        if self._remote.is_loading and self._ran.shown is not None:
            return self._ran.shown
        returned = self._remote.frame(self._prompt, rgb, self._ran.connection)
        picture = _decoded(returned.picture) if returned.picture is not None else None
        self._ran.shown = Outcome(picture if picture is not None else rgb, returned.texts)
        return Outcome(picture, returned.texts)


def _encoded(rgb: Picture) -> bytes:
    done, encoded = cv2.imencode(FORMAT, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert done, rgb.shape
    return encoded.tobytes()


def _decoded(data: bytes) -> Picture:
    rgb = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if rgb is None:
        raise ComfyUIError("what ComfyUI sent as a picture is none")
    return np.asarray(rgb, np.uint8)
