"""The channel that tells which channels come and go."""

from __future__ import annotations

import json

from services.common.trickle.connection import trickle_session
from services.common.trickle.protocol import ChannelLimits
from services.common.trickle.subscriber import Subscriber
from tests.contract.trickle.wire import Served, ask, connect, put, serving


async def change(served: Served, index: int | str, base: str = "/") -> tuple[int, object]:
    answer = await ask(served, "GET", f"{base}_changes/{index}")
    assert answer.headers["content-type"] == "application/json"
    return int(answer.headers["lp-trickle-seq"]), json.loads(answer.body)


async def test_a_follower_sees_every_announced_channel_by_index_and_by_alias() -> None:
    async with serving(autocreate=ChannelLimits(), changefeed=True, base_path="/ai/trickle/") as served:
        base = "/ai/trickle/"
        assert await change(served, 0, base) == (0, {"added": ["_changes"]})
        assert await change(served, -2, base) == (0, {"added": ["_changes"]})
        async with connect(served) as follower:
            follower.request("GET", f"{base}_changes/-1")
            assert await follower.quiet()
            await put(served, f"{base}cam/0", b"x")
            assert json.loads((await follower.answer()).body) == {"added": ["cam"]}
        assert (await ask(served, "DELETE", f"{base}cam")).status == 200
        assert await change(served, 1, base) == (1, {"added": ["cam"]})
        assert await change(served, -2, base) == (2, {"removed": ["cam"]})


async def test_it_never_tells_an_alias_that_is_a_credential() -> None:
    async with serving(changefeed=True) as served:
        opened = served.registry.open("session/in")
        served.registry.open("given", read_alias="r", write_alias="w")
        served.registry.close("session/in")
        answer = await ask(served, "GET", "/_changes/next")
        assert answer.headers["lp-trickle-latest"] == "1"
        body = (await ask(served, "GET", "/_changes/0")).body.decode()
        for secret in ("session", "given", opened.read_path, opened.write_path):
            assert secret not in body


async def test_it_is_nobodys_to_write_or_delete() -> None:
    async with serving(autocreate=ChannelLimits(), changefeed=True) as served:
        assert (await ask(served, "POST", "/_changes", "Content-Length: 0")).status == 404
        assert (await put(served, "/_changes/1", b"{}")).status == 404
        assert (await ask(served, "DELETE", "/_changes/0")).status == 404
        assert (await ask(served, "DELETE", "/_changes")).status == 400
        assert await change(served, 0) == (0, {"added": ["_changes"]})


async def test_without_it_there_is_no_such_channel(served: Served) -> None:
    assert (await ask(served, "GET", "/_changes/0")).status == 404


async def test_a_follower_that_lags_learns_how_much_it_missed() -> None:
    async with serving(changefeed=True, max_channels=1000) as served, trickle_session() as session:
        async with Subscriber(session, f"{served.url}/_changes", start=0) as follower:
            first = await anext(follower)
            assert b"".join([data async for data in first]) == b'{"added": ["_changes"]}'
            for number in range(300):
                served.registry.open(f"{number}", read_alias=f"cam-{number}", announce=True)
            seen = [await anext(follower) for _ in range(2)]
        # The newest 256 of 301 messages are kept; 1 may have been asked for before there were so many.
        assert 43 <= sum(segment.lost for segment in seen) == seen[-1].index - len(seen)


async def test_a_server_that_stops_removes_nothing_but_ends_the_feed() -> None:
    async with serving(changefeed=True) as served, connect(served) as follower:
        served.registry.open("c", read_alias="c", announce=True)
        follower.request("GET", "/_changes/-1")
        assert await follower.quiet()
        served.registry.close_all()
        assert (await follower.answer()).headers["lp-trickle-closed"] == "terminated"
