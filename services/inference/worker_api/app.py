"""The worker's HTTP API: PyTrickle's routes and answers, where its own are no defects.

What differs: a parameter that is wrong is a 400 everywhere and changes nothing, and a stream that has ended
is none that could be stopped.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any, Final

from aiohttp import web

from services.common.errors import ConflictError, InvalidError, NotFoundError, SluiceError
from services.inference.worker_api import requests
from services.inference.worker_api.hardware import Devices
from services.inference.worker_api.worker import Worker

PIPELINE: Final = "live-video-to-video"  # what gateways call this kind of worker
LARGEST_BODY_BYTES: Final = 10 << 20  # what gateways let through
VERSION: Final = version("sluice")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def worker_app(worker: Worker, token: str = "", devices: Devices | None = None) -> web.Application:
    """`token`: what callers that start, stop or change a stream must show as a bearer; empty: anybody may."""
    face = _Face(worker, devices or Devices())
    app = web.Application(client_max_size=LARGEST_BODY_BYTES, middlewares=[_guard(token)] if token else [])
    app.add_routes(
        [
            web.post("/stream/start", face.start),
            web.post("/live-video-to-video", face.start),
            web.post("/stream/stop", face.stop),
            web.post("/stream/params", face.update),
            web.get("/stream/status", face.status),
            web.get("/health", face.health),
            web.get("/version", face.version),
            web.get("/app-version", face.app_version),
            web.get("/hardware/info", face.hardware_info),
            web.get("/hardware/stats", face.hardware_stats),
        ]
    )
    return app


def _guard(token: str) -> Any:
    expected = f"Bearer {token}".encode()

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        shown = request.headers.get("Authorization", "").encode(errors="replace")
        if request.method == "POST" and not hmac.compare_digest(shown, expected):
            return _refusal(401, "the bearer token is not valid")
        return await handler(request)

    return guard


class _Face:
    """One method a route."""

    def __init__(self, worker: Worker, devices: Devices) -> None:
        self._worker = worker
        self._devices = devices

    async def start(self, request: web.Request) -> web.Response:
        try:
            body = await _json(request)
            self._worker.start(requests.start(body))
        except ConflictError as error:
            return _refusal(503, error.message, current_state=self._worker.state)
        except (InvalidError, NotFoundError) as error:
            return _refusal(400, f"Error starting stream: {error.message}")
        assert self._worker.stream is not None
        return web.json_response(
            {
                "status": "success",
                "message": "Stream started successfully",
                "request_id": self._worker.stream.request.request_id,
                "current_state": self._worker.state,
            }
        )

    async def stop(self, _: web.Request) -> web.Response:
        try:
            await self._worker.stop()
        except NotFoundError as error:
            return _refusal(400, error.message)
        except SluiceError as error:
            return _refusal(500, f"Error stopping stream: {error.message}")
        return web.json_response({"status": "success", "message": "Stream stopped successfully"})

    async def update(self, request: web.Request) -> web.Response:
        try:
            await self._worker.update(await _json(request))
        except InvalidError as error:
            return _refusal(400, f"Parameter update failed: {error.message}")
        except NotFoundError:
            return _refusal(400, "No active stream to update")
        except SluiceError as error:
            return _refusal(503, f"Parameter update failed: {error.message}")
        return web.json_response({"status": "success", "message": "Parameters updated successfully"})

    async def status(self, _: web.Request) -> web.Response:
        worker, running = self._worker, self._worker.running
        state = worker.state
        answer: dict[str, Any] = {
            "status": state,
            "state": state,
            "error_message": worker.stream.events.state.error if worker.stream is not None else None,
            "pipeline_ready": state != "LOADING",
            "active_streams": int(running is not None),
            "startup_complete": state != "LOADING",
            "pipeline_state": "LOADING" if state == "LOADING" else "IDLE",
            "additional_info": {},
            "client_active": running is not None,
        }
        if running is not None:
            urls = running.request.urls
            answer["client_running"] = True
            answer["fps"] = running.events.state.fps()
            answer["current_params"] = {
                "subscribe_url": urls.subscribe,
                "publish_url": urls.publish,
                "gateway_request_id": running.request.request_id,
            }
        return web.json_response(answer)

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": self._worker.state})

    async def version(self, _: web.Request) -> web.Response:
        return web.json_response({**self._named(), "version": VERSION})

    async def app_version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": VERSION})

    async def hardware_info(self, _: web.Request) -> web.Response:
        return web.json_response({**self._named(), "gpu_info": await asyncio.to_thread(self._devices.info)})

    async def hardware_stats(self, _: web.Request) -> web.Response:
        return web.json_response({**self._named(), "gpu_stats": await asyncio.to_thread(self._devices.stats)})

    def _named(self) -> dict[str, str]:
        return {"pipeline": PIPELINE, "model_id": self._worker.model}


async def _json(request: web.Request) -> object:
    """The body. Raises InvalidError."""
    if request.content_type != "application/json":
        raise InvalidError("the body is application/json")
    try:
        return json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise InvalidError("the body is no JSON") from error


def _refusal(status: int, message: str, **more: str) -> web.Response:
    return web.json_response({"status": "error", "message": message, **more}, status=status)
