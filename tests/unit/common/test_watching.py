"""What a watcher makes of the messages of an ordered consumer."""

from __future__ import annotations

from typing import cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.kv import KV_MARKER_REASON, KV_OP

from services.common.latest import Batches
from services.common.views import Entry, Update
from services.common.watching import Watcher

OLDER = "$JS.ACK.KV_slots.consumer.1.{revision}.3.1700000000000000000.{pending}"
NEWER = "$JS.ACK._.ACCOUNT.KV_slots.consumer.1.{revision}.3.1700000000000000000.{pending}.token"


def message(
    key: str, revision: int, pending: int, *, form: str = OLDER, headers: dict[str, str] | None = None
) -> Msg:
    reply = form.format(revision=revision, pending=pending)
    return Msg(cast("Client", None), f"$KV.slots.{key}", reply, b"" if headers else b"held", headers)


async def watcher(*messages: Msg, empty: bool = False) -> Watcher:
    mailbox = Batches[Msg](16)
    for one in messages:
        await mailbox.put(one)
    return Watcher(mailbox, "$KV.slots.", empty=empty)


@pytest.mark.parametrize("form", [OLDER, NEWER])
async def test_all_that_is_there_ends_once_with_the_last_of_it(form: str) -> None:
    found = await watcher(
        message("a.0", 7, 1, form=form), message("b.c.1", 9, 0, form=form), message("a.0", 12, 0, form=form)
    )
    assert await found.take() == [
        Update("a.0", Entry(b"held", 7), 7),
        Update("b.c.1", Entry(b"held", 9), 9),
        None,
        Update("a.0", Entry(b"held", 12), 12),
    ]


async def test_of_an_empty_bucket_the_end_comes_first_and_once() -> None:
    found = await watcher(message("a", 1, 0), empty=True)
    assert await found.take() == [None]
    assert await found.take() == [Update("a", Entry(b"held", 1), 1)]


@pytest.mark.parametrize("headers", [{KV_OP: "DEL"}, {KV_OP: "PURGE"}, {KV_MARKER_REASON: "MaxAge"}])
async def test_a_marker_says_that_a_key_is_gone(headers: dict[str, str]) -> None:
    found = await watcher(message("a", 4, 0, headers=headers))
    assert await found.take() == [Update("a", None, 4), None]
