"""A client on a data channel: its changes are done in order, each is answered, and it hears what happens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from protos.sessions.v1 import sessions_pb2
from services.common.errors import InvalidError, UnavailableError
from services.common.media.clock import ORIGIN_TICKS
from services.inference.engine.pipelines.effects import Effects
from services.ingest.bridge.events import Applied
from services.ingest.bridge.session import BridgeSession
from services.ingest.transports.webrtc.channels import Channel
from services.ingest.transports.webrtc.conversation import UNANSWERED, WAITING, Conversations
from sluice.pipeline import defaults, schema
from tests.support.bridge import hear, settled
from tests.support.house import House, housing

pytestmark = pytest.mark.looptime
STREAM = "str_aaaaaaaa"


@dataclass
class Line:
    """A data channel with this test at its other end."""

    heard: list[dict[str, Any]] = field(default_factory=list)
    label: str = "parameters"
    _message: Callable[[str | bytes], None] = lambda _: None
    _close: Callable[[], None] = lambda: None

    def send(self, text: str) -> bool:
        self.heard.append(json.loads(text))
        return True

    def on_message(self, callback: Callable[[str | bytes], None]) -> None:
        self._message = callback

    def on_close(self, callback: Callable[[], None]) -> None:
        self._close = callback

    def close(self) -> None:
        self._close()

    def say(self, message: dict[str, Any] | str | bytes) -> None:
        self._message(message if isinstance(message, str | bytes) else json.dumps(message))

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.heard if one["type"] == kind]

    async def next(self, kind: str, count: int = 1, within_s: float = 5.0) -> dict[str, Any]:
        """The `count`th message of its kind, as soon as it was said."""
        async with asyncio.timeout(within_s):
            while len(self.of(kind)) < count:
                await asyncio.sleep(0.01)
        return self.of(kind)[count - 1]


class Place:
    """A house with one stream of `effects`, and a client on the line."""

    def __init__(self, house: House, conversations: Conversations) -> None:
        self.house = house
        self.plane = house.plane
        self.conversations = conversations
        self.record = sessions_pb2.Stream(
            id=STREAM,
            tenant="acme",
            pipeline="effects",
            params=json.dumps(defaults(Effects)),
            params_schema=json.dumps(schema(Effects)),
            revision=1,
        )
        self.plane.known[STREAM] = self.record

    async def call(self, *, may_steer: bool = True) -> Line:
        line = Line()
        self.conversations.begin(cast("Channel", line), stream=STREAM, tenant="acme", may_steer=may_steer)
        await settled()
        return line

    def patches(self) -> list[dict[str, Any]]:
        return [json.loads(update.patch) for update in self.plane.updates]

    def somebody_else(self, **params: Any) -> None:
        self.record.params = json.dumps({**json.loads(self.record.params), **params})
        self.record.revision += 1


def apply(session: BridgeSession, revision: int, pts: int = ORIGIN_TICKS) -> None:
    """A picture has `revision`."""
    session.heard.take(Applied(revision, pts), 0.0)
    session.outputs.out_pts = max(session.out_pts, pts)
    session.changed.set(None)


@asynccontextmanager
async def placed(**facts: Any) -> AsyncIterator[Place]:
    async with housing(**facts) as house:
        core = house.core
        async with Conversations(
            hub=core.hub, plane=core.plane, steering=core.steering, settings=core.settings
        ) as conversations:
            yield Place(house, conversations)


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    async with placed() as found:
        yield found


# --- steering


async def test_a_change_is_accepted_at_once_and_applied_when_a_picture_has_it(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    line.say({"id": "7", "prompts": [{"text": "neon"}], "denoising_step_list": [700, 500]})
    accepted = await line.next("parameters_accepted")
    assert accepted == {
        "type": "parameters_accepted",
        "id": "7",
        "revision": 2,
        "applies": "live",
        "ignored": ["denoising_step_list"],
    }
    assert place.patches() == [{"prompt": "neon", "transition_frames": 0}]
    await asyncio.sleep(1)
    assert not line.of("parameters_applied")
    apply(session, 2, ORIGIN_TICKS + 9_000)
    assert await line.next("parameters_applied") == {
        **accepted,
        "type": "parameters_applied",
        "pts_ms": 100,
    }


async def test_our_own_patch_may_wait_for_its_picture(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    line.say({"type": "update", "id": 1, "params": {"strength": 0.5}, "apply_at_ms": 2000, "at": 1})
    assert (await line.next("parameters_accepted"))["ignored"] == ["at"]
    assert place.plane.updates[0].apply_at_pts == ORIGIN_TICKS + 180_000
    line.say({"type": "update", "id": 2, "params": {"seed": 3}})
    await line.next("parameters_accepted", 2)
    apply(session, 3)
    assert (await line.next("parameters_applied"))["id"] == 2
    apply(session, 3, ORIGIN_TICKS + 190_000)
    later = await line.next("parameters_applied", 2)
    assert (later["id"], later["pts_ms"]) == (1, 2111)


async def test_what_is_said_while_a_change_is_on_its_way_is_one_change(place: Place) -> None:
    place.house.live(STREAM)
    line = await place.call()
    slow = place.plane.update

    async def update(request: sessions_pb2.UpdateRequest) -> sessions_pb2.UpdateResponse:
        await asyncio.sleep(1)
        return await slow(request)

    place.plane.update = update  # type: ignore[method-assign]
    for step in range(20):
        line.say({"id": step, "type": "update", "params": {"strength": step / 20}})
        line.say({"type": "update", "params": {"seed": step}})
        await settled()
    await line.next("parameters_accepted", 22)
    assert place.patches() == [{"strength": 0.0, "seed": 0}, {"strength": 0.95, "seed": 19}]
    answered = [one.get("id") for one in line.of("parameters_accepted")]
    assert answered == [0, None, 1, None, *range(2, 20)], "those without an id have one answer"


async def test_a_wrong_message_is_answered_and_spoils_no_other(place: Place) -> None:
    place.house.live(STREAM)
    line = await place.call()
    line.say({"id": "a", "type": "update", "params": {"strength": 0.5}})
    line.say({"id": "b", "type": "update", "params": {"strength": 7}})
    line.say({"id": "c", "type": "update", "params": {"unheard": 7}})
    line.say({"id": "d", "type": "update", "params": {"seed": 7}})
    line.say("not JSON")
    line.say({"id": "e", "noise_scale": 99})
    await line.next("parameters_accepted", 2)
    assert place.patches() == [{"strength": 0.5, "seed": 7}]
    refused = {one.get("id"): (one["code"], one.get("field")) for one in line.of("error")}
    assert refused == {
        "b": ("INVALID", "params.strength"),
        "c": ("INVALID", "params.unheard"),
        None: ("INVALID", "message"),
        "e": ("INVALID", "noise_scale"),
    }


async def test_what_means_nothing_to_the_pipeline_is_accepted_named_and_asks_nobody(place: Place) -> None:
    session = place.house.live(STREAM)
    apply(session, 1)
    line = await place.call()
    line.say({"id": 1, "manage_cache": True})
    assert (await line.next("parameters_accepted"))["ignored"] == ["manage_cache"]
    assert (await line.next("parameters_applied"))["revision"] == 1
    assert place.plane.updates == []


async def test_parameters_before_the_session_are_accepted_and_applied_with_its_first_picture(
    place: Place,
) -> None:
    place.plane.applies = "at_start"
    line = await place.call()
    line.say({"prompts": [{"text": "sketch"}]})
    assert (await line.next("parameters_accepted"))["applies"] == "at_start"
    session = place.house.live(STREAM)
    await asyncio.sleep(0.1)
    assert not line.of("parameters_applied")
    apply(session, 2)
    assert (await line.next("parameters_applied"))["pts_ms"] == 0


async def test_a_pause_is_the_sessions_also_before_there_is_one(place: Place) -> None:
    line = await place.call()
    line.say({"paused": True})
    session = place.house.live(STREAM)
    await asyncio.sleep(0.1)
    assert session.paused
    line.say({"paused": False})
    assert not session.paused
    assert place.plane.updates == []


async def test_only_who_may_publish_may_steer(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call(may_steer=False)
    for message in ({"id": 1, "prompts": []}, {"id": 2, "type": "update", "params": {}}, {"paused": True}):
        line.say(message)
    assert [one["code"] for one in line.of("error")] == ["MAY_NOT_STEER"] * 3
    assert not session.paused


async def test_a_viewer_is_not_told_the_parameters(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call(may_steer=False)
    place.somebody_else(prompt="a secret")
    apply(session, 2)
    await asyncio.sleep(3)
    assert line.heard == []


async def test_a_refusal_of_the_control_plane_is_told_and_the_next_change_goes_through(place: Place) -> None:
    place.house.live(STREAM)
    line = await place.call()
    place.plane.error = UnavailableError("away", reason="RUNNER_NOT_TOLD")
    line.say({"id": 1, "strength": 0.5})
    assert (await line.next("error"))["code"] == "RUNNER_NOT_TOLD"
    line.say({"id": 2, "strength": 0.5})
    assert (await line.next("parameters_accepted"))["id"] == 2


async def test_a_record_that_cannot_be_read_yet_keeps_changes_waiting(place: Place) -> None:
    place.house.live(STREAM)
    place.plane.known.clear()
    line = await place.call()
    line.say({"id": 1, "strength": 0.5})
    await asyncio.sleep(3)
    assert not line.heard
    place.plane.known[STREAM] = place.record
    assert (await line.next("parameters_accepted"))["id"] == 1


# --- limits


async def test_too_many_messages_are_not_read_and_the_client_is_told_once_a_second() -> None:
    async with placed(data_channel_messages_per_s=10) as place:
        place.house.live(STREAM)
        line = await place.call()
        for count in range(40):
            line.say({"type": "update", "params": {"seed": count}})
        await line.next("parameters_accepted")
        assert place.patches() == [{"seed": 9}]
        assert [one["code"] for one in line.of("error")] == ["RATE_LIMITED"]
        await asyncio.sleep(1)
        line.say({"id": "later", "type": "update", "params": {"seed": 41}})
        assert (await line.next("parameters_accepted", 2))["id"] == "later"


async def test_no_more_changes_wait_than_there_is_room_for() -> None:
    async with placed(data_channel_messages_per_s=1000) as place:
        place.plane.known.clear()
        line = await place.call()
        for count in range(WAITING + 3):
            line.say({"id": count, "type": "update", "params": {"seed": count}})
        assert [(one["id"], one["code"]) for one in line.of("error")] == [
            (WAITING + n, "TOO_FAST") for n in range(3)
        ]


async def test_a_change_that_is_not_followed_any_more_is_told(place: Place) -> None:
    place.house.live(STREAM)
    line = await place.call()
    for count in range(UNANSWERED + 1):
        line.say({"id": count, "type": "update", "params": {"seed": count}, "apply_at_ms": 1000 * count})
        await line.next("parameters_accepted", count + 1)
        await asyncio.sleep(0.1)
    assert [(one["id"], one["code"]) for one in line.of("error")] == [(0, "NOT_FOLLOWED")]


async def test_a_message_that_is_too_large_is_refused(place: Place) -> None:
    line = await place.call()
    line.say({"prompts": [{"text": "x" * 70_000}]})
    assert line.of("error")[0]["code"] == "TOO_LARGE"


# --- what a client hears


async def test_what_somebody_else_changed_is_told_and_what_one_changed_oneself_is_not(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    line.say({"type": "update", "params": {"seed": 5}})
    await line.next("parameters_accepted")
    apply(session, 2)
    place.somebody_else(prompt="neon")
    apply(session, 3)
    told = await line.next("parameters_updated")
    assert told["parameters"] == {"prompt": "neon", "prompts": [{"text": "neon", "weight": 1.0}]}
    place.somebody_else(strength=0.25)
    line.say({"type": "update", "params": {"seed": 6}})
    assert (await line.next("parameters_updated", 2))["parameters"] == {"strength": 0.25}
    apply(session, 5)
    await asyncio.sleep(2)
    assert len(line.of("parameters_updated")) == 2


@pytest.mark.parametrize(
    ("reason", "message", "told"),
    [
        ("input_ended", "", {"reason": "input_ended"}),
        ("stream_deleted", "the stream was deleted", {"reason": "stream_deleted"}),
        ("runner_lost", "it is gone", {"reason": "runner_lost", "error_message": "it is gone"}),
        ("engine_crashed", "", {"reason": "engine_crashed", "error_message": "engine_crashed"}),
    ],
)
async def test_every_end_is_told_with_its_reason(
    place: Place, reason: str, message: str, told: dict[str, str]
) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    session.close(reason, message)
    assert await line.next("stream_stopped") == {"type": "stream_stopped", **told}


async def test_a_viewer_stays_over_the_sessions_of_its_stream_and_hears_what_the_pipeline_says(
    place: Place,
) -> None:
    line = await place.call(may_steer=False)
    for number in (1, 2):
        session = place.house.live(STREAM, f"ses_{number}")
        await asyncio.sleep(0.1)
        with session.data.begin_segment() as segment:
            segment.write(b'{"pts": %d, "data": {"looks": {"neon": 1}}}\n' % (ORIGIN_TICKS + number * 90_000))
            segment.write(b'not JSON\n{"pts": "x", "data": {}}\n{"data": {}}\n')
        said = await line.next("data", number)
        assert said == {"type": "data", "pts_ms": number * 1000, "data": {"looks": {"neon": 1}}}
        session.close("input_ended", "")
        await line.next("stream_stopped", number)
        while len(place.house.hub):
            await asyncio.sleep(0.1)
    assert len(line.of("data")) == 2


async def test_status_is_told_each_second_to_who_asked_for_it(place: Place) -> None:
    place.house.live(STREAM)
    line = await place.call(may_steer=False)
    await asyncio.sleep(3)
    assert line.heard == []
    line.say({"type": "subscribe", "id": 1, "status": True, "data": False})
    assert line.heard == [
        {"type": "subscribed", "id": 1, "status": True, "data": False, "events": True, "ignored": []},
    ]
    await asyncio.sleep(3.5)
    assert len(line.of("status")) in {3, 4}
    assert set(line.of("status")[0]) > {"fps_in", "fps_out", "latency_ms", "paused"}
    line.say({"type": "subscribe", "status": False})
    told = len(line.of("status"))
    await asyncio.sleep(3)
    assert len(line.of("status")) == told


async def test_a_channel_that_closes_ends_its_conversation(place: Place) -> None:
    place.house.live(STREAM)
    line = await place.call()
    before = len(asyncio.all_tasks())
    line.close()
    await settled()
    assert len(asyncio.all_tasks()) < before
    line.say({"strength": 0.5})
    await asyncio.sleep(1)
    assert place.plane.updates == []


async def test_a_change_that_only_the_session_manager_sees_as_wrong_is_an_error_to_each_that_it_was_of(
    place: Place,
) -> None:
    place.house.live(STREAM)
    line = await place.call()
    await asyncio.sleep(1)
    place.plane.error = InvalidError("no", field="params.seed")
    line.say({"id": 1, "type": "update", "params": {"seed": 1}})
    line.say({"id": 2, "type": "update", "params": {"seed": 2}})
    await line.next("error", 2)
    assert [(one["id"], one["field"]) for one in line.of("error")] == [(1, "params.seed"), (2, "params.seed")]


# --- what the runner says


REFUSAL = {"revision": 2, "field": "params.strength", "reason": "param_refused", "message": "too much"}


async def test_a_change_that_the_runner_refuses_is_answered_as_refused_once(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    line.say({"id": 7, "type": "update", "params": {"strength": 0.5}})
    await line.next("parameters_accepted")
    hear(session, "refused", **REFUSAL)
    assert await line.next("parameters_refused") == {"type": "parameters_refused", "id": 7, **REFUSAL}
    apply(session, 3)
    await asyncio.sleep(1)
    assert len(line.of("parameters_refused")) == 1
    assert not line.of("parameters_applied")


async def test_a_change_that_is_taken_back_after_it_was_in_a_picture_is_told_as_well(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    line.say({"id": 7, "type": "update", "params": {"strength": 0.5}})
    await line.next("parameters_accepted")
    apply(session, 2)
    await line.next("parameters_applied")
    hear(session, "refused", **{**REFUSAL, "reason": "poisoned_param"})
    refused = await line.next("parameters_refused")
    assert (refused["revision"], refused["reason"]) == (2, "poisoned_param")
    assert "id" not in refused


async def test_a_change_says_how_it_really_took_effect(place: Place) -> None:
    session = place.house.live(STREAM)
    place.plane.applies = "warm"
    line = await place.call()
    line.say({"id": 7, "type": "update", "params": {"strength": 0.5}})
    assert (await line.next("parameters_accepted"))["applies"] == "warm"
    hear(session, "applied", revision=3, pts=ORIGIN_TICKS, applies="live")
    await asyncio.sleep(1)
    assert not line.of("parameters_applied"), "a quick change has overtaken it"
    hear(session, "applied", revision=2, pts=ORIGIN_TICKS + 9_000, applies="reload")
    applied = await line.next("parameters_applied")
    assert (applied["applies"], applied["pts_ms"]) == ("reload", 100)


PROBLEM = {
    "stage": "process",
    "kind": "pipeline_error",
    "error": "ValueError",
    "message": "a secret prompt",
    "action": "held",
}


async def test_who_steers_hears_how_the_runner_is_and_who_watches_not_what_went_wrong(place: Place) -> None:
    session = place.house.live(STREAM)
    hear(session, "loading", why="start", stage="weights", percent=40)
    owner, viewer = await place.call(), await place.call(may_steer=False)
    for line in (owner, viewer):
        assert await line.next("loading") == {
            "type": "loading",
            "why": "start",
            "stage": "weights",
            "percent": 40,
        }
    hear(session, "health", state="online", cause="", since_ms=1)
    hear(session, "problem", **PROBLEM, pts=ORIGIN_TICKS + 900, frame=3)
    assert (await owner.next("problem")).items() >= {**PROBLEM, "pts_ms": 10, "frame": 3}.items()
    for line in (owner, viewer):
        assert (await line.next("health"))["state"] == "online"
    hear(session, "refused", **REFUSAL)
    await owner.next("parameters_refused")
    assert not viewer.of("problem") + viewer.of("parameters_refused")


async def test_who_does_not_want_the_runners_news_gets_only_answers(place: Place) -> None:
    session = place.house.live(STREAM)
    line = await place.call()
    line.say({"type": "subscribe", "events": False})
    hear(session, "problem", **PROBLEM)
    hear(session, "refused", **REFUSAL)
    await line.next("parameters_refused")
    assert not line.of("problem")
