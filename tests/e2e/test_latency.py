"""Where a picture's time goes, as a user sees it: the command, the API and the metrics agree."""

from __future__ import annotations

import json
import re
import threading

import httpx

from tests.support import publisher
from tests.support.stack import METRICS, Stack, until

STAGES = ("ingest", "trickle_in", "decode", "queue", "infer", "encode", "trickle_out", "play")


def metrics_page(stack: Stack, service: str, accept: str = "text/plain") -> str:
    port = stack.ports["METRICS"] + METRICS[service]
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept}, timeout=5)
    return answer.raise_for_status().text


def watch(url: str) -> threading.Thread:
    def work() -> None:
        with httpx.stream("GET", url, timeout=60) as answer:
            for _ in answer.iter_raw():
                pass

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_every_stage_of_a_session_is_seen_while_it_runs_and_after(stack: Stack) -> None:
    stream = stack.stream("sketch")
    publishing = publisher.start(stream["publish_url"], seconds=6)
    watching = watch(stream["play_url"])
    session = stack.live_session(stream["id"])

    def known() -> bool:
        answer = stack.http.get(f"/v1/sessions/{session}/latency")
        return answer.status_code == 200 and answer.json()["pictures"] >= 50

    until(known, 10, "the runner has said where the time went")
    running = stack.request("GET", f"/v1/sessions/{session}/latency")
    assert running["live"]
    assert [item["stage"] for item in running["stages"]] == [*STAGES, "total"]
    *stages, total = running["stages"]
    assert all(0 <= item["p50_ms"] <= item["p95_ms"] for item in stages)
    assert all(item["p50_ms"] > 0 for item in stages if item["stage"] != "queue")
    # Medians do not add up, but stages that were forgotten or counted twice would show.
    assert 0.6 < sum(item["p50_ms"] for item in stages) / total["p50_ms"] < 1.4
    publishing.communicate(timeout=60)
    watching.join(20)
    stack.ended(session)
    after = stack.request("GET", f"/v1/sessions/{session}/latency")
    assert not after["live"]
    assert after["pictures"] > running["pictures"]
    shown = stack.command("latency", session)
    assert shown.returncode == 0, shown.stderr
    rows = {line.split()[0]: line for line in shown.stdout.splitlines() if line.split()}
    assert set(STAGES) < set(rows)
    assert "█" in rows["infer"]
    assert json.loads(stack.command("latency", session, "--json").stdout) == after
    assert stack.command("latency", "ses_unknown").returncode == 2


def test_exemplars_lead_from_a_slow_stage_to_the_sessions_trace(stack: Stack) -> None:
    stream = stack.stream("neon")
    publisher.start(stream["publish_url"], seconds=3).communicate(timeout=60)
    session = stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"]
    stack.ended(session)
    page = metrics_page(stack, "ingest", "application/openmetrics-text")
    for metric in ("sluice_stage_seconds", "sluice_frame_age_seconds", "sluice_session_first_frame_seconds"):
        lines = [line for line in page.splitlines() if line.startswith(f"{metric}_bucket")]
        assert any(re.search(r'# \{trace_id="[0-9a-f]{32}"\}', line) for line in lines), metric
    stages = set(re.findall(r'sluice_stage_seconds_count\{stage="(\w+)"\}', page))
    assert stages == set(STAGES)


def test_series_name_nobody_and_do_not_grow_with_use(stack: Stack) -> None:
    known: dict[str, set[str]] = {}
    for _ in range(3):
        stream = stack.stream("watercolor")
        publisher.start(stream["publish_url"], seconds=2).communicate(timeout=60)
        session = stack.request("GET", f"/v1/streams/{stream['id']}")["last_session"]
        stack.ended(session)
        pages = {service: metrics_page(stack, service) for service in METRICS}
        for service, page in pages.items():
            series = {line.rpartition(" ")[0] for line in page.splitlines() if not line.startswith("#")}
            values = {value for one in series for value in re.findall(r'="([^"]*)"', one)}
            assert not values & {session, stream["id"], stream["stream_key"], "cpu-0"}, service
            assert not re.search(r"\b(ses|str|stk|pbk|sk)_[a-z0-9]{6}", page), service
            # Something may happen for the first time, a drop of its kind say; a session's own series would
            # be two at least for each of ten histograms' buckets.
            assert len(series - known.get(service, series)) < 10, service
            known[service] = series | known.get(service, set())
