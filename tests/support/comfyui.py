"""A stand-in for a ComfyUI server, for what of its API the bridge uses, and the ways in which it fails.

What it sends was written down from ComfyUI 0.3.64. It runs five classes of nodes, keeps the results of those
whose inputs did not change, as ComfyUI does, and validates as much as the tests need.
"""

from __future__ import annotations

import asyncio
import json
import struct
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

import cv2
import numpy as np
from aiohttp import WSMsgType, web

PREVIEW: Final = struct.pack(">II", 1, 2)  # an unencoded preview, which is sent as PNG
JPEG_PREVIEW: Final = struct.pack(">II", 1, 1)
OBJECT_INFO: Final[Mapping[str, Any]] = {
    "LoadImage": {
        "input": {"required": {"image": [["example.png"], {"image_upload": True}]}},
        "output": ["IMAGE", "MASK"],
        "output_node": False,
    },
    "ImageInvert": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"], "output_node": False},
    "Brighten": {
        "input": {
            "required": {
                "image": ["IMAGE"],
                "amount": ["INT", {"default": 0, "min": 0, "max": 200}],
                "model": ["MODEL"],
            },
            "optional": {"how": [["add", "multiply"], {}]},
        },
        "output": ["IMAGE"],
        "output_node": False,
    },
    "LoadModel": {
        "input": {"required": {"name": ["STRING", {"default": ""}]}},
        "output": ["MODEL"],
        "output_node": False,
    },
    "Describe": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["STRING"], "output_node": False},
    "Explode": {"input": {"required": {"image": ["IMAGE"]}}, "output": ["IMAGE"], "output_node": False},
    "SaveImageWebsocket": {"input": {"required": {"images": ["IMAGE"]}}, "output": [], "output_node": True},
    "PreviewAny": {"input": {"required": {"source": ["*", {}]}}, "output": [], "output_node": True},
}


