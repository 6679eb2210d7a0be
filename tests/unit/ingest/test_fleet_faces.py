"""Where sessions run: what a stream wishes, how it moved, who waits, and what an operator may do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from protos.ingest.v1 import bridge_pb2
from protos.router.v1 import router_pb2
from protos.sessions.v1 import sessions_pb2
from services.common.errors import ConflictError, ExhaustedError
from services.ingest import in_line
from tests.support.house import House, housing, seven

P = sessions_pb2
THEIRS = {"Authorization": "Bearer theirs"}


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with housing(operators="staff, acme") as found:
        yield found


# --- wishes

WISHES: dict[str, Any] = {
    "region": "eu",
    "gpu_class": "h100",
    "labels": {"rack": "7"},
    "max_price_per_second": 500,
    "policy": "cheapest",
    "priority": -5,
    "max_wait_s": 12.5,
}


async def test_a_stream_says_where_it_wishes_to_run(house: House) -> None:
    made = await house.stream(wishes=WISHES)
    (asked,) = house.plane.created
    assert asked.wishes == P.Wishes(
        region="eu",
        gpu_class="h100",
        labels={"rack": "7"},
        max_micro_per_second=500,
        policy=router_pb2.POLICY_CHEAPEST,
        priority=-5,
        max_wait_ms=12_500,
    )
    assert made["wishes"] == WISHES


async def test_a_stream_that_wishes_nothing_has_no_wishes(house: House) -> None:
    assert (await house.stream())["wishes"] is None
    assert not house.plane.created[0].HasField("wishes")


@pytest.mark.parametrize(
    ("wishes", "field"),
    [
        ({"priority": 101}, "priority"),
        ({"priority": "high"}, "priority"),
        ({"max_wait_s": 301}, "max_wait_s"),
        ({"max_wait_s": -1}, "max_wait_s"),
        ({"max_price_per_second": 0.0005}, "max_price_per_second"),
        ({"max_price_per_second": 0}, "max_price_per_second"),
        ({"policy": "nicest"}, "policy"),
        ({"labels": {"rack": 7}}, "labels.rack"),
        ({"gpu": "h100"}, "gpu"),
        ({"region": "x" * 101}, "region"),
    ],
)
async def test_a_wish_that_cannot_be_is_refused_by_its_name(
    house: House, wishes: dict[str, Any], field: str
) -> None:
    answer = await house.client.post("/v1/streams", json={"wishes": wishes})
    assert answer.status_code == 400
    assert seven(answer)["details"]["field"] == f"body.wishes.{field}"
    assert house.plane.created == []


async def test_wishes_of_a_stream_that_is_there_cannot_be_changed(house: House) -> None:
    made = await house.stream()
    answer = await house.client.patch(f"/v1/streams/{made['id']}", json={"wishes": {"region": "us"}})
    assert answer.status_code == 400
    assert seven(answer)["details"]["field"] == "wishes"


# --- the line


async def test_a_start_that_waits_shows_its_place_in_the_line(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_ALLOCATING)
    house.plane.line["ses_mine"] = router_pb2.QueuePlace(
        session="ses_mine", position=2, waited_ms=500, expected_wait_ms=20_000
    )
    place = {"position": 2, "expected_wait_s": 20.0, "waited_s": 0.5}
    status = (await house.call("GET", f"/v1/streams/{made['id']}/status"))["data"]
    assert (status["queue"], status["state"], status["sluice"]["queue"]) == (place, "LOADING", place)
    assert (await house.call("GET", "/v1/sessions"))["data"][0]["queue"] == place
    house.record(made["id"], P.PHASE_LIVE)
    assert (await house.call("GET", f"/v1/streams/{made['id']}/status"))["data"]["queue"] is None


async def test_a_refusal_for_lack_of_room_says_the_place_in_the_line_in_figures(house: House) -> None:
    full = ExhaustedError("no runner is free", reason="NO_CAPACITY", position=3, expected_wait_ms=4000)
    house.plane.error = in_line.refused(full)
    answer = await house.client.post("/v1/streams", json={})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "4")
    details = seven(answer)["details"]
    assert (details["position"], details["expected_wait_s"]) == (3, 4.0)
    house.plane.error = in_line.refused(full)
    said = await house.client.get("/api/v1/session/parameters")
    assert said.json() == {
        "detail": "no runner is free: 3rd in line, about 4 s",
        "code": "NO_CAPACITY",
        "position": 3,
        "expected_wait_s": 4.0,
    }


# --- sessions and their moves


async def test_a_session_shows_its_age_and_how_it_moved(house: House) -> None:
    made = await house.stream()
    move = P.Move(unix_ms=1_700_000_004_000, to="r0", why="drain", epoch=2, freeze_ms=40, lost=1)
    setattr(move, "from", "r9")
    house.record(made["id"], P.PHASE_LIVE, moves=[move], move_wanted="asked", next=P.Place(runner="r7"))
    shown = await house.call("GET", "/v1/sessions/ses_mine")
    assert shown["moves"] == [
        {
            "at": "2023-11-14T22:13:24.000Z",
            "from": "r9",
            "to": "r0",
            "why": "drain",
            "freeze_ms": 40,
            "lost": 1,
            "repeated": 0,
        }
    ]
    assert (shown["move_wanted"], shown["moving_to"], shown["runner"]) == ("asked", "r7", "r0")
    assert shown["age_s"] > 1_000_000
    house.record(made["id"], P.PHASE_ENDED, ended_unix_ms=1_700_000_060_500)
    assert (await house.call("GET", "/v1/sessions/ses_mine"))["age_s"] == 60.5


async def test_what_another_ingest_process_sees_of_a_session_is_shown_here_too(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE, micro_per_second=1000)
    assert "fps_out" not in (await house.call("GET", "/v1/sessions/ses_mine")), "nobody said it in time"
    house.plane.elsewhere["ses_mine"] = bridge_pb2.BridgeReport(
        fps_out=24.96, delivered_ms=5000, publisher=bridge_pb2.PUBLISHER_SENDING
    )
    shown = await house.call("GET", "/v1/sessions/ses_mine")
    assert (shown["fps_out"], shown["publisher"], shown["cost_micro"]) == (24.96, "sending", 5000)
    house.live(made["id"])
    assert (await house.call("GET", "/v1/sessions/ses_mine"))["fps_out"] == 0, "the nearer one knows better"


async def test_a_session_is_moved_by_its_tenant_and_by_an_operator(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    shown = await house.call("POST", "/v1/sessions/ses_mine/move", 202)
    assert shown["session"] == "ses_mine"
    await house.call("POST", "/v1/sessions/ses_mine/move", 404, headers=THEIRS)
    assert house.plane.moved == [("ses_mine", ""), ("ses_mine", "other")]
    house.plane.error = ConflictError("it moves already", reason="MOVING")
    answer = await house.client.post("/v1/sessions/ses_mine/move")
    assert (answer.status_code, seven(answer)["code"]) == (409, "SLUICE/MOVING")


async def test_only_an_operator_sees_everybodys_sessions(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE)
    house.record(made["id"], P.PHASE_LIVE, session="ses_theirs")
    house.plane.records["ses_theirs"].tenant = "other"
    mine = (await house.call("GET", "/v1/sessions"))["data"]
    assert [one["session"] for one in mine] == ["ses_mine"]
    every = (await house.call("GET", "/v1/sessions?all=1"))["data"]
    assert {one["session"]: one["tenant"] for one in every} == {"ses_mine": "acme", "ses_theirs": "other"}
    assert (await house.call("GET", "/v1/sessions/ses_theirs"))["session"] == "ses_theirs"
    refused = await house.client.get("/v1/sessions?all=1", headers=THEIRS)
    assert (refused.status_code, seven(refused)["code"]) == (403, "SLUICE/NOT_AN_OPERATOR")
    await house.call("GET", "/v1/sessions/ses_mine", 404, headers=THEIRS)


# --- runners


async def test_an_operator_drains_a_runner_and_takes_it_back(house: House) -> None:
    assert await house.call("POST", "/v1/runners/r0/drain") == {"runner": "r0", "sessions": 2}
    await house.call("POST", "/v1/runners/r0/drain", json={"cancel": True})
    assert house.plane.drained == [("r0", False), ("r0", True)]


async def test_nobody_else_drains_a_runner(house: House) -> None:
    refused = await house.client.post("/v1/runners/r0/drain", headers=THEIRS)
    assert (refused.status_code, seven(refused)["code"]) == (403, "SLUICE/NOT_AN_OPERATOR")
    assert house.plane.drained == []
    async with housing() as plain:
        await plain.call("POST", "/v1/runners/r0/drain", 403)


async def test_an_operator_sees_whose_session_holds_a_slot(house: House) -> None:
    made = await house.stream()
    house.record(made["id"], P.PHASE_LIVE, session="ses_theirs")
    house.plane.records["ses_theirs"].tenant = "other"
    (runner,) = (await house.call("GET", "/v1/runners"))["data"]
    assert [slot["session"] for slot in runner["slots"]] == [None, "ses_theirs"]
    assert (runner["penalty"], runner["micro_per_second"]) == (0, None)
