"""The checks in their order, and `check`, which makes them all. A failure stops none of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.common.errors import InvalidError
from sluice.authoring.mistakes import ContractError, trace_of
from sluice.conformance import declared, lasting, pictures, remembering, steering
from sluice.conformance.report import Finding, Outcome, Report
from sluice.conformance.subject import FailedError, NotApplicableError, Plan, Subject
from sluice.pipeline import Pipeline, Setup


@dataclass(frozen=True, slots=True)
class Check:
    """One rule. `look` returns what it saw, or raises FailedError, NotApplicableError, or the author's."""

    name: str
    rule: str
    look: Callable[[Subject], str]


CHECKS: Final = (
    Check(
        "declaration",
        "the class can be made without arguments, and its defaults satisfy its schema",
        declared.declaration,
    ),
    Check("refusal", "what the declaration does not allow never reaches the pipeline", declared.refusal),
    Check("sizes", "a picture of any size gives pictures of one size, uint8 (H, W, 3)", pictures.sizes),
    Check("times", "a picture keeps its time", pictures.times),
    Check("input", "nobody writes into a picture that was given", pictures.input_untouched),
    Check("output", "a picture that was returned does not change any more", pictures.output_kept),
    Check(
        "values", "every value that the schema accepts works or is refused by a ParamError", steering.values
    ),
    Check("changes", "parameters may change between any two pictures", steering.changes),
    Check(
        "effect",
        "a changed parameter shows what it would have shown from the start; `prepare` shows nothing",
        steering.taking_effect,
    ),
    Check("determinism", "the same pictures and parameters give the same pictures", remembering.determinism),
    Check("apart", "streams do not disturb each other", remembering.apart),
    Check(
        "snapshot",
        "a restored instance goes on as the original; garbage is a ValueError",
        remembering.snapshots,
    ),
    Check("sound", "sound keeps its time and its number of samples", pictures.sounds),
    Check("closing", "close works at any time, and more than once", lasting.closing),
    Check("leaks", "memory does not grow with the number of frames", lasting.leaks),
    Check("speed", "how fast it is here", pictures.speed),
)


def check(
    pipeline: type[Pipeline],
    *,
    setup: Setup | None = None,
    params: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    only: Callable[[str], bool] = lambda name: True,
    told: Callable[[Finding], None] = lambda finding: None,
) -> Report:
    """Make the checks whose name `only` wants. `params` replace defaults; `told` gets each finding at once.

    Raises InvalidError for parameters that the pipeline does not have.
    """
    given = dict(params or {})
    if unknown := sorted(set(given) - set(pipeline.params)):
        has = ", ".join(pipeline.params) or "none"
        raise InvalidError(f"unknown parameter {unknown[0]!r}; {pipeline.name} has: {has}")
    subject = Subject(pipeline, setup or Setup.plain(), given, plan or Plan())
    findings = []
    for one in CHECKS:
        if only(one.name):
            findings.append(_finding(one, subject))
            told(findings[-1])
    return Report(pipeline.name, pipeline.version, tuple(findings))


def _finding(one: Check, subject: Subject) -> Finding:
    began_s = time.perf_counter()
    outcome, note = _outcome(one, subject)
    if cut := subject.cut():
        note = f"{note} ({cut})"
    return Finding(one.name, one.rule, outcome, note, round(time.perf_counter() - began_s, 3))


def _outcome(one: Check, subject: Subject) -> tuple[Outcome, str]:
    try:
        return Outcome.PASSED, one.look(subject)
    except NotApplicableError as reason:
        return Outcome.NOT_APPLICABLE, str(reason)
    except (FailedError, ContractError) as reason:
        return Outcome.FAILED, str(reason)
    except Exception as error:  # noqa: BLE001 - the author's, and what is to be told
        return Outcome.FAILED, trace_of(error)
