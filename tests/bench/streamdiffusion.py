"""How fast `streamdiffusion` repaints video, decoding and encoding included, beside a loop of diffusers.

On a GPU: SD-Turbo's architecture with its tiny autoencoder at 512 x 512, with random weights made here, for
it takes no trained ones to know how long they take. On a CPU: the tiny models of the tests at 256 x 256,
which say what the code around a model costs, and nothing about the speed of a model.

The loop is what one writes first: diffusers' image-to-image pipeline with as many steps, the prompt encoded
once, and the same decoder, autoencoder and encoder around it. Both run one frame after the other, so the
figures are of one stream without the overlap that an engine's threads give.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPTextConfig, CLIPTextModel

from services.common.media.codec import VideoDecoder
from services.common.media.mpegts import AccessUnit
from services.inference.engine.pictures import BitRates, PictureEncoder
from services.inference.engine.pipelines.streamdiffusion.pipeline import StreamDiffusion
from sluice.pipeline import ModelCache, Setup, VideoFrame, defaults, fit
from tests import zoo
from tests.bench.figures import Figure, percentile, show
from tests.support.media import pictures

BENCH: Final = "streamdiffusion"
STEPS: Final = [12, 20, 32]
STRENGTH: Final = 0.76  # with 4 steps: 3 of them
RATES: Final = BitRates(100_000, 50_000_000)
WARM_UP: Final = 5  # frames
BATCH: Final = 4

df: Any = diffusers
Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Kind:
    """What is measured on a kind of machine."""

    device: str
    model: str
    side: int
    frames: int


def full_size(directory: Path) -> None:
    """SD-Turbo's architecture, random, in half precision: 866 million parameters of U-Net alone."""
    with torch.device("cuda"):
        unet = df.UNet2DConditionModel(
            attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True
        ).half()
        texts: Any = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
                vocab_size=514,
                bos_token_id=512,
                eos_token_id=513,
                pad_token_id=513,
            )
        )
        vae = df.AutoencoderKL(
            block_out_channels=[128, 256, 512, 512],
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
        ).half()
    small = df.StableDiffusionPipeline.from_pretrained(zoo.model("sd-turbo"), unet=None, vae=None)
    df.StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=texts.half(),
        tokenizer=small.tokenizer,
        scheduler=small.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(directory)


def models(kind: Kind, root: Path) -> ModelCache:
    """A cache with the model and its tiny autoencoder."""
    tiny = root / "madebyollin--taesd"
    if kind.model == "sd-turbo":
        (root / kind.model).symlink_to(zoo.model(kind.model))
        tiny.symlink_to(zoo.model("taesd"))
    else:
        full_size(root / kind.model)
        df.AutoencoderTiny().half().save_pretrained(tiny)
    return ModelCache(root)


def repainting(cache: ModelCache, kind: Kind) -> Callable[[Picture, int], Picture]:
    pipeline = StreamDiffusion()
    params = {
        **defaults(StreamDiffusion),
        "model_id": kind.model,
        "width": kind.side,
        "height": kind.side,
        "t_index_list": STEPS,
    }
    pipeline.load(Setup(kind.device, cache), params)
    return lambda rgb, pts: pipeline.process(VideoFrame(rgb, pts), params).rgb


def looping(cache: ModelCache, kind: Kind) -> Callable[[Picture, int], Picture]:
    dtype = torch.float16 if kind.device.startswith("cuda") else torch.float32
    tiny = df.AutoencoderTiny.from_pretrained(cache.path("madebyollin/taesd"), dtype=dtype)
    pipe = df.StableDiffusionImg2ImgPipeline.from_pretrained(
        cache.path(kind.model), vae=tiny, dtype=dtype, safety_checker=None, requires_safety_checker=False
    ).to(kind.device)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = df.LCMScheduler.from_config(pipe.scheduler.config)
    with torch.inference_mode():
        embedding, _ = pipe.encode_prompt("flowers", kind.device, 1, do_classifier_free_guidance=False)

    def repaint(rgb: Picture, pts: int) -> Picture:
        made = pipe(
            image=torch.from_numpy(fit(rgb, kind.side, kind.side).astype(np.float32) / 255).permute(2, 0, 1)[
                None
            ],
            prompt_embeds=embedding,
            num_inference_steps=4,
            strength=STRENGTH,
            guidance_scale=1.0,
            output_type="np",
        ).images[0]
        return np.asarray((made * 255).round(), np.uint8)

    return repaint


