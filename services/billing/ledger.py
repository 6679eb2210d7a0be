"""What is owed: metered time, prices, reservations, transactions that sum to zero. Pure: values in and out.

Money is an int of micro-units, time an int of milliseconds of session time. What a session costs is a
function of its cumulative time alone, so neither the order nor the number of its windows changes a total.
A session that went on at another meter is paid once: where epochs overlap, the time is the higher one's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NewType

from services.common.errors import ConflictError, PaymentRequiredError

TenantId = NewType("TenantId", str)
SessionId = NewType("SessionId", str)

# Bounds that keep every product of time and price within an int64, far beyond what a meter can mean.
SESSION_MAX_MS: Final = 366 * 86_400_000
WINDOW_MAX_MS: Final = 86_400_000
MICRO_PER_SECOND_MAX: Final = 10**9
CREDIT_MAX_MICRO: Final = 10**15

WINDOW_SLACK_MS: Final = 1_000  # a meter may round a frame's duration past the window's edge
LEAST_GRANT_MS: Final = 1_000  # a shorter extension would cost a call and buy nobody anything

WASH: Final = "wash"  # where payments come from
EARNINGS: Final = "earnings"
WRITE_OFF: Final = "write_off"  # usage that no credit covered
PREPAID_PREFIX: Final = "prepaid:"


def prepaid(tenant: TenantId) -> str:
    """The account of what `tenant` has paid and not used."""
    return PREPAID_PREFIX + tenant


class Unit(StrEnum):
    """What a session's meter counts."""

    DELIVERED = "delivered_ms"
    PAUSED = "paused_ms"


UNITS: Final = frozenset(unit.value for unit in Unit)


@dataclass(frozen=True, slots=True)
class Rates:
    """The price of delivered time and of paused time."""

    micro_per_second: int
    hold_micro_per_second: int

    def __post_init__(self) -> None:
        for rate in (self.micro_per_second, self.hold_micro_per_second):
            assert 0 <= rate <= MICRO_PER_SECOND_MAX, rate

    @property
    def dearest(self) -> int:
        """What a second of session time can cost at most: a reservation must cover that."""
        return max(self.micro_per_second, self.hold_micro_per_second)


@dataclass(frozen=True, slots=True)
class PriceList:
    """Rates by pipeline; "*" is the price of every pipeline that has none of its own."""

    rates: Mapping[str, Rates]

    def __post_init__(self) -> None:
        assert "*" in self.rates, "no default price"

    def of(self, pipeline: str) -> Rates:
        return self.rates.get(pipeline, self.rates["*"])


@dataclass(frozen=True, slots=True)
class Metered:
    """A session's cumulative time by unit."""

    delivered_ms: int = 0
    paused_ms: int = 0

    def plus(self, unit: Unit, quantity_ms: int) -> Metered:
        if unit is Unit.DELIVERED:
            return replace(self, delivered_ms=self.delivered_ms + quantity_ms)
        return replace(self, paused_ms=self.paused_ms + quantity_ms)


def cost(rates: Rates, metered: Metered) -> int:
    """What `metered` costs: each unit rounded down once, over all of it, never per window."""
    return (
        rates.micro_per_second * metered.delivered_ms // 1000
        + rates.hold_micro_per_second * metered.paused_ms // 1000
    )


