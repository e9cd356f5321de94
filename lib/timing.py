"""Timing pieces of work beside one another, so that a drift of the machine's speed hits all of them."""

import time
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float


def in_rounds(
    works: Mapping[str, Callable[[], object]], n_rounds: int, *, warm_up: int = 1
) -> dict[str, Float[np.ndarray, " round"]]:
    """Seconds that each piece of work takes, in rounds in which all are timed once.

    Each round begins with another piece. Ratios are taken round by round: `a / b`, then `t_interval` of its
    logarithm or `bootstrap` of its median. Work on a GPU must wait for its end by itself.

    Args:
        works: name -> what to time.
        n_rounds: timed rounds.
        warm_up: rounds that are not counted, first.

    Raises:
        ValueError: nothing to time, no round, or less than none to warm up.
    """
    if not works or n_rounds < 1 or warm_up < 0:
        raise ValueError(
            f"{len(works)} pieces of work in {n_rounds} rounds after {warm_up}: expected one piece and one "
            "round at least, after none or more"
        )
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for i in range(warm_up + n_rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            works[name]()
            if i >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return {name: np.array(taken) for name, taken in seconds.items()}
