"""What D-LEAF (as reconstructed) and EAH cost in generation, against greedy on the same attention function.

Run as `python tests/bench_d_leaf.py`. All run on the attention function of `lib.attention`; greedy has an
edit there that changes nothing. Methods take turns, in an order drawn anew in each round; a figure is the
median over rounds of the ratio to greedy of the same round, in CPU time of one thread. Goal: at most 1.10.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from lib import Subject, chapters, edit, load
from lib.generate import generate, inputs
from lib.worlds import scenes

ROUNDS, TOKENS = 9, 10
d_leaf, eah = chapters.method("d-leaf"), chapters.method("eah")


def wide() -> Subject:
    """A LLaVA of random weights: 576 image tokens, blocks 1024 wide, the organism's words and scenes."""
    organism = load("scenes-vlm")
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(organism.tokenizer),
        hidden_size=1024,
        num_hidden_layers=4,
        num_attention_heads=16,
        intermediate_size=2752,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = CLIPVisionConfig(
        image_size=24 * 8, patch_size=8, hidden_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, image_seq_length=576)
    processor = organism.processor
    processor.image_processor.size = {"height": 192, "width": 192}
    return Subject(LlavaForConditionalGeneration(config).eval(), processor)


def rounds(
    subject: Subject,
    methods: dict[str, Callable[[], AbstractContextManager]],
    images: np.ndarray,
    prompt: str,
) -> dict[str, list[float]]:
    """Seconds for a generated token of the batch, by method and round."""
    subject.model.generation_config.eos_token_id = -1  # all write equally many tokens
    rng, times = np.random.default_rng(0), {name: [] for name in methods}
    for round_ in range(ROUNDS + 1):  # the first warms up
        for name in rng.permutation(list(methods)):
            with methods[name]():
                (batch,) = inputs(subject, [prompt] * len(images), images, batch_size=len(images))
                reading = d_leaf.Prompt(subject, batch)
                reading.read_on(reading.last)  # the prompt is read outside the clock
                began = time.process_time()
                for _ in range(TOKENS):
                    logp = reading.read_on(reading.last)
                    logp.argmax(-1)
                if round_:
                    times[name].append((time.process_time() - began) / TOKENS)
    return times


def whole(
    subject: Subject,
    methods: dict[str, Callable[[], AbstractContextManager]],
    images: np.ndarray,
    prompt: str,
) -> dict[str, list[float]]:
    """The same with the reading of the prompt, in which EAH does its work."""
    rng, times = np.random.default_rng(0), {name: [] for name in methods}
    for round_ in range(ROUNDS // 2 + 1):
        for name in rng.permutation(list(methods)):
            with methods[name]():
                began = time.process_time()
                generate(
                    subject, [prompt] * len(images), images, max_new_tokens=TOKENS, batch_size=len(images)
                )
                if round_:
                    times[name].append((time.process_time() - began) / TOKENS)
    return times


def report(label: str, subject: Subject, n: int) -> None:
    """Prints the table for one model and batch."""
    prompt, rng = "describe the picture", np.random.default_rng(0)
    images = scenes.draw(scenes.sample(n, rng), rng)
    (batch,) = inputs(subject, [prompt] * n, images, batch_size=n)
    image = d_leaf.image_columns(subject, batch)
    methods: dict[str, Callable[[], AbstractContextManager]] = {
        "greedy": lambda: edit(subject, "pattern", layer=range(subject.n_layers), fn=lambda pattern: pattern),
        "D-LEAF": lambda: d_leaf.applied(subject, d_leaf.DLeaf(image, 0.5)),
        "D-LEAF, gamma = 0": lambda: d_leaf.applied(subject, d_leaf.DLeaf(image, 0.0)),
        "EAH": lambda: eah.broadcasting(subject, 1, "dense"),
    }
    print(f"\n{label}, batch of {n}, {batch['input_ids'].shape[1]} tokens of prompt")
    steps, both = (measure(subject, methods, images, prompt) for measure in (rounds, whole))
    for name in methods:
        ratio, all_in = (
            np.median(np.array(times[name]) / np.array(times["greedy"])) for times in (steps, both)
        )
        speed = n / np.median(steps[name])
        print(f"  {name:18} {speed:9,.0f} tokens/s, step / greedy {ratio:.3f}, with the prompt {all_in:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    organism = load("scenes-vlm")
    for size in (1, 32):
        report("scenes-vlm (6 layers, 128 wide)", organism, size)
    report("LLaVA's shape, random weights (4 layers, 1024 wide)", wide(), 2)
