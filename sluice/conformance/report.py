"""What the checks found, for people, for tests and for programs. Pure."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any, Final


class Outcome(enum.StrEnum):
    """Of one check."""

    PASSED = "passed"
    FAILED = "failed"
    NOT_APPLICABLE = "not applicable"


MARKS: Final = {Outcome.PASSED: "ok  ", Outcome.FAILED: "FAIL", Outcome.NOT_APPLICABLE: "-   "}


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's result. `note` says what was seen, why it failed, or why it does not apply."""

    check: str
    rule: str
    outcome: Outcome
    note: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """All findings about one pipeline, in the order of the checks."""

    pipeline: str
    version: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; what does not apply is no failure."""
        return all(one.outcome is not Outcome.FAILED for one in self.findings)

    def __getitem__(self, check: str) -> Finding:
        """The finding of one check, by its name."""
        return next(one for one in self.findings if one.check == check)

    def __str__(self) -> str:
        lines = [f"{self.pipeline} {self.version}"]
        for one in self.findings:
            note = one.note.replace("\n", "\n" + " " * 7)
            lines.append(f"  {MARKS[one.outcome]} {one.check}: {note}")
            if one.outcome is Outcome.FAILED:
                lines.append(f"       the rule: {one.rule}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        return {
            "pipeline": self.pipeline,
            "version": self.version,
            "passed": self.passed,
            "findings": [asdict(one) for one in self.findings],
        }
