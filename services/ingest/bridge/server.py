"""gRPC `Bridge`: how session-managers open, close and watch a session's media here."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc.aio

from protos.ingest.v1 import bridge_pb2, bridge_pb2_grpc
from services.common.errors import InvalidError, NotFoundError
from services.ingest.bridge.hub import Hub
from services.ingest.bridge.reports import position_of

Context = grpc.aio.ServicerContext[object, object]


class BridgeServicer(bridge_pb2_grpc.BridgeServicer):
    """`sluice.ingest.v1.Bridge`. `trickle_url` is where runners reach the internal listener."""

    def __init__(self, hub: Hub, trickle_url: str) -> None:
        self._hub = hub
        self._trickle_url = trickle_url.rstrip("/")

    async def Open(self, request: bridge_pb2.OpenRequest, context: Context) -> bridge_pb2.OpenResponse:
        if request.epoch < 1:
            raise InvalidError("an epoch is 1 or more", field="epoch")
        channels = self._hub.session(request.session).open(request)
        url = self._trickle_url
        return bridge_pb2.OpenResponse(
            channels=bridge_pb2.Channels(
                **{"in": url + channels["in"].read_path},
                out=url + channels["out"].write_path,
                control=url + channels["control"].read_path,
                events=url + channels["events"].write_path,
                data=url + channels["data"].write_path,
                state=url + channels["state"].write_path,
                restore=url + channels["restore"].read_path if "restore" in channels else "",
            )
        )

    async def Promote(
        self, request: bridge_pb2.PromoteRequest, context: Context
    ) -> bridge_pb2.PromoteResponse:
        self._hub.session(request.session).outputs.promote(request.epoch)
        return bridge_pb2.PromoteResponse()

    async def Close(self, request: bridge_pb2.CloseRequest, context: Context) -> bridge_pb2.CloseResponse:
        try:
            session = self._hub.session(request.session)
        except NotFoundError:
            return bridge_pb2.CloseResponse()
        if request.epoch:
            session.outputs.close(request.epoch)
            return bridge_pb2.CloseResponse()
        session.close(request.reason or "stopped", request.message)
        return bridge_pb2.CloseResponse(latency=session.latency(), position=position_of(session))

    async def Report(
        self, request: bridge_pb2.ReportRequest, context: Context
    ) -> AsyncIterator[bridge_pb2.BridgeReport]:
        session = self._hub.session(request.session)
        while not session.closed.done():
            version = session.changed.version
            yield session.report()
            await session.changed.newer_than(version)
        yield session.report()
