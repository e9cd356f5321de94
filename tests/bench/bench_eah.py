"""Tokens per second of captions under EAH's broadcast, against plain greedy decoding.

    python tests/bench/bench_eah.py [model]

Both run with the same attention implementation and the same number of new tokens, alternately, in an order
drawn anew in each round; ratios are paired. Without a model, one of the organism's shape with random weights.
"""

import sys
from contextlib import AbstractContextManager

import families
import numpy as np
from timing import in_turn

from data.worlds import scenes
from lib import chapters
from lib.generate import generate
from lib.hooks import edit
from lib.models import load
from lib.stats import bootstrap

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

    def describe() -> None:
        said = generate(subject, ["describe the picture"] * N_IMAGES, images, max_new_tokens=NEW_TOKENS)
        assert said.ids.shape == (N_IMAGES, NEW_TOKENS)

    seconds = in_turn(dict.fromkeys(ways, describe), ROUNDS, ways)
    for name, times in seconds.items():
        ratio = bootstrap(times / seconds["greedy"], np.median) if name != "greedy" else "1"
        rate = N_IMAGES * NEW_TOKENS / np.median(times)
        print(f"{name:32} {rate:7.0f} tokens/s   time / greedy {ratio}")


if __name__ == "__main__":
    main()
