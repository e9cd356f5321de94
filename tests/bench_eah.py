"""Tokens per second of captions under EAH's broadcast, against plain greedy decoding.

    python tests/bench_eah.py [model]

Both run with the same attention implementation and the same number of new tokens, alternately, in an order
drawn anew in each round; ratios are paired. Without a model, one of the organism's shape with random weights.
"""

import sys
import time
from contextlib import AbstractContextManager

import families
import numpy as np

from lib import bootstrap, chapters, edit, load
from lib.generate import generate
from lib.worlds import scenes

N_IMAGES, NEW_TOKENS, ROUNDS = 100, 16, 8


def main() -> None:
    eah = chapters.method("eah")
    subject = load(sys.argv[1]) if len(sys.argv) > 1 else families.organism()
    subject.model.generation_config.eos_token_id = []  # all captions have the same length
    rng = np.random.default_rng(0)
    images = scenes.draw(scenes.sample(N_IMAGES, rng), rng)

    def plain() -> AbstractContextManager[None]:
        return edit(subject, "pattern", layer=1, fn=lambda pattern: pattern)

    ways = {
        "greedy": plain,
        "EAH in layer 1": lambda: eah.broadcasting(subject, 1),
        "EAH in layer 1, new words too": lambda: eah.broadcasting(subject, 1, prefill_only=False),
        "EAH as released, every layer": lambda: eah.broadcasting(subject, 1, official_quirks=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(ROUNDS + 1):  # the first one warms up
        for name in rng.permutation(list(ways)):
            with ways[name]():
                began = time.process_time()
                said = generate(
                    subject, ["describe the picture"] * N_IMAGES, images, max_new_tokens=NEW_TOKENS
                )
            if round_:
                seconds[name].append(time.process_time() - began)
            assert said.ids.shape == (N_IMAGES, NEW_TOKENS)
    base = np.array(seconds["greedy"])
    for name, times in seconds.items():
        ratio = bootstrap(np.array(times) / base, np.median) if name != "greedy" else "1"
        rate = N_IMAGES * NEW_TOKENS / np.median(times)
        print(f"{name:32} {rate:7.0f} tokens/s   time / greedy {ratio}")


if __name__ == "__main__":
    main()
