"""Ends tasks at the k-th of their awaits, for any k: so it is found what a cancelled task leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context
from types import TracebackType
from typing import Any

Chosen = Callable[[object], bool]  # of a coroutine that has not begun


def named(*names: str) -> Chosen:
    """Those that run one of these, by its qualified name."""
    return lambda work: name_of(work) in names


def asked_of(work: object) -> str:
    """The path that a coroutine of the trickle listener answers: it serves the runners too."""
    frame = getattr(work, "cr_frame", None)
    if name_of(work) != "Connection._serve" or frame is None:
        return ""
    return str(frame.f_locals["exchange"].head.path)


def name_of(work: object) -> str:
    """What a coroutine runs; a bulkhead's is named by what it contains."""
    name = str(getattr(work, "__qualname__", work))
    frame = getattr(work, "cr_frame", None)
    if name == "Bulkhead._contain" and frame is not None and "work" in frame.f_locals:
        return name_of(frame.f_locals["work"])
    return name


class _Watched(Coroutine[Any, Any, Any]):
    """A coroutine that tells its watcher of every await, after it has begun to wait."""

    def __init__(self, work: Coroutine[Any, Any, Any], awaited: Callable[[_Watched], None]) -> None:
        self._work = work
        self._awaited = awaited
        self.__qualname__ = name_of(work)
        self.task: asyncio.Task[Any] | None = None

    def send(self, value: Any) -> Any:
        found = self._work.send(value)
        self._awaited(self)
        return found

    def throw(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        found = self._work.throw(typ) if isinstance(typ, BaseException) else self._work.throw(typ, val, tb)
        self._awaited(self)
        return found

    def close(self) -> None:
        self._work.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._work.__await__())


class Steps:
    """Counts the awaits of the tasks that are watched; at `cancel_at` the task that waits is cancelled."""

    def __init__(self, cancel_at: int | None) -> None:
        self.count = 0
        self._cancel_at = cancel_at

    def awaited(self, watched: _Watched) -> None:
        self.count += 1
        if self.count == self._cancel_at:
            task = watched.task
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)


@contextmanager
def watching(chosen: Chosen, cancel_at: int | None = None) -> Iterator[Steps]:
    """Watch the tasks that begin in this block and are `chosen`."""
    loop = asyncio.get_running_loop()
    steps = Steps(cancel_at)

    def make(
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        *,
        context: Context | None = None,
    ) -> asyncio.Task[Any]:
        assert isinstance(work, Coroutine)
        if not chosen(work):
            return asyncio.Task(work, loop=loop, context=context)
        watched = _Watched(work, steps.awaited)
        task = asyncio.Task(watched, loop=loop, context=context)
        watched.task = task
        return task

    loop.set_task_factory(make)
    try:
        yield steps
    finally:
        loop.set_task_factory(None)
