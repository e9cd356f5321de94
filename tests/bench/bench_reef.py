"""REEF's heat map of two models at full size, and CKA's two forms.

    python tests/bench/bench_reef.py [THREADS]

Random features stand for those of two models of 32 layers, 4,096 wide, with 1,000 prompts. The peer is the
plain form of the paper's code: for each pair of layers both Gram matrices, centred by products with H. It is
timed on a few pairs, in rounds that are paired and in an order drawn anew; times are CPU seconds.
"""

import resource
import sys
import time

import numpy as np
import torch
from jaxtyping import Float
from timing import in_turn
from torch import Tensor

from lib import chapters
from lib.probes import cka, cka_map
from lib.stats import bootstrap

N_LAYERS, WIDTH, N_PROMPTS = 32, 4096, 1000
SECONDS, GIB = 10, 4


def plain(x: Float[Tensor, "n d_x"], y: Float[Tensor, "n d_y"]) -> float:
    """CKA as it is written down: tr(K H L H) from whole matrices."""
    n = len(x)
    H = torch.eye(n, dtype=x.dtype) - 1 / n

    def hsic(K: Tensor, L: Tensor) -> Tensor:
        return torch.trace(K @ H @ L @ H)

    K, L = x @ x.T, y @ y.T
    return float(hsic(K, L) / (hsic(K, K) * hsic(L, L)).sqrt())


def compare(ways: dict, rounds: int, units: dict[str, float], what: str) -> None:
    """Median time of each way for one unit, and its ratio to the first way."""
    times = {name: seconds / units[name] for name, seconds in in_turn(ways, rounds).items()}
    first = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = bootstrap(seconds / first, np.median)
        print(f"{name:44} {1e3 * np.median(seconds):9.2f} ms CPU {what}   ratio {ratio}", flush=True)


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    m = chapters.method("reef")
    prompts = tuple(map(str, range(N_PROMPTS)))
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(N_PROMPTS, 50, generator=draw)  # what both models have in common

    def model(name: str) -> object:
        layers = []
        for _ in range(N_LAYERS):
            noise = 5 * torch.randn(N_PROMPTS, WIDTH, generator=draw)
            own = shared @ torch.randn(50, WIDTH, generator=draw) + noise
            layers.append(own.half())
        return m.Features(name, prompts, layers)

    x, y = model("victim"), model("suspect")
    threads = torch.get_num_threads()
    print(f"Two models of {N_LAYERS} layers, {WIDTH} wide, {N_PROMPTS} prompts; {threads} threads")
    began, cpu = time.perf_counter(), time.process_time()
    grid = m.heat_map(x, y)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    verdict = "met" if wall < SECONDS and peak < GIB else "missed"
    print(f"heat map of {grid.size} pairs: {wall:.1f} s, {cpu:.1f} s CPU, {peak:.2f} GiB at most")
    print(f"goal of {SECONDS} s and {GIB} GiB: {verdict}")

    a, b = (m.standardised(z.layers[0]) for z in (x, y))
    difference = abs(plain(a.double(), b.double()) - grid[0, 0])
    print(f"first pair, difference from the plain form in float64: {difference:.1e}")
    few = 4
    some = [[m.standardised(z) for z in features.layers[:few]] for features in (x, y)]
    compare(
        {
            "plain Gram form, pair by pair": lambda: plain(a, b),
            "lib.probes.cka, pair by pair": lambda: cka(a, b),
            f"lib.probes.cka_map, {few} x {few} layers": lambda: cka_map(*some),
        },
        3,
        {"plain Gram form, pair by pair": 1, "lib.probes.cka, pair by pair": 1,
         f"lib.probes.cka_map, {few} x {few} layers": few * few},
        "a pair",
    )  # fmt: skip

    for n, d in ((200, 64), (1000, 64), (200, 768)):
        own = [[torch.randn(n, d, generator=draw) for _ in range(4)] for _ in range(2)]
        print(f"\n4 x 4 layers of {d} units, {n} prompts")
        pairs = [(p, q) for p in own[0] for q in own[1]]
        compare(
            {
                "plain Gram form, pair by pair": lambda pairs=pairs: [plain(p, q) for p, q in pairs],
                "lib.probes.cka_map": lambda own=own: cka_map(*own),
            },
            5,
            {"plain Gram form, pair by pair": 16, "lib.probes.cka_map": 16},
            "a pair",
        )


if __name__ == "__main__":
    main()
