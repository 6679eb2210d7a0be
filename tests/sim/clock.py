"""Time that passes only when nothing is left to do, and processes on it that can freeze and die.

The rules it keeps: what runs next depends on the seed alone, never on an address, a hash or this machine's
clock; a frozen process runs nothing until it wakes, and then everything in its order; what a dead one still
does, it does to itself.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")

EPOCH_UNIX_S: Final = 1_800_000_000
BOOTED_S: Final = 1_000.0  # `time.monotonic` is not zero at the start, so that 0 means nothing
STEPS_WITHOUT_TIME: Final = 50_000  # more than any real burst: something spins
LAST_STEPS: Final = 1_000
REAP_EVERY_S: Final = 0.05
REAP_TIMES: Final = 400

PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
_real = (time.monotonic, time.time, time.time_ns)


class SpinningError(AssertionError):
    """So much was done in no time that it will never end."""


class Process:
    """What dies and freezes as one: every task, timer and callback that was begun within it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.frozen = False
        self.skew_s = 0.0  # of its wall clock
        self.died: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.tasks: dict[Task[Any], None] = {}
        self.parked: deque[asyncio.Handle] = deque()

    def start(self, work: Coroutine[Any, Any, T], name: str = "") -> Task[T]:
        """Run `work` as a part of it."""
        loop = asyncio.get_running_loop()
        context = copy_context()
        context.run(PROCESS.set, self)
        task = loop.create_task(work, name=name or self.name, context=context)
        assert isinstance(task, Task)
        return task

    def call(self, callback: Callable[..., object], *args: object, after_s: float = 0.0) -> None:
        """Call back within it, as soon as it can: not while it is frozen, never when it is dead."""
        context = copy_context()
        context.run(PROCESS.set, self)
        asyncio.get_running_loop().call_later(after_s, self._unless_dead, callback, args, context=context)

    def _unless_dead(self, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        if not self.dead:
            callback(*args)

    def freeze(self) -> None:
        self.frozen = True

    def wake(self) -> None:
        """Go on where it stood; what came due meanwhile runs now."""
        self.frozen = False
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.put(self.parked)
        self.parked.clear()

    def kill(self) -> None:
        """End it between two steps. Its tasks are taken apart by the world, mute, and nothing hears of it."""
        self.dead = True
        self.wake()
        if not self.died.done():
            self.died.set_result(None)
        for task in tuple(self.tasks):
            task.cancel()

    async def buried(self) -> None:
        """Wait until nothing of a dead process is left."""
        for _ in range(REAP_TIMES):
            if not self.tasks:
                return
            await asyncio.sleep(REAP_EVERY_S)
            for task in tuple(self.tasks):
                task.cancel()
        raise SpinningError(f"{self.name} does not end: {[task.get_name() for task in self.tasks]}")


class Task(asyncio.Task[T]):
    """A task that hashes by its number: they are kept in sets, and cancelled in that order."""

    number: int

    def __hash__(self) -> int:
        return self.number


class Future(asyncio.Future[T]):
    """A future that hashes by its number: those who wait are kept in sets, and woken in that order."""

    number: int

    def __hash__(self) -> int:
        return self.number


class VirtualLoop(asyncio.BaseEventLoop):
    """An event loop without I/O. When nothing is ready, it is the time of the next timer."""

    def __init__(self) -> None:
        super().__init__()
        self._now_s = 0.0
        self._numbers = itertools.count()
        self._spins = 0
        self._busy: Counter[str] = Counter()
        self.steps = 0
        self.tasks: dict[Task[Any], None] = {}
        self.after_step: Callable[[], None] | None = None
        self._ready: deque[asyncio.Handle]
        self._scheduled: list[asyncio.TimerHandle]
        self.set_task_factory(self._task)  # type: ignore[arg-type]

    def _task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, T],
        *,
        context: Context | None = None,
    ) -> Task[T]:
        task: Task[T] = Task.__new__(Task)
        task.number = next(self._numbers)  # before asyncio puts it into a set
        task.__init__(work, loop=loop, context=context)  # type: ignore[misc]
        self.tasks[task] = None
        task.add_done_callback(lambda done: self.tasks.pop(done, None))
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.tasks[task] = None
            task.add_done_callback(lambda done: process.tasks.pop(done, None))
            if process.dead:
                task.cancel()
        return task

    def create_future(self) -> Future[Any]:
        future: Future[Any] = Future(loop=self)
        future.number = next(self._numbers)
        return future

    def time(self) -> float:
        return self._now_s

    async def end(self) -> None:
        """Cancel whatever is left but the caller, until it is over."""
        caller = asyncio.current_task()
        for _ in range(REAP_TIMES):
            left = [task for task in self.tasks if task is not caller]
            if not left:
                return
            for task in left:
                task.cancel()
            await asyncio.sleep(REAP_EVERY_S)
        raise SpinningError(f"these do not end: {[task.get_name() for task in self.tasks]}")

    def put(self, handles: deque[asyncio.Handle]) -> None:
        self._ready.extend(handles)

    def _run_once(self) -> None:
        timers, ready = self._scheduled, self._ready
        while timers and timers[0]._cancelled:
            self._drop_timer()
        if not ready:
            if not timers:
                raise SpinningError("nothing is left that could ever happen")
            self._now_s = max(self._now_s, timers[0].when())
            self._spins = 0
        while timers and timers[0].when() <= self._now_s:
            ready.append(self._drop_timer())
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.frozen:
                process.parked.append(handle)
                continue
            if self._spins > STEPS_WITHOUT_TIME - LAST_STEPS:
                self._busy[_whose(handle)] += 1
            handle._run()
            self.steps += 1
            self._spins += 1
        if self._spins > STEPS_WITHOUT_TIME:
            raise SpinningError(f"time stands still for {self._busy.most_common(5)}")
        if self.after_step is not None:
            self.after_step()

    def _drop_timer(self) -> asyncio.TimerHandle:
        handle = heapq.heappop(self._scheduled)
        handle._scheduled = False  # type: ignore[attr-defined]
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Cancelled timers are dropped when they come due."""

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def _write_to_self(self) -> None:
        """There is nobody in another thread to wake."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Executor | None, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        """Do it here and now; the disk of a dead process takes nothing any more."""
        done: asyncio.Future[T] = self.create_future()
        process = PROCESS.get()
        if process is not None and process.dead:
            done.cancel()
            return done
        try:
            result = func(*args)
        except Exception as error:  # noqa: BLE001 - it is the awaiter's
            done.set_exception(error)
        else:
            done.set_result(result)
        return done


def _whose(handle: asyncio.Handle) -> str:
    """For people: the process and the task of a step."""
    process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
    owner = getattr(handle._callback, "__self__", None)  # type: ignore[attr-defined]
    task = owner.get_name() if isinstance(owner, asyncio.Task) else repr(handle)
    return f"{process.name if process else 'world'}: {task}"


def _virtual() -> VirtualLoop | None:
    loop = asyncio._get_running_loop()
    return loop if isinstance(loop, VirtualLoop) else None


def monotonic() -> float:
    loop = _virtual()
    return _real[0]() if loop is None else BOOTED_S + loop.time()


def wall_s() -> float:
    loop = _virtual()
    if loop is None:
        return _real[1]()
    process = PROCESS.get()
    return EPOCH_UNIX_S + loop.time() + (process.skew_s if process else 0.0)


def wall_ns() -> int:
    return _real[2]() if _virtual() is None else round(wall_s() * 1_000_000) * 1_000


def take_over() -> None:
    """Make every clock of this interpreter the virtual loop's while one runs.

    To be called before production code is imported: some of it keeps `time.monotonic` as a default.
    """
    time.monotonic, time.time, time.time_ns = monotonic, wall_s, wall_ns
