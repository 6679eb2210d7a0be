"""One connection to a ComfyUI: uploads, prompts and what comes back of them, with a bound on every wait.

It runs one prompt at a time, as ComfyUI does. A connection that breaks is `LostError`, and is made anew with
the next prompt. Where the ComfyUI is stays here: no message that a client might see names it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from services.inference.engine.pipelines.comfyui.bridge import messages
from services.inference.engine.pipelines.comfyui.bridge.prompt import FOLDER
from services.inference.engine.pipelines.comfyui.refusals import (
    NodeFailedError,
    NodeProblem,
    WorkflowError,
)

REQUEST_S: Final = 10.0  # for an answer to anything but a prompt; a list of nodes takes seconds to make there
CONNECT_S: Final = 5.0
PULSE_S: Final = 1.0  # how often it is said where a slow prompt is
BYE: Final = aiohttp.ClientWSTimeout(ws_close=1.0)  # a ComfyUI that hangs says none
MESSAGE_MAX: Final = 128 << 20
FORGET_AFTER: Final = 50  # prompts whose records are deleted there at once; ComfyUI keeps ten thousand
WORDS_MAX: Final = 300  # characters of an answer that nobody expected

Progress = Callable[[str, float], None]


class ComfyUIError(Exception):
    """The ComfyUI did something else than it should; the message says what."""


class LostError(ComfyUIError):
    """It cannot be reached any more, or yet."""


class SlowError(ComfyUIError):
    """It did not finish in time."""


@dataclass(slots=True)
class Returned:
    """What a prompt gave: its picture as it came, and texts by node."""

    picture: bytes | None = None
    texts: dict[str, str] = field(default_factory=dict)


class Connection:
    """All methods are called on one event loop."""

    def __init__(self, url: str, progress: Progress) -> None:
        self._url = url.rstrip("/")
        self._progress = progress
        self._client = uuid.uuid4().hex
        self._session: aiohttp.ClientSession | None = None
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self._connections = 0
        self._done: list[str] = []
        self._running = asyncio.Lock()

    async def close(self) -> None:
        """Leave no record of this stream there."""
        session, self._session = self._session, None
        if session is None:
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                await self._forget(session)
        except (ComfyUIError, TimeoutError):
            pass  # it has gone, and its records with it
        finally:
            await self._drop()
            await session.close()

    async def _drop(self) -> None:
        """Let go of the WebSocket, whatever became of it."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    async def object_info(self) -> Mapping[str, Any]:
        """All nodes that there are. Raises ComfyUIError."""
        answer = await self._json("GET", "/object_info")
        if not isinstance(answer, Mapping):
            raise ComfyUIError("ComfyUI's /object_info is no object")
        return answer

    async def upload(self, file: str, data: bytes) -> None:
        """Put a picture where a `LoadImage` finds it. Raises ComfyUIError."""
        form = aiohttp.FormData()
        form.add_field("image", data, filename=file, content_type="application/octet-stream")
        for key, value in (("type", "temp"), ("subfolder", FOLDER), ("overwrite", "true")):
            form.add_field(key, value)
        answer = await self._json("POST", "/upload/image", data=form)
        if not isinstance(answer, Mapping) or answer.get("name") != file:
            raise ComfyUIError(f"ComfyUI answered an upload with {_words(answer)}")

    async def connect(self) -> int:
        """How many connections there have been, with this one: behind a new one ComfyUI may know nothing.

        Raises LostError.
        """
        await self._connected()
        return self._connections

    async def run(
        self,
        prompt: Mapping[str, Any],
        picture: str | None,
        texts: Mapping[str, bool],
        within_s: float,
    ) -> Returned:
        """Run a prompt. Raises WorkflowError, NodeFailedError, LostError, SlowError, ComfyUIError."""
        async with self._running:
            socket = await self._connected()
            id_ = await self._submit(prompt)
            at = _Whereabouts()
            try:
                async with asyncio.timeout(within_s):
                    returned = await self._follow(socket, id_, picture, texts, at)
            except TimeoutError:
                await self._give_up(id_)
                where = (
                    f"it is at node {at.node}" if at.node is not None else "it is busy with something else"
                )
                raise SlowError(f"ComfyUI did not finish within {within_s:g} s: {where}") from None
            self._done.append(id_)
            if len(self._done) >= FORGET_AFTER and self._session is not None:
                await self._forget(self._session)
            return returned

    async def _submit(self, prompt: Mapping[str, Any]) -> str:
        answer = await self._json("POST", "/prompt", json={"prompt": prompt, "client_id": self._client})
        id_ = answer.get("prompt_id") if isinstance(answer, Mapping) else None
        if not isinstance(id_, str):
            raise ComfyUIError(f"ComfyUI answered a prompt with {_words(answer)}")
        if errors := answer.get("node_errors"):  # an output that is not to be had; the others would run
            raise _refused({"error": {"message": "the workflow cannot run"}, "node_errors": errors})
        return id_

    async def _follow(
        self,
        socket: aiohttp.ClientWebSocketResponse,
        id_: str,
        picture: str | None,
        texts: Mapping[str, bool],
        at: _Whereabouts,
    ) -> Returned:
        returned = Returned()
        while True:
            message = await self._received(socket, at)
            if isinstance(message, bytes):
                found = messages.picture(message)
                # A sampler shows its steps in the same way; of a batch the first is the picture.
                if found is not None and at.node == picture and returned.picture is None:
                    returned.picture = found
                continue
            said = messages.said(message)
            if said is None or said.prompt != id_:
                continue
            match said:
                case messages.Executing(node=None):
                    if picture is not None and returned.picture is None:
                        raise ComfyUIError("ComfyUI finished without a picture")
                    return returned
                case messages.Executing(node=node):
                    at.node, at.fraction = node, 0.0
                case messages.Stepped(node=node, fraction=fraction):
                    at.node, at.fraction = node, fraction
                case messages.Executed(node=node, output=output) if node in texts:
                    lines = [str(one) for one in output.get("text") or ()]
                    joined = "\n".join(lines)
                    returned.texts[node] = " ".join(joined.splitlines()) if texts[node] else joined
                case messages.Failed():
                    self._done.append(id_)
                    raise NodeFailedError(said.node, said.class_type, said.exception, said.message)
                case messages.Interrupted():
                    raise ComfyUIError("somebody interrupted the workflow in ComfyUI")

    async def _received(self, socket: aiohttp.ClientWebSocketResponse, at: _Whereabouts) -> str | bytes:
        while True:
            try:
                async with asyncio.timeout(PULSE_S):
                    message = await socket.receive()
            except TimeoutError:
                at.pulses += 1
                self._progress(f"ComfyUI, node {at.node}" if at.node else "ComfyUI", at.fraction)
                continue
            if at.pulses:
                at.pulses = 0
                self._progress("ComfyUI", 1.0)
            if message.type is aiohttp.WSMsgType.TEXT or message.type is aiohttp.WSMsgType.BINARY:
                data: str | bytes = message.data
                return data
            if message.type is not aiohttp.WSMsgType.PING and message.type is not aiohttp.WSMsgType.PONG:
                await self._drop()
                raise LostError("the connection to ComfyUI broke")

    async def _give_up(self, id_: str) -> None:
        """Whatever it is at is of no use any more."""
        try:
            await self._json("POST", "/queue", json={"delete": [id_]})
            await self._json("POST", "/interrupt", json={"prompt_id": id_})
        except ComfyUIError:
            return  # it has gone, which the next prompt will find out

    async def _forget(self, session: aiohttp.ClientSession) -> None:
        done, self._done = self._done, []
        if done:
            await self._json("POST", "/history", json={"delete": done}, session=session)

    async def _connected(self) -> aiohttp.ClientWebSocketResponse:
        if self._socket is not None and not self._socket.closed:
            return self._socket
        await self._drop()
        try:
            async with asyncio.timeout(CONNECT_S):
                self._socket = await self._opened().ws_connect(
                    f"{self._url}/ws",
                    params={"clientId": self._client},
                    max_msg_size=MESSAGE_MAX,
                    timeout=BYE,
                )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise LostError(f"ComfyUI cannot be reached: {type(error).__name__}") from None
        self._connections += 1
        return self._socket

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=REQUEST_S))
        return self._session

    async def _json(
        self, method: str, path: str, *, session: aiohttp.ClientSession | None = None, **body: Any
    ) -> Any:
        try:
            async with (session or self._opened()).request(method, self._url + path, **body) as response:
                text, status = await response.text(errors="replace"), response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            await self._drop()
            raise LostError(f"ComfyUI cannot be reached: {type(error).__name__}") from None
        try:
            answer = json.loads(text) if text else None
        except ValueError:
            answer = text
        if status == 400 and path == "/prompt" and isinstance(answer, Mapping):
            raise _refused(answer)
        if status >= 400:
            raise ComfyUIError(f"ComfyUI answered {status} to {method} {path}: {_words(answer)}")
        return answer


