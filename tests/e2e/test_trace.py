"""One trace shows a session through all five services, from its opening to its bill; the command shows it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx

from tests.support import publisher
from tests.support.otlp import receiving
from tests.support.stack import Stack, running, until

EXPECTED = {
    "session.open",
    "session.reserve",
    "session.grant",
    "session.attach",
    "session.first_picture",
    "session.update",
    "session.segment",
    "session.close",
    "sluice.sessions.v1.Sessions/StartSession",
    "sluice.billing.v1.Billing/ReserveSlice",
    "sluice.router.v1.Router/Grant",
    "sluice.ingest.v1.Bridge/Open",
    "sluice.inference.v1.Runner/Attach",
    "sluice.inference.v1.Runner/Update",
    "trickle POST",
    "trickle GET",
    "usage.posted",
}


def published(stack: Stack) -> tuple[dict[str, Any], str]:
    """A stream whose session was steered once and has ended."""
    stream = stack.stream()
    process = publisher.start(stream["publish_url"], seconds=3)
    session = stack.live_session(stream["id"])
    stack.request("PATCH", f"/v1/streams/{stream['id']}", json={"params": {"prompt": "watercolor"}})
    process.communicate(timeout=30)
    stack.ended(session)
    return stream, session


def whole_trace(stack: Stack, session: str) -> list[dict[str, Any]]:
    """The session's spans, as soon as all that we wait for are there."""

    def look() -> list[dict[str, Any]] | None:
        with suppress(AssertionError, httpx.HTTPError):
            spans: list[dict[str, Any]] = stack.request("GET", f"/v1/sessions/{session}/trace")["spans"]
            return spans if EXPECTED.issubset(span["name"] for span in spans) else None
        return None

    return until(look, 10, f"all of {EXPECTED} in the trace")


def test_a_session_is_one_trace_from_its_opening_to_its_bill(tmp_path: Path) -> None:
    with receiving() as receiver:
        settings = {"SLUICE_LOCAL_OTLP_ENDPOINT": receiver.endpoint, "SLUICE_INGEST_TRACES_URL": receiver.url}
        with running(tmp_path, **settings) as stack:
            stream, session = published(stack)
            spans = whole_trace(stack, session)
            assert {span["service"] for span in spans} == {
                f"sluice-{name}" for name in ("ingest", "session-manager", "router", "billing", "inference")
            }
            assert not [span["name"] for span in spans if span["error"]]
            (root,) = [span for span in spans if span["parent"] is None]
            assert (root["name"], root["attributes"]["session.id"]) == ("session.open", session)
            (segment,) = [span["attributes"] for span in spans if span["name"] == "session.segment"]
            assert segment["session.frames_out"] > 0
            assert segment["session.frame_age_ms_p95"] >= segment["session.frame_age_ms_p50"] > 0
            secrets = [stream["stream_key"], stream["output_playback_id"], stack.key, "watercolor"]
        everything = str(receiver.exported)
        assert session in everything
        assert not [secret for secret in secrets if secret in everything], "no key in any span"


def test_the_command_shows_the_trace_that_this_machine_kept(stack: Stack) -> None:
    _, session = published(stack)
    whole_trace(stack, session)
    shown = stack.command("trace", session)
    assert shown.returncode == 0, shown.stderr
    head, _, _, *lines = shown.stdout.splitlines()
    assert head.startswith(f"{session}  trace ")
    assert [line for line in lines if line.endswith("session.close  input_ended")]
    assert "session.update  revision 2, live" in shown.stdout
    assert stack.command("trace", "ses_nobodys").returncode == 2
