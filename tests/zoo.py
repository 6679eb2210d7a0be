"""Tiny models with random weights, in the formats of the real ones: built once for each version of these.

What they paint is noise; how it is painted is what tests look at.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import peft
import torch
import transformers
from peft.utils import get_peft_model_state_dict
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

df: Any = diffusers  # most of it is not typed

WIDTH = 32  # of a text's tokens
NORMS = 8  # groups of a group norm

_VERSIONS = " ".join(library.__version__ for library in (diffusers, peft, torch, transformers))
_UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 8,
    "norm_num_groups": NORMS,
}
_NOISE: dict[str, Any] = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def model(name: str) -> Path:
    """The directory of a model of the zoo, built now if no run has built it before."""
    builder = BUILDERS[name]
    source = hashlib.sha256((_VERSIONS + Path(__file__).read_text()).encode()).hexdigest()[:16]
    root = Path(tempfile.gettempdir()) / f"sluice-zoo-{os.getuid()}" / source
    directory = root / name
    if not directory.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(dir=root, prefix="building-"))
        with _quiet(), torch.random.fork_rng():
            torch.manual_seed(sum(name.encode()))
            builder(building)
        try:
            building.rename(directory)
        except OSError:  # another process was quicker
            shutil.rmtree(building)
    return directory


@contextmanager
def _quiet() -> Iterator[None]:
    was = df.utils.logging.get_verbosity()
    df.utils.logging.set_verbosity_error()
    df.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        df.utils.logging.set_verbosity(was)


def _tokenizer() -> CLIPTokenizer:
    """One token for each byte of a text."""
    letters = [chr(code) for code in range(33, 127)] + [chr(code) for code in range(161, 173)]
    letters += [chr(code) for code in range(174, 256)] + [chr(256 + code) for code in range(68)]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _texts(projection: int | None = None) -> CLIPTextModel | CLIPTextModelWithProjection:
    sizes: dict[str, Any] = {} if projection is None else {"projection_dim": projection}
    config = CLIPTextConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=514,
        max_position_embeddings=77,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        **sizes,
    )
    made = CLIPTextModel(config) if projection is None else CLIPTextModelWithProjection(config)
    _louder(made)
    return made


def _louder(texts: torch.nn.Module) -> None:
    """An untrained encoder says almost the same of every text; make the words matter."""
    with torch.no_grad():
        for name, weight in texts.named_parameters():
            if "token_embedding" in name:
                weight.mul_(20)


def _vae() -> Any:
    return df.AutoencoderKL(
        block_out_channels=[16, 16, 16, 32],
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=NORMS,
        sample_size=64,
    )


def _unet(**changes: Any) -> Any:
    return df.UNet2DConditionModel(
        **{**_UNET, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"), "sample_size": 16, **changes}
    )


def _sd(scheduler: Any, **changes: Any) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        df.StableDiffusionPipeline(
            vae=_vae(),
            unet=_unet(**changes),
            text_encoder=_texts(),
            tokenizer=_tokenizer(),
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        ).save_pretrained(directory)

    return build


def _sdxl(directory: Path) -> None:
    df.StableDiffusionXLPipeline(
        vae=_vae(),
        unet=_unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
            cross_attention_dim=2 * WIDTH,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
        ),
        text_encoder=_texts(),
        text_encoder_2=_texts(projection=WIDTH),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=df.EulerDiscreteScheduler(timestep_spacing="trailing", **_NOISE),
    ).save_pretrained(directory)


def _controlnet(width: int) -> Callable[[Path], None]:
    def build(directory: Path) -> None:
        net = df.ControlNetModel(**{**_UNET, "cross_attention_dim": width})
        # A new one has no effect, for what it adds begins at zero.
        with torch.no_grad():
            for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
                torch.nn.init.normal_(block.weight, std=0.1)
            torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.3)
        net.save_pretrained(directory)

    return build


def _taesd(directory: Path) -> None:
    vae = df.AutoencoderTiny(
        encoder_block_out_channels=(16,) * 4,
        decoder_block_out_channels=(16,) * 4,
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    # A new one says almost the same of everything; as it is trained, its numbers would be spread like these.
    with torch.no_grad():
        _spread(vae.encoder.layers[-1], 1, 1.0, lambda: vae.encode(torch.rand(4, 3, 64, 64) * 2 - 1).latents)
        _spread(vae.decoder.layers[-1], 2, 0.3, lambda: vae.decode(torch.randn(4, 4, 8, 8)).sample)
    vae.save_pretrained(directory)


def _spread(last: torch.nn.Conv2d, gain: int, deviation: float, made: Callable[[], torch.Tensor]) -> None:
    """Scale the last layer so that each channel of what is made has this deviation around 0.

    gain: by how much what the layer makes is stretched behind it.
    """
    channels = made().transpose(0, 1).flatten(1)
    factor = deviation / channels.std(dim=1)
    last.weight.mul_(factor.view(-1, 1, 1, 1))
    if last.bias is None:
        last.bias = torch.nn.Parameter(torch.zeros(len(factor)))
    last.bias.zero_()
    last.bias.sub_(made().transpose(0, 1).flatten(1).mean(dim=1) / gain)


def _lora(directory: Path) -> None:
    unet = _unet()
    unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False))
    layers = df.utils.convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    df.StableDiffusionPipeline.save_lora_weights(directory, unet_lora_layers=layers)


def _text_lora(directory: Path) -> None:
    texts = _texts()
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    texts.add_adapter(config)
    layers = df.utils.convert_state_dict_to_diffusers(get_peft_model_state_dict(texts))
    df.StableDiffusionPipeline.save_lora_weights(directory, text_encoder_lora_layers=layers)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "sd-turbo": _sd(df.EulerDiscreteScheduler(timestep_spacing="trailing", **_NOISE)),
    "sd15": _sd(df.DDIMScheduler(clip_sample=False, **_NOISE)),
    "pix2pix": _sd(df.DDIMScheduler(clip_sample=False, **_NOISE), in_channels=8),
    "v-prediction": _sd(df.EulerDiscreteScheduler(prediction_type="v_prediction", **_NOISE)),
    "sdxl-turbo": _sdxl,
    "controlnet": _controlnet(WIDTH),
    "controlnet-xl": _controlnet(2 * WIDTH),
    "taesd": _taesd,
    "lora": _lora,
    "lcm-lora": _lora,
    "text-lora": _text_lora,
}
