from __future__ import annotations

import pytest

from services.billing import keys
from services.common.errors import UnauthenticatedError


def test_a_key_survives_being_rendered_and_parsed() -> None:
    key = keys.mint()
    assert keys.parse(keys.render(key)) == key


def test_two_keys_are_never_the_same() -> None:
    minted = [keys.mint() for _ in range(1_000)]
    assert len({key.id for key in minted}) == len({key.secret for key in minted}) == 1_000


def test_a_secret_has_at_least_128_bits() -> None:
    assert len(bytes.fromhex(keys.mint().secret)) * 8 >= 128


def test_a_key_matches_its_own_digest_only() -> None:
    key, other = keys.mint(), keys.mint()
    stored = keys.digest(key, "")
    assert keys.matches(key, stored, "")
    assert not keys.matches(keys.PresentedKey(key.id, other.secret), stored, "")


def test_the_digest_is_salted_by_the_id_and_keyed_by_the_pepper() -> None:
    key = keys.mint()
    same_secret = keys.PresentedKey(keys.KeyId("other"), key.secret)
    assert keys.digest(same_secret, "") != keys.digest(key, "")
    assert not keys.matches(key, keys.digest(key, "a" * 100), "")


def test_the_digest_does_not_contain_the_secret() -> None:
    key = keys.mint()
    assert bytes.fromhex(key.secret) not in keys.digest(key, "")


@pytest.mark.parametrize(
    "text", ["", "sk", "sk_", "sk_id", "sk_id_", "sk__secret", "pk_id_secret", "sk_id_" + "x" * 300, "Ω"]
)
def test_what_is_not_a_key_is_unauthenticated(text: str) -> None:
    with pytest.raises(UnauthenticatedError):
        keys.parse(text)
