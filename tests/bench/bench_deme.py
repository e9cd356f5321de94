"""Fine-tuning copies side by side or one after the other; what sampling costs before and after a merge.

    python tests/bench_deme.py

The peer is a plain PyTorch loop over each copy: `nn.Module`, AdamW, `clip_grad_norm_`, an average
of the weights, on the very same batches. Rounds are paired and in an order drawn anew; times are CPU seconds.
"""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from timing import in_turn
from torch import nn

from data.recipes.diffusion import noised
from lib import chapters
from lib.stats import bootstrap

STEPS, BATCH, ROUNDS = 15, 64, 7


def compare(ways: dict[str, Callable[[], object]], unit: float, what: str) -> None:
    """Print the median time of each way, and its ratio to the first one."""
    seconds = in_turn(ways, ROUNDS)
    first = next(iter(seconds.values()))
    for name, times in seconds.items():
        ratio = bootstrap(times / first, np.median)
        print(f"{name:36} {1e3 * np.median(times) / unit:8.3f} ms {what}   ratio {ratio}")


def main() -> None:
    m = chapters.method("deme")
    model, bases = m.load_networks("digits-ddpm", 4, "cpu")
    net, images = m.Net(model), m.pixels("train")
    ranges = [torch.arange(*part) for part in m.equal_ranges(4)]

    def one_after_the_other(jobs: list) -> None:
        for job in jobs:
            student = deepcopy(model)
            student.load_state_dict(job.start)
            average = deepcopy(student)
            optimizer = torch.optim.AdamW(
                student.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6
            )
            for step, (x0, noise, t) in enumerate(m.batches([job], images, BATCH, STEPS)):
                loss = nn.functional.mse_loss(student(noised(x0[0], t[0], noise[0]), t[0]).sample, noise[0])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                decay = 1 - (1 + step) ** -0.75
                with torch.no_grad():
                    for old, new in zip(average.parameters(), student.parameters(), strict=True):
                        old.lerp_(new, 1 - decay)

    for n in (4, 16):
        jobs = [m.Job(bases[i % 4], ranges[i % 4], i) for i in range(n)]
        ways = {
            "one after the other (plain loop)": lambda jobs=jobs: one_after_the_other(jobs),
            "side by side": lambda jobs=jobs: m.finetune(
                net, jobs, images, steps=STEPS, batch_size=BATCH, lr=1e-4
            ),
        }
        print(f"\nFine-tuning {n} copies of {sum(v.numel() for v in bases[0].values()):,} weights")
        compare(ways, n * STEPS, "a copy and step")

    start = torch.randn(400, 1, 8, 8)
    copies = m.finetune(
        net, [m.Job(bases[0], r, i) for i, r in enumerate(ranges)], images, steps=5, batch_size=8, lr=1e-4
    )
    merged = m.merge(bases[0], [m.task_vector(copy, bases[0]) for copy in copies], (0.25,) * 4)
    projected = m.add_projections(net, (1, 8, 8))
    with_projections = m.projected_weights(merged, projected)
    each = m.ensemble(copies, m.owners(ranges))
    print("\nSampling 400 images in 20 steps")
    compare(
        {
            "pretrained": lambda: m.sample(net, lambda t: bases[0], start, 20),
            "merged": lambda: m.sample(net, lambda t: merged, start, 20),
            "merged, with projections": lambda: m.sample(projected, lambda t: with_projections, start, 20),
            "ensemble of 4": lambda: m.sample(net, each, start, 20),
        },
        400,
        "an image",
    )


if __name__ == "__main__":
    main()
