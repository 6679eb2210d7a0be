"""One client's data channel: what it wants is done in order, and it hears what became of it.

The rule it keeps: one change at a time is on its way to the session; what is said meanwhile is merged.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from prometheus_client import Counter

from protos.sessions.v1 import sessions_pb2
from services.common.errors import ConflictError, DeniedError, InvalidError, RateLimitedError, SluiceError
from services.common.json_objects import json_object
from services.common.lifecycle import Bulkhead
from services.common.param_schema import validate, with_defaults
from services.common.telemetry import report_bug
from services.common.trickle.protocol import CURRENT
from services.ingest.allowance import Allowance
from services.ingest.bridge.events import Applied, Health, Loading, Refused
from services.ingest.bridge.heard import News
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.identity import ORDERLY, Closed
from services.ingest.bridge.session import BridgeSession
from services.ingest.control_plane import ControlPlane
from services.ingest.runner_news import standing, told
from services.ingest.settings import IngestSettings
from services.ingest.steering import Steering
from services.ingest.times import media_ms, media_pts
from services.ingest.transports.webrtc import messages, parameters
from services.ingest.transports.webrtc.channels import Channel
from services.ingest.transports.webrtc.messages import MessageId, Subscribe, Update
from services.ingest.transports.webrtc.parameters import ScopeParameters

MESSAGES: Final = Counter(
    "sluice_data_channel_messages_total",
    "Messages of clients on data channels, by what was done with them.",
    ["outcome"],
)
WAITING: Final = 64  # messages that wait while a change is on its way
UNANSWERED: Final = 256  # changes that are accepted and not in a picture; a scheduled one may wait for days
FIND_S: Final = 15.0
STATUS_S: Final = 1.0
LEARN_AGAIN_S: Final = 2.0
COMPLAIN_S: Final = 1.0  # between two errors about messages that are too many


@dataclass(frozen=True, slots=True)
class Wish:
    """One change, of one message or of several together."""

    messages: tuple[MessageId | None, ...]
    patch: Mapping[str, Any]
    apply_at_ms: int | None = None
    ignored: tuple[str, ...] = ()

    def joined(self, other: Wish) -> Wish:
        """Both as one. The answers without an id are one answer."""
        named = dict.fromkeys((*self.messages, *other.messages))
        both = dict.fromkeys((*self.ignored, *other.ignored))
        patch = {**self.patch, **other.patch}
        return replace(self, messages=tuple(named), patch=patch, ignored=tuple(both))


@dataclass(frozen=True, slots=True)
class Accepted:
    """A change that is stored and whose picture is awaited."""

    wish: Wish
    revision: int
    applies: str


class Conversations:
    """Every open channel of this process; a task each, which ends with it."""

    def __init__(
        self, *, hub: Hub, plane: ControlPlane, steering: Steering, settings: IngestSettings
    ) -> None:
        self.hub = hub
        self.plane = plane
        self.steering = steering
        self.settings = settings
        self._tasks = Bulkhead(_failed)
        self._count = 0

    async def __aenter__(self) -> Conversations:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    def begin(self, channel: Channel, *, stream: str, tenant: str, may_steer: bool) -> None:
        """Talk until the channel closes. `may_steer`: the client may publish the stream, not only watch."""
        self._count += 1
        conversation = Conversation(channel, self, stream=stream, tenant=tenant, may_steer=may_steer)
        self._tasks.start(f"channel-{self._count}", conversation.run())


def _failed(key: str, error: Exception) -> None:
    report_bug("data_channel", error, channel=key)


class Conversation:
    """With one client, over all the sessions of its stream. Made and used in one event loop."""

    def __init__(
        self, channel: Channel, house: Conversations, *, stream: str, tenant: str, may_steer: bool
    ) -> None:
        self._channel = channel
        self._house = house
        self._stream = stream
        self._tenant = tenant
        self._may_steer = may_steer
        self._now_s = asyncio.get_running_loop().time
        self._allowance = Allowance(house.settings.data_channel_messages_per_s, self._now_s())
        self._complained_at_s = -COMPLAIN_S
        self._closed = asyncio.Event()
        self._waiting: deque[tuple[MessageId | None, Update | ScopeParameters]] = deque()
        self._something = asyncio.Event()
        self._in_turn = asyncio.Lock()  # what is read of the record is not to overtake what was changed
        self._accepted: deque[Accepted] = deque()
        self._refused: deque[int] = deque(maxlen=UNANSWERED)  # revisions of whose refusal the client was told
        self._paused: bool | None = None  # as this client wants it
        self._wants_status = False
        self._wants_data = True
        self._wants_events = True
        self._record: sessions_pb2.Stream | None = None
        self._schema: dict[str, Any] = {}
        self._params: dict[str, Any] = {}
        self._revision = 0
        channel.on_close(self._closed.set)
        channel.on_message(self._hear)

    async def run(self) -> None:
        """Talk until the channel closes."""
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._obey(), name="obey"),
                group.create_task(self._follow(), name="follow"),
                group.create_task(self._tell_status(), name="status"),
            ]
            await self._closed.wait()
            for task in tasks:
                task.cancel()

    # --- what the client says

    def _hear(self, data: str | bytes) -> None:
        """Answer, or put into the queue. Called by the transport, so nothing may be raised."""
        if not self._allowance.take(self._now_s()):
            self._complain()
            return
        answers_to: MessageId | None = None
        try:
            fields = messages.message_object(data, self._house.settings.data_channel_message_bytes)
            answers_to = messages.message_id(fields)
            message = messages.read(fields)
            if isinstance(message, Subscribe):
                self._subscribe(message, answers_to)
            else:
                self._wish(message, answers_to)
        except SluiceError as error:
            MESSAGES.labels("refused").inc()
            self._say(messages.refused(error, answers_to))
            return
        MESSAGES.labels("taken").inc()

    def _complain(self) -> None:
        MESSAGES.labels("too_many").inc()
        if self._now_s() - self._complained_at_s < COMPLAIN_S:
            return
        self._complained_at_s = self._now_s()
        limit = self._house.settings.data_channel_messages_per_s
        error = RateLimitedError(f"at most {limit:g} messages a second; the others were not read")
        self._say(messages.refused(error))

    def _subscribe(self, message: Subscribe, answers_to: MessageId | None) -> None:
        if message.status is not None:
            self._wants_status = message.status
        if message.data is not None:
            self._wants_data = message.data
        if message.events is not None:
            self._wants_events = message.events
        self._say(
            messages.said(
                "subscribed",
                answers_to,
                status=self._wants_status,
                data=self._wants_data,
                events=self._wants_events,
                ignored=messages.strange(message),
            )
        )

    def _wish(self, message: Update | ScopeParameters, answers_to: MessageId | None) -> None:
        if not self._may_steer:
            raise DeniedError("only who may publish the stream may steer it", reason="MAY_NOT_STEER")
        if len(self._waiting) >= WAITING:
            raise RateLimitedError(
                f"{WAITING} changes wait already; this one was not read", reason="TOO_FAST"
            )
        if isinstance(message, ScopeParameters) and message.paused is not None:
            self._paused = message.paused
            session = self._house.hub.of_stream(self._stream)
            if session is not None:
                session.pause(message.paused)
        self._waiting.append((answers_to, message))
        self._something.set()

    async def _obey(self) -> None:
        while True:
            await self._something.wait()
            self._something.clear()
            if self._record is None and not await self._learn():
                await asyncio.sleep(LEARN_AGAIN_S)
                self._something.set()
                continue
            for wish in self._wishes():
                await self._change(wish)

    def _wishes(self) -> Iterable[Wish]:
        """What waits, in its order and with all that can be one change as one; what is wrong is answered."""
        wishes: list[Wish] = []
        params = self._params
        while self._waiting:
            answers_to, message = self._waiting.popleft()
            try:
                wish = self._meant(message, answers_to)
                checked = self._checked(params, wish.patch)
            except SluiceError as error:
                MESSAGES.labels("refused").inc()
                self._say(messages.refused(error, answers_to))
                continue
            if wish.apply_at_ms is None:
                params = checked
            if wishes and wishes[-1].apply_at_ms is None and wish.apply_at_ms is None:
                wishes[-1] = wishes[-1].joined(wish)
            else:
                wishes.append(wish)
        return wishes

    def _meant(self, message: Update | ScopeParameters, answers_to: MessageId | None) -> Wish:
        if isinstance(message, Update):
            return Wish((answers_to,), message.params, message.apply_at_ms, messages.strange(message))
        steering = parameters.steering(message, self._schema.get("properties", {}))
        return Wish((answers_to,), steering.patch, None, steering.ignored)

    def _checked(self, params: dict[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters as they will be. Raises InvalidError: a mistake is not to spoil others' changes."""
        changed = {name: value for name, value in {**params, **patch}.items() if value is not None}
        validate(with_defaults(changed, self._schema), self._schema)
        return changed

    async def _change(self, wish: Wish) -> None:
        if not wish.patch:
            self._tell_accepted(Accepted(wish, self._revision, "live"))
            return
        async with self._in_turn:
            try:
                done = await self._house.steering.change(
                    self._stream,
                    self._tenant,
                    wish.patch,
                    apply_at_pts=0 if wish.apply_at_ms is None else media_pts(wish.apply_at_ms),
                )
            except SluiceError as error:
                for answers_to in wish.messages:
                    self._say(messages.refused(error, answers_to))
                return
            self._tell_accepted(Accepted(wish, done.revision, done.applies))
            self._adopt(done.stream, wish.patch)

    def _tell_accepted(self, accepted: Accepted) -> None:
        for answers_to in accepted.wish.messages:
            self._say(
                messages.said(
                    "parameters_accepted",
                    answers_to,
                    revision=accepted.revision,
                    applies=accepted.applies,
                    ignored=accepted.wish.ignored,
                )
            )
        if len(self._accepted) == UNANSWERED:
            self._give_up(self._accepted.popleft())
        self._accepted.append(accepted)
        session = self._house.hub.of_stream(self._stream)
        if session is not None:
            self._tell_applied(session)

    def _give_up(self, accepted: Accepted) -> None:
        MESSAGES.labels("unanswered").inc()
        error = ConflictError(
            f"revision {accepted.revision} is accepted; too many wait for their picture to be told of it",
            reason="NOT_FOLLOWED",
        )
        for answers_to in accepted.wish.messages:
            self._say(messages.refused(error, answers_to))

    # --- what the client hears

    def _say(self, text: str) -> None:
        self._channel.send(text)

    async def _follow(self) -> None:
        """One session after the other."""
        if self._may_steer:
            await self._learn()
        session: BridgeSession | None = None
        while True:
            session = await self._house.hub.wait_for(self._stream, FIND_S, other_than=session)
            if session is None:
                continue
            if self._paused is not None:
                session.pause(self._paused)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._tell_data(session), name="data"),
                    group.create_task(self._tell_news(session), name="news"),
                ]
                if self._may_steer:  # a prompt may be a secret of who wrote it
                    tasks.append(group.create_task(self._tell_changes(session), name="changes"))
                closed = await asyncio.shield(session.closed)
                for task in tasks:
                    task.cancel()
            if closed.reason != "moved":  # the session goes on, at another ingest process
                self._tell_end(closed)

    def _tell_end(self, closed: Closed) -> None:
        why = {"reason": closed.reason}
        if closed.reason not in ORDERLY:
            why["error_message"] = closed.message or closed.reason
        self._say(messages.said("stream_stopped", **why))

    async def _tell_changes(self, session: BridgeSession) -> None:
        while True:
            version = session.changed.version
            self._tell_applied(session)
            if session.heard.applied_revision > self._revision:
                await self._learn(unless_at=session.heard.applied_revision)
            await session.changed.newer_than(version)

    def _tell_applied(self, session: BridgeSession) -> None:
        """Answer for every accepted change that the newest picture has, or that no picture will have."""
        still: deque[Accepted] = deque()
        for accepted in self._accepted:
            wish = accepted.wish
            at_pts = 0 if wish.apply_at_ms is None else media_pts(wish.apply_at_ms)
            refused = session.heard.refusal(accepted.revision)
            applied = session.heard.shown(accepted.revision, accepted.applies)
            if refused is not None:
                self._tell_refused(refused, wish.messages)
                continue
            if applied is None or session.out_pts < at_pts:
                still.append(accepted)
                continue
            if at_pts:
                self._params = {**self._params, **wish.patch}
            pts = max(at_pts, applied.pts)
            for answers_to in wish.messages:
                self._say(
                    messages.said(
                        "parameters_applied",
                        answers_to,
                        revision=accepted.revision,
                        pts_ms=media_ms(pts),
                        applies=applied.applies,
                        ignored=wish.ignored,
                    )
                )
        self._accepted = still

    def _tell_refused(self, refused: Refused, answers_to: Iterable[MessageId | None]) -> None:
        for message in answers_to:
            self._say(messages.said("parameters_refused", message, **told(refused)[1]))
        self._refused.append(refused.revision)

    async def _tell_news(self, session: BridgeSession) -> None:
        """How the runner is; to who may steer also what went wrong, which may quote what was prompted."""
        for state in standing(session.heard):
            self._tell(state)
        known = session.heard.count
        while True:
            version = session.changed.version
            for news in session.heard.since(known):
                self._tell(news)
            known = session.heard.count
            await session.changed.newer_than(version)

    def _tell(self, news: News) -> None:
        if isinstance(news, Refused):
            answered = news.revision in self._refused
            waited_for = any(one.revision == news.revision for one in self._accepted)
            if self._may_steer and not answered and not waited_for:
                self._tell_refused(news, (None,))  # it was in a picture before, or is somebody else's
        elif not self._wants_events or isinstance(news, Applied):
            return
        elif self._may_steer or isinstance(news, Loading | Health):
            kind, fields = told(news)
            self._say(messages.said(kind, **fields))

    async def _learn(self, unless_at: int | None = None) -> bool:
        """Read the stream's record, and tell what others changed. False: it cannot be read now."""
        async with self._in_turn:
            if unless_at is not None and self._revision >= unless_at:
                return True
            try:
                record = await self._house.plane.stream(self._stream, self._tenant)
            except SluiceError:
                return False
            self._adopt(record, ())
            return True

    def _adopt(self, record: sessions_pb2.Stream, mine: Iterable[str]) -> None:
        """Take over what is in force; parameters other than `mine` that moved were moved by somebody else."""
        params = json.loads(record.params)
        first, before = self._record is None, self._params
        self._record, self._params, self._revision = record, params, record.revision
        if first:
            self._schema = json.loads(record.params_schema or "{}")
            return
        others = messages.changed(before, params, mine)
        if others:
            shown = parameters.in_scopes_words(others)
            self._say(messages.said("parameters_updated", parameters=shown, revision=record.revision))

    async def _tell_data(self, session: BridgeSession) -> None:
        async for segment in session.data.read(CURRENT):  # who comes late hears the newest that was said
            text = b"".join([data async for data in segment])
            if not self._wants_data:
                continue
            for line in text.splitlines():
                try:
                    spoken = json_object(line.decode(), "data")
                    pts = int(spoken["pts"])
                    self._say(messages.said("data", pts_ms=media_ms(pts), data=spoken["data"]))
                except (InvalidError, ValueError, TypeError, KeyError):
                    MESSAGES.labels("bad_data").inc()
        await asyncio.Event().wait()  # its end is told by the session's

    async def _tell_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_S)
            session = self._house.hub.of_stream(self._stream)
            if self._wants_status and session is not None:
                report = session.report()
                self._say(
                    messages.said(
                        "status",
                        fps_in=round(report.fps_in, 1),
                        fps_out=round(report.fps_out, 1),
                        latency_ms=round(report.latency_ms, 1),
                        infer_ms=round(session.infer_ms, 1),
                        frames_in=report.frames_in,
                        frames_out=report.frames_out,
                        frames_dropped=report.frames_dropped,
                        paused=session.paused,
                    )
                )
