"""What a stream remembers, as bytes for another process: at most a mebibyte, and nothing that could be run.

The tensors are safetensors; the rest of the state is JSON in one more of them. What is most worth keeping
comes first: a tensor that no longer fits goes in with half the bits, and if it does not fit then it is left
out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

MOST_BYTES: Final = 1 << 20
ROOM: Final = 16_384  # for the header and the state
STATE: Final = "state"
VERSION: Final = 1


def pack(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor | None]) -> bytes:
    """Of the tensors, in order of their importance, as many as fit."""
    text = json.dumps({**state, "version": VERSION}).encode()
    left = MOST_BYTES - ROOM - len(text)
    kept = {STATE: torch.frombuffer(bytearray(text), dtype=torch.uint8)}
    for name, tensor in tensors.items():
        if tensor is None or not tensor.numel():
            continue
        whole = tensor.detach().cpu().contiguous()
        for form in (whole, whole.half()):
            if form.nbytes <= left:
                kept[name] = form.clone()  # two names of one memory are refused
                left -= form.nbytes
                break
    return save(kept)


def unpack(packed: bytes) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return the state, and the tensors as float32. Raises ValueError."""
    if len(packed) > MOST_BYTES:
        raise ValueError(f"{len(packed)} bytes are more than {MOST_BYTES}")
    try:
        tensors = load(packed)
        state = json.loads(bytes(tensors.pop(STATE).tolist()))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise ValueError("another version wrote it")
    return state, {name: tensor.float() for name, tensor in tensors.items()}
