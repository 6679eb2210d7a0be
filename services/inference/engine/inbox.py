"""What stands before a pipeline: decoded pictures, and the sound between them, given out by their times.

The rule it keeps: sound goes before the picture that is not earlier. In live delivery no picture waits for
sound, and the newest wins, save that who keeps up and is late once is given one more; in complete delivery
each waits for the other, while there is room, for a while.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final, Generic, TypeVar

P = TypeVar("P")
S = TypeVar("S")

PICTURES: Final = 4  # in complete delivery
PICTURES_OF_LATE: Final = 2  # live: a busy machine that wakes a thread late costs no picture
PICTURES_TO_TELL: Final = 4  # in a row that were there already: who gets does not keep up
PICTURES_WITH_SOUND: Final = 8  # some publishers send sound in lumps of a fifth of a second
SOUNDS: Final = 100  # two seconds of 20 ms: a pipeline that is busy for longer leaves a gap
ALONE_AFTER_S: Final = 0.25  # live: sound does not wait longer for a picture that may not come
COMPLETE_AFTER_S: Final = 1.0  # complete: nor do sound and pictures for each other; a stream may have none


class Inbox(Generic[P, S]):
    """One thread puts pictures, one sounds, one gets. `finish`: nothing more comes. `abort`: nobody cares."""

    def __init__(self, *, live: bool, sound: bool) -> None:
        """`sound`: whether there may be any."""
        self.dropped = 0  # pictures that a newer one replaced
        self.dropped_sounds = 0
        self._live = live
        self._capacity = PICTURES_WITH_SOUND if sound else PICTURES
        self._alone_after_s = ALONE_AFTER_S if live else COMPLETE_AFTER_S
        self._changed = threading.Condition()
        self._pictures: deque[tuple[int, P, float]] = deque()  # with when each was put
        self._sounds: deque[tuple[int, S, float]] = deque()
        self._unwaited = PICTURES_TO_TELL  # pictures in a row that who gets did not have to wait for
        self._undecoded = 0  # packets of sound
        self._seen_pts: int | None = None  # of the newest picture put
        self._heard_pts: int | None = None  # of the newest sound put
        self._no_more_pictures = False
        self._no_more_sound = not sound
        self._aborted = False

    def __len__(self) -> int:
        return len(self._pictures) + len(self._sounds)

    def put_picture(self, pts: int, picture: P) -> None:
        with self._changed:
            while self._live and len(self._pictures) >= self._live_capacity:
                self._pictures.popleft()
                self.dropped += 1
            while len(self._pictures) >= self._capacity and not self._aborted:
                self._changed.wait()
            if not self._aborted:
                self._pictures.append((pts, picture, time.monotonic()))
                self._seen_pts = pts
                self._changed.notify_all()

    def announce_sound(self) -> None:
        """A packet of sound goes to its decoder; until `sound_decoded` no lack of room hurries a picture."""
        with self._changed:
            self._undecoded += 1

    def sound_decoded(self) -> None:
        with self._changed:
            self._undecoded -= 1
            self._changed.notify_all()

    def put_sound(self, pts: int, sound: S) -> None:
        with self._changed:
            if self._live and len(self._sounds) >= SOUNDS:
                self._sounds.popleft()
                self.dropped_sounds += 1
            while len(self._sounds) >= SOUNDS and not self._aborted:
                self._changed.wait()
            if not self._aborted:
                self._sounds.append((pts, sound, time.monotonic()))
                self._heard_pts = pts
                self._changed.notify_all()

    def get(self) -> tuple[int, P | S] | None:
        """The time and the item that is next; None at the end."""
        waited = False
        with self._changed:
            while True:
                now_s = time.monotonic()
                if self._sound_is_next(now_s):
                    pts, sound, _ = self._sounds.popleft()
                    self._changed.notify_all()
                    return pts, sound
                if self._picture_is_next(now_s):
                    pts, picture, _ = self._pictures.popleft()
                    self._unwaited = 0 if waited else self._unwaited + 1
                    self._changed.notify_all()
                    return pts, picture
                if self._no_more_pictures and self._no_more_sound:
                    return None
                waiting = self._sounds or self._pictures  # of which there is one kind at most
                self._changed.wait(waiting[0][2] + self._alone_after_s - now_s if waiting else None)
                waited = True

    @property
    def _live_capacity(self) -> int:
        """How many pictures may wait: of who does not keep up only the newest."""
        return PICTURES_OF_LATE if self._unwaited < PICTURES_TO_TELL else 1

    def finish_pictures(self) -> None:
        with self._changed:
            self._no_more_pictures = True
            self._changed.notify_all()

    def finish_sound(self) -> None:
        with self._changed:
            self._no_more_sound = True
            self._changed.notify_all()

    def abort(self) -> None:
        with self._changed:
            self._pictures.clear()
            self._sounds.clear()
            self._no_more_pictures = self._no_more_sound = self._aborted = True
            self._changed.notify_all()

    def _sound_is_next(self, now_s: float) -> bool:
        if not self._sounds:
            return False
        pts, _, put_s = self._sounds[0]
        if self._pictures:
            return pts <= self._pictures[0][0]
        if self._seen_pts is not None and pts <= self._seen_pts:
            return True
        waited = now_s - put_s >= self._alone_after_s
        return waited or self._no_more_pictures or len(self._sounds) >= SOUNDS

    def _picture_is_next(self, now_s: float) -> bool:
        """Whether the earliest picture is; sound that is not later has gone before it."""
        if not self._pictures:
            return False
        if self._live or self._sounds:
            return True
        pts, _, put_s = self._pictures[0]
        if self._heard_pts is not None and pts <= self._heard_pts:
            return True
        if self._no_more_sound or now_s - put_s >= self._alone_after_s:
            return True
        return not self._undecoded and len(self._pictures) >= self._capacity
