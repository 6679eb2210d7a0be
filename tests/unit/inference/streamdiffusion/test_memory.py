from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from services.inference.engine.pipelines.streamdiffusion.memory import MOST_BYTES, pack, unpack


def test_what_was_packed_is_unpacked() -> None:
    latents = torch.randn(3, 4, 8, 8)
    state, tensors = unpack(pack({"frames": 7}, {"under_way": latents, "none": None}))
    assert state["frames"] == 7
    assert set(tensors) == {"under_way"}
    assert torch.equal(tensors["under_way"], latents)


def test_it_is_never_more_than_a_mebibyte_and_keeps_what_comes_first() -> None:
    large = torch.randn(4, 4, 64, 100)  # 0.39 MiB
    packed = pack({}, {str(index): large for index in range(6)})
    assert len(packed) <= MOST_BYTES
    _, tensors = unpack(packed)
    assert sorted(tensors)[:3] == ["0", "1", "2"]
    assert torch.equal(tensors["0"], large)
    assert len(tensors) < 6
    torch.testing.assert_close(tensors["2"], large, atol=2e-3, rtol=1e-3)  # with half the bits


def test_a_tensor_of_other_numbers_comes_back_as_float32() -> None:
    _, tensors = unpack(pack({}, {"half": torch.ones(2, 2).half()}))
    assert tensors["half"].dtype == torch.float32


@given(st.binary(max_size=300))
def test_bytes_that_nobody_packed_are_refused(garbage: bytes) -> None:
    with pytest.raises(ValueError, match="it cannot be read"):
        unpack(garbage)


def test_a_cut_a_changed_and_an_older_one_are_refused() -> None:
    packed = pack({}, {"a": torch.ones(4)})
    with pytest.raises(ValueError, match="it cannot be read"):
        unpack(packed[:-3])
    with pytest.raises(ValueError, match="another version"):
        unpack(packed.replace(b'"version": 1', b'"version": 0'))
    with pytest.raises(ValueError, match="are more than"):
        unpack(bytes(MOST_BYTES + 1))
