"""Who does the evil: a few kinds of it in each world, drawn from the seed, one blow after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.world import World


class Nemesis:
    """`rage` for a while; what it began to do and did not end is ended by the world's calm."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._blows: dict[str, Callable[[], Awaitable[None]]] = {
            "kill": self._kill,
            "terminate": self._terminate,
            "freeze": self._freeze,
            "cut": self._cut,
            "cut_nats": self._cut_nats,
            "nats_dies": self._nats_dies,
            "nats_freezes": self._nats_freezes,
            "nats_forgets_answers": self._nats_forgets_answers,
            "calls_break": self._calls_break,
            "calls_slow": self._calls_slow,
            "watches_lag": self._watches_lag,
            "engine_hangs": self._engine_hangs,
            "engine_dies": self._engine_dies,
            "publisher_vanishes": self._publisher_vanishes,
            "publisher_silent": self._publisher_silent,
            "clock_jumps": self._clock_jumps,
            "rush": self._rush,
        }

    async def rage(self, for_s: float, only: tuple[str, ...] = ()) -> None:
        random = self._random
        drawn = sorted(kind for kind in self._blows if random.random() < 0.4) or ["kill"]
        kinds = sorted(only) or drawn
        mean_s = random.choice((1.0, 2.0, 4.0))
        self._world.note(f"--- evil: {', '.join(kinds)}, every {mean_s:g} s")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        blows: list[asyncio.Task[None]] = []
        while loop.time() < until_s:
            await asyncio.sleep(random.expovariate(1 / mean_s))
            if random.random() < 0.5:
                blows.append(asyncio.ensure_future(self._blows[random.choice(kinds)]()))
            else:
                blows.append(asyncio.ensure_future(self._somebody_acts()))
        for blow in blows:
            if blow.done():
                blow.result()
            blow.cancel()
        await asyncio.wait(blows)

    async def _somebody_acts(self) -> None:
        person = self._random.choice(self._world.people)
        act = self._random.choice((person.update, person.update, person.update, person.stop, person.move))
        await person.process.start(act(), "client")

    def _alive(self, *kinds: str) -> str | None:
        """Some process that is up and awake."""
        names = [
            name
            for name, process in sorted(self._world.processes.items())
            if not process.dead and not process.frozen and (not kinds or name.startswith(kinds))
        ]
        return self._random.choice(names) if names else None

    # --- blows

    async def _kill(self) -> None:
        name = self._alive()
        if name is not None:
            self._world.kill(name)
            await asyncio.sleep(self._random.choice((0.3, 2.0, 8.0)))
            self._restart(name)

    def _restart(self, name: str) -> None:
        if self._world.processes[name].dead:
            self._world.start(name)

    async def _terminate(self) -> None:
        name = self._alive()
        if name is not None:
            process = self._world.processes[name]
            self._world.terminate(name)
            await asyncio.shield(process.died)
            self._world.weather.sometimes(f"{name.rstrip('0123456789')} left in order")
            await asyncio.sleep(self._random.uniform(0.1, 1.0))
            self._restart(name)

    async def _freeze(self) -> None:
        name = self._alive()
        if name is not None:
            process = self._world.processes[name]
            self._world.note(f"{name} freezes")
            self._world.weather.sometimes(f"{name.rstrip('0123456789')} froze")
            process.freeze()
            await asyncio.sleep(self._random.choice((0.5, 2.0, 5.0, 15.0)))
            if process.frozen:
                self._world.note(f"{name} wakes")
                process.wake()

    async def _cut(self) -> None:
        names = sorted(self._world.processes)
        one, other = self._random.sample(names, 2)
        self._world.note(f"{one} and {other} are cut off from each other")
        self._world.weather.sometimes("a wire was cut")
        self._world.net.cut(one, other)
        await asyncio.sleep(self._random.choice((0.5, 3.0, 20.0)))
        self._world.net.heal(one, other)

    async def _cut_nats(self) -> None:
        name = self._alive()
        if name is not None:
            self._world.note(f"{name} is cut off from NATS")
            self._world.weather.sometimes(f"{name.rstrip('0123456789')} was cut off from NATS")
            self._world.broker.cut.add(name)
            await asyncio.sleep(self._random.choice((0.5, 2.0, 6.0, 25.0)))
            self._world.note(f"{name} reaches NATS again")
            self._world.broker.cut.discard(name)

    async def _nats_dies(self) -> None:
        broker = self._world.broker
        if broker.up and not broker.frozen:
            self._world.note("NATS is killed")
            self._world.weather.sometimes("NATS was killed")
            broker.die()
            await asyncio.sleep(self._random.choice((0.2, 1.0, 5.0, 12.0)))
            self._world.note("NATS is back")
            broker.restart()

    async def _nats_freezes(self) -> None:
        broker = self._world.broker
        if broker.up and not broker.frozen:
            self._world.note("NATS freezes")
            self._world.weather.sometimes("NATS froze")
            broker.freeze()
            await asyncio.sleep(self._random.choice((0.5, 2.0, 4.0, 8.0)))
            self._world.note("NATS wakes")
            broker.thaw()

    async def _nats_forgets_answers(self) -> None:
        weather = self._world.weather
        weather.lost_answers, weather.lost_requests = 0.15, 0.05
        await asyncio.sleep(self._random.uniform(2.0, 8.0))
        weather.lost_answers = weather.lost_requests = 0.0

    async def _calls_break(self) -> None:
        weather = self._world.weather
        weather.broken_calls = 0.2
        await asyncio.sleep(self._random.uniform(2.0, 8.0))
        weather.broken_calls = 0.0

    async def _calls_slow(self) -> None:
        weather = self._world.weather
        weather.slow_calls = 0.15
        await asyncio.sleep(self._random.uniform(2.0, 8.0))
        weather.slow_calls = 0.0

    async def _watches_lag(self) -> None:
        name = self._alive("router", "sm")
        if name is not None:
            self._world.weather.lag(name, self._random.choice((0.1, 1.0, 5.0)))
            await asyncio.sleep(self._random.uniform(2.0, 10.0))
            self._world.weather.lag(name, 0.0)

    async def _engine_hangs(self) -> None:
        name = self._alive("r")
        host = self._world.hosts.get(name) if name else None
        if host is not None:
            self._world.note(f"the engine of {name} hangs")
            self._world.weather.sometimes("an engine hung")
            host.hung = True
            await asyncio.sleep(self._random.choice((0.8, 2.0, 6.0)))
            host.hung = False

    async def _engine_dies(self) -> None:
        name = self._alive("r")
        host = self._world.hosts.get(name) if name else None
        if name is not None and host is not None and host.ready:
            self._world.note(f"the engine of {name} dies")
            self._world.weather.sometimes("an engine died")
            process = self._world.processes[name]
            process.start(host.die(self._random.choice((1.0, 3.0, 6.0))), "engine")

    async def _publisher_vanishes(self) -> None:
        person = self._random.choice(self._world.people)
        if person.camera is not None:
            self._world.note(f"the publisher of {person.stream} vanishes")
            person.camera.vanished = True

    async def _publisher_silent(self) -> None:
        person = self._random.choice(self._world.people)
        camera = person.camera
        if camera is not None:
            self._world.weather.sometimes("a publisher fell silent")
            camera.silent = True
            await asyncio.sleep(self._random.choice((1.0, 3.0, 10.0)))
            camera.silent = False

    async def _clock_jumps(self) -> None:
        name = self._alive()
        if name is not None:
            self._world.weather.sometimes("a wall clock jumped")
            self._world.processes[name].skew_s = self._random.choice((-300.0, 300.0))

    async def _rush(self) -> None:
        """Everybody's session ends at the same moment, and everybody comes back."""
        self._world.weather.sometimes("everybody came at once")
        for person in self._world.people:
            person.process.start(person.stop(), "client")