class ComfyUIStandIn:
    """Serves from a thread of its own, on a port that it keeps when it dies and returns."""

    def __init__(self, object_info: Mapping[str, Any] = OBJECT_INFO) -> None:
        self.object_info = dict(object_info)
        self.port = 0
        self.runs: Counter[str] = Counter()  # of nodes that ran, by class
        self.prompts: list[Mapping[str, Any]] = []
        self.forgotten: list[str] = []
        self.interrupted: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.slow = threading.Event()  # while it is set a Brighten does not come to its end
        self.sends_samples = False  # a Brighten shows how far it is, as a sampler does
        self.answers: list[tuple[int, str]] = []  # to give to the next prompts in place of right ones
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._runner: web.AppRunner | None = None
        self._sockets: dict[str, web.WebSocketResponse] = {}
        self._results: dict[str, tuple[str, Any]] = {}
        self._queue: asyncio.Lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> ComfyUIStandIn:
        self._thread.start()
        self.live()
        return self

    def __exit__(self, *_error: object) -> None:
        self.slow.clear()
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def live(self) -> None:
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(5)

    def die(self) -> None:
        """As a killed process: connections break, and what it knew is lost."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(5)

    def hang_up(self) -> None:
        """Break the WebSockets only."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(5)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 26)
        app.add_routes(
            [
                web.get("/ws", self._ws),
                web.get("/object_info", self._describe),
                web.post("/upload/image", self._upload),
                web.post("/prompt", self._prompt),
                web.post("/queue", self._ignored),
                web.post("/interrupt", self._interrupt),
                web.post("/history", self._history),
            ]
        )
        self._runner = web.AppRunner(app, shutdown_timeout=0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        await self._hang_up()
        self._results.clear()
        self.uploads.clear()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _hang_up(self) -> None:
        for socket in tuple(self._sockets.values()):
            await socket.close()
        self._sockets.clear()

    async def _ws(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(max_msg_size=1 << 26)
        await socket.prepare(request)
        client = request.query["clientId"]
        self._sockets[client] = socket
        await socket.send_json({"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}})
        async for message in socket:
            assert message.type is WSMsgType.TEXT
        self._sockets.pop(client, None)
        return socket

    async def _describe(self, _request: web.Request) -> web.Response:
        return web.json_response(self.object_info)

    async def _upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        image = form["image"]
        assert isinstance(image, web.FileField)
        assert form["overwrite"] == "true"
        folder, kind = str(form["subfolder"]), str(form["type"])
        self.uploads[f"{folder}/{image.filename} [{kind}]"] = image.file.read()
        return web.json_response(
            {"name": image.filename, "subfolder": form["subfolder"], "type": form["type"]}
        )

    async def _prompt(self, request: web.Request) -> web.Response:
        body = await request.json()
        prompt: Mapping[str, Any] = body["prompt"]
        if self.answers:
            status, text = self.answers.pop(0)
            return web.Response(status=status, text=text)
        if refusal := self._refusal(prompt):
            return web.json_response(refusal, status=400)
        self.prompts.append(prompt)
        id_ = str(uuid.uuid4())
        task = asyncio.create_task(self._execute(id_, prompt, body["client_id"]))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return web.json_response({"prompt_id": id_, "number": len(self.prompts), "node_errors": {}})

    def _refusal(self, prompt: Mapping[str, Any]) -> Mapping[str, Any] | None:
        for id_, node in prompt.items():
            name = node["class_type"]
            if name not in self.object_info:
                message = f"Cannot execute because node {name} does not exist."
                error = {"type": "invalid_prompt", "message": message, "details": f"Node ID '#{id_}'"}
                return {"error": {**error, "extra_info": {}}, "node_errors": {}}
            image = node["inputs"].get("image")
            if name == "LoadImage" and image not in self.uploads:
                problem = {
                    "type": "custom_validation_failed",
                    "message": "Custom validation failed for node",
                    "details": f"image - Invalid image file: {image}",
                    "extra_info": {"input_name": "image"},
                }
                return _failed_validation(id_, name, problem)
            if name == "Brighten" and "amount" not in node["inputs"]:
                problem = {
                    "type": "required_input_missing",
                    "message": "Required input is missing",
                    "details": "amount",
                    "extra_info": {"input_name": "amount"},
                }
                return _failed_validation(id_, name, problem)
        return None

    async def _execute(self, id_: str, prompt: Mapping[str, Any], client: str) -> None:
        async with self._queue:
            await self._say(client, "execution_start", prompt_id=id_, timestamp=0)
            await self._say(client, "execution_cached", nodes=[], prompt_id=id_, timestamp=0)
            done: dict[str, Any] = {}
            try:
                for node in [
                    key for key in prompt if self.object_info[prompt[key]["class_type"]]["output_node"]
                ]:
                    await self._result(node, prompt, done, id_, client)
            except ZeroDivisionError as error:
                await self._say(
                    client,
                    "execution_error",
                    prompt_id=id_,
                    node_id=str(error),
                    node_type="Explode",
                    executed=[],
                    exception_message="division by zero\n",
                    exception_type="ZeroDivisionError",
                    traceback=["  File somewhere\n"],
                    current_inputs={},
                    current_outputs=[],
                )
            else:
                await self._say(client, "execution_success", prompt_id=id_, timestamp=0)
            await self._say(client, "executing", node=None, prompt_id=id_)

    async def _result(
        self, id_: str, prompt: Mapping[str, Any], done: dict[str, Any], run: str, client: str
    ) -> Any:
        if id_ in done:
            return done[id_]
        node = prompt[id_]
        inputs: dict[str, Any] = {}
        for name, value in node["inputs"].items():
            linked = isinstance(value, list)
            inputs[name] = (
                (await self._result(value[0], prompt, done, run, client))[value[1]] if linked else value
            )
        name = node["class_type"]
        key = json.dumps(self._key(id_, prompt), sort_keys=True)
        known = self._results.get(id_)
        if known is not None and known[0] == key and name != "SaveImageWebsocket":
            done[id_] = known[1]
        else:
            await self._say(client, "progress_state", prompt_id=run, nodes={})
            await self._say(client, "executing", node=id_, display_node=id_, prompt_id=run)
            self.runs[name] += 1
            done[id_] = await self._run(id_, name, inputs, run, client)
            self._results[id_] = (key, done[id_])
        if name == "PreviewAny":
            output = {"text": [str(inputs["source"])]}
            await self._say(client, "executed", node=id_, display_node=id_, output=output, prompt_id=run)
        return done[id_]

    def _key(self, id_: str, prompt: Mapping[str, Any]) -> Any:
        node = prompt[id_]
        file = (
            self.uploads.get(node["inputs"].get("image", ""), b"")
            if node["class_type"] == "LoadImage"
            else b""
        )
        inputs = {
            name: self._key(value[0], prompt) if isinstance(value, list) else value
            for name, value in node["inputs"].items()
        }
        return [node["class_type"], hash(file), inputs]

    async def _run(self, id_: str, name: str, inputs: Mapping[str, Any], run: str, client: str) -> Any:
        match name:
            case "LoadImage":
                return _decoded(self.uploads[inputs["image"]]), None
            case "ImageInvert":
                return (255 - inputs["image"],)
            case "LoadModel":
                return (inputs["name"],)
            case "Brighten":
                if self.sends_samples:
                    await self._say(client, "progress", value=1, max=4, prompt_id=run, node=id_)
                    await self._send(client, JPEG_PREVIEW + _encoded(".jpg", inputs["image"]))
                while self.slow.is_set():
                    await asyncio.sleep(0.01)
                return (cv2.add(inputs["image"], np.full_like(inputs["image"], inputs["amount"])),)
            case "Describe":
                return (f"mean\n{inputs['image'].mean():.0f}",)
            case "Explode":
                raise ZeroDivisionError(id_)
            case "SaveImageWebsocket":
                await self._say(client, "progress", value=0, max=1, prompt_id=run, node=id_)
                await self._send(client, PREVIEW + _encoded(".png", inputs["images"]))
        return ()

    async def _interrupt(self, request: web.Request) -> web.Response:
        self.interrupted.append((await request.json())["prompt_id"])
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        self.forgotten += (await request.json())["delete"]
        return web.Response()

    async def _ignored(self, _request: web.Request) -> web.Response:
        return web.Response()

    async def _say(self, client: str, type_: str, **data: Any) -> None:
        socket = self._sockets.get(client)
        if socket is not None and not socket.closed:
            await socket.send_json({"type": type_, "data": data})

    async def _send(self, client: str, data: bytes) -> None:
        socket = self._sockets.get(client)
        if socket is not None and not socket.closed:
            await socket.send_bytes(data)


def _failed_validation(id_: str, name: str, problem: Mapping[str, Any]) -> Mapping[str, Any]:
    error = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation"}
    nodes = {id_: {"errors": [problem], "dependent_outputs": [], "class_type": name}}
    return {"error": {**error, "details": "", "extra_info": {}}, "node_errors": nodes}


def _decoded(data: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _encoded(extension: str, image: Any) -> bytes:
    done, data = cv2.imencode(extension, image)
    assert done
    return data.tobytes()
