"""What a transport cannot do by its nature, and why: the suite's only exceptions.

Publishers: `second` (another one is refused), `tells` (it is told why it was let
go). Viewers: `end` (the session's end is theirs), `first` (they get the first picture if they were there
before), `late` (they may come at any time), `seat` (they are counted), `several` (of a stream), `slow` (they
can fall behind).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import pytest

CANNOT: Final[dict[tuple[str, str], str]] = {
    ("TricklePublisher", "second"): "a POST of index 0 is a publisher that began again: it takes over",
    ("WhipPublisher", "tells"): "WebRTC has a word for the end and none for its reason",
    ("WhepViewer", "end"): "it stays for the stream's next session, with a still until then",
    ("WhepViewer", "slow"): "a socket of UDP takes whatever it is given, and loses what is too much",
    ("PushedViewer", "first"): "it is called when its session begins, and pictures come meanwhile",
    ("PushedViewer", "late"): "it is called when its session begins, or not at all",
    ("PushedViewer", "seat"): "it is the stream's owner's, one a stream",
    ("PushedViewer", "several"): "a stream is pushed to one server",
    ("TrickleViewer", "seat"): "a viewer is one GET after the other, from any connection",
    ("HlsViewer", "slow"): "a player asks when it likes, and not for what has left the playlist",
}


def able_to(kind: type[object], behaviour: str) -> bool:
    return (kind.__name__, behaviour) not in CANNOT


def each(kinds: Iterable[type[object]], behaviour: str | None = None) -> pytest.MarkDecorator:
    """Run a test for each kind of client, but for those that cannot behave so."""
    found = [kind for kind in kinds if behaviour is None or able_to(kind, behaviour)]
    return pytest.mark.parametrize("kind", found, ids=lambda kind: kind.__name__)
