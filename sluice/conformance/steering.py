"""Checks of parameters: every value that the schema accepts works, and takes effect as it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from sluice.authoring.mistakes import sentence_of
from sluice.authoring.rehearsal import Rehearsal
from sluice.conformance.subject import (
    FailedError,
    NotApplicableError,
    Subject,
    mean_difference,
)
from sluice.conformance.values import edges, shown
from sluice.pipeline import Apply, ParamError

SETTLED: Final = 1.0  # levels of 255, on average: what rounding leaves of a slow change
AGREED: Final = 3  # pictures in a row that are the same: it has settled
NEARER: Final = 0.25  # of the change's whole effect may be left when the time for settling is over
SHOWN_FAILURES: Final = 5
VALUES_TRIED: Final = 3  # of a parameter, until one shows something


def values(subject: Subject) -> str:
    tried: list[tuple[str, Any]] = [
        (name, value)
        for name in subject.pipeline.params
        for value in edges(subject.accepts(name), subject.base[name])
        if subject.valid({**subject.base, name: value})
    ]
    if not tried:
        raise NotApplicableError("it has no parameters")
    refused = 0
    count = 0
    failures: list[str] = []
    rehearsal: Rehearsal | None = None
    for name, value in subject.patiently(tried):
        count += 1
        try:
            rehearsal = rehearsal or subject.load()
            changed = {**subject.base, name: value}
            if subject.shows(rehearsal, changed, subject.film.frame(count)) is None:
                refused += 1
            else:
                rehearsal.show(subject.film.frame(count + 1))
                rehearsal.change(subject.base)
        except Exception as error:  # noqa: BLE001 - the author's, with which value is what is to be told
            failures.append(f"{name}={shown(value)}: {sentence_of(error)}")
            rehearsal = None
            if len(failures) == SHOWN_FAILURES:
                break
    if rehearsal is not None:
        rehearsal.close()
    if failures:
        raise FailedError("\n".join(failures))
    note = f"{count} values, at limits, of choices and awkward ones"
    return f"{note}; {refused} of them refused by a ParamError" if refused else note


def changes(subject: Subject) -> str:
    live = list(subject.chance(frozenset({Apply.LIVE})))
    every = list(subject.chance(frozenset(Apply)))[: max(2, subject.plan.chances // 8)]
    if not every:
        raise NotApplicableError("it has no parameters")
    count = 0
    with subject.load() as rehearsal:
        for params in subject.patiently([*live, *every]):
            try:
                subject.shows(rehearsal, params, subject.film.frame(count))
            except Exception as error:
                before, now = rehearsal.params, params
                said = ", ".join(
                    f"{name}={shown(now[name])}" for name in now if now[name] != subject.base[name]
                )
                steps = "" if before is now else " (after other values)"
                raise FailedError(f"with {said}{steps}: {sentence_of(error)}") from error
            count += 1
    return f"{count} sets of values made by chance, a picture each"


def taking_effect(subject: Subject) -> str:
    """Change one parameter in mid-stream, beside an instance that had the value from the start."""
    names = [
        name
        for name, param in subject.pipeline.params.items()
        # Noise that is drawn anew at a new seed is other noise than that of an instance that began with it.
        if param.apply is not Apply.RELOAD and name != "seed" and subject.others(name)
    ]
    if not names:
        raise NotApplicableError("it has no live or warm parameter with a second value")
    done, unseen = 0, []
    for name in subject.patiently(names):
        done += 1
        several = subject.others(name)[:VALUES_TRIED]
        if not any(_takes_effect(subject, name, {**subject.base, name: value}) for value in several):
            unseen.append(name)
    note = f"{done} live and warm parameters, each as if it had been so from the start"
    return f"{note}; nothing was to be seen of {', '.join(unseen)}" if unseen else note


def _takes_effect(subject: Subject, name: str, params: Mapping[str, Any]) -> bool:
    """Whether there was anything to see. Raises FailedError if it was not the value that was asked for."""
    try:
        return _compared(subject, name, params)
    except ParamError:
        return False  # this machine cannot have that value, which the pipeline may say


def _compared(subject: Subject, name: str, params: Mapping[str, Any]) -> bool:
    warm = subject.pipeline.params[name].apply is Apply.WARM
    half = max(1, subject.plan.frames // 2)
    with subject.load() as changed, subject.load() as unchanged, subject.load(**params) as fresh:
        for frame in subject.film.frames(half):
            for one in (changed, unchanged, fresh):
                one.show(frame)
        if warm:
            prepared = changed.prepared(params)
            for frame in subject.film.frames(2, half):
                difference = subject.first_difference([changed.show(frame)], [unchanged.show(frame)])
                fresh.show(frame)
                if difference:
                    raise FailedError(
                        f"preparing for another {name} is to be seen before `adopt`: {difference}"
                    )
            changed.instance.adopt(prepared)
            changed.params = dict(params)
        else:
            changed.change(params)
        agreed = 0
        left = effect = 0.0
        seen = False
        for frame in subject.film.frames(subject.plan.settle_frames, half + 2):
            now, was, wanted = changed.show(frame), unchanged.show(frame), fresh.show(frame)
            left, effect = mean_difference(now, wanted), mean_difference(was, wanted)
            seen = seen or effect > 0
            agreed = agreed + 1 if left == 0 else 0
            if agreed >= AGREED:
                return seen
    if left > max(SETTLED, NEARER * effect):
        raise FailedError(
            f"{name}={shown(params[name])}, set in mid-stream, shows other pictures than from the start:"
            f" {left:.1f} of 255 apart after {subject.plan.settle_frames} pictures, where the change makes"
            f" {effect:.1f}; is it read in `load`?"
        )
    return seen
