"""The verdicts of a session's owner, as tables."""

from __future__ import annotations

import pytest

from protos.ingest.v1 import bridge_pb2
from services.common import errors
from services.session_manager.machine import Phase, Session, SessionId, StreamId
from services.session_manager.progress import phase_seen
from services.session_manager.record import alive
from services.session_manager.starting import failure

SENDING, SILENT = bridge_pb2.PUBLISHER_SENDING, bridge_pb2.PUBLISHER_SILENT
FINISHED, WAITING = bridge_pb2.PUBLISHER_FINISHED, bridge_pb2.PUBLISHER_WAITING


@pytest.mark.parametrize(
    ("was", "publisher", "output_age_ms", "now"),
    [
        # nothing came out yet: no report moves the phase
        (Phase.STARTING, SENDING, -1, Phase.STARTING),
        (Phase.STARTING, SILENT, -1, Phase.STARTING),
        (Phase.STARTING, WAITING, -1, Phase.STARTING),
        (Phase.ALLOCATING, SENDING, -1, Phase.ALLOCATING),
        # the first picture
        (Phase.STARTING, SENDING, 0, Phase.LIVE),
        (Phase.STARTING, FINISHED, 0, Phase.LIVE),
        (Phase.STARTING, SILENT, 0, Phase.PAUSED),
        # the publisher falls silent, and comes back
        (Phase.LIVE, SILENT, 3000, Phase.PAUSED),
        (Phase.DEGRADED, SILENT, 3000, Phase.PAUSED),
        (Phase.PAUSED, SILENT, 9000, Phase.PAUSED),
        (Phase.PAUSED, SENDING, 9000, Phase.LIVE),
        # nothing of a report
        (Phase.LIVE, SENDING, 40, Phase.LIVE),
        (Phase.MIGRATING, SENDING, 40, Phase.MIGRATING),
        (Phase.MIGRATING, SILENT, 40, Phase.MIGRATING),
        (Phase.ENDED, SENDING, 40, Phase.ENDED),
        (Phase.ENDED, SILENT, 40, Phase.ENDED),
    ],
)
def test_the_bridges_report_stands_for_a_phase(
    was: Phase, publisher: bridge_pb2.Publisher.ValueType, output_age_ms: int, now: Phase
) -> None:
    report = bridge_pb2.BridgeReport(publisher=publisher, output_age_ms=output_age_ms)
    assert phase_seen(was, "", report) == (now, "")


@pytest.mark.parametrize(
    ("was", "health", "now"),
    [
        ((Phase.LIVE, ""), "degraded_input", (Phase.DEGRADED, "input")),
        ((Phase.LIVE, ""), "degraded_inference", (Phase.DEGRADED, "inference")),
        ((Phase.LIVE, ""), "error", (Phase.DEGRADED, "inference")),
        ((Phase.DEGRADED, "input"), "degraded_inference", (Phase.DEGRADED, "inference")),
        ((Phase.DEGRADED, "inference"), "online", (Phase.LIVE, "")),
        ((Phase.DEGRADED, "inference"), "", (Phase.LIVE, "")),
        ((Phase.LIVE, ""), "idle", (Phase.LIVE, "")),
        # while it mends something or prepares something, nothing new is known
        ((Phase.LIVE, ""), "loading", (Phase.LIVE, "")),
        ((Phase.DEGRADED, "inference"), "loading", (Phase.DEGRADED, "inference")),
        # it has not begun yet, or the publisher is away
        ((Phase.STARTING, ""), "degraded_input", (Phase.LIVE, "")),
        ((Phase.PAUSED, ""), "degraded_input", (Phase.LIVE, "")),
        ((Phase.MIGRATING, ""), "error", (Phase.MIGRATING, "")),
    ],
)
def test_a_degraded_session_says_whose_fault_it_is(
    was: tuple[Phase, str], health: str, now: tuple[Phase, str]
) -> None:
    report = bridge_pb2.BridgeReport(publisher=SENDING, output_age_ms=40, health=health)
    assert phase_seen(*was, report) == now


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errors.PaymentRequiredError("no"), "credit_exhausted"),
        (errors.ExhaustedError("no"), "no_capacity"),
        (errors.ConflictError("no", reason="STREAM_BUSY"), "stream_busy"),
        (errors.ConflictError("no", reason="SESSION_ENDED"), "start_failed"),
        (errors.InvalidError("no"), "input_unusable"),
        (errors.UnavailableError("no"), "start_failed"),
        (errors.DeadlineExceededError("no"), "start_failed"),
        (errors.NotFoundError("no"), "start_failed"),
    ],
    ids=lambda value: getattr(value, "reason", value),
)
def test_a_failed_start_has_the_reason_of_what_stood_in_its_way(
    error: errors.SluiceError, reason: str
) -> None:
    assert failure(error) == reason


def session(phase: Phase) -> Session:
    return Session(
        id=SessionId("ses_aaaaaaaa"),
        stream=StreamId("str_aaaaaaaa"),
        tenant="acme",
        pipeline="effects",
        owner="replica",
        bridge="ingest:7000",
        created_unix_ms=0,
        phase=phase,
    )


def test_nothing_is_made_for_a_session_that_has_ended() -> None:
    assert alive(session(Phase.LIVE)).phase is Phase.LIVE
    with pytest.raises(errors.ConflictError) as refusal:
        alive(session(Phase.ENDED))
    assert refusal.value.reason == "SESSION_ENDED"
