from __future__ import annotations

import pytest

from services.billing.ledger import Rates
from services.billing.settings import BillingSettings
from services.common.settings import read


def test_prices_are_read_as_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "SLUICE_BILLING_PRICES",
        '{"*": {"micro_per_second": 5, "hold_micro_per_second": 1},'
        ' "depth": {"micro_per_second": 9, "hold_micro_per_second": 2}}',
    )
    prices = read(BillingSettings).price_list
    assert prices.of("depth") == Rates(9, 2)
    assert prices.of("sepia") == Rates(5, 1)


@pytest.mark.parametrize(
    "value",
    [
        '{"depth": {"micro_per_second": 5, "hold_micro_per_second": 1}}',
        '{"*": {"micro_per_second": 0.5, "hold_micro_per_second": 1}}',
        '{"*": {"micro_per_second": -1, "hold_micro_per_second": 1}}',
        "{",
    ],
)
def test_prices_that_cannot_be_used_end_the_start_with_a_line(
    value: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUICE_BILLING_PRICES", value)
    with pytest.raises(SystemExit) as ended:
        read(BillingSettings)
    assert ended.value.code == 2
    assert "prices" in capsys.readouterr().err.lower()


def test_a_reservation_outlives_its_paid_time_by_two_minutes() -> None:
    assert BillingSettings().lapse_margin_ms == 120_000
