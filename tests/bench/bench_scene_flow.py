"""FNSF's distance transform against NSFP's nearest neighbours, at 1k, 4k and 16k points.

    python tests/bench_scene_flow.py

The same drive, thinned; one thread; all take turns in each round, in an order drawn anew, and ratios are
paired by rounds. A step is network, loss, gradients and update (NSFP: two networks and two Chamfer
distances); a loss is one evaluation with gradients. Nearest neighbours come from k-d trees, and once more
from the table of all distances, as a GPU would find them. The grid of distances is built once a fit: its
time is printed beside.
"""

import time

import numpy as np
import torch

from lib import chapters
from lib.stats import bootstrap

m = chapters.method("scene-flow")
SIZES, ROUNDS = (1_000, 4_000, 16_000), 7
SETTINGS = m.Settings(layers=8, hidden=128, lr=0.01, steps=1, patience=1, min_delta=0.0, factor=10.0)


def table_seconds(scene: object, most: int = 4_000) -> float:
    """One Chamfer distance with gradients, from all distances; not a number where they take too much
    memory."""
    source, target = scene.source.clone().requires_grad_(), scene.clouds[-1]
    if len(source) > most:
        return float("nan")

    def once() -> float:
        began = time.process_time()
        squared = torch.cdist(source, target).square()
        (m.truncated(squared.amin(0)) + m.truncated(squared.amin(1))).backward()
        return time.process_time() - began

    return float(np.median([once() for _ in range(3)]))


def main() -> None:
    torch.set_num_threads(1)
    drive = m.generated(0, max(SIZES), 3, 1.0, device="cpu", dtype=torch.float32)
    heads = ("points", "step FNSF", "step NSFP", "NSFP / FNSF", "loss FNSF", "loss NSFP", "losses alone")
    widths = (8, 10, 10, 20, 10, 10, 20, 14, 11)
    columns = zip((*heads, "all distances", "grid, once"), widths, strict=True)
    print(" ".join(f"{head:>{width}}" for head, width in columns))
    ratios = []
    for size in SIZES:
        scene = m.thinned(drive, size, 0)
        times = m.step_seconds(scene, SETTINGS, ROUNDS, time.process_time)
        began = time.process_time()
        m.DistanceField(scene.source, scene.clouds[-1], SETTINGS.factor)
        grid = time.process_time() - began
        steps, losses = (
            bootstrap(times[slow] / times[fast], np.median)
            for slow, fast in (("NSFP", "FNSF"), ("Chamfer", "distance transform"))
        )
        ratios.append((steps.value, losses.value))
        ms = {name: f"{1000 * np.median(values):.2f}" for name, values in times.items()}
        print(
            f"{size:8,} {ms['FNSF']:>10} {ms['NSFP']:>10} {steps!s:>20} {ms['distance transform']:>10}"
            f" {ms['Chamfer']:>10} {losses!s:>20} {1000 * table_seconds(scene):14.1f} {1000 * grid:11.0f}",
            flush=True,
        )
    for name, column in zip(("whole steps", "losses alone"), zip(*ratios, strict=True), strict=True):
        growth = m.log_slope(SIZES, np.array(column))
        times = column[-1] / column[0]
        print(f"{name}: NSFP / FNSF grows as N^{growth:.2f}, {times:.1f} times from 1k to 16k points")
    print("Times are CPU milliseconds, medians; ratios with 95 % intervals over rounds.")


if __name__ == "__main__":
    main()
