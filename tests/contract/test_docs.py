"""What the documents say is so."""

from __future__ import annotations

import re
from pathlib import Path

from services.session_manager.failover import SESSIONS_OWN
from services.session_manager.machine import Reason
from tests.support import metrics_table, settings_table

ROOT = Path(__file__).parents[2]
# Labels whose values are ours to choose, or that something bounds (pipelines that are offered, routes).
BOUNDED = frozenset(
    {
        *(
            "bucket",
            "codec",
            "direction",
            "gpu_class",
            "kind",
            "method",
            "outcome",
            "pipeline",
            "reason",
            "region",
        ),
        *("result", "role", "route", "stage", "state", "status", "where", "why"),
    }
)


def test_the_settings_page_is_what_the_classes_say() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_table.page(), "run `make docs`"


def test_the_metrics_page_is_what_the_services_count() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_table.page(), "run `make docs`"


def test_metrics_are_named_as_prometheus_wants_them_and_no_label_grows_with_use() -> None:
    for metric in metrics_table.metrics():
        assert re.fullmatch(r"sluice_[a-z_]+", metric.name), metric
        assert set(metric.labels) <= BOUNDED, metric
        if metric.kind == "histogram":
            assert metric.name.endswith("_seconds"), metric


def test_every_reason_of_an_end_is_explained() -> None:
    text = (ROOT / "docs" / "how-it-works.md").read_text()
    assert not [reason for reason in {*Reason, *SESSIONS_OWN} if f"`{reason}`" not in text]


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "charts").rglob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / target).exists(), (document.name, target)


def test_commands_of_make_in_the_readme_exist() -> None:
    verbs = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = set(re.findall(r"`make ([a-z-]+)`", (ROOT / "README.md").read_text()))
    assert said <= verbs
