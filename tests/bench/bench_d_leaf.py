"""What D-LEAF (as reconstructed) and EAH cost in generation, against greedy on the same attention function.

Run as `python tests/bench/bench_d_leaf.py`. All run on the attention function of `lib.attention`; greedy
has an edit there that changes nothing. Methods take turns, in an order drawn anew in each round; a figure is
the median over rounds of the ratio to greedy of the same round, in CPU time of one thread. Goal: at most
1.10.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import families
import numpy as np
import torch
from timing import in_turn

from data.worlds import scenes
from lib import chapters
from lib.encode import inputs
from lib.generate import generate
from lib.hooks import edit
from lib.models import Subject, load

ROUNDS, TOKENS = 15, 8
d_leaf, eah = chapters.method("d-leaf"), chapters.method("eah")


def wide() -> Subject:
    """A LLaVA of random weights: 576 image tokens, blocks 1024 wide, the organism's words and scenes."""
    processor = load("scenes-vlm").processor
    processor.image_processor.size = {"height": 192, "width": 192}
    return Subject(families.wide_llava(24, 1024, 4, n_heads=16), processor)


Methods = dict[str, Callable[[], AbstractContextManager]]


def report(label: str, subject: Subject, n: int) -> None:
    """Prints the table for one model and batch."""
    prompt, rng = "describe the picture", np.random.default_rng(0)
    images = scenes.draw(scenes.sample(n, rng), rng)
    (batch,) = inputs(subject, [prompt] * n, images, batch_size=n)
    image = d_leaf.image_columns(subject, batch)
    steady: Methods = {
        "greedy": lambda: edit(subject, "pattern", layer=range(subject.n_layers), fn=lambda pattern: pattern),
        "D-LEAF": lambda: d_leaf.applied(subject, d_leaf.DLeaf(image, 0.5)),
        "D-LEAF, gamma = 0": lambda: d_leaf.applied(subject, d_leaf.DLeaf(image, 0.0)),
    }
    everything = steady | {"EAH": lambda: eah.broadcasting(subject, 1, "dense")}
    reading = d_leaf.Prompt(subject, batch)

    def decode() -> None:
        for _ in range(TOKENS):
            reading.read_on(reading.last).argmax(-1)
        reading.rewind()

    def answer() -> None:
        generate(subject, [prompt] * n, images, max_new_tokens=TOKENS, batch_size=n)

    subject.model.generation_config.eos_token_id = -1  # all write equally many tokens
    steps = in_turn(dict.fromkeys(steady, decode), ROUNDS, steady)
    whole = in_turn(dict.fromkeys(everything, answer), ROUNDS // 3, everything)
    print(f"\n{label}, batch of {n}, {batch['input_ids'].shape[1]} tokens of prompt, {TOKENS} new ones")
    for name in everything:
        step = "changes the prompt only"
        if name in steady:
            ratio, speed = np.median(steps[name] / steps["greedy"]), n * TOKENS / np.median(steps[name])
            step = f"{speed:7,.0f} tokens/s, {ratio:.3f} of greedy's time"
        with_prompt = np.median(whole[name] / whole["greedy"])
        print(f"  {name:18} decoding: {step:38} with the prompt: {with_prompt:.3f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    organism = load("scenes-vlm")
    for size in (1, 32, 128):
        report("scenes-vlm (6 layers, 128 wide)", organism, size)
    report("LLaVA's shape, random weights (4 layers, 1024 wide)", wide(), 2)
