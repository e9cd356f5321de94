"""The chapter's transforms and solvers against the ways in which they are usually written.

    python tests/bench/bench_two_phase_interactions.py

1. All 2^12 interactions of a batch: butterflies against the textbook's double loop over S and its subsets
   (Python, one input), and against the product with the 2^12 x 2^12 matrix of signs, which public code uses.
2. The sparsest split at n = 8: all inputs at once by ADMM, against a linear programme for each (HiGHS); time
   an input, and how far above the optimum.
3. The theory's closed form at n = 11: Kronecker filter against the dense solve of theorem 3.

Processor time of one process; the contestants of a round run in an order drawn anew, and ratios are paired.
"""

from collections.abc import Callable

import numpy as np
import torch
from chapters.test_two_phase_interactions import linear_programme
from timing import in_turn
from torch import Tensor

from lib import chapters
from lib.stats import Estimate, bootstrap

m = chapters.method("two-phase-interactions")
N, BATCH, ROUNDS = 12, 64, 8


def double_loop(v: list[float]) -> list[float]:
    """I(S) = sum over T in S of (-1)^(|S| - |T|) v(T): 3^n terms."""
    found = []
    for S in range(len(v)):
        total, T = v[S], S
        while T:
            T = (T - 1) & S  # the next smaller subset of S
            total += v[T] if (S.bit_count() - T.bit_count()) % 2 == 0 else -v[T]
        found.append(total)
    return found


def ratio(slow: np.ndarray, fast: np.ndarray) -> Estimate:
    return bootstrap(slow / fast, np.median)


def transforms() -> None:
    v = torch.randn(BATCH, 2**N, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    signs = m.moebius(torch.eye(2**N, dtype=torch.float64))
    one = v[0].tolist()
    slow = torch.tensor(double_loop(one), dtype=torch.float64)
    assert (slow - m.moebius(v)[0]).abs().max() < 1e-9
    assert (v @ signs - m.moebius(v)).abs().max() < 1e-9
    loop = in_turn({"double loop": lambda: double_loop(one)}, 3)["double loop"] * BATCH
    times = in_turn({"matrix product": lambda: v @ signs, "butterflies": lambda: m.moebius(v)}, 20 * ROUNDS)
    fast = times["butterflies"]
    print(f"1. all {2**N:,} interactions of {BATCH} inputs, float64")
    print(f"   butterflies      {1e3 * np.median(fast):10.2f} ms")
    print(f"   matrix product   {1e3 * np.median(times['matrix product']):10.2f} ms   "
          f"{ratio(times['matrix product'], fast)} times as long")  # fmt: skip
    factor = bootstrap(np.median(loop) / fast, np.median)
    print(f"   double loop      {1e3 * np.median(loop):10.0f} ms   {factor} times as long"
          f" ({BATCH} times the time for one input)")  # fmt: skip


def splits(n: int = 8, n_inputs: int = 256, few: int = 8) -> None:
    """Inputs whose effects fall off with their order, as those of networks do."""
    generator = torch.Generator().manual_seed(0)
    effects = torch.randn(n_inputs, 2, 2**n, generator=generator, dtype=torch.float64).pow(
        3
    ) * 0.6 ** m.order(n)
    v = m.zeta(effects[:, 0]) + m.or_zeta(effects[:, 1])
    v = v - v[:, :1]
    bound = 0.02 * v[:, -1].abs()

    def programmes() -> Tensor:
        solved = [linear_programme(a.numpy(), b.item()) for a, b in zip(v[:few], bound[:few], strict=True)]
        return torch.stack([m.priced(one) for one in solved])

    optimum = programmes()
    ways: dict[str, tuple[Callable[[], Tensor], int]] = {
        "linear programme": (programmes, few),
        "ADMM, 400 steps": (lambda: m.priced(m.sparsest_split(v, bound, 400)[0]), n_inputs),
    }
    times = in_turn({name: way for name, (way, _) in ways.items()}, 3)
    each = {name: own / ways[name][1] for name, own in times.items()}
    print(f"2. sparsest split, n = {n}")
    for name, (way, _) in ways.items():
        above = 100 * (way()[:few] / optimum - 1)
        factor = ratio(each[name], each["ADMM, 400 steps"])
        print(f"   {name:17}{1e3 * np.median(each[name]):10.1f} ms an input, {factor} times ADMM's;"
              f" {above.mean():.2f} % above the optimum (worst {above.max():.2f} %)")  # fmt: skip


def closed_form(n: int = 11, noise: float = 0.01) -> None:
    w = torch.randn(2**n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    J = m.zeta(torch.eye(2**n, dtype=torch.float64)).T
    penalty = torch.diag(2**n * noise * 2.0 ** m.order(n).double())

    def dense() -> Tensor:
        gram = J.T @ J
        return torch.linalg.solve(gram + penalty, gram @ w)

    def fast() -> Tensor:
        return m.regressed(w, torch.tensor(noise, dtype=torch.float64))

    assert (dense() - fast()).abs().max() < 1e-8
    times = in_turn({"dense solve": dense, "Kronecker filter": fast}, 4)
    print(f"3. w_hat of theorem 3, n = {n}")
    for name, own in times.items():
        print(f"   {name:17}{1e3 * np.median(own):10.2f} ms")
    print(f"   dense / filter   {ratio(times['dense solve'], times['Kronecker filter'])}")


if __name__ == "__main__":
    transforms()
    splits()
    closed_form()
