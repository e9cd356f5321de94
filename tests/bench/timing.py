"""What benchmarks have in common: ways of doing something, timed in turn."""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np
from jaxtyping import Float


def in_turn(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    contexts: Mapping[str, Callable[[], AbstractContextManager[object]]] | None = None,
) -> dict[str, Float[np.ndarray, " round"]]:
    """CPU seconds of each way, paired by rounds in an order drawn anew; a first round warms up.

    Args:
        ways: name -> what is timed.
        rounds: how many are counted.
        contexts: name -> what is open meanwhile; to enter it is not timed.
    """
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name in rng.permutation(list(ways)):
            with (contexts or {}).get(name, nullcontext)():
                began = time.process_time()
                ways[name]()
                if round_:
                    times[name].append(time.process_time() - began)
    return {name: np.array(seconds) for name, seconds in times.items()}
