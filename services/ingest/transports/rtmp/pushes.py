"""The pushes of this process's sessions: each a task of its own, which ends with its session."""

from __future__ import annotations

from services.common.lifecycle import Bulkhead
from services.common.telemetry import report_bug
from services.ingest.bridge.session import BridgeSession
from services.ingest.settings import IngestSettings
from services.ingest.transports.rtmp.push import PushState, RtmpPush


class Pushes:
    """Owns them. To be entered before there are sessions, and left after."""

    def __init__(self, settings: IngestSettings) -> None:
        self._settings = settings
        self._pushes: dict[str, RtmpPush] = {}
        self._tasks = Bulkhead(lambda key, error: report_bug("rtmp_push", error, session=key))

    async def __aenter__(self) -> Pushes:
        await self._tasks.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._tasks.__aexit__(*exc_info)

    def start(self, session: BridgeSession, url: str) -> None:
        """Push the output of `session` to `url` for as long as it lives."""
        name = session.identity.session
        push = RtmpPush(session, url, private=self._settings.rtmp_push_private)
        self._pushes[name] = push
        task = self._tasks.start(name, push.run())
        task.add_done_callback(lambda _: self._pushes.pop(name, None))

    def state(self, session: str) -> PushState | None:
        """How the push of a session stands, if it has one."""
        push = self._pushes.get(session)
        return None if push is None else push.state
