"""Checks of what an instance remembers: the same again, not another's, and in a snapshot what is its own."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from sluice.authoring.rehearsal import Rehearsal
from sluice.conformance.subject import FailedError, NotApplicableError, Subject
from sluice.pipeline import ParamError, Pipeline

LARGEST_SNAPSHOT: Final = 1 << 20
OTHER_SEED: Final = 2
FAR_FRAME: Final = 500  # of the film, for a stream that is to show something else
BATCHED: Final = 2  # levels of 255: what rounding makes of another size of batch


def determinism(subject: Subject) -> str:
    """Two fresh instances, one after the other, at two seeds if there is one."""
    note = "two instances make the same pictures"
    seeds: list[dict[str, int]] = [{}]
    if "seed" in subject.pipeline.params and subject.valid({**subject.base, "seed": OTHER_SEED}):
        seeds.append({"seed": OTHER_SEED})
    first = []
    for seed in seeds:
        with subject.load(**seed) as one:
            these = subject.pictures(one)
        with subject.load(**seed) as other:
            those = subject.pictures(other)
        if difference := subject.first_difference(these, those):
            at = f" with seed {OTHER_SEED}" if seed else ""
            raise FailedError(f"two instances{at}, the same pictures and parameters: {difference}")
        first.append(these)
    if len(seeds) > 1:
        differs = subject.first_difference(first[0], first[1]) is not None
        note += f"; another seed makes {'others' if differs else 'the same ones'}"
    return note


def apart(subject: Subject) -> str:
    """Two streams by turns, with other values, against one of them alone; at once, where there may be two."""
    with subject.load() as alone:
        wanted = subject.pictures(alone)
    made = []
    with subject.load() as one, _another(subject) as other:
        for number, frame in enumerate(subject.film.frames(subject.plan.frames)):
            made.append(one.show(frame))
            other.show(subject.film.frame(number + FAR_FRAME))
    if difference := subject.first_difference(wanted, made):
        raise FailedError(f"another stream's instance beside it changes its pictures: {difference}")
    if subject.pipeline.slots_per_engine == 1:
        return "a second stream by turns changes nothing"
    with _busy(subject), subject.load() as one:
        made = subject.pictures(one)
    if difference := subject.first_difference(wanted, made, BATCHED):
        raise FailedError(f"another stream at the same time changes its pictures: {difference}")
    return "a second stream changes nothing, neither by turns nor at the same time"


@contextmanager
def _busy(subject: Subject) -> Iterator[None]:
    """Another stream beside the block, in a thread of its own; what it raises is raised at the end."""
    over, ready = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def stream() -> None:
        try:
            with _another(subject) as other:
                number = FAR_FRAME
                while not over.is_set():
                    other.show(subject.film.frame(number))
                    number += 1
                    ready.set()
        except BaseException as error:  # noqa: BLE001 - it is raised again, where it is waited for
            raised.append(error)
            ready.set()

    thread = threading.Thread(target=stream, name="another-stream", daemon=True)
    thread.start()
    ready.wait(subject.plan.patience_s)
    try:
        yield
    finally:
        over.set()
        thread.join(subject.plan.patience_s)
    if raised:
        raise raised[0]


def _another(subject: Subject) -> Rehearsal:
    """An instance with another value of the first parameter that has one which this machine can have."""
    for name in subject.pipeline.params:
        for value in subject.others(name):
            with suppress(ParamError):
                return subject.load(**{name: value})
    return subject.load()


def snapshots(subject: Subject) -> str:
    if subject.pipeline.snapshot is Pipeline.snapshot:
        raise NotApplicableError("it has no snapshot: after a failure a stream begins anew")
    half = subject.plan.frames
    with subject.load() as original:
        subject.pictures(original, half)
        began_s = time.perf_counter()
        snapshot = original.instance.snapshot()
        took_ms = (time.perf_counter() - began_s) * 1000
        if snapshot is None:
            raise NotApplicableError(f"after {half} pictures it has nothing to remember")
        if not isinstance(snapshot, bytes):
            raise FailedError(f"snapshot returned {type(snapshot).__name__}, not bytes")
        if len(snapshot) > LARGEST_SNAPSHOT:
            raise FailedError(f"a snapshot has {len(snapshot)} bytes, of at most {LARGEST_SNAPSHOT}")
        wanted = subject.pictures(original, start=half)
    with subject.load() as restored:
        restored.instance.restore(snapshot)
        made = subject.pictures(restored, start=half)
    if difference := subject.first_difference(wanted, made):
        raise FailedError(f"a restored instance goes on otherwise than the original: {difference}")
    for garbage in (b"", b"\0", os.urandom(100), snapshot[: len(snapshot) // 2]):
        with subject.load() as other:
            try:
                other.instance.restore(garbage)
            except ValueError:
                continue
            except Exception as error:
                raise FailedError(
                    f"restore raises {type(error).__name__} for what is no snapshot; a ValueError is expected"
                ) from error
            other.show(subject.film.frame(0))
    return f"{len(snapshot)} bytes in {took_ms:.1f} ms, and a restored instance goes on as the original"
