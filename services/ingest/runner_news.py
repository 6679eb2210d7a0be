"""What a runner says of itself and of the parameters, as every client hears it. Pure.

The rule it keeps: the same fields by server-sent events, on the data channel and in a status.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.common.errors import ConflictError
from services.ingest.bridge.events import Applied, Health, Loading, Moved, Problem, Refused
from services.ingest.bridge.heard import BESIDE, Heard, News
from services.ingest.times import iso, media_ms

WHILE_IT_GOES_ON: Final = BESIDE  # why a pipeline loads that shows pictures meanwhile


def told(news: News) -> tuple[str, dict[str, Any]]:
    """The name of the event, and its fields."""
    match news:
        case Applied():
            return "applied", {
                "revision": news.revision,
                "pts_ms": media_ms(news.pts),
                "applies": news.applies,
            }
        case Refused():
            return "refused", {
                "revision": news.revision,
                "field": news.field or None,
                "reason": news.reason,
                "message": news.message,
            }
        case Loading():
            return "loading", {"why": news.why, "stage": news.stage, "percent": news.percent}
        case Problem():
            return "problem", {
                "stage": news.stage,
                "kind": news.kind,
                "error": news.error,
                "message": news.message,
                "action": news.action,
                "pts_ms": None if news.pts is None else media_ms(news.pts),
                "frame": news.frame,
            }
        case Health():
            return "health", {"state": news.state, "cause": news.cause or None}
        case Moved():
            return "moved", {
                "why": news.why,
                "from_pts_ms": media_ms(news.pts),
                "freeze_ms": news.freeze_ms,
                "lost": news.lost,
            }


def standing(heard: Heard) -> Iterator[News]:
    """What who comes late has to know: how the runner is."""
    if heard.health is not None:
        yield heard.health
    if heard.loading is not None:
        yield heard.loading


def condition(heard: Heard) -> Mapping[str, Any]:
    """How the runner is, for a status: its health, what it loads, and the last thing that failed."""
    last = heard.problems[-1] if heard.problems else None
    return {
        "health": heard.health and {**told(heard.health)[1], "since": iso(heard.health_unix_ms)},
        "loading": heard.loading and told(heard.loading)[1],
        "problem": last and {**told(last.problem)[1], "at": iso(last.unix_ms)},
    }


def words(problem: Problem) -> str:
    """One line for who shows no more of it."""
    return f"{problem.kind}: {problem.error or problem.stage}: {problem.message}".removesuffix(": ")


def refusal(refused: Refused) -> ConflictError:
    """Why a change that was accepted is not shown."""
    field = {"field": refused.field} if refused.field else {}
    return ConflictError(
        f"revision {refused.revision} is not shown, and the values before it stay:"
        f" {refused.message or refused.reason}",
        reason=refused.reason.upper(),
        revision=refused.revision,
        **field,
    )
