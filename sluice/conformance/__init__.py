"""Whether a pipeline keeps what the platform relies on: `sluice pipeline check`, or in a test `check(Mine)`.

def test_it_is_a_good_pipeline() -> None:
report = check(MyPipeline)
assert report.passed, str(report)
"""

from sluice.conformance.report import Finding, Outcome, Report
from sluice.conformance.subject import Plan
from sluice.conformance.suite import check

__all__ = ["Finding", "Outcome", "Plan", "Report", "check"]
