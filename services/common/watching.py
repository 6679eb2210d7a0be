"""A bucket's changes as the server tells them: first all that is there, then each change, in order.

By hand, because nats-py's own watcher passes each through a second queue and reads times that nobody asks
for: a router hears thousands a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import DeliverPolicy
from nats.js.kv import KV_MARKER_REASON, KV_OP

from services.common.latest import Batches
from services.common.views import Entry, Update

MAILBOX: Final = 256  # messages; behind a full one the server is told to wait
LINGERS_S: Final = 5.0  # the server forgets a watcher that left; nats-py would keep it 5 minutes
OLDER_FORM: Final = 9  # tokens of the subject to acknowledge by; the newer one names domain and account, too


class Watcher:
    """Of one connection: after a reconnection it is stale, and says nothing of it."""

    def __init__(self, mailbox: Batches[Msg], prefix: str, *, empty: bool) -> None:
        self._mailbox = mailbox
        self._prefix = prefix
        self._begins = True  # what was there is not all told yet
        self._empty = empty

    async def take(self) -> list[Update | None]:
        """The next ones; a None among them is the end of what was there to begin with."""
        if self._begins and self._empty:
            self._begins = False
            return [None]
        updates: list[Update | None] = []
        for message in await self._mailbox.take():
            # $JS.ACK.<stream>.<consumer>.<times>.<revision>.<number>.<time>.<pending>
            tokens = message.reply.split(".")
            at = 5 if len(tokens) == OLDER_FORM else 7
            revision = int(tokens[at])
            headers = message.headers
            gone = headers is not None and (KV_OP in headers or KV_MARKER_REASON in headers)
            entry = None if gone else Entry(message.data, revision)
            updates.append(Update(message.subject.removeprefix(self._prefix), entry, revision))
            if self._begins and tokens[at + 3] == "0":
                self._begins = False
                updates.append(None)
        return updates


@asynccontextmanager
async def watching(jetstream: JetStreamContext, bucket: str) -> AsyncIterator[Watcher]:
    """A watcher of all keys until the block ends. Raises what nats-py raises."""
    mailbox = Batches[Msg](MAILBOX)
    subscription = await jetstream.subscribe(
        f"$KV.{bucket}.>",
        stream=f"KV_{bucket}",
        cb=mailbox.put,
        ordered_consumer=True,
        deliver_policy=DeliverPolicy.LAST_PER_SUBJECT,
        inactive_threshold=LINGERS_S,
    )
    try:
        info = await subscription.consumer_info()
        told = info.delivered.consumer_seq if info.delivered else 0
        yield Watcher(mailbox, f"$KV.{bucket}.", empty=not info.num_pending and not told)
    finally:
        with suppress(nats.errors.Error):
            await subscription.unsubscribe()
