"""Which channels can be reached, as what, and for how long."""

from __future__ import annotations

import asyncio
import json

import pytest

from services.common.errors import (
    ConflictError,
    ExhaustedError,
    InvalidError,
    NotFoundError,
    PaymentRequiredError,
)
from services.common.lifecycle import background
from services.common.trickle.channel import Channel
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.registry import Registry


async def test_aliases_are_unguessable_and_good_for_one_direction() -> None:
    registry = Registry()
    opened = registry.open("session/out-1")
    read, write = opened.read_path[1:], opened.write_path[1:]
    assert min(len(read), len(write)) >= 32
    assert registry.readable(read) is registry.writable(write) is opened.channel
    for lookup, alias in (
        (registry.readable, write),
        (registry.writable, read),
        (registry.readable, opened.name),
    ):
        with pytest.raises(NotFoundError):
            lookup(alias)


async def test_given_aliases_are_quoted_in_paths() -> None:
    opened = Registry().open("a", read_alias="a/b", write_alias="ü")
    assert (opened.read_path, opened.write_path) == ("/a%2Fb", "/%C3%BC")


async def test_a_taken_name_or_alias_is_a_conflict() -> None:
    registry = Registry()
    registry.open("a", read_alias="r", write_alias="w")
    for name, read, write in (("a", None, None), ("b", "r", None), ("c", None, "w")):
        with pytest.raises(ConflictError):
            registry.open(name, read_alias=read, write_alias=write)
    with pytest.raises(InvalidError):
        registry.open("d", read_alias="")


async def test_channels_are_bounded_and_closing_frees_a_place() -> None:
    registry = Registry(max_channels=1)
    registry.open("a")
    with pytest.raises(ExhaustedError) as caught:
        registry.open("b")
    assert caught.value.reason == "TOO_MANY_CHANNELS"
    registry.close("a")
    registry.open("b")
    assert len(registry) == 1


@pytest.mark.looptime
async def test_a_closed_channel_can_be_read_a_little_longer() -> None:
    registry = Registry(linger_s=5.0)
    opened = registry.open("a")
    registry.close("a")
    registry.close("a")
    assert registry.readable(opened.read_path[1:]).closed
    with pytest.raises(NotFoundError):
        registry.writable(opened.write_path[1:])
    await asyncio.sleep(5.1)
    with pytest.raises(NotFoundError):
        registry.readable(opened.read_path[1:])


@pytest.mark.looptime
async def test_a_name_and_its_aliases_can_be_had_again_at_once() -> None:
    registry = Registry(linger_s=5.0)
    old = registry.open("a", read_alias="r", write_alias="w")
    registry.close("a")
    new = registry.open("a", read_alias="r", write_alias="w")
    await asyncio.sleep(6)
    assert registry.readable("r") is new.channel is not old.channel


@pytest.mark.looptime
async def test_the_sweep_takes_idle_channels_and_any_byte_is_activity() -> None:
    registry = Registry(linger_s=1.0)
    limits = ChannelLimits(idle_s=30.0)
    registry.open("idle", limits=limits)
    registry.open("kept", limits=ChannelLimits(idle_s=None))
    busy = registry.open("busy", limits=limits)
    async with background(sweep=registry.sweep(10.0)):
        with busy.channel.begin_segment() as writer:
            for _ in range(30):  # A3: ten minutes in one segment
                await asyncio.sleep(20)
                writer.write(b"x")
        assert len(registry) == 2
        await asyncio.sleep(45)
    assert busy.channel.closed
    assert len(registry) == 1


@pytest.mark.looptime
async def test_a_writer_is_told_for_a_while_why_its_channel_was_closed() -> None:
    registry = Registry(linger_s=5.0)
    registry.open("a", read_alias="r", write_alias="w")
    reason = PaymentRequiredError("no credit", reason="NO_CREDIT", tenant="t")
    registry.close("a", reason)
    for _ in range(2):
        with pytest.raises(PaymentRequiredError, match="no credit") as caught:
            registry.writable("w")
        assert (caught.value.reason, caught.value.details) == ("NO_CREDIT", {"tenant": "t"})
    assert reason.__traceback__ is None
    assert registry.readable("r").closed
    await asyncio.sleep(5.1)
    with pytest.raises(NotFoundError):
        registry.writable("w")


async def test_a_channel_that_is_opened_again_forgets_why_it_was_closed() -> None:
    registry = Registry()
    registry.open("a", write_alias="w")
    registry.close("a", PaymentRequiredError("no credit"))
    assert registry.open("a", write_alias="w").channel is registry.writable("w")


async def test_the_sweep_takes_channels_that_their_owner_closed_and_keeps_the_reason() -> None:
    registry = Registry()
    registry.open("a", write_alias="w").channel.close(PaymentRequiredError("no credit"))
    registry.sweep_once()
    assert len(registry) == 0
    with pytest.raises(PaymentRequiredError):
        registry.writable("w")


async def messages(channel: Channel) -> list[object]:
    """All that a closed channel still holds."""
    return [json.loads(b"".join([run async for run in segment])) async for segment in channel.read(0)]


async def test_the_changefeed_tells_announced_names_and_no_other() -> None:
    registry = Registry(changefeed=True)
    registry.open("secret/in")
    registry.open("given", read_alias="r", write_alias="w")
    registry.open("public/1", read_alias="cam", write_alias="key", announce=True)
    registry.close("public/1")
    registry.close("secret/in")
    changes = registry.readable("_changes")
    registry.close_all()
    assert await messages(changes) == [{"added": ["_changes"]}, {"added": ["cam"]}, {"removed": ["cam"]}]


async def test_nothing_follows_what_is_not_wanted() -> None:
    with pytest.raises(NotFoundError):
        Registry().readable("_changes")


async def test_reserved_names_are_never_a_clients_to_write() -> None:
    registry = Registry(changefeed=True)
    with pytest.raises(InvalidError) as caught:
        registry.open("x", write_alias="_x")
    assert caught.value.reason == "RESERVED_NAME"
    with pytest.raises(ConflictError):
        registry.open("x", read_alias="_changes")
    with pytest.raises(NotFoundError):
        registry.writable("_changes")


@pytest.mark.looptime
async def test_w6_a_reserved_name_is_swept_like_any_other() -> None:
    registry = Registry()
    registry.open("x", read_alias="_x", limits=ChannelLimits(idle_s=30.0))
    await asyncio.sleep(31)
    registry.sweep_once()
    assert len(registry) == 0


async def test_closing_all_closes_all() -> None:
    registry = Registry()
    channels = [registry.open(name).channel for name in "abc"]
    registry.close_all()
    assert all(channel.closed for channel in channels)
    assert len(registry) == 0
