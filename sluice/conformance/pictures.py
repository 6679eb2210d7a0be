"""Checks of single pictures and pieces of sound: what goes in stays as it is, what comes out is right."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from sluice.conformance.material import Film, sound
from sluice.conformance.subject import FailedError, NotApplicableError, Subject, size_of

SOUND_COUNTS: Final = (
    960,
    1024,
    120,
    1,
    4800,
)  # an Opus packet, an AAC frame, 2.5 ms, one, a tenth of a second
SPEED_FRAMES: Final = 100
SPEED_S: Final = 5.0


def sizes(subject: Subject) -> str:
    said = []
    for width, height in subject.patiently(subject.plan.sizes):
        film = Film(width, height, seed=subject.plan.seed)
        with subject.load() as rehearsal:
            made = [rehearsal.show(frame) for frame in film.frames(3)]
        came = {size_of(frame) for frame in made}
        if len(came) > 1:
            raise FailedError(
                f"pictures of {width}x{height} become {' and '.join(sorted(came))}: each new size is a new"
                " encoder and a key frame"
            )
        (one,) = came
        said.append(one if one == f"{width}x{height}" else f"{width}x{height} becomes {one}")
    with subject.load() as rehearsal:  # a publisher that turns a telephone
        for width, height in (*subject.plan.sizes[:2], subject.plan.sizes[0]):
            rehearsal.show(Film(width, height).frame(0))
    return ", ".join(said)


def times(subject: Subject) -> str:
    with subject.load() as rehearsal:
        pts = [frame.pts for frame in subject.pictures(rehearsal)]  # `show` compares each
        late = subject.film.frame(subject.plan.frames + 1000)
        rehearsal.show(late)  # after half a minute of nothing
    return f"{len(pts) + 1} pictures, one after a gap of half a minute"


def input_untouched(subject: Subject) -> str:
    with subject.load() as rehearsal:
        for frame in subject.film.frames(subject.plan.frames):
            before = frame.rgb.copy()
            rehearsal.show(frame)
            if not np.array_equal(before, frame.rgb):
                raise FailedError("process wrote into the picture that it was given; write into a copy")
    return f"{subject.plan.frames} pictures are as they were"


def output_kept(subject: Subject) -> str:
    kept = []
    with subject.load() as rehearsal:
        for frame in subject.film.frames(subject.plan.frames):
            made = rehearsal.show(frame)
            kept.append((made, made.rgb.copy()))
    for number, (made, before) in enumerate(kept):
        if not np.array_equal(before, made.rgb):
            raise FailedError(
                f"picture {number} changed after it was returned; it is encoded on another thread:"
                " return a new array each time"
            )
    return f"{len(kept)} returned pictures stay as they were"


def sounds(subject: Subject) -> str:
    if not subject.pipeline.processes_audio:
        raise NotApplicableError("processes_audio is False")
    loudest = 0.0
    with subject.load() as rehearsal:
        for count in subject.patiently(SOUND_COUNTS):
            for number in range(5):
                given = sound(number, count, amplitude=1.0 if number == 4 else 0.5)
                before = given.samples.copy()
                made = rehearsal.listen(given)
                if not np.array_equal(before, given.samples):
                    raise FailedError("process_audio wrote into the samples that it was given")
                if not np.isfinite(made.samples).all():
                    raise FailedError(f"process_audio returned what is no number, for {count} samples")
                loudest = max(loudest, float(np.abs(made.samples).max(initial=0.0)))
                rehearsal.show(subject.film.frame(number))
    note = f"as many samples as were given, in pieces of {', '.join(map(str, SOUND_COUNTS))}"
    return note if loudest <= 1.0 else f"{note}; up to {loudest:.2f} loud, and above 1 it is clipped"


def speed(subject: Subject) -> str:
    took = []
    began_s = time.perf_counter()
    with subject.load() as rehearsal:
        loaded_s = time.perf_counter() - began_s
        subject.pictures(rehearsal, 3)
        until_s = time.perf_counter() + min(SPEED_S, subject.plan.patience_s)
        for number in range(SPEED_FRAMES):
            frame = subject.film.frame(number)
            began_s = time.perf_counter()
            rehearsal.show(frame)
            took.append((time.perf_counter() - began_s) * 1000)
            if time.perf_counter() > until_s:
                break
    p50, p95 = np.percentile(took, [50, 95])
    width, height = subject.plan.work_size
    return (
        f"{1000 / max(float(np.mean(took)), 1e-6):.0f} fps at {width}x{height}:"
        f" p50 {p50:.1f} ms, p95 {p95:.1f} ms;"
        f" loaded in {loaded_s:.2f} s (reported, not judged)"
    )
