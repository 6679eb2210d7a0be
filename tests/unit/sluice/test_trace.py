from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sluice.trace import ALIKE, BAR_COLUMNS, bar, shown, tree

BEGIN_NS = 1_700_000_000_000_000_000


def span(
    key: str,
    parent: str | None = None,
    *,
    at_ms: float = 0,
    took_ms: float = 1,
    name: str = "",
    service: str | None = "sluice-ingest",
    error: bool = False,
    **attributes: Any,
) -> dict[str, Any]:
    return {
        "id": key,
        "parent": parent,
        "service": service,
        "name": name or key,
        "start_unix_ns": BEGIN_NS + round(at_ms * 1e6),
        "duration_ns": round(took_ms * 1e6),
        "attributes": {f"session.{name}": value for name, value in attributes.items()},
        "error": error,
    }


def printed(*spans: dict[str, Any], ended: bool = True, every: bool = False, dropped: int = 0) -> list[str]:
    answer = {"trace": "0af7", "spans": list(spans), "dropped_spans": dropped}
    console = Console(width=40)
    with console.capture() as captured:
        console.print(shown(answer, "ses_1", ended=ended, every=every), soft_wrap=True)
    return captured.get().splitlines()


def rows(*spans: dict[str, Any], alike: int = ALIKE) -> list[tuple[int, list[str]]]:
    return [(depth, [one["id"] for one in row]) for depth, row in tree(spans, alike)]


def test_a_line_tells_start_length_place_service_and_name() -> None:
    lines = printed(
        span("a", took_ms=240, name="session.open", pipeline="effects"),
        span("b", "a", at_ms=120, took_ms=60, name="sluice.router.v1.Router/Grant", service="sluice-router"),
        span("c", at_ms=240, name="session.close", reason="stopped"),
    )
    assert lines[0] == "ses_1  trace 0af7  241.0 ms, 3 spans"
    assert lines[3].split() == ["0.0", "ms", "240.0", "ms", "█" * 24, "ingest", "session.open", "effects"]
    grant = lines[4]
    assert grant.split() == ["120.0", "ms", "60.0", "ms", "█" * 6, "router", "Router/Grant"]
    assert grant.index("█") == lines[3].index("█") + 11
    assert grant.index("Router/") == lines[3].index("session.") + 2
    assert lines[5].endswith("session.close  stopped")
    assert len(lines) == 6


def test_nothing_is_cut_however_narrow_the_terminal() -> None:
    long = span(
        "a", name="session.segment", frames_in=750, frames_out=748, frames_dropped=2, publisher="sending"
    )
    assert "750 in, 748 out, 2 dropped, publisher sending" in printed(long)[3]


def test_what_failed_is_marked_and_says_why() -> None:
    failed = span("a", error=True)
    failed["attributes"] = {"error.type": "NO_CAPACITY", "error.message": "no slot is free"}
    assert printed(failed)[3].endswith("a !  NO_CAPACITY, no slot is free")


def test_children_follow_their_parents_in_the_order_of_their_start() -> None:
    found = rows(
        span("root", took_ms=50),
        span("second", "root", at_ms=20),
        span("first", "root", at_ms=10),
        span("below", "first", at_ms=11),
        span("later", at_ms=60),
    )
    assert found == [(0, ["root"]), (1, ["first"]), (2, ["below"]), (1, ["second"]), (0, ["later"])]


def test_a_span_whose_parent_is_not_there_is_at_the_top() -> None:
    assert rows(span("a", "gone"), span("b", "a")) == [(0, ["a"]), (1, ["b"])]


def test_what_went_on_after_its_parent_is_at_the_top_with_what_is_below_it() -> None:
    found = rows(
        span("open", took_ms=40),
        span("close", "open", at_ms=60_000, took_ms=20),
        span("detach", "close", at_ms=60_001),
        span("skewed", "open", at_ms=41, took_ms=50),
    )
    assert found == [(0, ["open"]), (1, ["skewed"]), (0, ["close"]), (1, ["detach"])]


