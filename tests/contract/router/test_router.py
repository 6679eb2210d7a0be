"""The router against a real NATS and real gRPC: no slot is ever given twice, none leaks."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from random import Random
from typing import Any

import pytest

import tests.support.runner
from protos.events.v1.events_pb2 import (
    RUNNER_STATE_DRAINING,
    RUNNER_STATE_STARTING,
    PipelineOffer,
    Slot,
)
from protos.router.v1 import router_pb2 as router
from services.common.bus import Bucket, Bus, connect
from services.common.errors import (
    ExhaustedError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from services.common.grpc_client import call, channel, stream
from services.common.lifecycle import background
from services.common.topology import RUNNERS, SLOTS, WAITERS
from services.router import fleet, slots
from services.router.line import Line, Wanted
from services.router.placement import Requirements, SessionId, Wish
from services.router.settings import RouterSettings
from services.router.waiting import Queue
from tests.support.nats import NatsServer
from tests.support.router import RouterClient, router_client

fake_runner = partial(tests.support.runner.fake_runner, every_s=0.1)


async def until(true: Callable[[], Any], within_s: float = 8.0) -> None:
    """Wait until the awaitable that `true` makes says so."""
    async with asyncio.timeout(within_s):
        while not await true():
            await asyncio.sleep(0.02)


async def slot(bus: Bus, key: str) -> Slot:
    entry = await (await bus.bucket(SLOTS, 1)).get(key)
    return Slot() if entry is None else Slot.FromString(entry.value)


async def holders(bus: Bus, runner: str, count: int) -> list[str]:
    return [(await slot(bus, f"{runner}.{number}")).session for number in range(count)]


async def test_a_hundred_grants_from_two_routers_share_out_ten_slots(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with AsyncExitStack() as runners:
        for number in range(5):
            await runners.enter_async_context(fake_runner(bus, f"r{number}", slots=2))
        await asyncio.gather(one.runners(), two.runners())
        routers = (one, two)
        answers = await asyncio.gather(
            *(routers[n % 2].grant(f"s{n}") for n in range(100)), return_exceptions=True
        )

    granted = [answer for answer in answers if isinstance(answer, router.Grant)]
    refused = [answer for answer in answers if isinstance(answer, ExhaustedError)]
    assert len(granted) == 10
    assert len({(grant.runner, grant.slot) for grant in granted}) == 10
    assert {grant.slot_epoch for grant in granted} == {1}
    assert len(refused) == 90
    for refusal in refused:
        assert refusal.reason == "NO_CAPACITY"
        assert refusal.details["total"] == "10"
        assert refusal.details["free"] == "0"
        assert 1 < int(refusal.details["retry_after_s"]) <= 30
        assert int(refusal.details["position"]) >= 1


async def test_a_session_that_holds_a_slot_is_given_the_same_again(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"), fake_runner(bus, "b"):
        await asyncio.gather(one.runners(), two.runners())
        first = await one.grant("s")
        again, at_once, elsewhere = await asyncio.gather(one.grant("s"), one.grant("s"), two.grant("s"))
        assert first == again == at_once == elsewhere
        assert first.slot_epoch == 1
        assert first.address == f"{first.runner}.test:7004"

        other = await two.grant("s", exclude=[first.runner])
        assert other.runner != first.runner


async def test_a_second_release_frees_nothing_of_the_next_holder(
    bus: Bus, one: RouterClient, two: RouterClient
) -> None:
    async with fake_runner(bus, "a"):
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("old")
        assert await two.release("old") == 1  # two may not have seen the grant yet
        await until(lambda: _granted(two, "new"))
        assert [await one.release("old"), await two.release("old")] == [0, 0]
        assert (await slot(bus, "a.0")).session == "new"
        assert await one.release("nobody") == 0


async def _granted(client: RouterClient, session: str) -> bool:
    await client.grant(session, wait_ms=2000)
    return True


async def test_an_epoch_grows_by_one_with_each_grant(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a"):
        for epoch in range(1, 5):
            assert (await one.grant(f"s{epoch}", wait_ms=2000)).slot_epoch == epoch
            assert await one.release(f"s{epoch}") == 1
            assert await slot(bus, "a.0") == Slot(epoch=epoch)


async def test_a_runner_that_is_not_heard_is_not_granted(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a") as runner:
        await one.runners()
        assert (await one.grant("s")).runner == "a"
        await one.release("s")
        runner.kill()
        silent_since_s = time.monotonic()
        await until(lambda: _state_is(one, "a.0", "LOST"))
        assert 2.8 < time.monotonic() - silent_since_s < 3.5
        with pytest.raises(ExhaustedError) as refused:
            await one.grant("s")
        assert refused.value.details["total"] == "0"

        runner.revive()
        assert (await one.grant("s", wait_ms=3000)).runner == "a"


async def _state_is(client: RouterClient, key: str, state: str) -> bool:
    return (await client.states()).get(key) == state


async def test_a_slot_is_free_only_if_the_bucket_and_its_runner_agree(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a") as runner:
        await runner.claim(0, "earlier", 7)
        assert await one.states() == {"a.0": "HELD"}
        with pytest.raises(ExhaustedError):  # the bucket says nothing of it
            await one.grant("s")
        view = (await one.runners())["a"]
        assert (view.slots[0].session, view.slots[0].epoch) == ("earlier", 7)
        await runner.free(0)
        await one.grant("s", wait_ms=1000)
        with pytest.raises(ExhaustedError):  # the runner claims nothing yet
            await one.grant("t")


async def test_states_follow_what_runners_say(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a") as runner:
        await until(lambda: _state_is(one, "a.0", "READY"))
        for state, name in ((RUNNER_STATE_STARTING, "STARTING"), (RUNNER_STATE_DRAINING, "DRAINING")):
            runner.state = state
            await runner.beat()
            await until(partial(_state_is, one, "a.0", name))
        await runner.leave()
        await until(lambda: _gone(one, "a"))


async def _gone(client: RouterClient, runner: str) -> bool:
    return runner not in await client.runners()


async def test_those_who_wait_are_served_by_arrival(bus: Bus, one: RouterClient, two: RouterClient) -> None:
    async with fake_runner(bus, "a"):
        await asyncio.gather(one.runners(), two.runners())
        await one.grant("holder")
        served: list[str] = []

        async def wait(session: str) -> None:
            await one.grant(session, wait_ms=10_000)
            served.append(session)
            await two.release(session)  # through the other router: only the watch can tell this one

        async with asyncio.TaskGroup() as waiting:
            for number in range(5):
                waiting.create_task(wait(f"w{number}"))
                await asyncio.sleep(0.02)
            assert await two.release("holder") == 1
        assert served == [f"w{number}" for number in range(5)]


async def test_a_wait_ends_at_its_deadline(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a"):
        await one.runners()
        await one.grant("holder")
        started_s = time.monotonic()
        with pytest.raises(ExhaustedError) as refused:
            await one.grant("s", wait_ms=400)
        assert 0.35 < time.monotonic() - started_s < 1.0
        assert refused.value.details["why"] == "nothing_free"


async def test_beyond_max_waiters_nobody_waits(nats: NatsServer, bus: Bus) -> None:
    settings = RouterSettings(listen="127.0.0.1:0", shutdown_grace_s=0.1, max_waiters=1)
    async with router_client(nats.url, settings) as client, fake_runner(bus, "a"):
        await client.runners()
        await client.grant("holder")
        first = asyncio.create_task(client.grant("first", wait_ms=20_000))
        await asyncio.sleep(0.1)
        with pytest.raises(ExhaustedError) as refused:
            await client.grant("second", wait_ms=20_000)
        assert refused.value.details["position"] == "2"
        await client.release("holder")
        assert (await first).slot_epoch == 2


async def test_a_caller_that_leaves_the_line_gets_nothing(bus: Bus, one: RouterClient) -> None:
    wanted = router.Requirements(pipeline="passthrough")
    async with fake_runner(bus, "a"):
        await one.runners()
        await one.grant("holder")
        call = one.stub.Grant(router.GrantRequest(requirements=wanted, session="left", wait_ms=30_000))
        await asyncio.sleep(0.1)
        assert call.cancel()
        await asyncio.sleep(0.1)
        await one.release("holder")
        assert (await one.grant("next")).slot_epoch == 2
        assert await holders(bus, "a", 1) == ["next"]


async def test_a_grant_cancelled_at_any_moment_gives_back(nats: NatsServer, bus: Bus) -> None:
    """Below gRPC: once its server has sent the answer, only the caller knows whether that came."""
    random = Random(7)
    async with connect(nats.url, "router") as own, fake_runner(bus, "a", slots=4):
        adverts, keys = await own.bucket(RUNNERS, 1), await own.bucket(SLOTS, 1)
        picture = fleet.Fleet(RouterSettings(), lambda: own.healthy_for_s, random)
        waiters = await own.bucket(WAITERS, 1)
        queue = Queue(waiters, "router")
        async with (
            asyncio.TaskGroup() as claims,
            background(
                adverts=adverts.follow(picture.adverts),
                keys=keys.follow(picture.slots),
                listen=picture.listen(own),
                time=picture.keep_time(),
                waiters=waiters.follow(queue.view),
            ),
        ):
            line = Line(picture, slots.Slots(keys, adverts, picture), queue, claims, RouterSettings())
            outcomes: list[bool] = []
            async with background(follow=line.follow(picture.changed)):
                await picture.until_known()
                for number in range(150):
                    wanted = Wanted(SessionId(f"s{number}"), Wish(Requirements("passthrough")))
                    grant = asyncio.create_task(line.grant(wanted, 5.0))
                    await asyncio.sleep(random.uniform(0, 0.003))
                    grant.cancel()
                    await asyncio.wait({grant})
                    outcomes.append(grant.cancelled())
                    if not grant.cancelled():
                        await line._slots.release(wanted.session)
                await until(lambda: _nobody_holds(bus, "a", 4))
            assert set(outcomes) == {True, False}
            epochs = [(await slot(bus, f"a.{number}")).epoch for number in range(4)]
            assert sum(epochs) > outcomes.count(False)  # some were taken and given back


async def _nobody_holds(bus: Bus, runner: str, count: int) -> bool:
    return not any(await holders(bus, runner, count))


async def test_refusals_say_why(bus: Bus, one: RouterClient) -> None:
    started_s = time.monotonic()
    with pytest.raises(ExhaustedError) as refused:  # nobody is there at all, and more may come
        await one.grant("s")
    assert 0.2 < time.monotonic() - started_s < 3  # it listened before it said so
    assert refused.value.details["why"] == "unknown_pipeline"

    offers = [PipelineOffer(name="depth"), PipelineOffer(name="canny")]
    async with fake_runner(bus, "a", pipelines=offers, region="eu", gpu_class="h100"):
        await until(lambda: _state_is(one, "a.0", "READY"))
        with pytest.raises(NotFoundError) as unknown:
            await one.grant("s", "passthrough", wait_ms=20_000)
        assert unknown.value.reason == "UNKNOWN_PIPELINE"
        assert unknown.value.details["available"] == "canny,depth"
        for wish, why in (
            ({"region": "us"}, "no_match"),
            ({"gpu_class": "l40"}, "no_match"),
            ({"labels": {"tier": "gold"}}, "no_match"),
            ({"exclude": ["a"]}, "excluded"),
        ):
            with pytest.raises(ExhaustedError) as refused:
                await one.grant("s", "depth", **wish)
            assert (refused.value.reason, refused.value.details["why"]) == ("NO_CAPACITY", why)
        assert (await one.grant("s", "depth", region="eu", gpu_class="h100")).runner == "a"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (router.GrantRequest(requirements=router.Requirements(pipeline="p")), "session"),
        (router.GrantRequest(session="s"), "requirements.pipeline"),
        (
            router.GrantRequest(session="s", requirements=router.Requirements(pipeline="p"), wait_ms=300_001),
            "wait_ms",
        ),
        (
            router.GrantRequest(session="s", requirements=router.Requirements(pipeline="p"), wait_ms=-1),
            "wait_ms",
        ),
        (
            router.GrantRequest(session="s", requirements=router.Requirements(pipeline="p"), priority=101),
            "priority",
        ),
        (
            router.GrantRequest(
                session="s", requirements=router.Requirements(pipeline="p", max_micro_per_second=-1)
            ),
            "requirements.max_micro_per_second",
        ),
        (
            router.GrantRequest(session="no key.", requirements=router.Requirements(pipeline="p")),
            "session",
        ),
        (router.ReleaseRequest(), "session"),
    ],
)
async def test_bad_requests_name_the_field(one: RouterClient, request_: Any, field: str) -> None:
    method = one.stub.Grant if isinstance(request_, router.GrantRequest) else one.stub.Release
    with pytest.raises(InvalidError) as refused:
        await call(method, request_, object, timeout_s=5)
    assert refused.value.details["field"] == field


async def test_capacity_adds_up_who_is_heard_and_the_newest_version_describes(
    bus: Bus, one: RouterClient
) -> None:
    old = [PipelineOffer(name="depth", version="1.9", params_schema="old"), PipelineOffer(name="canny")]
    new = [PipelineOffer(name="depth", version="1.10", params_schema="new")]
    async with fake_runner(bus, "a", pipelines=old, slots=2), fake_runner(bus, "b", pipelines=new):
        await one.runners()
        await one.grant("s", "canny")
        answer = await call(one.stub.Capacity, router.CapacityRequest(), router.CapacityResponse, timeout_s=5)
    assert [(line.pipeline, line.params_schema, line.slots, line.free) for line in answer.pipelines] == [
        ("canny", "", 2, 1),
        ("depth", "new", 3, 2),
    ]


async def test_listed_runners_do_not_repeat_what_capacity_tells_once(bus: Bus, one: RouterClient) -> None:
    offers = [PipelineOffer(name="depth", version="1", warm=True, description="far", params_schema="{}")]
    async with fake_runner(bus, "a", pipelines=offers):
        (listed,) = (await one.runners())["a"].advert.pipelines
        assert listed == PipelineOffer(name="depth", version="1", warm=True)
        line = (await one.capacity())["depth"]
        assert (line.description, line.params_schema) == ("far", "{}")


async def test_watch_tells_now_and_then_each_change_but_not_too_often(bus: Bus, one: RouterClient) -> None:
    async with fake_runner(bus, "a", slots=3):
        pictures = stream(one.stub.Watch, router.WatchRequest(), router.RunnersResponse)
        first = await anext(pictures)
        assert [slot.state for slot in first.runners[0].slots] == [router.SLOT_STATE_READY] * 3
        for number in range(3):
            await one.grant(f"s{number}")
        started_s = time.monotonic()
        sent = 0
        async for picture in pictures:
            sent += 1
            if {slot.session for slot in picture.runners[0].slots} == {"s0", "s1", "s2"}:
                break
        assert time.monotonic() - started_s < 1.0
        assert sent <= 3
        assert 0 <= picture.runners[0].heartbeat_age_ms < 1500


async def test_without_nats_nothing_is_known_and_on_its_return_what_was_held_is_held(
    nats: NatsServer, bus: Bus, one: RouterClient
) -> None:
    async with fake_runner(bus, "a", slots=2):
        await one.runners()
        held = await one.grant("s")
        await nats.kill()
        started_s = time.monotonic()
        with pytest.raises(UnavailableError) as refused:
            await one.grant("t")
        assert refused.value.reason in {"FLEET_UNKNOWN", "NATS_UNREACHABLE"}
        assert time.monotonic() - started_s < 5.0
        await nats.start()
        other = await one.grant("t", wait_ms=10_000)
        assert other.slot != held.slot
        assert await one.grant("s") == held


async def test_a_write_whose_answer_was_lost_is_found_again(
    bus: Bus, one: RouterClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, update = Bucket.create, Bucket.update

    async def create_unheard(self: Bucket, key: str, value: bytes, **options: Any) -> int:
        await create(self, key, value, **options)
        raise UnavailableError("the answer got lost")

    async def update_unheard(self: Bucket, key: str, value: bytes, revision: int) -> int:
        await update(self, key, value, revision)
        raise UnavailableError("the answer got lost")

    async with fake_runner(bus, "a"):
        await one.runners()
        monkeypatch.setattr(Bucket, "create", create_unheard)
        monkeypatch.setattr(Bucket, "update", update_unheard)
        assert (await one.grant("s")).slot_epoch == 1
        assert (await slot(bus, "a.0")).session == "s"
        assert await one.release("s") == 1
        assert await slot(bus, "a.0") == Slot(epoch=1)


async def test_runners_long_gone_are_forgotten_with_their_free_slots(
    nats: NatsServer, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "FORGET_AFTER_S", 1.0)
    monkeypatch.setattr(slots, "FORGET_EVERY_S", 0.1)
    async with router_client(nats.url) as client, fake_runner(bus, "stays"):
        async with fake_runner(bus, "a", slots=3) as runner:
            kept, freed = (
                await client.grant("kept", exclude=["stays"]),
                await client.grant("freed", exclude=["stays"]),
            )
            await client.release("freed")
        runner.kill()
        await until(lambda: _gone(client, "a"))
        bucket = await bus.bucket(SLOTS, 1)
        assert await bucket.get(f"a.{freed.slot}") is None
        assert (await slot(bus, f"a.{kept.slot}")).session == "kept"
        assert await client.release("kept") == 1
        await until(lambda: _missing(bus, f"a.{kept.slot}"))
        assert "stays" in await client.runners()


async def _missing(bus: Bus, key: str) -> bool:
    return await (await bus.bucket(SLOTS, 1)).get(key) is None


def _environment(nats: NatsServer, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "SLUICE_ROUTER_NATS_URL": nats.url,
        "SLUICE_ROUTER_METRICS_LISTEN": "127.0.0.1:0",
        "SLUICE_ROUTER_LISTEN": "127.0.0.1:0",
        **variables,
    }


async def test_sigterm_ends_the_process_with_status_0(nats: NatsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.router"),
        env=_environment(nats, SLUICE_ROUTER_LISTEN=address),
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(15), channel(address) as open_channel:
        await open_channel.channel_ready()
        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert process.returncode == 0, errors
    assert errors == b""


@pytest.mark.parametrize("which", ["SLUICE_ROUTER_LISTEN", "SLUICE_ROUTER_METRICS_LISTEN"])
async def test_a_taken_port_is_one_clear_line(nats: NatsServer, which: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "services.router"),
            env=_environment(nats, **{which: address}),
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(15):
            _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.count(b"\n") == 1, errors
    assert b"cannot" in errors