class Lane:
    """Decodes, repaints and encodes; remembers how long each picture took."""

    def __init__(self, repaint: Callable[[Picture, int], Picture]) -> None:
        self._repaint = repaint
        self._decoder = VideoDecoder()
        self._encoder = PictureEncoder(RATES)
        self._took: list[float] = []

    def take(self, unit: AccessUnit) -> None:
        started = time.perf_counter()
        for frame in self._decoder.decode(unit.data, unit.pts):
            self._encoder.encode(self._repaint(frame.rgb(), frame.pts), frame.pts)
            self._took.append(time.perf_counter() - started)

    @property
    def took(self) -> list[float]:
        """Without the first few, which allocate and choose."""
        return self._took[WARM_UP:]


def batch_pays(cache: ModelCache, kind: Kind) -> float:
    """How much quicker the autoencoder is with several pictures at once than with one after the other."""
    pipeline = StreamDiffusion()
    params = {
        **defaults(StreamDiffusion),
        "model_id": kind.model,
        "width": kind.side,
        "height": kind.side,
    }
    pipeline.load(Setup(kind.device, cache), params)
    assert pipeline._codec is not None
    codec = pipeline._codec.value
    images = torch.zeros(BATCH, 3, kind.side, kind.side)

    def cost_s(work: Callable[[], object]) -> float:
        costs = []
        for _ in range(9):
            started = time.perf_counter()
            work()
            if kind.device.startswith("cuda"):
                torch.cuda.synchronize()
            costs.append(time.perf_counter() - started)
        return sorted(costs)[len(costs) // 2]

    one = cost_s(lambda: [codec.decode(codec.encode(images[:1])) for _ in range(BATCH)])
    several = cost_s(lambda: codec.decode(codec.encode(images)))
    pipeline.close()
    return one / several


def main() -> None:
    if torch.cuda.is_available():
        kind = Kind("cuda:0", "sd-turbo-random", 512, 300)
        sys.stderr.write(
            f"{torch.cuda.get_device_name()}: SD-Turbo's architecture, random weights, 512 x 512\n"
        )
    else:
        kind = Kind("cpu", "sd-turbo", 256, 60)
        sys.stderr.write("CPU: the tiny model of the tests, 256 x 256; no figure of a real model\n")
        torch.set_num_threads(1)
    units = pictures(kind.frames)
    with tempfile.TemporaryDirectory() as directory:
        cache = models(kind, Path(directory))
        lanes = Lane(repainting(cache, kind)), Lane(looping(cache, kind))
        for unit in units:  # in turn, so that a busy machine is as busy for both
            for lane in lanes:
                lane.take(unit)
        pays = batch_pays(cache, kind)
    ours, theirs = (lane.took for lane in lanes)
    fps = [len(took) / sum(took) for took in (ours, theirs)]
    show(
        [
            Figure(BENCH, "fps", fps[0], "frames/s", fps[1]),
            Figure(BENCH, "p50_ms", 1000 * percentile(ours, 50), "ms", 1000 * percentile(theirs, 50)),
            Figure(BENCH, "p99_ms", 1000 * percentile(ours, 99), "ms", 1000 * percentile(theirs, 99)),
            Figure(BENCH, "ratio_to_diffusers", fps[0] / fps[1], "ratio"),
            Figure(BENCH, f"autoencoder_of_{BATCH}_at_once", pays, "ratio"),
        ]
    )


if __name__ == "__main__":
    main()
