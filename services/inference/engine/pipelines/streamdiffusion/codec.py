"""Between pictures and latents: the autoencoder, and what a picture is in numbers.

A picture is uint8 0..255 outside and -1..1 in the model: 0 is -1, 255 is 1. An autoencoder that is fed
0..1, as happens where a decoder has divided by 255 already, sees everything as bright and flat.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from services.inference.engine.pipelines.streamdiffusion.accelerate import Acceleration

HALF_RANGE: Final = 127.5
FACTOR: Final = 8  # a latent is so much smaller than its picture, on each side


def signal(rgb: NDArray[np.uint8], device: torch.device) -> torch.Tensor:
    """Return the picture, uint8 (H, W, 3), as float32 (1, 3, H, W), -1..1, on the device."""
    # A copy, for the source may be read-only, which PyTorch does not know; as bytes, a quarter to transfer.
    levels = torch.from_numpy(rgb.copy()).to(device)
    return levels.permute(2, 0, 1)[None].float() / HALF_RANGE - 1


def picture(signal: torch.Tensor) -> NDArray[np.uint8]:
    """Return float (1, 3, H, W), -1..1, as a picture: each number rounded, and cut beyond the range."""
    levels = ((signal[0].float() + 1) * HALF_RANGE).round().clamp(0, 2 * HALF_RANGE)
    return levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()


class Codec:
    """An autoencoder: the model's own (`AutoencoderKL`) or its tiny one (`AutoencoderTiny`)."""

    def __init__(self, vae: Any, acceleration: Acceleration, *, tiny: bool) -> None:
        self._dtype: torch.dtype = vae.dtype
        self._device = acceleration.device
        self._tiny = tiny
        self._scale = float(vae.config.scaling_factor)
        acceleration.place(vae)
        # Each stream calls these from its own thread, which CUDA graphs do not take.
        self._encode = acceleration.compile(_Half(vae, "encode"), graphs=False)
        self._decode = acceleration.compile(_Half(vae, "decode"), graphs=False)

    @torch.inference_mode()
    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """pictures: (N, 3, H, W), -1..1. Returns float32 latents (N, 4, H/8, W/8), scaled as the U-Net's."""
        encoded = self._encode(pictures.to(self._device, self._dtype))
        latents: torch.Tensor = encoded.latents if self._tiny else encoded.latent_dist.mode()
        return latents.float() * self._scale

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents: (N, 4, h, w), as `encode` returns them. Returns float32 (N, 3, 8h, 8w), about -1..1."""
        decoded: torch.Tensor = self._decode((latents / self._scale).to(self._device, self._dtype)).sample
        return decoded.float()


class _Half(torch.nn.Module):
    """One direction of an autoencoder, to be compiled."""

    def __init__(self, vae: Any, direction: str) -> None:
        super().__init__()
        self._vae = vae
        self._direction = direction

    def forward(self, x: torch.Tensor) -> Any:
        return getattr(self._vae, self._direction)(x)
