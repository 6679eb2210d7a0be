"""One trace shows a session through all five services, from its opening to its bill."""

from __future__ import annotations

from pathlib import Path

from tests.support import publisher
from tests.support.otlp import receiving
from tests.support.stack import running, until

EXPECTED = {
    "session.open",
    "session.reserve",
    "session.grant",
    "session.attach",
    "session.close",
    "sluice.sessions.v1.Sessions/StartSession",
    "sluice.billing.v1.Billing/ReserveSlice",
    "sluice.router.v1.Router/Grant",
    "sluice.ingest.v1.Bridge/Open",
    "sluice.inference.v1.Runner/Attach",
    "trickle POST",
    "trickle GET",
    "usage.posted",
}


def test_a_session_is_one_trace_from_its_opening_to_its_bill(tmp_path: Path) -> None:
    with receiving() as receiver:
        with running(tmp_path, SLUICE_LOCAL_OTLP_ENDPOINT=receiver.endpoint) as stack:
            stream = stack.stream()
            process = publisher.start(stream["publish_url"], seconds=3)
            session = stack.live_session(stream["id"])
            process.communicate(timeout=30)
            stack.ended(session)
            until(
                lambda: EXPECTED.issubset(span.name for span in receiver.trace_of(session)) or None,
                10,
                f"all of {EXPECTED} in the trace",
            )
        spans = receiver.trace_of(session)
        assert {span.service for span in spans} == {
            "ingest",
            "session-manager",
            "router",
            "billing",
            "inference",
        }
        assert not [span.name for span in spans if span.error]
        secrets = {stream["stream_key"], stream["output_playback_id"], stack.key}
        told = [f"{span.name} {span.attributes}" for span in receiver.spans]
        assert not [one for one in told if any(secret in one for secret in secrets)], "no key in any span"
