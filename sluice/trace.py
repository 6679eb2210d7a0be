"""A session's spans as a tree with times and bars, and every span in it. Pure: JSON in, text out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from rich.text import Text

BAR_COLUMNS: Final = 24
INDENT: Final = "  "
SERVICE: Final = "sluice-"  # what the names of our services begin with
LIFE: Final = "session."  # what the names of a session's own spans begin with: these are always shown
OUTLIVED_NS: Final = 100_000_000  # above what the clocks of two machines differ by
ALIKE: Final = 4  # siblings of one name; of more, the first and the slowest are shown

# What is told of a span beside its name, in this order; other attributes are in the JSON.
TOLD: Final[Mapping[str, str]] = {
    "session.pipeline": "{}",
    "session.runner": "{}",
    "session.revision": "revision {}",
    "session.applies": "{}",
    "session.frames_in": "{} in",
    "session.frames_out": "{} out",
    "session.frames_dropped": "{} dropped",
    "session.frame_age_ms_p50": "age p50 {} ms",
    "session.frame_age_ms_p95": "p95 {} ms",
    "session.slowest_stage": "slowest stage {}",
    "session.slowest_stage_ms_p50": "{} ms",
    "session.publisher": "publisher {}",
    "session.reason": "{}",
    "error.type": "{}",
    "error.message": "{}",
}

Span = Mapping[str, Any]
Row = tuple[int, Sequence[Span]]  # the depth, and one span or many alike


def shown(answer: Mapping[str, Any], session: str, *, ended: bool, every: bool = False) -> Text:
    """The answer of `/v1/sessions/{id}/trace`; `every`: also each of the many alike."""
    spans = answer["spans"]
    begin_ns = min(span["start_unix_ns"] for span in spans)
    whole_ns = max(_end_ns(span) for span in spans) - begin_ns
    lines = [Text(f"{session}  trace {answer['trace']}  {_time(whole_ns)}, {len(spans)} spans"), Text("")]
    heads = ("start", "took", "when", "service", "span")
    lines.append(Text("{:>10}  {:>10}  {:<24}  {:<16} {}".format(*heads), style="bold"))
    alike = len(spans) if every else ALIKE
    lines += [_line(row, begin_ns=begin_ns, whole_ns=whole_ns) for row in tree(spans, alike)]
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


def tree(spans: Sequence[Span], alike: int = ALIKE) -> Iterator[Row]:
    """Parents before their children, siblings by their start; of more than `alike` of a name most in one row.

    At the top is what has no parent here, and what went on after its parent had ended: it is no part of it,
    but came of it. So the top is the session's life in its order.
    """
    known = {span["id"]: span for span in sorted(spans, key=lambda span: int(span["start_unix_ns"]))}
    children: defaultdict[str | None, list[Span]] = defaultdict(list)
    for span in known.values():
        parent = known.get(span["parent"])
        apart = parent is None or _end_ns(span) > _end_ns(parent) + OUTLIVED_NS or _in_circle(span, known)
        children[None if apart else span["parent"]].append(span)
    waiting = [(0, row) for row in reversed(_rows(children[None], alike))]
    while waiting:
        depth, row = waiting.pop()
        yield depth, row
        if len(row) == 1:
            below = _rows(children[row[0]["id"]], alike)
            waiting += [(depth + 1, each) for each in reversed(below)]


def _rows(siblings: Sequence[Span], alike: int) -> list[Sequence[Span]]:
    """A row each; of the many alike only the first, the slowest and what failed have one of their own."""
    names = Counter((span["service"], span["name"]) for span in siblings)
    rows: list[Sequence[Span]] = []
    many: dict[tuple[str, str], list[Span]] = {}
    slowest = {
        (span["service"], span["name"]): span["id"]
        for span in sorted(siblings, key=lambda span: int(span["duration_ns"]))
    }
    for span in siblings:
        name = span["service"], span["name"]
        own = names[name] <= alike or span["name"].startswith(LIFE) or span["error"]
        if own or name not in many or slowest[name] == span["id"]:
            rows.append([span])
            many.setdefault(name, [])
        else:
            if not many[name]:
                rows.append(many[name])
            many[name].append(span)
    return rows


def _in_circle(span: Span, known: Mapping[str, Span]) -> bool:
    """Whether it descends from itself, or from one that does, which only a broken exporter can mean."""
    above: set[str] = set()
    at: Span | None = span
    while at is not None and at["id"] not in above:
        above.add(at["id"])
        at = known.get(at["parent"])
    return at is not None


def _line(row: Row, *, begin_ns: int, whole_ns: int) -> Text:
    depth, spans = row
    first = spans[0]
    slowest = max(spans, key=lambda span: int(span["duration_ns"]))
    failed = first["error"]
    service = _printable(first["service"] or "").removeprefix(SERVICE)
    line = Text(f"{_time(first['start_unix_ns'] - begin_ns):>10}  {_time(slowest['duration_ns']):>10}  ")
    drawn = bar([(s["start_unix_ns"] - begin_ns, s["duration_ns"]) for s in spans], whole_ns)
    line.append(drawn, "red" if failed else "cyan")
    line.append(f"  {service:<16} {INDENT * depth}")
    line.append(f"{_name(first)}{' !' if failed else ''}", "red" if failed else "")
    told = f"{len(spans)} more, the slowest of them" if len(spans) > 1 else _told(first)
    line.append(f"  {told}" if told else "", "dim")
    return line


def _name(span: Span) -> str:
    name = _printable(span["name"])
    # A call's package says what its service says.
    return name if " " in name or "/" not in name else name.rpartition(".")[2]


def _told(span: Span) -> str:
    known = span["attributes"]
    return ", ".join(form.format(_printable(known[key])) for key, form in TOLD.items() if key in known)


def bar(runs: Sequence[tuple[int, int]], whole_ns: int) -> str:
    """When in the whole each of `runs`, start and length, was; at least a mark each."""
    columns = [" "] * BAR_COLUMNS
    for at_ns, took_ns in runs if whole_ns > 0 else ():
        start = min(at_ns * BAR_COLUMNS // whole_ns, BAR_COLUMNS - 1)
        length = min(round(took_ns * BAR_COLUMNS / whole_ns), BAR_COLUMNS - start)
        if length:
            columns[start : start + length] = "█" * length
        elif columns[start] == " ":
            columns[start] = "▏"
    return "".join(columns)


def _end_ns(span: Span) -> int:
    return int(span["start_unix_ns"]) + int(span["duration_ns"])


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
