"""What the specification says of one channel, in plain Python: who gets which answer, and what is kept.

It knows nothing of sockets, tasks or time. The answers that requests are owed are returned, or collected in
`Model.settled` when a request is answered by what somebody else did.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.common.trickle.protocol import ChannelLimits

LATE = 2  # N may begin after N+1 has, not after N+2


@dataclass
class Expected:
    """An answer that is due. `headers`: those that must be there; `absent`: those that must not."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    body: bytes | None = b""  # None: whatever


@dataclass
class Piece:
    """One segment."""

    publisher: int
    data: bytes = b""
    ended: bool = False
    post: int | None = None

    @property
    def begun(self) -> bool:
        return self.ended or bool(self.data)


@dataclass
class Parked:
    """A GET that waits; its index was resolved when it came."""

    index: int
    head: int
    publisher: int


@dataclass
class Model:
    """One channel, from its creation to its end."""

    limits: ChannelLimits
    head: int = 0
    floor: int = 0
    publisher: int = 1
    origin: int = 0
    closed: bool = False
    pieces: dict[int, Piece] = field(default_factory=dict)
    parked: dict[int, Parked] = field(default_factory=dict)
    flowing: dict[int, Piece] = field(default_factory=dict)
    settled: dict[int, Expected] = field(default_factory=dict)
    posts: dict[int, int] = field(default_factory=dict)

    # --- writers

    def post(self, post: int, requested: int, *, reset: bool) -> Expected | None:
        """A POST begins. None: it has a segment now, and its answer is due later."""
        if self.closed:
            return Expected(404, {"connection": "close"}, body=b"Stream not found\n")
        index = requested
        if index == -1:
            index = self.head
            while index in self.pieces:
                index += 1
        anew = self._is_new_publisher(index)
        back = anew or (reset and index < self.head)
        gone = [each for each in self.pieces if each == index or (back and each > index)]
        left = [each for each, piece in self.pieces.items() if not piece.ended and each not in gone]
        counted = [each for each in left if each > index or not (anew or reset)]
        if len(counted) >= self.limits.writers:
            return Expected(503, {"connection": "close", "retry-after": "1"}, body=None)
        if anew or (reset and self.head > 0):
            self.publisher += 1
            self.origin = index
        if back:
            self.head = index
            self.floor = min(self.floor, max(index - LATE + 1, 0))
        self.floor = min(self.floor, index)
        self._forget(gone)
        self.pieces[index] = Piece(self.publisher, post=post)
        self.posts[post] = index
        if anew or reset:
            for each in sorted(left):
                if each < index and each in self.pieces:
                    self._break(each)
        return None

    def _is_new_publisher(self, index: int) -> bool:
        retried = index >= self.head - LATE
        piece = self.pieces.get(index)
        if piece is None:
            return index < self.floor and (index == 0 or not retried)
        if not piece.begun or (retried and piece.publisher != self.publisher):
            return False
        return index == 0 or (piece.ended and not retried)

    def write(self, post: int, data: bytes) -> Expected | None:
        """A piece of a POST's body comes; an answer only when it does not fit."""
        index = self.posts.get(post)
        if index is None:
            return None
        piece = self.pieces[index]
        if len(piece.data) + len(data) > self.limits.segment_bytes:
            del self.posts[post]
            piece.post = None
            self._break(index)
            return Expected(413, {"connection": "close"}, body=b"Segment too large\n")
        piece.data += data
        self.head = max(self.head, index + 1)
        while sum(len(each.data) for each in self.pieces.values()) > self.limits.channel_bytes:
            self._forget_through(min(self.pieces))
        return None

    def finish(self, post: int) -> Expected:
        """A POST's body is whole."""
        index = self.posts.pop(post)
        piece = self.pieces[index]
        piece.post = None
        self._finish(index)
        if piece.data:
            return Expected(200, {"lp-trickle-seq": str(index)}, ("connection", "lp-trickle-closed"))
        return Expected(200, {"lp-trickle-seq": str(index), "connection": "close"}, ("lp-trickle-closed",))

    def lose(self, post: int) -> None:
        """A POST's connection, or its framing, breaks."""
        index = self.posts.pop(post)
        self.pieces[index].post = None
        self._break(index)

    def delete_segment(self, index: int) -> Expected:
        if self.closed:
            return Expected(404, body=b"Stream not found\n")
        if index not in self.pieces:
            return Expected(400, body=b"Nonexistent segment\n")
        if not self.pieces[index].ended:
            self._finish(index)
        return Expected(200)

    def close(self) -> None:
        """Nothing begins any more: what has no byte yet never was."""
        self.closed = True
        for index, piece in list(self.pieces.items()):
            if not piece.begun:
                del self.pieces[index]
            self._end(piece)

    # --- readers

    def get(self, get: int, requested: int) -> None:
        """A GET comes; its answer is in `settled` by the next `turn`, or later."""
        index = {-1: self.head, -2: max(self.head - 1, 0)}.get(requested, requested)
        self.parked[get] = Parked(index, self.head, self.publisher)

    def turn(self, asked: dict[int, int]) -> None:
        """Whoever waits looks at what there is now. `asked`: the index in each GET's path."""
        for get, parked in list(self.parked.items()):
            answer = self._look(get, parked, asked[get])
            if answer is not None:
                del self.parked[get]
                self.settled[get] = answer
        for get, piece in list(self.flowing.items()):
            if piece.ended:
                del self.flowing[get]
                self.settled[get].body = piece.data

    def _look(self, get: int, parked: Parked, asked: int) -> Expected | None:
        index = parked.index
        if parked.publisher != self.publisher and index > self.origin:
            return self._missing(asked, self.origin, self._resume(self.origin - 1), self.origin)
        piece = self.pieces.get(index)
        if piece is not None and piece.begun:
            headers = {"lp-trickle-seq": str(index), "lp-trickle-generation": str(piece.publisher)}
            if not piece.data:
                latest = {"lp-trickle-latest": str(self.head)}
                return self._maybe_closed(Expected(200, headers | latest, ("content-type",)))
            if index != parked.head:
                headers["lp-trickle-latest"] = str(parked.head)
            absent = ("lp-trickle-closed", *(("lp-trickle-latest",) if index == parked.head else ()))
            self.flowing[get] = piece
            return Expected(200, headers | {"content-type": "video/MP2T"}, absent, None)
        if self.closed:
            if any(each > index and other.begun for each, other in self.pieces.items()):
                return self._missing(asked, self.head, self._resume(index), index)
            headers = {"lp-trickle-seq": str(index), "lp-trickle-latest": str(self.head)}
            return self._maybe_closed(Expected(200, headers))
        if piece is not None or (index == 1 and self.head == 0):
            return None
        if index >= self.floor and self.head - LATE <= index <= self.head:
            return None
        resume = self._resume(index)
        return self._missing(asked, self.head, resume, index if index <= self.head else resume)

    def _maybe_closed(self, answer: Expected) -> Expected:
        if self.closed:
            answer.headers["lp-trickle-closed"] = "terminated"
        else:
            answer.absent = (*answer.absent, "lp-trickle-closed")
        return answer

    def _missing(self, asked: int, latest: int, resume: int, expected: int) -> Expected:
        headers = {
            "lp-trickle-seq": str(asked),
            "lp-trickle-latest": str(latest),
            "lp-trickle-resume": str(resume),
            "lp-trickle-lost": str(max(resume - expected, 0)),
            "lp-trickle-generation": str(self.publisher),
        }
        return Expected(470, headers, body=b"Entry not found")

    def _resume(self, after: int) -> int:
        if after > self.head:
            after = self.origin - 1
        return min(
            (each for each, piece in self.pieces.items() if each > after and piece.begun), default=self.head
        )

    # --- what is kept

    def _finish(self, index: int) -> None:
        self.head = max(self.head, index + 1)
        self._end(self.pieces[index])
        ended = sorted(each for each, piece in self.pieces.items() if piece.ended)
        beyond = ended[: -self.limits.depth]
        if beyond:
            self._forget_through(beyond[-1])

    def _break(self, index: int) -> None:
        if self.pieces[index].data:
            self._finish(index)
        else:
            self._forget([index])

    def _forget_through(self, index: int) -> None:
        self.floor = index + 1
        self._forget([each for each in self.pieces if each <= index])

    def _forget(self, indices: list[int]) -> None:
        for each in indices:
            self._end(self.pieces.pop(each))

    def _end(self, piece: Piece) -> None:
        """A segment ends; a POST that still had it is told so at once."""
        piece.ended = True
        if piece.post is not None:
            index = self.posts.pop(piece.post)
            answer = Expected(200, {"lp-trickle-seq": str(index), "connection": "close"})
            self.settled[piece.post] = self._maybe_closed(answer)
            piece.post = None
