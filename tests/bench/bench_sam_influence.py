"""Influence of all training samples: solves against the explicit inverse of the same matrix.

    python tests/bench_sam_influence.py [width ...]

SAM-HIF of a tanh network on the digits, once for each hidden width: the matrix A is formed by products with
all unit vectors and inverted (the textbook way), or solved with, or only multiplied with. All end with the
same scores; processor time is compared in rounds whose order is drawn anew, and ratios are paired.
"""

import sys
from functools import partial
from types import ModuleType

import numpy as np
import torch
from timing import in_turn
from torch import Tensor
from torch.func import grad

from data.worlds.digits import digits
from lib import chapters
from lib.stats import bootstrap

WIDTHS, N, STEPS, ROUNDS, TOLERANCE = (8, 16, 32), 240, 200, 4, 1e-4
RHO, LAM, LR, DAMPING = 0.1, 0.005, 0.2, 0.05


def labelled(m: ModuleType, split: str, n: int) -> tuple:
    images, labels = (torch.from_numpy(part[:n]) for part in digits(split))
    return m.Labelled(images.flatten(1).double() / 255, labels)


def compare(m: ModuleType, width: int, rng: np.random.Generator) -> None:
    """Train one network with SAM, then score its samples in every way, in turn."""
    data, validation = labelled(m, "train", N), labelled(m, "validation", 200)
    torch.manual_seed(0)
    module = m.small_network(64, width, 10).double()
    sam = m.Sam(m.cross_entropy(m.as_function(module)), RHO, LAM)
    stacked, ones = m.Labelled(data.x[None], data.y[None]), torch.ones(1, 1, N, dtype=torch.float64)
    start = m.flat_weights(module)[None, None]
    w = list(m.train(sam, start, ones, stacked, m.batch_order(N, 0, STEPS, rng), LR))[-1][0, 0]
    v0 = grad(lambda w: sam.loss(w, *validation).mean())(w)
    curve, shift = m.curvature(sam, w, *data), LAM + DAMPING

    def solved(way: str) -> Tensor:
        if way == "explicit inverse":
            return torch.linalg.inv(m.matrix(curve.transposed("SAM-HIF", shift), len(w), w)) @ v0
        return m.solve(curve.transposed("SAM-HIF", shift), v0, way, tolerance=TOLERANCE)

    ways = ("explicit inverse", "exact", "gmres")
    scores: dict[str, Tensor] = {}

    def score(way: str) -> None:
        scores[way] = m.influence(sam, w, data, curve, "SAM-HIF", solved(way))

    seconds = in_turn({way: partial(score, way) for way in ways}, ROUNDS)
    base, exact = seconds["explicit inverse"], scores["explicit inverse"]
    print(f"D = {len(w):,} ({width} hidden units), {N} samples")
    for way, spent in seconds.items():
        ratio = "1" if way == ways[0] else str(bootstrap(spent / base, np.median))
        error = ((scores[way] - exact).norm() / exact.norm()).item()
        print(
            f"  {way:17} {np.median(spent):7.2f} s   time / inverse {ratio:22} error {error:.1e}",
            flush=True,
        )


def main() -> None:
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    method, rng = chapters.method("sam-influence"), np.random.default_rng(0)
    for width in map(int, sys.argv[1:] or WIDTHS):
        compare(method, width, rng)


if __name__ == "__main__":
    main()
