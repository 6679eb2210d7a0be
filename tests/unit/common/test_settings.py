"""Settings come from the environment once; what is wrong is said by name before anything starts."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from services.common.settings import ServiceSettings, config, host_port, read


class CarpenterSettings(ServiceSettings):
    model_config = config("carpenter")

    nails: int = Field(7, gt=0)


def test_values_come_from_variables_with_the_services_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_CARPENTER_NAILS", "3")
    monkeypatch.setenv("SLUICE_PLUMBER_NATS_URL", "nats://plumber")
    monkeypatch.setenv("SLUICE_CARPENTER_NATS_URL", "nats://carpenter")
    settings = read(CarpenterSettings)
    assert (settings.nails, settings.nats_url) == (3, "nats://carpenter")


def test_every_bad_variable_is_named_and_the_status_is_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLUICE_CARPENTER_NAILS", "0")
    monkeypatch.setenv("SLUICE_CARPENTER_LOG_FORMAT", "poem")
    with pytest.raises(SystemExit) as ended:
        read(CarpenterSettings)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert any(line.startswith("SLUICE_CARPENTER_NAILS: ") and "'0'" in line for line in lines)
    assert any(line.startswith("SLUICE_CARPENTER_LOG_FORMAT: ") for line in lines)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError):
        CarpenterSettings().nails = 4


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:7001", ("127.0.0.1", 7001)),
        (":7001", ("0.0.0.0", 7001)),
        ("[::1]:7001", ("::1", 7001)),
    ],
)
def test_an_address_is_a_host_and_a_port(listen: str, address: tuple[str, int]) -> None:
    assert host_port(listen) == address