@dataclass(slots=True)
class _Whereabouts:
    """What ComfyUI is at."""

    node: str | None = None
    fraction: float = 0.0
    pulses: int = 0


def _refused(answer: Mapping[str, Any]) -> WorkflowError:
    error = answer.get("error")
    summary = error if isinstance(error, Mapping) else {}
    problems: list[NodeProblem] = []
    nodes = answer.get("node_errors")
    for id_, node in (nodes if isinstance(nodes, Mapping) else {}).items():
        for one in node.get("errors", ()):
            extra = one.get("extra_info")
            name = extra.get("input_name", "") if isinstance(extra, Mapping) else ""
            problems.append(
                NodeProblem(
                    str(id_),
                    str(node.get("class_type", "")),
                    str(one.get("type", "")),
                    str(one.get("message", "")),
                    str(one.get("details", ""))[:WORDS_MAX],
                    str(name),
                )
            )
    message = str(summary.get("message", error))
    details = str(summary.get("details") or "") if not problems else ""
    return WorkflowError(
        f"ComfyUI refused it: {message}" + (f" ({details[:WORDS_MAX]})" if details else ""),
        problems,
        type=str(summary.get("type", "invalid_prompt")),
    )


def _words(answer: object) -> str:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    return text[:WORDS_MAX]
