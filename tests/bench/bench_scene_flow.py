"""FNSF's distance transform against NSFP's nearest neighbours, at 1k, 4k and 16k points.

    python tests/bench/bench_scene_flow.py

The same drive, thinned; one thread; all take turns, and ratios are paired by rounds. A step is network, loss,
gradients and update (NSFP: two networks and two Chamfer distances). Nearest neighbours come from k-d trees,
and for one Chamfer distance also from the table of all distances, as a GPU would find them. The grid of
distances is built once a fit: its time is printed beside.
"""

import numpy as np
import torch

from lib import chapters
from lib.stats import bootstrap
from lib.timing import in_rounds

m = chapters.method("scene-flow")
SIZES, ROUNDS = (1_000, 4_000, 16_000), 7
SETTINGS = m.Settings(layers=8, hidden=128, lr=0.01, steps=1, patience=1, min_delta=0.0, factor=10.0)
LARGEST_TABLE = 4_000
"""Points from which all distances would take too much memory."""


def from_the_table(scene: object) -> None:
    """One Chamfer distance with gradients, from all distances."""
    source, target = scene.source.clone().requires_grad_(), scene.clouds[-1]
    squared = torch.cdist(source, target).square()
    (m.truncated(squared.amin(0)) + m.truncated(squared.amin(1))).backward()


def main() -> None:
    torch.set_num_threads(1)
    drive = m.generated(0, max(SIZES), 3, 1.0, device="cpu", dtype=torch.float32)
    heads = ("points", "step FNSF", "step NSFP", "NSFP / FNSF", "all distances", "grid, once")
    widths = (8, 10, 10, 20, 14, 11)
    print(" ".join(f"{head:>{width}}" for head, width in zip(heads, widths, strict=True)))
    ratios = []
    for size in SIZES:
        scene = m.thinned(drive, size, 0)
        works = m.works_of(scene, SETTINGS)
        works["grid"] = lambda s=scene: m.DistanceField(s.source, s.clouds[-1], SETTINGS.factor)
        if size <= LARGEST_TABLE:
            works["table"] = lambda s=scene: from_the_table(s)
        times = in_rounds(works, ROUNDS)
        ratio = bootstrap(times["NSFP"] / times["FNSF"], np.median)
        ratios.append(ratio.value)
        ms = {name: 1000 * np.median(values) for name, values in times.items()}
        print(
            f"{size:8,} {ms['FNSF']:10.2f} {ms['NSFP']:10.2f} {ratio!s:>20}"
            f" {ms.get('table', np.nan):14.1f} {ms['grid']:11.0f}",
            flush=True,
        )
    growth = m.log_slope(SIZES, np.array(ratios))
    print(f"NSFP / FNSF grows as N^{growth:.2f}, {ratios[-1] / ratios[0]:.1f} times from 1k to 16k points")
    print("Times are milliseconds, medians; ratios with 95 % intervals over rounds.")


if __name__ == "__main__":
    main()
