"""One platform for every scenario that needs something built into its own: proxies, clocks, disks, a replica.

The rule it keeps: what is built in does nothing by itself; a scenario that is not about it does not notice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.chaos import clock, disk_full, network, publisher
from tests.chaos.harness.proxy import proxies
from tests.chaos.harness.scene import FaultyStack, faulty_stack
from tests.support.disk import Cell, Disk, NotPermittedError, disks

GRACE_S: Final = 6


@dataclass(frozen=True, slots=True)
class Odd:
    """What is built into `stack`. `disks` is empty where the kernel lets nobody mount any: `refusal`."""

    stack: FaultyStack
    links: network.Links
    clocks: Mapping[str, Path]
    disks: Mapping[str, Disk]
    refusal: str = ""


@contextmanager
def odd_stack() -> Iterator[Odd]:
    links = network.Links()
    with ExitStack() as stack:
        made = stack.enter_context(proxies())
        clocks = clock.clocks_in(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        cell: Cell | None = None
        full: Mapping[str, Disk] = {}
        refusal = ""
        try:
            cell, full = stack.enter_context(disks(*disk_full.NAMES))
        except NotPermittedError as error:
            refusal = str(error)

        def told(ports: Mapping[str, int]) -> Mapping[str, Mapping[str, str]]:
            settings = {name: dict(words) for name, words in links.told(made, ports).items()}
            settings["ingest-1"] = {"trickle_url": f"http://127.0.0.1:{ports['TRICKLE'] + 1}"}
            settings["ingest"] |= disk_full.told(full) if full else {}
            return settings

        platform = stack.enter_context(
            faulty_stack(
                disk_full.prepared(full) if full else None,
                runners=network.RUNNERS,
                replicas=publisher.REPLICAS,
                clocks=clocks,
                told=told,
                within=cell.words if cell else (),
                **publisher.settings(GRACE_S),
                **disk_full.SETTINGS,
            )
        )
        yield Odd(platform, links, clocks, full, refusal)
