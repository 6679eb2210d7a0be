"""Streams and their parameters: validated before anything is held, applied all or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from protos.inference.v1 import runner_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2 as pb
from services.common.errors import (
    ConflictError,
    InvalidError,
    NotFoundError,
    RateLimitedError,
    UnavailableError,
)
from services.inference.params import Fold, Patch
from services.session_manager.machine import SessionId
from tests.support.fakes import FakeRunner
from tests.support.session_manager import SESSION, STREAM, Neighbourhood, Replica, until
from tests.support.spans import recording


@pytest.fixture
async def one(around: Neighbourhood) -> AsyncIterator[Replica]:
    async with around.replica("one", max_streams_per_tenant=3) as replica:
        yield replica


async def started(around: Neighbourhood, one: Replica) -> None:
    around.publish()
    await one.start(around.bridge.address)


def params(of: pb.Stream) -> dict[str, Any]:
    return dict(json.loads(of.params))


# --- streams


async def test_a_stream_is_created_complete_and_holds_nothing(around: Neighbourhood, one: Replica) -> None:
    made = await one.create(params='{"prompt": "sketch"}', name="mine", author="key1")
    assert params(made) == {"prompt": "sketch", "strength": 1.0}
    assert (made.revision, made.session, made.author) == (1, "", "key1")
    assert made.delivery == runner_pb2.DELIVERY_LIVE
    assert made.processes_audio
    assert await one.stream(tenant="acme") == made
    assert around.held() == []


async def test_the_same_create_again_returns_what_is_there(one: Replica) -> None:
    made = await one.create(params='{"prompt": "sketch"}')
    assert await one.create(params='{"prompt": "neon"}') == made
    with pytest.raises(NotFoundError):
        await one.create(tenant="other")


@pytest.mark.parametrize(
    ("facts", "field"),
    [
        ({"id": "mine"}, "stream.id"),
        ({"tenant": ""}, "stream.tenant"),
        ({"name": "x" * 201}, "name"),
        ({"pipeline": "nope"}, "pipeline"),
        ({"params": "{"}, "params"),
        ({"params": "[]"}, "params"),
        ({"params": '{"strength": NaN}'}, "params"),
        ({"params": '{"strength": 7}'}, "params.strength"),
        ({"params": '{"colour": 7}'}, "params.colour"),
        ({"params": json.dumps({"prompt": "x" * 140_000})}, "params"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_a_stream_that_cannot_work_is_refused_by_the_fields_name(
    one: Replica, facts: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError) as refusal:
        await one.create(**facts)
    assert refusal.value.details["field"] == field


async def test_without_a_runner_nobody_can_say_what_there_is(around: Neighbourhood, one: Replica) -> None:
    around.router.offers.clear()
    with pytest.raises(UnavailableError) as refusal:
        await one.create()
    assert refusal.value.reason == "NO_RUNNERS"


async def listed(one: Replica, count: int) -> list[pb.Stream]:
    """The tenant's streams, as soon as there are so many."""

    async def look() -> bool:
        return len(await one.streams()) == count

    await until(look)
    return await one.streams()


async def test_a_tenant_lists_its_own_streams_newest_first_and_has_so_many(one: Replica) -> None:
    for name in "abc":
        await one.create(id=f"str_{name * 8}")
        await asyncio.sleep(0.002)
    await one.create(id="str_other000", tenant="other")
    assert [found.id[4] for found in await listed(one, 3)] == ["c", "b", "a"]
    assert [found.id[4] for found in await one.streams(limit=1)] == ["c"]
    with pytest.raises(RateLimitedError) as refusal:
        await one.create(id="str_dddddddd")
    assert refusal.value.reason == "TOO_MANY_STREAMS"
    with pytest.raises(InvalidError):
        await one.streams(limit=1001)


