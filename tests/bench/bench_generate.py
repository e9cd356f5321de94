"""Captions of 1,000 images: in batches against one at a time, and under edits and captures.

Run as `python tests/bench/bench_generate.py [N]`. All times are CPU seconds of one thread; one at a time is
measured on a sample of the images, and scaled up.
"""

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch

from data.worlds import scenes
from lib.encode import inputs
from lib.generate import Generation, generate
from lib.hooks import capture, edit
from lib.models import load

N = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
PROMPT = "describe the picture"


def seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    torch.set_num_threads(1)
    subject = load("scenes-vlm")
    rng = np.random.default_rng(0)
    images = scenes.draw(scenes.sample(N, rng), rng, split="test")

    def captions(some: np.ndarray, size: int) -> Generation:
        return generate(subject, [PROMPT] * len(some), some, max_new_tokens=33, batch_size=size)

    captions(images[:2], 2)  # warms up
    print(f"{N} captions of {captions(images, 250).ids.shape[1]} tokens at most, in CPU seconds")
    encode = seconds(lambda: list(inputs(subject, [PROMPT] * N, images)))
    print(f"  inputs alone            {encode:7.2f}   ({1000 * encode / N:.2f} ms an image)")
    sample = images[: max(20, N // 20)]
    alone = seconds(lambda: captions(sample, 1)) * N / len(sample)
    print(f"  one at a time           {alone:7.2f}   (from {len(sample)})")
    for size in (50, 250, 1000):
        batched = seconds(lambda size=size: captions(images, size))
        print(f"  in batches of {size:4}      {batched:7.2f}   {alone / batched:.1f} times as fast")

    before = subject.layout.owner.config._attn_implementation
    subject.layout.owner.set_attn_implementation("eager")
    plain = seconds(lambda: captions(images, 250))
    subject.layout.owner.set_attn_implementation(before)
    print(f"  batches of 250, eager   {plain:7.2f}")
    for name, context in {
        "edit of z": lambda: edit(subject, "z", layer=range(6), fn=lambda z: z),
        "edit of pattern": lambda: edit(subject, "pattern", layer=range(6), fn=lambda p: p),
        "reduced pattern": lambda: capture(
            subject, "pattern", reduce=lambda total, p: (0 if total is None else total) + p[..., 1:65].sum()
        ),
        "nothing": nullcontext,
    }.items():
        with context():
            taken = seconds(lambda: captions(images, 250))
        print(f"    under {name:17} {taken:7.2f}   {taken / plain - 1:+.0%} against eager")


if __name__ == "__main__":
    main()
