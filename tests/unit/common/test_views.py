"""What a new watcher tells of a bucket that changes meanwhile."""

from __future__ import annotations

from services.common.views import Entry, Filling, Update, View


def update(key: str, revision: int, *, gone: bool = False) -> Update:
    return Update(key, None if gone else Entry(b"held", revision), revision)


def test_a_key_that_goes_while_it_is_told_what_is_there_is_not_there() -> None:
    """Else a waiter that left would stand first in the line until the view is made anew."""
    view = View()
    filling = Filling(view, 0)
    for told in (update("first", 1), update("second", 2), update("first", 3, gone=True), None):
        filling.take(told)
    assert view.entries == {"second": Entry(b"held", 2)}
    assert filling.newest == 3


def test_nothing_is_seen_of_a_bucket_before_all_that_is_there_was_told() -> None:
    view = View()
    filling = Filling(view, 0)
    filling.take(update("first", 1))
    assert not view.ready.is_set()
    filling.take(None)
    filling.take(update("first", 2, gone=True))
    assert view.entries == {}
