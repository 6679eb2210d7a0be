"""The public API for tests of its clients: an echo that stamps, answers and refuses as `ingest` does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from services.common.http_server import serve_http
from services.common.media.clock import ORIGIN_TICKS, Timeline
from services.common.media.mpegts import Codec, Demuxer, Muxer

KEY = "sk_test_echo"
Refusal = tuple[int, str, str]


@dataclass
class Running:
    """One stream with its only session."""

    id: str
    body: dict[str, Any]
    phase: str = ""
    end_reason: str | None = None
    end_message: str | None = None
    out: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)
    started: asyncio.Event = field(default_factory=asyncio.Event)
    pts: list[int] = field(default_factory=list)  # media ticks of the pictures that came in

    @property
    def session(self) -> str:
        return self.id.replace("str_", "ses_")


class Platform:
    """What a test can see and set. Refusals are (status, code, sentence)."""

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[str] = []
        self.keys: set[str] = set()
        self.streams: dict[str, Running] = {}
        self.deleted: list[str] = []
        self.patches: list[tuple[dict[str, Any], int]] = []  # with how many pictures had come before
        self.refuse: dict[str, Refusal] = {}  # by "METHOD /path prefix"
        self.end_after: tuple[int, Refusal] | None = None  # pictures, and what the publisher is told then
        self.lost: Callable[[int], bool] = lambda _: False  # by the number of the picture
        self.cut_play_after: int | None = None
        self.settled = True
        self.sessions: list[dict[str, Any]] = []
        self.spans: list[dict[str, Any]] = []  # of every session
        self.moves: list[dict[str, Any]] = []  # of every stream's session
        self.moving: list[dict[str, Any]] = []  # looks after a wish to move, each at what there is then
        self.left: list[int | None] = []  # sessions on a runner, at each look; None: there is no such runner
        self.drains: list[tuple[str, bool]] = []

    @property
    def stream(self) -> Running:
        (only,) = self.streams.values()
        return only

    def session_object(self, running: Running) -> dict[str, Any]:
        return {
            "session": running.session,
            "stream": running.id,
            "pipeline": "effects",
            "phase": running.phase,
            "end_reason": running.end_reason,
            "end_message": running.end_message,
            "runner": "runner-1",
            "created_at": "2026-01-01T00:00:00.000Z",
            "ended_at": None,
            "age_s": 12.4,
            "queue": None,
            "move_wanted": None,
            "moving_to": None,
            "moves": self.moves,
            "settled": self.settled,
            "micro_per_second": 100,
            **({} if running.phase == "ended" else {"cost_micro": 41, "fps_out": 24.5, "latency_ms": 40.2}),
        }


def refused(refusal: Refusal) -> JSONResponse:
    status, code, sentence = refusal
    return JSONResponse(
        {
            "success": False,
            "error": sentence,
            "code": code,
            "status": status,
            "details": None,
            "requestId": "0123456789abcdef",
            "traceId": None,
        },
        status,
    )


@contextmanager
def platform() -> Iterator[Platform]:
    """The platform on a free port, in a thread of its own."""
    serving = Platform()
    ready = threading.Event()
    ended: list[Callable[[], object]] = []

    async def serve() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        ended.append(lambda: loop.call_soon_threadsafe(stop.set))
        async with serve_http(_app(serving), "127.0.0.1:0", 1) as port:
            serving.url = f"http://127.0.0.1:{port}"
            ready.set()
            await stop.wait()
            for running in serving.streams.values():  # viewers that still wait
                running.started.set()
                running.out.put_nowait(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(10)
    try:
        yield serving
    finally:
        ended[0]()
        thread.join(10)


def _app(at: Platform) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def watch_over(request: Request, proceed: Any) -> Response:
        call = f"{request.method} {request.url.path}"
        at.calls.append(call)
        if request.url.path.startswith("/v1") and not request.url.path.endswith("/prices"):
            key = request.headers.get("authorization", "").removeprefix("Bearer ")
            at.keys.add(key)
            if key != KEY:
                return refused((401, "SLUICE/KEY_UNKNOWN", "there is no such key"))
        for prefix, refusal in at.refuse.items():
            if call.startswith(prefix):
                answer = refused(refusal)
                if "/ts/" in prefix:
                    answer.headers["Connection"] = "close"
                return answer
        answer = await proceed(request)
        assert isinstance(answer, Response)
        return answer

    def shown(running: Running) -> dict[str, Any]:
        return {
            "id": running.id,
            "publish_url": f"{at.url}/ts/stk_{running.id}",
            "play_url": f"{at.url}/ts/pbk_{running.id}",
            "revision": 1 + len(at.patches),
            "session": running.session if running.phase else None,
        }

    @app.post("/v1/streams", status_code=201)
    async def create(request: Request) -> dict[str, Any]:
        running = Running(f"str_{len(at.streams) + 1:08d}", await request.json())
        at.streams[running.id] = running
        return shown(running)

    @app.get("/v1/streams/{stream}")
    async def get(stream: str) -> dict[str, Any]:
        return shown(at.streams[stream])

    @app.patch("/v1/streams/{stream}")
    async def update(stream: str, request: Request) -> dict[str, Any]:
        at.patches.append((await request.json(), len(at.streams[stream].pts)))
        return shown(at.streams[stream])

    @app.delete("/v1/streams/{stream}")
    async def delete(stream: str) -> dict[str, Any]:
        at.deleted.append(stream)
        running = at.streams[stream]
        if running.phase not in {"", "ended"}:
            running.phase, running.end_reason = "ended", "stream_deleted"
        running.out.put_nowait(None)
        return {"success": True, "data": {}}

    @app.get("/v1/streams/{stream}/status")
    async def status(stream: str) -> dict[str, Any]:
        running = at.streams[stream]
        part = at.session_object(running) if running.phase else None
        return {"success": True, "error": None, "data": {"stream_id": stream, "sluice": part}}

    _sessions(app, at)

    @app.get("/v1/prices")
    async def prices() -> dict[str, Any]:
        return {"currency": "EUR", "data": []}

    @app.get("/v1/usage")
    async def usage(session: str = "") -> dict[str, Any]:
        line = {
            "session": session or "ses_1",
            "stream": "str_1",
            "pipeline": "effects",
            "delivered_ms": 12_000,
            "paused_ms": 0,
            "cost_micro": 1234,
            "written_off_micro": 0,
            "micro_per_second": 100,
            "opened_at": "2026-01-01T00:00:00.000Z",
            "settled": True,
            "final": at.settled,
        }
        return {"data": [line], "balance_micro": 5_000_000, "available_micro": 4_900_000}

    @app.get("/v1/runners")
    async def runners() -> dict[str, Any]:
        slots = [
            {"slot": 0, "state": "held", "session": None},
            {"slot": 1, "state": "ready", "session": None},
        ]
        runner = {"runner": "runner-1", "pipelines": ["effects"], "region": "eu", "gpu_class": "h100"}
        return {"data": [{**runner, "heartbeat_age_ms": 250, "slots": slots}]}

    @app.get("/v1/pipelines")
    async def pipelines() -> dict[str, Any]:
        return {"data": [{"pipeline": "effects", "free": 1}]}

    @app.get("/ts/pbk_{stream}")
    async def play(stream: str) -> Response:
        running = at.streams[stream]
        async with asyncio.timeout(10):
            await running.started.wait()
        return StreamingResponse(_played(running), media_type="video/mp2t")

    @app.post("/ts/stk_{stream}")
    async def publish(stream: str, request: Request) -> Response:
        return await _published(at, at.streams[stream], request)

    return app


def _sessions(app: FastAPI, at: Platform) -> None:
    @app.get("/v1/sessions")
    async def sessions(ended: bool = False, all: bool = False) -> dict[str, Any]:  # noqa: A002
        found = [one for one in at.sessions if ended or one["phase"] != "ended"]
        return {"data": [{**one, "tenant": "acme"} for one in found] if all else found}

    @app.post("/v1/sessions/{session}/move", status_code=202)
    async def move(session: str) -> Any:
        return next(one for one in at.sessions if one["session"] == session)

    @app.post("/v1/runners/{runner}/drain")
    async def drain(runner: str, request: Request) -> Any:
        at.drains.append((runner, (await request.json())["cancel"]))
        left = at.left.pop(0) if at.left else 0
        if left is None:
            return refused((404, "SLUICE/RUNNER_NOT_FOUND", f"there is no runner {runner}"))
        return {"runner": runner, "sessions": left}

    @app.get("/v1/sessions/{session}")
    async def session(session: str) -> Any:
        if at.moving:
            at.sessions[:] = [at.moving.pop(0)]
        for listed in at.sessions:
            if listed["session"] == session:
                return listed
        found = at.streams.get(session.replace("ses_", "str_"))
        return at.session_object(found) if found else refused((404, "SLUICE/NOT_FOUND", "no such session"))

    @app.get("/v1/sessions/{session}/trace")
    async def trace(session: str) -> dict[str, Any]:
        return {"trace": "0af7651916cd43dd8448eb211c80319c", "dropped_spans": 0, "spans": at.spans}

    @app.get("/v1/sessions/{session}/latency")
    async def latency(session: str) -> dict[str, Any]:
        stages = [{"stage": stage, "p50_ms": 7.0, "p95_ms": 12.5} for stage in ("infer", "total")]
        return {"session": session, "pipeline": "effects", "live": True, "pictures": 900, "stages": stages}

    @app.delete("/v1/sessions/{session}")
    async def stop(session: str) -> dict[str, Any]:
        return {"success": True, "data": {}}


async def _played(running: Running) -> AsyncIterator[bytes]:
    while (data := await running.out.get()) is not None:
        yield data


async def _published(at: Platform, running: Running, request: Request) -> Response:
    demuxer, muxer, timeline = Demuxer(), Muxer(), Timeline()
    complete = running.body["delivery"] == "complete"
    now = asyncio.get_running_loop().time
    timeline.begin_source(None if complete else now())
    passed = 0

    def end(reason: str, message: str | None = None) -> None:
        if running.phase != "ended":
            running.phase, running.end_reason, running.end_message = "ended", reason, message
        running.out.put_nowait(None)

    async def bodies() -> AsyncIterator[list[Any]]:
        async for chunk in request.stream():
            yield demuxer.feed(chunk)
        yield demuxer.end_segment()

    async for units in bodies():
        for unit in units:
            assert unit.codec is Codec.H264
            stamped = timeline.stamp(unit, None if complete else now())
            assert stamped is not None
            if not running.phase:
                assert unit.keyframe
                assert stamped.pts == ORIGIN_TICKS
                running.phase = "starting"
                running.started.set()
            running.pts.append(stamped.pts - ORIGIN_TICKS)
            number = len(running.pts) - 1
            if at.end_after is not None and number >= at.end_after[0]:
                reason = at.end_after[1][1].rpartition("/")[2].lower()
                end(reason, at.end_after[1][2])
                answer = refused(at.end_after[1])
                answer.headers["Connection"] = "close"
                return answer
            if at.lost(number):
                continue
            tables = muxer.begin_segment() if unit.keyframe else b""
            running.out.put_nowait(tables + muxer.write(stamped))
            running.phase = "live"
            passed += 1
            if at.cut_play_after == passed:
                running.out.put_nowait(None)
    if not running.phase:
        return refused((400, "SLUICE/NO_PICTURE", "no H.264 key frame in the bytes that came"))
    end("input_ended")
    return JSONResponse({"success": True, "session": running.session})