def hold_for(rates: Rates, ms: int) -> int:
    """The credit that covers `ms` whatever they turn out to be: rounded up, as the cost is rounded down."""
    return -(-rates.dearest * ms // 1000)


def affordable_ms(rates: Rates, micro: int) -> int:
    """How many milliseconds `micro` of credit covers."""
    if rates.dearest == 0:
        return SESSION_MAX_MS
    return max(0, micro) * 1000 // rates.dearest


@dataclass(frozen=True, slots=True)
class Split:
    """An amount in two parts: what the credit covers, and what is written off so that credit stays >= 0.

    Negative parts are given back.
    """

    funded: int
    written_off: int


def split(micro: int, balance: int, written_off: int = 0) -> Split:
    """Split what is owed. Of what is given back, what was `written_off` before goes first."""
    if micro < 0:
        covered = min(-micro, written_off)
        return Split(micro + covered, -covered)
    funded = min(micro, max(0, balance))
    return Split(funded, micro - funded)


@dataclass(frozen=True, slots=True)
class Window:
    """A meter's report as it was received; `defect` says whether it can be believed."""

    id: str
    session: SessionId
    epoch: int
    seq: int
    tenant: TenantId
    stream: str
    pipeline: str
    from_ms: int
    to_ms: int
    unit: str
    quantity: int
    final: bool = False
    end_reason: str = ""
    frames_in: int = 0
    frames_out: int = 0
    frames_dropped: int = 0
    runner: str = ""
    source: str = ""
    unix_ms: int = 0


def defect(window: Window) -> str:
    """Why `window` cannot be posted, or "" if it can."""
    span_ms = window.to_ms - window.from_ms
    checks = (
        ("no id", window.id == ""),
        ("no session", window.session == ""),
        (
            "the id is not <session>:<epoch>:<seq>",
            window.id != f"{window.session}:{window.epoch}:{window.seq}",
        ),
        ("unknown unit", window.unit not in UNITS),
        ("from_ms is negative", window.from_ms < 0),
        ("to_ms is before from_ms", span_ms < 0),
        ("longer than a day", span_ms > WINDOW_MAX_MS),
        ("to_ms is beyond the longest session", window.to_ms > SESSION_MAX_MS),
        ("negative quantity", window.quantity < 0),
        ("more quantity than time", window.quantity > span_ms + WINDOW_SLACK_MS),
    )
    return next((problem for problem, found in checks if found), "")


def payable(windows: Collection[Window]) -> Metered:
    """The time of all of a session's `windows` that is paid.

    An epoch has the session from its first window on: of the windows of lower ones only the part before that
    counts. So a meter that was thought dead, and measured on, adds nothing to what its successor measured.
    """
    starts: dict[int, int] = {}
    for window in windows:
        starts[window.epoch] = min(window.from_ms, starts.get(window.epoch, window.from_ms))
    ends: dict[int, int] = {}
    end_ms = SESSION_MAX_MS
    for epoch in sorted(starts, reverse=True):
        ends[epoch] = end_ms
        end_ms = min(end_ms, starts[epoch])
    metered = Metered()
    for window in windows:
        metered = metered.plus(Unit(window.unit), _before(ends[window.epoch], window))
    return metered


def _before(end_ms: int, window: Window) -> int:
    """How much of the window's quantity is before `end_ms` for sure: where in it it lies, nobody knows."""
    if window.to_ms <= end_ms:
        return window.quantity
    sure_ms = window.quantity - (window.to_ms - end_ms)
    return max(0, min(sure_ms, end_ms - window.from_ms))


class Kind(StrEnum):
    """Why money moved."""

    CREDIT = "credit"
    USAGE = "usage"


@dataclass(frozen=True, slots=True)
class Entry:
    """One side of a transaction; positive adds to the account."""

    account: str
    micro: int


@dataclass(frozen=True, slots=True)
class Transaction:
    """Entries that sum to zero, and why: `cause` is the window's id or the payment's reference."""

    kind: Kind
    tenant: TenantId
    session: SessionId
    cause: str
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if sum(entry.micro for entry in self.entries) != 0:  # no assert: -O must not let money appear
            raise ValueError(f"a transaction that does not sum to zero: {self}")


def payment(tenant: TenantId, micro: int, reference: str) -> Transaction:
    """Credit that `tenant` bought."""
    entries = (Entry(WASH, -micro), Entry(prepaid(tenant), micro))
    return Transaction(Kind.CREDIT, tenant, SessionId(""), reference, entries)


def usage(window: Window, amount: Split) -> Transaction:
    """The posting of one window. A part that is zero has no entries."""
    entries: list[Entry] = []
    if amount.funded:
        entries += [Entry(prepaid(window.tenant), -amount.funded), Entry(EARNINGS, amount.funded)]
    if amount.written_off:
        entries += [Entry(WRITE_OFF, -amount.written_off), Entry(EARNINGS, amount.written_off)]
    return Transaction(Kind.USAGE, window.tenant, window.session, window.id, tuple(entries))


@dataclass(frozen=True, slots=True)
class SessionAccount:
    """What one session has used, what is held for it, and at which rates: those of the day it opened."""

    session: SessionId
    tenant: TenantId
    stream: str
    pipeline: str
    rates: Rates
    opened_unix_ms: int
    metered: Metered = Metered()
    written_off_micro: int = 0
    reserved_until_ms: int = 0
    accounted_to_ms: int = 0  # the newest end of a posted window
    expires_unix_ms: int = 0  # then the reservation lapses by itself
    settled_unix_ms: int | None = None
    final: bool = False  # its meter said that nothing will come after
    epoch: int = 0  # the highest that a window had
    epoch_from_ms: int = 0  # where that epoch's windows begin

    @property
    def posted_micro(self) -> int:
        """All that was posted for the session so far, funded or not."""
        return cost(self.rates, self.metered)

    @property
    def held_micro(self) -> int:
        """What the reservation holds until it is settled or lapses."""
        return hold_for(self.rates, max(0, self.reserved_until_ms - self.accounted_to_ms))

    def reserve(
        self, until_ms: int, *, credit_micro: int, now_unix_ms: int, margin_ms: int
    ) -> SessionAccount:
        """Hold credit up to `until_ms` or as far as `credit_micro`, which nobody else holds, goes.

        The reservation only grows, unless it lapsed: then it starts again from what is accounted.

        Raises ConflictError if the session is settled, PaymentRequiredError if the credit buys nothing more.
        """
        if self.settled_unix_ms is not None:
            raise ConflictError("the session is settled", reason="SESSION_SETTLED", session=self.session)
        lapsed = now_unix_ms >= self.expires_unix_ms
        held_until_ms = max(self.accounted_to_ms, 0 if lapsed else self.reserved_until_ms)
        covered_ms = min(until_ms, self.accounted_to_ms + affordable_ms(self.rates, credit_micro))
        if covered_ms < until_ms and until_ms > held_until_ms and covered_ms - held_until_ms < LEAST_GRANT_MS:
            raise PaymentRequiredError(
                "the credit does not cover more of this session",
                reason="INSUFFICIENT_CREDIT",
                session=self.session,
                paid_until_ms=held_until_ms,
            )
        paid_until_ms = max(held_until_ms, covered_ms)
        # Session time runs no faster than the clock and is at least at `accounted_to_ms`, so the paid time
        # is over by then, however late the session opened after its first slice was reserved.
        left_ms = max(0, paid_until_ms - self.accounted_to_ms)
        return replace(
            self, reserved_until_ms=paid_until_ms, expires_unix_ms=now_unix_ms + left_ms + margin_ms
        )

    def settle(self, now_unix_ms: int) -> SessionAccount:
        """End the reservation; the first end counts."""
        return self if self.settled_unix_ms is not None else replace(self, settled_unix_ms=now_unix_ms)

    def stands_alone(self, window: Window) -> bool:
        """Whether `window` changes nothing of what other windows count, nor they of what it counts."""
        if window.epoch == self.epoch:
            return window.from_ms >= self.epoch_from_ms
        return window.epoch > self.epoch and window.from_ms >= self.accounted_to_ms

    def charge(
        self, window: Window, balance: int, others: Collection[Window] = ()
    ) -> tuple[SessionAccount, Split]:
        """Add `window`, whose id is new, and say what of its price the tenant's `balance` pays.

        `others` are all that were charged before; they are looked at only if it does not stand alone. Then
        less may be owed than before.
        """
        assert window.session == self.session, (window.session, self.session)
        if self.stands_alone(window):
            metered = self.metered.plus(Unit(window.unit), window.quantity)
        else:
            metered = payable((*others, window))
        owed_micro = cost(self.rates, metered) - self.posted_micro
        amount = split(owed_micro, balance, self.written_off_micro)
        charged = replace(
            self._seen(window),
            metered=metered,
            written_off_micro=self.written_off_micro + amount.written_off,
            accounted_to_ms=max(self.accounted_to_ms, window.to_ms),
        )
        return charged, amount

    def _seen(self, window: Window) -> SessionAccount:
        """Which epoch is the highest, where it begins, and whether it is at its end."""
        if window.epoch < self.epoch:
            return self
        if window.epoch > self.epoch:
            return replace(self, epoch=window.epoch, epoch_from_ms=window.from_ms, final=window.final)
        begins_ms = min(self.epoch_from_ms, window.from_ms)
        return replace(self, epoch_from_ms=begins_ms, final=self.final or window.final)
