"""Many small networks trained as rows of one tensor, against one after another and `torch.func.vmap`.

    python tests/bench_pgm.py

The same steps of R2 in three ways, in CPU seconds, in turn and in an order drawn anew in each round; ratios
are paired. The peers are `torch.nn` layers with `torch.optim.AdamW`, a network at a time, and
`functional_call` of the same layers under `vmap`. Then: what a network costs as the stack grows.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from timing import in_turn
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from lib import chapters
from lib.stats import bootstrap

N_NETWORKS, STEPS, BATCH, ROUNDS = 32, 20, 64, 7
ALPHA, GAMMA, TAU, LR = 1.0, 0.1, 0.2, 1e-2


class Network(nn.Module):
    """R2 in torch's own layers; returns its loss."""

    def __init__(self, n_in: int, n_bits: int, d: int, hidden: int) -> None:
        super().__init__()

        def mlp(a: int, b: int) -> nn.Module:
            return nn.Sequential(nn.Linear(a, hidden), nn.ReLU(), nn.Linear(hidden, b))

        self.encoders = nn.ModuleList([nn.Sequential(mlp(n_in, d), nn.LayerNorm(d)) for _ in range(2)])
        self.gates = nn.ModuleList([nn.Linear(d, d) for _ in range(2)])
        self.uni = nn.ModuleList([mlp(d, n_bits) for _ in range(2)])
        self.decoders = nn.ModuleList([nn.Linear(2 * d, d) for _ in range(2)])
        self.paired = mlp(2 * d, n_bits)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, p, loss = torch.zeros_like(y), [], x.new_zeros(())
        for i in range(2):
            h = self.encoders[i](x[i])
            g = 1 - (self.gates[i](h) / TAU).softmax(-1).cumsum(-1)
            own = self.uni[i](g * h)
            decoded = self.decoders[i](torch.cat([g * h, (1 - g) * h], -1))
            loss = loss + GAMMA * (decoded - h.detach()).square().sum(-1).mean()
            loss = loss + ALPHA * F.binary_cross_entropy_with_logits(own, y) * y.shape[-1]
            a = a + own
            p.append((1 - g) * h)
        scores = a.detach() + self.paired(torch.cat(p, -1))
        return loss + F.binary_cross_entropy_with_logits(scores, y) * y.shape[-1]


def main() -> None:
    torch.set_num_threads(1)
    pgm = chapters.method("pgm")
    worlds = [pgm.vector_world((2000,), 0.6, np.random.default_rng(i))[0] for i in range(N_NETWORKS)]
    sample = pgm.stacked(worlds)
    n_in, n_bits = sample.x.shape[-1], sample.y.shape[-1]
    recipe = pgm.Recipe(STEPS, BATCH, LR, 0)
    everything = (1.0,) * n_bits
    drawn = torch.randint(2000, (STEPS, BATCH), generator=torch.Generator().manual_seed(0))

    def stacked(n: int = N_NETWORKS) -> None:
        pgm.train("r2", [pgm.Member(i % N_NETWORKS, everything) for i in range(n)], sample, recipe)

    def one_by_one() -> None:
        for i in range(N_NETWORKS):
            network = Network(n_in, n_bits, pgm.D, pgm.HIDDEN)
            optimizer = torch.optim.AdamW(network.parameters(), lr=LR)
            for rows in drawn:
                optimizer.zero_grad()
                network(sample.x[i][:, rows], sample.y[i][rows]).backward()
                optimizer.step()

    def mapped() -> None:
        networks = [Network(n_in, n_bits, pgm.D, pgm.HIDDEN) for _ in range(N_NETWORKS)]
        weights, _ = stack_module_state(networks)
        optimizer = torch.optim.AdamW(weights.values(), lr=LR)
        for rows in drawn:
            optimizer.zero_grad()
            x, y = sample.x[:, :, rows], sample.y[:, rows]
            vmap(lambda w, x, y: functional_call(networks[0], w, (x, y)))(weights, x, y).sum().backward()
            optimizer.step()

    ways: dict[str, Callable[[], None]] = {
        "rows of one tensor": stacked,
        "torch.func.vmap": mapped,
        "one after another": one_by_one,
    }
    times = in_turn(ways, ROUNDS)
    n = pgm.size(pgm.shapes("r2", n_in, n_bits))
    print(f"R2, {N_NETWORKS} networks of {n:,} parameters, {STEPS} steps of {BATCH}")
    for name, seconds in times.items():
        ratio = (
            "1"
            if name == "rows of one tensor"
            else str(bootstrap(seconds / times["rows of one tensor"], np.median))
        )
        per_step = 1000 * np.median(seconds) / STEPS
        print(f"  {name:20} {per_step:7.1f} ms a step   time / rows of one tensor: {ratio}")
    for n in (1, 8, 32, 128):
        began = time.process_time()
        stacked(n)
        each = 1000 * (time.process_time() - began) / STEPS / n
        print(f"  {n:4} networks in a stack: {each:6.2f} ms a step and network")


if __name__ == "__main__":
    main()