async def test_a_deleted_stream_is_gone_with_its_session(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    await started(around, one)
    await one.delete()
    assert (await one.ended()).end_reason == "stream_deleted"
    assert around.held() == []
    with pytest.raises(NotFoundError):
        await one.stream()
    await one.delete()  # again is harmless
    await listed(one, 0)


async def test_a_stream_whose_session_is_long_forgotten_can_be_deleted(one: Replica) -> None:
    await one.create()
    await one.store.change_stream(STREAM, lambda was: was.claimed_by(SessionId("ses_forgotten00")))
    await one.delete()
    with pytest.raises(NotFoundError):
        await one.stream()


# --- parameters


async def test_a_change_before_the_start_is_there_at_the_start(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    answer = await one.update({"prompt": "sketch"})
    assert (answer.revision, answer.applies) == (2, "at_start")
    assert params(answer.stream) == {"prompt": "sketch", "strength": 1.0}
    await one.update({"strength": 0.5}, apply_at_pts=180_000)
    await started(around, one)
    attached = around.runner.attached
    assert attached is not None
    assert json.loads(attached.params) == {"prompt": "sketch", "strength": 1.0}
    assert attached.revision == 3
    assert [(item.revision, item.apply_at_pts) for item in attached.scheduled] == [(3, 180_000)]


async def test_a_change_while_live_goes_to_the_runner_with_its_revision(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    await started(around, one)
    around.runner.applies = "warm"
    answer = await one.update({"prompt": "sketch"}, apply_at_pts=270_000)
    assert (answer.revision, answer.applies) == (2, "warm")
    (told,) = around.runner.patches
    assert (told.revision, told.patch, told.apply_at_pts) == (2, '{"prompt":"sketch"}', 270_000)


async def test_what_was_scheduled_becomes_the_streams_when_the_bridge_saw_it(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    await started(around, one)
    await one.update({"prompt": "sketch"}, apply_at_pts=270_000)
    assert params(await one.stream())["prompt"] == "neon"
    seen = around.bridge.sessions[SESSION]
    seen.see(applied_revision=2, applied_pts=269_999)
    seen.see(applied_revision=2, applied_pts=271_000)

    async def folded() -> bool:
        return bool(params(await one.stream())["prompt"] == "sketch")

    await until(folded)
    assert list((await one.stream()).scheduled) == []


async def test_what_the_runner_refuses_is_taken_back_once_and_what_came_later_stays(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    await started(around, one)
    await one.update({"prompt": "poison", "strength": 0.5})
    await one.update({"strength": 0.7})
    seen = around.bridge.sessions[SESSION]
    seen.see(output_age_ms=0, refused_revisions=[2])

    async def taken_back() -> bool:
        return bool(params(await one.stream())["prompt"] == "neon")

    await until(taken_back)
    await until(lambda: asyncio.sleep(0, len(around.runner.patches) == 3))
    told = around.runner.patches[-1]
    assert (told.revision, json.loads(told.patch)) == (4, {"prompt": "neon"})
    seen.see(refused_revisions=[2], output_age_ms=1)
    await asyncio.sleep(0.5)
    now = await one.stream()
    assert (params(now), now.revision) == ({"prompt": "neon", "strength": 0.7}, 4)


async def test_a_value_that_is_an_object_is_replaced_whole(around: Neighbourhood, one: Replica) -> None:
    schema = {"properties": {"loras": {"type": ["object", "null"], "default": {"a": 1}}}}
    offer = router_pb2.PipelineCapacity(pipeline="effects", params_schema=json.dumps(schema))
    around.router.offers[:] = [offer]
    await one.create()
    await started(around, one)
    await one.update({"loras": {"b": {"c": 1}}})
    answer = await one.update({"loras": {"b": {"d": 2}}})
    assert params(answer.stream) == {"loras": {"b": {"d": 2}}}
    fold = Fold(1, {"loras": {"a": 1}})
    for told in around.runner.patches:
        fold = fold.add(Patch(told.revision, json.loads(told.patch)))
    assert fold.effective(0)[0] == {"loras": {"b": {"d": 2}}}
    answer = await one.update({"loras": None})
    assert params(answer.stream) == {"loras": {"a": 1}}


# As a model's pipeline declares them: lists of objects, objects, and values that may be null.
NESTED = {
    "type": "object",
    "properties": {
        "model_id": {"enum": ["stabilityai/sd-turbo"], "default": "stabilityai/sd-turbo"},
        "prompt": {"type": ["string", "array"], "default": "flowers"},
        "lora_dict": {
            "type": ["object", "null"],
            "additionalProperties": {"type": "number"},
            "default": None,
        },
        "controlnets": {
            "type": "array",
            "default": [],
            "items": {
                "type": "object",
                "properties": {
                    "model_id": {"type": "string"},
                    "conditioning_scale": {"type": "number", "minimum": 0, "maximum": 1},
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}
DEPTH = {"model_id": "depth", "conditioning_scale": 0.2}


@pytest.fixture
def diffusion(around: Neighbourhood) -> None:
    offer = router_pb2.PipelineCapacity(pipeline="streamdiffusion", params_schema=json.dumps(NESTED))
    around.router.offers[:] = [offer]


@pytest.mark.usefixtures("diffusion")
async def test_a_change_leaves_what_it_does_not_name_and_replaces_what_it_names(
    around: Neighbourhood, one: Replica
) -> None:
    """Daydream's clients send all that they know, or a prompt: neither may undo what others set."""
    created = await one.create(
        pipeline="streamdiffusion",
        params=json.dumps({"controlnets": [DEPTH], "lora_dict": {"a": 1.0, "b": 0.5}}),
    )
    assert params(created) == {
        "model_id": "stabilityai/sd-turbo",
        "prompt": "flowers",
        "lora_dict": {"a": 1.0, "b": 0.5},
        "controlnets": [DEPTH],
    }
    await started(around, one)
    answer = await one.update({"prompt": [["a", 1], ["b", 0.5]]}, pipeline="streamdiffusion")
    assert params(answer.stream) == {**params(created), "prompt": [["a", 1], ["b", 0.5]]}
    fuller: dict[str, object] = {"controlnets": [], "lora_dict": {"b": 0.7}}
    answer = await one.update(fuller)
    assert {name: params(answer.stream)[name] for name in fuller} == fuller
    answer = await one.update({"lora_dict": None})
    assert params(answer.stream)["lora_dict"] is None, "every parameter is there, for the SDK wants them"


@pytest.mark.usefixtures("diffusion")
@pytest.mark.parametrize(
    ("patch", "field"),
    [
        (
            {"controlnets": [DEPTH, {**DEPTH, "conditioning_scale": 2}]},
            "params.controlnets.1.conditioning_scale",
        ),
        ({"controlnets": [{**DEPTH, "strength": 1}]}, "params.controlnets.0.strength"),
        ({"lora_dict": {"a": "much"}}, "params.lora_dict.a"),
        ({"model_id": "/etc/passwd"}, "params.model_id"),
        ({"strength": 1}, "params.strength"),
    ],
)
async def test_a_nested_value_that_is_wrong_is_named_by_its_path(
    one: Replica, patch: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidError) as refusal:
        await one.create(pipeline="streamdiffusion", params=json.dumps(patch))
    assert refusal.value.details["field"] == field
    await one.create(pipeline="streamdiffusion")
    with pytest.raises(InvalidError) as refusal:
        await one.update(patch)
    assert refusal.value.details["field"] == field


async def test_null_puts_a_parameter_back_to_its_default(around: Neighbourhood, one: Replica) -> None:
    await one.create(params='{"prompt": "sketch", "seed": 7}')
    await started(around, one)
    answer = await one.update({"prompt": None, "seed": None})
    assert params(answer.stream) == {"prompt": "neon", "strength": 1.0}
    assert json.loads(around.runner.patches[0].patch) == {"prompt": "neon", "seed": None}


@pytest.mark.parametrize(
    ("patch", "facts", "field"),
    [
        ({"prompt": "sketch", "strength": 7}, {}, "params.strength"),
        ({"prompt": "sketch", "colour": 7}, {}, "params.colour"),
        ("[1]", {}, "patch"),
        ('{"strength": -Infinity}', {}, "patch"),
        ({"prompt": "sketch"}, {"apply_at_pts": -1}, "apply_at_pts"),
    ],
)
async def test_a_wrong_change_changes_nothing(
    around: Neighbourhood, one: Replica, patch: Any, facts: dict[str, Any], field: str
) -> None:
    before = await one.create()
    await started(around, one)
    with pytest.raises(InvalidError) as refusal:
        await one.update(patch, **facts)
    assert refusal.value.details["field"] == field
    after = await one.stream()
    assert (after.params, after.revision) == (before.params, before.revision)
    assert around.runner.patches == []


async def test_a_change_that_expects_another_revision_or_pipeline_is_refused(one: Replica) -> None:
    await one.create()
    await one.update({"prompt": "sketch"}, expected_revision=1)
    with pytest.raises(ConflictError) as refusal:
        await one.update({"prompt": "watercolor"}, expected_revision=1)
    assert (refusal.value.reason, refusal.value.details["revision"]) == ("REVISION_MOVED", "2")
    with pytest.raises(ConflictError) as refusal:
        await one.update({}, pipeline="other")
    assert refusal.value.reason == "PIPELINE_FIXED"
    with pytest.raises(NotFoundError):
        await one.update({}, tenant="other")
    assert (await one.stream()).revision == 2


async def test_changes_at_once_all_have_a_revision_of_their_own(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    await started(around, one)
    answers = await asyncio.gather(*(one.update({"seed": number}) for number in range(8)))
    assert sorted(answer.revision for answer in answers) == list(range(2, 10))
    assert sorted(patch.revision for patch in around.runner.patches) == list(range(2, 10))
    newest = max(around.runner.patches, key=lambda patch: patch.revision)
    assert params(await one.stream())["seed"] == json.loads(newest.patch)["seed"]


async def test_a_change_that_the_runner_does_not_hear_of_is_said_to_be_stored(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    await started(around, one)
    around.runner.fail("Update", UnavailableError("away"), times=100)
    with pytest.raises(UnavailableError) as refusal:
        await one.update({"prompt": "sketch"})
    assert refusal.value.reason == "RUNNER_NOT_TOLD"
    assert params(await one.stream())["prompt"] == "sketch"


async def test_a_change_that_did_not_reach_the_runner_at_once_is_told_again(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    await started(around, one)
    around.runner.fail("Update", UnavailableError("away"))
    assert (await one.update({"prompt": "sketch"})).applies == "live"


async def test_a_change_is_in_the_trace_of_the_session_without_what_was_changed(
    around: Neighbourhood, one: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans = recording(monkeypatch)
    await one.create()
    await one.update({"prompt": "before"})
    await started(around, one)
    await one.update({"prompt": "a secret wish"})
    around.runner.fail("Update", UnavailableError("away"), times=100)
    with pytest.raises(UnavailableError):
        await one.update({"prompt": "unheard"})
    trace = int((await one.session()).traceparent.split("-")[1], 16)
    assert {span.context.trace_id for span in spans.named("session.update") if span.context} == {trace}
    accepted, failed = spans.attributes("session.update")
    assert accepted == {"session.id": SESSION, "session.revision": 3, "session.applies": "live"}
    assert (failed["session.revision"], failed["error.type"]) == (4, "RUNNER_NOT_TOLD")
    told = [str(span.attributes) for span in spans.every()]
    assert not [each for each in told if "secret wish" in each]


def in_effect(runner: FakeRunner, pts: int) -> dict[str, Any]:
    """What a real runner would make of all that this one was told."""
    attached = runner.attached
    assert attached is not None

    def patch(message: runner_pb2.Patch) -> Patch:
        return Patch(message.revision, json.loads(message.patch), message.apply_at_pts)

    fold = Fold.starting(
        attached.revision, json.loads(attached.params), [patch(item) for item in attached.scheduled]
    )
    for message in runner.patches:
        fold = fold.add(patch(message))
    return dict(fold.effective(pts)[0])


async def test_changes_during_the_attach_all_reach_the_runner(around: Neighbourhood, one: Replica) -> None:
    await one.create(params='{"seed": 7}')
    await one.update({"prompt": "earlier"}, apply_at_pts=300_000)

    async def meanwhile() -> None:
        assert (await one.update({"strength": 0.5, "seed": None})).applies == "at_start"
        await one.update({"prompt": "scheduled"}, apply_at_pts=400_000)

    around.runner.before("Attach", meanwhile)
    await started(around, one)
    assert in_effect(around.runner, 90_000) == {"prompt": "neon", "strength": 0.5}
    assert in_effect(around.runner, 300_000) == {"prompt": "earlier", "strength": 0.5}
    assert in_effect(around.runner, 400_000) == {"prompt": "scheduled", "strength": 0.5}


async def test_a_stream_that_is_deleted_during_the_attach_leaves_nothing(
    around: Neighbourhood, one: Replica
) -> None:
    await one.create()
    around.runner.before("Attach", one.delete)
    around.publish()
    with pytest.raises((NotFoundError, ConflictError, UnavailableError)):
        await one.start(around.bridge.address)
    assert (await one.ended()).end_reason == "stream_deleted"

    async def free() -> bool:
        return around.held() == []

    await until(free)


async def test_a_stream_keeps_its_parameters_over_its_sessions(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    await started(around, one)
    await one.update({"prompt": "sketch"})
    await one.stop()
    await one.ended()
    record = await one.store.session(SESSION)
    assert replace(record, settled=False).phase.name == "ENDED"
    around.publish("ses_second0000")
    await one.start(around.bridge.address, "ses_second0000")
    assert around.runner.attached is not None
    assert json.loads(around.runner.attached.params)["prompt"] == "sketch"
    assert around.runner.attached.slot_epoch == 2


# --- a telling that was cut off


async def test_a_revision_is_told_though_its_caller_goes_away(around: Neighbourhood, one: Replica) -> None:
    await one.create()
    await started(around, one)
    gate = asyncio.Event()
    around.runner.before("Update", gate.wait)
    asking = asyncio.ensure_future(one.update({"prompt": "sketch"}))

    async def asked() -> bool:
        return any(name == "Update" for name, _ in around.runner.calls)

    around.runner.fail("Update", UnavailableError("and then it is away"))
    await until(asked)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    gate.set()

    async def told() -> bool:
        return [patch.revision for patch in around.runner.patches] == [2]

    await until(told)


async def test_a_revision_that_was_recorded_and_never_told_is_told_by_the_owner(
    around: Neighbourhood,
) -> None:
    async with around.replica("hasty", call_timeout_s=0.2) as one:
        await one.create()
        await started(around, one)
        seen = around.bridge.sessions[SESSION]
        seen.see(frames_in=10, output_age_ms=0)
        await one.store.change_stream(  # as a replica does that dies before it tells the runner
            STREAM, lambda was: was.patched({"prompt": "sketch", "seed": 7}, 0)
        )

        async def told() -> bool:
            return bool(around.runner.patches)

        await until(told)
        (patch,) = around.runner.patches
        assert (patch.revision, json.loads(patch.patch)) == (2, {"prompt": "sketch", "seed": 7})
        seen.see(frames_in=11)
        await asyncio.sleep(0.5)
        assert len(around.runner.patches) == 1, "once is enough"


async def test_a_revision_that_shows_is_not_told_again(around: Neighbourhood) -> None:
    async with around.replica("hasty", call_timeout_s=0.2) as one:
        await one.create()
        await started(around, one)
        seen = around.bridge.sessions[SESSION]
        seen.see(frames_in=10, output_age_ms=0)
        await one.update({"prompt": "sketch"})
        seen.see(applied_revision=2)
        await asyncio.sleep(1.6)
        assert len(around.runner.patches) == 1
