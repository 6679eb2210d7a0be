"""The protocol on the wire: statuses, headers and bytes, and when they come."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.common.trickle.http1 import CONTINUE
from services.common.trickle.protocol import ChannelLimits
from tests.contract.trickle.wire import Served, ask, connect, metric, put, serving

MISSING = b"Entry not found"


async def test_nothing_is_answered_before_the_first_byte_and_then_all_of_it_at_once(served: Served) -> None:
    served.open()
    async with connect(served) as reader, connect(served) as writer:
        reader.request("GET", "/c/0")
        writer.post("/c/0")
        assert await reader.quiet()
        writer.chunk(b"hello")
        head = await reader.head()
        assert head.status == 200
        assert head.headers.keys() == {
            "lp-trickle-seq",
            "lp-trickle-generation",
            "content-type",
            "transfer-encoding",
            "date",
        }
        assert head.headers["lp-trickle-seq"] == "0"
        assert head.headers["content-type"] == "video/MP2T"
        assert await reader.reader.readexactly(10) == b"5\r\nhello\r\n"
        writer.chunk(b"again")
        assert await reader.reader.readexactly(10) == b"5\r\nagain\r\n"
        writer.end()
        assert await reader.reader.readexactly(5) == b"0\r\n\r\n"
        answer = await writer.answer()
        assert (answer.status, answer.headers["lp-trickle-seq"], answer.body) == (200, "0", b"")
        assert "connection" not in answer.headers


async def test_a_running_segment_is_replayed_from_its_start_and_then_followed(served: Served) -> None:
    served.open()
    async with connect(served) as writer, connect(served) as reader:
        writer.post("/c/0")
        writer.chunk(b"one")
        writer.chunk(b"two")
        assert await writer.quiet()
        reader.request("GET", "/c/-2")
        head = await reader.head()
        assert (head.headers["lp-trickle-seq"], head.headers["lp-trickle-latest"]) == ("0", "1")
        assert await reader.next_chunk() == b"onetwo"
        writer.chunk(b"three")
        assert await reader.next_chunk() == b"three"


async def test_a_parked_post_is_told_to_continue_again_and_again() -> None:
    async with serving(continue_interval_s=0.05) as served, connect(served) as writer:
        served.open()
        writer.post("/c/0")
        for _ in range(3):
            assert await writer.reader.readexactly(len(CONTINUE)) == CONTINUE
        writer.chunk(b"x")
        writer.end()
        assert (await writer.answer()).status == 200


async def test_an_expectation_is_met_at_once(served: Served) -> None:
    served.open()
    async with connect(served) as writer:
        writer.post("/c/0", "Expect: 100-continue")
        assert await writer.reader.readexactly(len(CONTINUE)) == CONTINUE
        writer.end()
        assert (await writer.answer()).status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/c/-1"),
        ("DELETE", "/c/-2"),
        ("DELETE", "/c/-9999999999"),
        ("POST", "/c/-2"),
        ("POST", "/c/-3"),
        ("GET", "/c/-3"),
        ("GET", "/c/-99999999999999999999"),
        ("HEAD", "/c/-3"),
        ("POST", "/c/-9999999999"),
        ("GET", "/c/x"),
        ("GET", "/c/1.5"),
        ("POST", "/c/next"),
        ("DELETE", "/c/next"),
        ("DELETE", "/c/0"),
    ],
)
async def test_a2_a_senseless_index_is_a_400_and_the_server_lives(
    served: Served, method: str, path: str
) -> None:
    served.open()
    assert (await ask(served, method, path)).status == 400
    assert (await put(served, "/c/0", b"fine")).status == 200
    assert (await ask(served, "GET", "/c/0")).body == b"fine"
    assert (await ask(served, "DELETE", "/c")).status == 200


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/no/0"), ("POST", "/no"), ("GET", "/no/0"), ("GET", "/no/next")]
)
async def test_an_unknown_channel_is_a_404(served: Served, method: str, path: str) -> None:
    answer = await ask(served, method, path)
    assert (answer.status, answer.body) == (404, b"Stream not found\n")
    assert (answer.headers.get("connection") == "close") == (method == "POST")


async def test_a_404_to_a_post_ends_its_connection_though_the_body_goes_on(served: Served) -> None:
    async with connect(served) as writer:
        writer.post("/no/0")
        writer.chunk(b"x")
        assert (await writer.answer()).status == 404
        assert await writer.hung_up()


async def test_a_name_is_one_decoded_path_segment() -> None:
    async with serving(base_path="/ai/trickle/") as served:
        opened = served.open("a/b")
        assert opened.read_path == "/a%2Fb"
        assert (await put(served, "/ai/trickle/a%2Fb/0", b"x")).status == 200
        assert (await ask(served, "GET", "/ai/trickle/a%2Fb/0")).body == b"x"


async def test_a_segment_that_does_not_exist_is_a_470_with_the_head(served: Served) -> None:
    served.open()
    for index in range(9):
        await put(served, f"/c/{index}", b"%d" % index)
    for index in (2, 3, 10):
        answer = await ask(served, "GET", f"/c/{index}")
        assert (answer.status, answer.body) == (470, MISSING)
        assert answer.headers["content-type"].startswith("text/plain")
        assert (answer.headers["lp-trickle-seq"], answer.headers["lp-trickle-latest"]) == (str(index), "9")
        assert answer.headers["lp-trickle-resume"] == "4"
    for index in range(4, 9):
        answer = await ask(served, "GET", f"/c/{index}")
        assert (answer.status, answer.body, answer.headers["lp-trickle-latest"]) == (200, b"%d" % index, "9")


async def test_next_tells_the_head(served: Served) -> None:
    served.open()
    assert (await ask(served, "GET", "/c/next")).headers["lp-trickle-latest"] == "0"
    await put(served, "/c/0", b"x")
    answer = await ask(served, "GET", "/c/next")
    assert (answer.status, answer.headers["lp-trickle-latest"]) == (200, "1")


async def test_a_post_of_minus_one_gets_the_next_index_and_is_told_which(served: Served) -> None:
    served.open()
    for index in range(3):
        assert (await put(served, "/c/-1", b"x")).headers["lp-trickle-seq"] == str(index)


async def test_a_get_of_minus_one_waits_for_the_next_segment(served: Served) -> None:
    served.open()
    await put(served, "/c/0", b"old")
    async with connect(served) as reader:
        reader.request("GET", "/c/-1")
        assert await reader.quiet()
        await put(served, "/c/1", b"new")
        answer = await reader.answer()
        assert (answer.body, answer.headers["lp-trickle-seq"]) == (b"new", "1")
        assert "lp-trickle-latest" not in answer.headers


async def test_an_empty_post_makes_an_empty_segment_that_counts(served: Served) -> None:
    served.open()
    answer = await ask(served, "POST", "/c/0", "Content-Length: 0")
    assert (answer.status, answer.headers["connection"], answer.headers["lp-trickle-seq"]) == (
        200,
        "close",
        "0",
    )
    answer = await ask(served, "GET", "/c/0")
    assert (answer.status, answer.headers["content-length"], answer.headers["lp-trickle-latest"]) == (
        200,
        "0",
        "1",
    )
    assert "content-type" not in answer.headers


async def test_a_body_of_known_length_is_a_segment(served: Served) -> None:
    served.open()
    async with connect(served) as writer:
        writer.request("POST", "/c/0", "Content-Length: 5")
        writer.writer.write(b"hello")
        assert (await writer.answer()).status == 200
    assert (await ask(served, "GET", "/c/0")).body == b"hello"


async def test_head_waits_like_get_and_has_no_body(served: Served) -> None:
    served.open()
    async with connect(served) as reader, connect(served) as writer:
        reader.request("HEAD", "/c/0")
        writer.post("/c/0")
        assert await reader.quiet()
        writer.chunk(b"x")
        assert (await reader.head()).headers["lp-trickle-seq"] == "0"
        reader.request("GET", "/c/0")
        assert (await reader.head()).status == 200
        assert await reader.next_chunk() == b"x"


async def test_a13_two_posts_in_reverse_order(served: Served) -> None:
    served.open()
    async with connect(served) as first, connect(served) as second, connect(served) as reader:
        reader.request("GET", "/c/0")
        second.post("/c/1")
        second.chunk(b"B")
        second.end()
        assert (await second.answer()).status == 200
        assert await reader.quiet()
        first.post("/c/0")
        first.chunk(b"A")
        first.end()
        assert (await first.answer()).status == 200
        assert (await reader.answer()).body == b"A"
        reader.request("GET", "/c/1")
        assert (await reader.answer()).body == b"B"
    assert (await ask(served, "GET", "/c/next")).headers["lp-trickle-latest"] == "2"


async def test_deleting_a_channel_tells_all_who_wait() -> None:
    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(serving(linger_s=60.0))
        writing, parked, reading, waiting = [
            await stack.enter_async_context(connect(served)) for _ in range(4)
        ]
        served.open()
        writing.post("/c/0")
        writing.chunk(b"x")
        parked.post("/c/1")
        reading.request("GET", "/c/0")
        assert await reading.next_chunk_after_head() == b"x"
        waiting.request("GET", "/c/1")
        assert await waiting.quiet()
        assert (await ask(served, "DELETE", "/c")).status == 200
        for post, index in ((parked, "1"), (writing, "0")):
            answer = await post.answer()
            assert (answer.status, answer.headers["lp-trickle-seq"]) == (200, index)
            assert answer.headers["connection"] == "close"
            assert answer.headers["lp-trickle-closed"] == "terminated"
        assert await reading.next_chunk() == b""
        answer = await waiting.answer()
        assert (answer.status, answer.body, answer.headers["lp-trickle-closed"]) == (200, b"", "terminated")
        assert (answer.headers["lp-trickle-seq"], answer.headers["lp-trickle-latest"]) == ("1", "1")

        again = await ask(served, "DELETE", "/c")
        assert (again.status, again.body) == (400, b"Invalid stream\n")
        assert (await ask(served, "POST", "/c/1", "Content-Length: 0")).status == 404
        assert (await ask(served, "GET", "/c/0")).body == b"x"
        assert (await ask(served, "GET", "/c/1")).headers["lp-trickle-closed"] == "terminated"


async def test_a_deleted_channel_is_unknown_and_its_name_is_free(served: Served) -> None:
    served.open()
    await put(served, "/c/0", b"old")
    await ask(served, "DELETE", "/c")
    assert (await ask(served, "GET", "/c/0")).status == 404
    served.open()
    await put(served, "/c/0", b"new")
    assert (await ask(served, "GET", "/c/0")).body == b"new"


async def test_deleting_a_segment_releases_its_post_and_its_readers(served: Served) -> None:
    served.open()
    async with connect(served) as writer, connect(served) as reader:
        writer.post("/c/0")
        reader.request("GET", "/c/0")
        assert await reader.quiet()
        assert (await ask(served, "DELETE", "/c/0")).status == 200
        answer = await writer.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert "lp-trickle-closed" not in answer.headers
        answer = await reader.answer()
        assert (answer.status, answer.body, answer.headers["lp-trickle-latest"]) == (200, b"", "1")
        assert "lp-trickle-closed" not in answer.headers


async def test_a12_a_publisher_starts_again_at_0(served: Served) -> None:
    served.open()
    for index in range(9):
        await put(served, f"/c/{index}", b"old")
    async with connect(served) as reader:
        reader.request("GET", "/c/9")
        assert await reader.quiet()
        await put(served, "/c/0", b"new")
        answer = await reader.answer()
        assert (answer.status, answer.headers["lp-trickle-latest"]) == (470, "0")
        assert (answer.headers["lp-trickle-resume"], answer.headers["lp-trickle-generation"]) == ("0", "2")
    answer = await ask(served, "GET", "/c/-2")
    assert (answer.body, answer.headers["lp-trickle-generation"]) == (b"new", "2")


async def test_a12_a_publisher_goes_on_with_a_reset(served: Served) -> None:
    served.open()
    async with connect(served) as lost, connect(served) as reader, connect(served) as writer:
        lost.post("/c/0")
        lost.chunk(b"half")
        reader.request("GET", "/c/0")
        assert await reader.next_chunk_after_head() == b"half"
        head = (await ask(served, "GET", "/c/next")).headers["lp-trickle-latest"]
        assert head == "1"
        writer.post(f"/c/{head}", "Lp-Trickle-Reset: 1")
        assert await reader.next_chunk() == b""
        assert (await lost.answer()).headers["connection"] == "close"


async def test_each_alias_is_good_for_one_direction(served: Served) -> None:
    opened = served.registry.open("secret")
    read, write = opened.read_path, opened.write_path
    assert (await put(served, f"{write}/0", b"x")).status == 200
    assert (await ask(served, "GET", f"{read}/0")).body == b"x"
    assert (await ask(served, "GET", f"{write}/0")).status == 404
    assert (await ask(served, "POST", f"{read}/1", "Content-Length: 0")).status == 404
    assert (await ask(served, "GET", "/secret/0")).status == 404
    assert (await ask(served, "DELETE", f"{read}/0")).status == 404
    assert (await ask(served, "DELETE", read)).status == 400
    assert {(await ask(served, "GET", f"{path}/next")).status for path in (read, write)} == {200}
    assert (await ask(served, "DELETE", write)).status == 200


async def test_clients_make_channels_only_where_that_is_allowed(served: Served) -> None:
    assert (await ask(served, "POST", "/new", "Content-Length: 0")).status == 404
    async with serving(autocreate=ChannelLimits(), max_channels=2) as public:
        for _ in range(2):
            answer = await ask(public, "POST", "/new", "Expect-Content: text/x", "Content-Length: 0")
            assert answer.status == 200
        await put(public, "/new/0", b"x")
        assert (await ask(public, "GET", "/new/0")).headers["content-type"] == "text/x"
        async with connect(public) as writer:
            writer.post("/other/0", "Content-Type: text/y")
            writer.chunk(b"y")
            writer.end()
            assert (await writer.answer()).status == 200
        assert (await ask(public, "GET", "/other/0")).headers["content-type"] == "text/y"
        assert (await ask(public, "POST", "/third/0", "Content-Length: 0")).status == 503


async def test_a_body_is_what_was_sent_whatever_it_says_of_its_encoding(served: Served) -> None:
    served.open()
    async with connect(served) as writer:
        writer.post("/c/0", "Content-Encoding: gzip")
        writer.chunk(b"opaque")
        writer.end()
        assert (await writer.answer()).status == 200
    assert (await ask(served, "GET", "/c/0")).body == b"opaque"


async def test_a_server_that_stops_releases_everybody_quickly() -> None:
    async with AsyncExitStack() as stack:
        async with serving() as served:
            served.open()
            reader, writer = [await stack.enter_async_context(connect(served)) for _ in range(2)]
            reader.request("GET", "/c/0")
            writer.post("/c/0")
            assert await reader.quiet()
            stopping_at = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopping_at < 2.0
        assert (await reader.answer()).headers["lp-trickle-closed"] == "terminated"
        assert (await writer.answer()).headers["lp-trickle-closed"] == "terminated"


async def test_the_head_moves_at_the_first_byte_and_not_with_the_request(served: Served) -> None:
    served.open()
    async with connect(served) as first, connect(served) as second:
        second.post("/c/1")
        first.post("/c/0")
        assert await first.quiet()
        assert (await ask(served, "GET", "/c/next")).headers["lp-trickle-latest"] == "0"
        first.chunk(b"x")
        assert await first.quiet()
        assert (await ask(served, "GET", "/c/next")).headers["lp-trickle-latest"] == "1"


@pytest.mark.parametrize("index", ["0", "1", "-1", "-2"])
async def test_a_reader_of_a_channel_that_nobody_wrote_is_parked(served: Served, index: str) -> None:
    served.open()
    async with connect(served) as reader:
        reader.request("GET", f"/c/{index}")
        assert await reader.quiet()
        for number in range(2):
            await put(served, f"/c/{number}", b"%d" % number)
        assert (await reader.answer()).body == (b"1" if index == "1" else b"0")
    assert (await ask(served, "GET", "/c/3")).status == 470


async def test_w7_the_head_never_goes_back_but_for_a_new_publisher(served: Served) -> None:
    served.open()
    heads: list[str] = []
    for index in (0, 1, 2, 7, 5, 6, 8, 0):
        assert (await put(served, f"/c/{index}", b"%d" % index)).status == 200
        heads.append((await ask(served, "GET", "/c/next")).headers["lp-trickle-latest"])
    assert heads == ["1", "2", "3", "8", "8", "8", "9", "1"]


async def test_a12_a_second_publisher_knows_nothing_of_the_first_and_readers_are_told(served: Served) -> None:
    served.open()
    for index in range(4):  # all of them still in the ring
        await put(served, f"/c/{index}", b"old")
    async with connect(served) as at_head, connect(served) as ahead:
        at_head.request("GET", "/c/-1")
        ahead.request("GET", "/c/4")
        assert await ahead.quiet()
        await put(served, "/c/0", b"new 0")
        for reader in (at_head, ahead):
            answer = await reader.answer()
            assert (answer.status, answer.headers["lp-trickle-latest"]) == (470, "0")
            assert answer.headers["lp-trickle-generation"] == "2"
            reader.request("GET", f"/c/{answer.headers['lp-trickle-latest']}")
            assert (await reader.answer()).body == b"new 0"
    assert (await ask(served, "GET", "/c/3")).status == 470  # what the first one wrote is gone
    await put(served, "/c/1", b"new 1")
    assert (await ask(served, "GET", "/c/1")).body == b"new 1"


async def test_a12_two_posts_of_a_new_publisher_may_be_in_reverse_order(served: Served) -> None:
    served.open()
    for index in range(4):
        await put(served, f"/c/{index}", b"old")
    async with connect(served) as first, connect(served) as second:
        second.post("/c/1")
        assert await second.quiet()
        first.post("/c/0")
        for connection, data in ((first, b"new 0"), (second, b"new 1")):
            connection.chunk(data)
            connection.end()
            assert (await connection.answer()).status == 200
    answers = [await ask(served, "GET", f"/c/{index}") for index in range(2)]
    assert [answer.body for answer in answers] == [b"new 0", b"new 1"]
    assert {answer.headers["lp-trickle-generation"] for answer in answers} == {"2"}


async def test_a_retry_of_the_newest_segment_is_no_new_publisher(served: Served) -> None:
    served.open()
    for index in range(4):
        await put(served, f"/c/{index}", b"first")
    await put(served, "/c/3", b"again")
    answer = await ask(served, "GET", "/c/3")
    assert (answer.body, answer.headers["lp-trickle-generation"]) == (b"again", "1")
    assert (await ask(served, "GET", "/c/2")).body == b"first"


async def test_a15_a_470_says_how_many_are_lost_and_each_is_counted_once(served: Served) -> None:
    served.open()
    for index in range(11):
        await put(served, f"/c/{index}", b"x")
    lagged = metric("sluice_trickle_dropped_total", reason="lagged")
    answer = await ask(served, "GET", "/c/0")
    told = {name: answer.headers[f"lp-trickle-{name}"] for name in ("latest", "resume", "lost")}
    assert told == {"latest": "11", "resume": "6", "lost": "6"}
    assert metric("sluice_trickle_dropped_total", reason="lagged") == lagged + 6
    assert (await ask(served, "GET", "/c/6")).status == 200
    for ahead in ("11", "12", "99"):
        async with connect(served) as reader:
            reader.request("GET", f"/c/{ahead}")
            if ahead != "11":
                assert (await reader.answer()).headers["lp-trickle-lost"] == "0"
    assert metric("sluice_trickle_dropped_total", reason="lagged") == lagged + 6
