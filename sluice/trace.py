"""A session's spans as a tree with times and bars. Pure: JSON in, text out, and every span is in it once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

BAR_COLUMNS: Final = 24
INDENT: Final = "  "
SERVICE: Final = "sluice-"  # what the names of our services begin with

# What is told of a span beside its name, in this order; other attributes are in the JSON.
TOLD: Final[Mapping[str, str]] = {
    "session.pipeline": "{}",
    "session.runner": "{}",
    "session.revision": "revision {}",
    "session.applies": "{}",
    "session.publisher": "publisher {}",
    "session.frames_in": "{} in",
    "session.frames_out": "{} out",
    "session.frames_dropped": "{} dropped",
    "session.frame_age_ms_p50": "age p50 {} ms",
    "session.frame_age_ms_p95": "p95 {} ms",
    "session.slowest_stage": "mostly {}",
    "session.reason": "{}",
    "error.type": "{}",
    "error.message": "{}",
}

Span = Mapping[str, Any]


def shown(answer: Mapping[str, Any], session: str, *, ended: bool) -> Text:
    """The answer of `/v1/sessions/{id}/trace`."""
    spans = answer["spans"]
    begin_ns = min(span["start_unix_ns"] for span in spans)
    whole_ns = max(span["start_unix_ns"] + span["duration_ns"] for span in spans) - begin_ns
    lines = [Text(f"{session}  trace {answer['trace']}  {_time(whole_ns)}, {len(spans)} spans"), Text("")]
    heads = ("start", "took", "when", "service", "span")
    lines.append(Text("{:>10}  {:>10}  {:<24}  {:<16} {}".format(*heads), style="bold"))
    lines += [_line(span, depth, begin_ns=begin_ns, whole_ns=whole_ns) for depth, span in tree(spans)]
    notes = _notes(answer, ended=ended)
    return Text("\n").join([*lines, *([Text("")] if notes else []), *map(Text, notes)])


def _notes(answer: Mapping[str, Any], *, ended: bool) -> list[str]:
    notes = []
    if answer.get("dropped_spans"):
        notes.append(f"{answer['dropped_spans']} spans from its middle were not kept.")
    if not ended:
        notes.append("The session is still running: what has not ended is not here yet.")
    elif all(span["name"] != "session.close" for span in answer["spans"]):
        notes.append("Its end is not here yet: spans arrive a second or two after they ended.")
    return notes


def tree(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Every span with its depth, parents before their children and siblings by their start.

    A span whose parent is not there is a root: it came from outside, is still running, or was lost.
    """
    ordered = sorted(spans, key=lambda span: int(span["start_unix_ns"]))
    known = {span["id"] for span in ordered}
    children: defaultdict[str | None, list[int]] = defaultdict(list)
    for place, span in enumerate(ordered):
        children[span["parent"] if span["parent"] in known else None].append(place)
    seen: set[int] = set()
    # The roots, then whatever no root leads to: a circle, which only a broken exporter makes.
    for root in (*children[None], *range(len(ordered))):
        waiting = [(0, root)]
        while waiting:
            depth, place = waiting.pop()
            if place not in seen:
                seen.add(place)
                yield depth, ordered[place]
                waiting += [(depth + 1, child) for child in reversed(children[ordered[place]["id"]])]


def _line(span: Span, depth: int, *, begin_ns: int, whole_ns: int) -> Text:
    at_ns = span["start_unix_ns"] - begin_ns
    service = _printable(span["service"] or "").removeprefix(SERVICE)
    name = _printable(span["name"])
    if " " not in name and "/" in name:
        name = name.rpartition(".")[2]  # a call's package says what its service says
    told = ", ".join(
        form.format(_printable(span["attributes"][key]))
        for key, form in TOLD.items()
        if key in span["attributes"]
    )
    line = Text(f"{_time(at_ns):>10}  {_time(span['duration_ns']):>10}  ")
    line.append(
        f"{bar(at_ns, span['duration_ns'], whole_ns):<{BAR_COLUMNS}}", "red" if span["error"] else "cyan"
    )
    line.append(f"  {service:<16} {INDENT * depth}")
    line.append(f"{name}{' !' if span['error'] else ''}", "red" if span["error"] else "")
    line.append(f"  {told}" if told else "", "dim")
    return line


def bar(at_ns: int, took_ns: int, whole_ns: int) -> str:
    """When in the whole it ran; at least a mark."""
    if whole_ns <= 0:
        return ""
    start = min(at_ns * BAR_COLUMNS // whole_ns, BAR_COLUMNS - 1)
    length = min(round(took_ns * BAR_COLUMNS / whole_ns), BAR_COLUMNS - start)
    return " " * start + ("█" * length or "▏")


def _time(ns: int) -> str:
    ms = ns / 1e6
    if ms < 10_000:
        return f"{ms:.1f} ms"
    if ms < 3_600_000:
        return f"{ms / 1000:.1f} s"
    return f"{ms / 3_600_000:.2f} h"


def _printable(value: object) -> str:
    """As text that cannot steer a terminal: some of it comes from other people's pipelines."""
    return "".join(character if character.isprintable() else "?" for character in str(value))