def test_of_many_alike_the_first_the_slowest_and_what_failed_have_a_line() -> None:
    many = [span(str(n), "root", at_ms=n, took_ms=1 + (n == 7), name="Bridge/Open") for n in range(20)]
    many[9]["error"] = True
    below = [span(f"below {n}", str(n), at_ms=n) for n in range(20)]
    found = rows(span("root", took_ms=1000), *many, *below)
    alike = [str(n) for n in range(20) if n not in {0, 7, 9}]
    assert found == [
        (0, ["root"]),
        (1, ["0"]),
        (2, ["below 0"]),
        (1, alike),
        (1, ["7"]),
        (2, ["below 7"]),
        (1, ["9"]),
        (2, ["below 9"]),
    ]
    line = next(line for line in printed(span("root", took_ms=1000), *many, *below) if "more" in line)
    assert line.endswith("Bridge/Open  17 more, the slowest of them")
    assert len(printed(span("root", took_ms=1000), *many, *below, every=True)) == 3 + 41 + 2


def test_few_alike_and_a_sessions_own_spans_always_have_a_line() -> None:
    few = [span(str(n), at_ms=n, name="Bridge/Open") for n in range(ALIKE)]
    own = [span(f"s{n}", at_ms=n, name="session.segment") for n in range(50)]
    assert [len(row) for _, row in rows(*few, *own)] == [1] * (ALIKE + 50)


def test_what_is_missing_is_said() -> None:
    assert printed(span("a"), ended=False)[-1].startswith("The session is still running")
    assert printed(span("a"))[-1].startswith("Its end is not here yet")
    close = span("b", name="session.close")
    assert printed(span("a"), close)[-1].endswith("session.close")
    assert printed(span("a"), close, dropped=7)[-1].startswith("7 spans from its middle")


def test_a_span_that_was_sent_twice_is_one() -> None:
    assert rows(span("a"), span("a"), span("b", "a")) == [(0, ["a"]), (1, ["b"])]


def test_spans_in_a_circle_are_at_the_top() -> None:
    found = rows(span("a", "b"), span("b", "a"), span("self", "self"), span("tail", "a"))
    assert sorted(found) == [(0, ["a"]), (0, ["b"]), (0, ["self"]), (0, ["tail"])]


def test_a_service_without_a_name_and_text_that_steers_terminals_do_no_harm() -> None:
    text = "\n".join(printed(span("a", service=None, name="x\x1b[2Jy\n[red]z")))
    assert "x?[2Jy?[red]z" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("ns", "told"),
    [(0, "0.0 ms"), (9_999_900_000, "9999.9 ms"), (70_000_000_000, "70.0 s"), (9 * 10**12, "2.50 h")],
)
def test_times_have_the_unit_that_fits(ns: int, told: str) -> None:
    assert f"{told}, 1 spans" in printed(span("a", took_ms=ns / 1e6))[0]


KEYS = st.integers(0, 12).map(str)


@given(
    st.lists(
        st.builds(
            span,
            KEYS,
            KEYS,
            at_ms=st.integers(0, 500),
            took_ms=st.integers(0, 500),
            name=st.sampled_from(["session.open", "Bridge/Open", "GET /v1/x"]),
            error=st.booleans(),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_every_span_of_any_trace_is_there_once(spans: list[dict[str, Any]]) -> None:
    found = rows(*spans, alike=len(spans))
    assert sorted(key for _, row in found for key in row) == sorted({one["id"] for one in spans})
    assert len(printed(*spans, every=True)) >= 3 + len(found)


@given(st.integers(0, 10**13), st.integers(0, 10**13), st.integers(0, 10**13))
def test_a_bar_fits_and_has_a_mark(at_ns: int, took_ns: int, more_ns: int) -> None:
    whole_ns = at_ns + took_ns + more_ns
    drawn = bar([(at_ns, took_ns)], whole_ns)
    assert len(drawn) == BAR_COLUMNS
    assert bool(drawn.strip()) == (whole_ns > 0)
