"""Vision transformers on real digits: one to an image, or four to a canvas, where one points to another."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from data.train.recipe import Batch, Recipe, Stage, read_card
from data.worlds.digits import Canvases, canvases, digits
from lib.models import Subject
from lib.stats import Estimate, bootstrap, wilson

NOISE = 0.2
"""Standard deviation of the Gaussian noise on training images, whose pixels go from -1 to 1."""


def _vit(image_size: int, patch_size: int) -> ViTForImageClassification:
    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=1,
        id2label={digit: str(digit) for digit in range(10)},
        label2id={str(digit): digit for digit in range(10)},
        num_hidden_layers=6,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # so narrow a network hardly starts with the usual 0.02
        layer_norm_eps=1e-6,
    )
    return ViTForImageClassification(config)


def _processors(image_size: int) -> list[Any]:
    size = {"height": image_size, "width": image_size}
    return [ViTImageProcessorPil(size=size, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)]


def _pixels(images: UInt8[np.ndarray, "image side side"]) -> Float[Tensor, "image 1 side side"]:
    """What the image processor makes of 8-bit images, without its cost for each image."""
    return torch.from_numpy(images)[:, None] / 127.5 - 1


def _training_batch(rng: np.random.Generator, images: np.ndarray, labels: np.ndarray) -> Batch:
    pixels = _pixels(images)
    noise = torch.from_numpy(rng.standard_normal(pixels.shape, dtype=np.float32))
    return {"pixel_values": pixels + NOISE * noise, "labels": torch.from_numpy(labels)}


def _digits_batch(size: int, rng: np.random.Generator, progress: float) -> Batch:
    images, labels = digits("train")
    drawn = rng.integers(len(labels), size=size)
    return _training_batch(rng, images[drawn], labels[drawn])


def _canvas_batch(size: int, rng: np.random.Generator, progress: float) -> Batch:
    drawn = canvases("train", size, rng)
    return _training_batch(rng, drawn.images, drawn.labels)


@torch.inference_mode()
def _correct(subject: Subject, images: np.ndarray, labels: np.ndarray) -> Int[np.ndarray, " image"]:
    logits = subject.model(pixel_values=_pixels(images)).logits
    return (logits.argmax(-1).numpy() == labels).astype(int)


def _evaluate_digits(subject: Subject) -> Iterator[tuple[str, Estimate]]:
    for split in ("validation", "test"):
        correct = _correct(subject, *digits(split))
        yield f"{split} accuracy", wilson(correct.sum(), len(correct))


def _erase(world: Canvases, cell: Int[np.ndarray, " image"]) -> UInt8[np.ndarray, "image 16 16"]:
    """The canvases with one cell of each made blank."""
    images = world.images.copy()
    grid = images.reshape(-1, 2, 8, 2, 8)
    grid[np.arange(len(cell)), cell // 2, :, cell % 2] = 0
    return images


def _evaluate_canvas(subject: Subject) -> Iterator[tuple[str, Estimate]]:
    """Accuracy on new canvases, and with one cell made blank: which cells does the answer rest on?"""
    held_out = {split: canvases(split, 2000, np.random.default_rng(0)) for split in ("validation", "test")}
    test = held_out["test"]
    other = 1 + test.pointed % 3
    images = {f"{split} accuracy": world.images for split, world in held_out.items()}
    images["test accuracy, marker erased"] = _erase(test, np.zeros_like(test.pointed))
    images["test accuracy, pointed cell erased"] = _erase(test, test.pointed)
    images["test accuracy, another cell erased"] = _erase(test, other)
    for measure, canvas in images.items():
        world = held_out[measure.split()[0]]
        correct = _correct(subject, canvas, world.labels)
        # Canvases that ask for the same digit image are not independent.
        asked = world.sources[np.arange(len(world.labels)), world.pointed]
        yield measure, bootstrap(correct, clusters=asked)


RECIPES = {
    "digits-vit": Recipe(
        build=partial(_vit, image_size=8, patch_size=2),
        processors=partial(_processors, 8),
        stages=(Stage(partial(_digits_batch, 96), steps=900, lr=3e-3, warmup=100),),
        evaluate=_evaluate_digits,
        seeds=5,
        card=read_card("digits-vit"),
    ),
    "canvas-vit": Recipe(
        build=partial(_vit, image_size=16, patch_size=4),
        processors=partial(_processors, 16),
        stages=(Stage(partial(_canvas_batch, 128), steps=3000, lr=3e-3, warmup=300),),
        evaluate=_evaluate_canvas,
        seeds=5,
        card=read_card("canvas-vit"),
    ),
}
