"""A denoising diffusion model of the real 8x8 digits (DDPM, Ho et al. 2020): the base that is fine-tuned.

An ordinary `PreTrainedModel` that is called as the U-Nets of diffusers are, `model(sample, timestep).sample`,
so that code written for it runs on theirs.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds.digits import digits
from lib.models import check_files
from lib.stats import Estimate, bootstrap

STEPS = 1000
"""T, the number of noise levels."""


def alpha_bar() -> Float[Tensor, " t"]:
    """Share of the image's variance left at t = 0..T-1: the product of 1 - beta, beta from 1e-4 to 0.02."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, STEPS, dtype=torch.float64), 0).float()


def noised(
    images: Float[Tensor, " image *shape"], t: Int[Tensor, " image"], noise: Float[Tensor, " image *shape"]
) -> Float[Tensor, " image *shape"]:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, each image at its own t."""
    kept = alpha_bar().to(images.device)[t].reshape(-1, *[1] * (images.ndim - 1))
    return kept.sqrt() * images + (1 - kept).sqrt() * noise


def pixels(split: str) -> Float[Tensor, "image 1 8 8"]:
    """The digits of a split, from -1 (paper) to 1 (ink)."""
    return torch.from_numpy(digits(split).images)[:, None] / 127.5 - 1


class DenoiserConfig(PreTrainedConfig):
    """Of a `Denoiser`: `depth` blocks of `width` hidden units (channels), and a time embedding."""

    model_type = "digits-denoiser"

    def __init__(self, width: int = 96, depth: int = 2, embedding: int = 32, **others: Any) -> None:
        """See the class."""
        self.width, self.depth, self.embedding = width, depth, embedding
        super().__init__(**others)


class Prediction(NamedTuple):
    """What a denoiser returns; the name of the field is that of diffusers."""

    sample: Float[Tensor, "image 1 8 8"]
    """The noise eps that was added."""


class Modulation(nn.Module):
    """LayerNorm whose scale and shift depend on the noise level."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Weights as torch draws them."""
        super().__init__()
        self.norm = nn.LayerNorm(config.width, elementwise_affine=False)
        self.scale_shift = nn.Linear(config.embedding, 2 * config.width)

    def forward(
        self, h: Float[Tensor, "image width"], level: Float[Tensor, "image embedding"]
    ) -> Float[Tensor, "image width"]:
        """SiLU of the modulated units."""
        scale, shift = self.scale_shift(level).chunk(2, -1)
        return F.silu(self.norm(h) * (1 + scale) + shift)


class Block(nn.Module):
    """A residual block of two layers."""

    def __init__(self, config: DenoiserConfig) -> None:
        """Weights as torch draws them."""
        super().__init__()
        self.modulation = Modulation(config)
        self.up = nn.Linear(config.width, config.width)
        self.down = nn.Linear(config.width, config.width)

    def forward(
        self, h: Float[Tensor, "image width"], level: Float[Tensor, "image embedding"]
    ) -> Float[Tensor, "image width"]:
        """What the block adds, added."""
        return h + self.down(F.silu(self.up(self.modulation(h, level))))


class Denoiser(PreTrainedModel):
    """An MLP that predicts the noise in an 8x8 image at a known noise level."""

    config_class = DenoiserConfig
    main_input_name = "sample"

    def __init__(self, config: DenoiserConfig) -> None:
        """Weights as torch draws them."""
        super().__init__(config)
        self.level = nn.Linear(config.embedding, config.embedding)
        self.embed = nn.Linear(64, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.modulation = Modulation(config)
        self.unembed = nn.Linear(config.width, 64)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as torch has drawn them."""

    def forward(self, sample: Float[Tensor, "image 1 8 8"], timestep: Int[Tensor, " image"]) -> Prediction:
        """The noise in x_t, given x_t and t (sinusoidal embedding, Vaswani et al. 2017)."""
        half = self.config.embedding // 2
        frequency = torch.exp(-math.log(10_000) / half * torch.arange(half, device=sample.device))
        angle = timestep[:, None] * frequency
        level = F.silu(self.level(torch.cat([angle.sin(), angle.cos()], -1).to(sample.dtype)))
        h = self.embed(sample.flatten(1))
        for block in self.blocks:
            h = block(h, level)
        return Prediction(self.unembed(self.modulation(h, level)).reshape(sample.shape))


def load_denoiser(folder: str | Path) -> Denoiser:
    """A shipped denoiser from its folder, in float32.

    Raises:
        ValueError: a file is not the one that was shipped.
    """
    check_files(folder := Path(folder))
    model = Denoiser(DenoiserConfig.from_pretrained(folder, local_files_only=True))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval()


def _batch(rng: np.random.Generator, progress: float) -> Batch:
    images = pixels("train")
    picked = images[torch.from_numpy(rng.integers(len(images), size=128))]
    noise = torch.from_numpy(rng.standard_normal(picked.shape, dtype=np.float32))
    return {"images": picked, "t": torch.from_numpy(rng.integers(STEPS, size=len(picked))), "noise": noise}


def _loss(model: Denoiser, batch: Batch) -> Tensor:
    """|| eps - eps_theta(x_t, t) ||^2, mean over pixels."""
    predicted = model(noised(**batch), batch["t"]).sample
    return F.mse_loss(predicted, batch["noise"])


@torch.inference_mode()
def _evaluate(model: Denoiser) -> Iterator[tuple[str, Estimate]]:
    """Loss over all noise levels, 20 of them for each image, always the same ones."""
    for split in ("validation", "test", "train"):
        images = pixels(split).repeat_interleave(20, 0)
        draw = torch.Generator().manual_seed(0)
        t = torch.randint(STEPS, (len(images),), generator=draw)
        noise = torch.randn(images.shape, generator=draw)
        error = (model(noised(images, t, noise), t).sample - noise).square().mean((1, 2, 3))
        yield f"{split} loss", bootstrap(error.unflatten(0, (-1, 20)).mean(1).numpy())


def _recipe(name: str, width: int) -> Recipe:
    return Recipe(
        build=lambda: Denoiser(DenoiserConfig(width=width)),
        processors=list,
        stages=(Stage(_batch, steps=16_000, lr=2e-3, warmup=100, weight_decay=0.01, loss=_loss),),
        evaluate=_evaluate,
        load=load_denoiser,
        seeds=4,
        card=read_card(name, "diffusion", width=width),
    )


RECIPES = {
    "digits-ddpm": _recipe("digits-ddpm", width=96),
    "digits-ddpm-narrow": _recipe("digits-ddpm-narrow", width=64),
}
