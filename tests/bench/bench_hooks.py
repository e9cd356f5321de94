"""What captures cost, against the same in plain PyTorch hooks and against the bare eager model.

Run as `python tests/bench/bench_hooks.py`. Each figure is a median over rounds in which all variants take
turns, in CPU time of one thread; the peak memory is that of a process of its own.
"""

import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lib.hooks import capture
from lib.models import Subject

ROUNDS = 60


def model(n_layers: int, width: int, heads: int) -> GPT2LMHeadModel:
    """A GPT-2 of the given size, with random weights and eager attention."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=1000, n_embd=width, n_layer=n_layers, n_head=heads, n_positions=256)
    return GPT2LMHeadModel._from_config(config, attn_implementation="eager").eval()


@contextmanager
def plain_residual(net: GPT2LMHeadModel, keep: Callable):
    """What one would write by hand for `resid_post`."""
    handles = [
        block.register_forward_hook(lambda module, args, output, layer=layer: keep(layer, output.detach()))
        for layer, block in enumerate(net.transformer.h)
    ]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def plain_patterns(net: GPT2LMHeadModel, keep: Callable):
    """What one would write by hand for patterns: GPT-2's attention module returns them when it is eager."""
    handles = [
        block.attn.register_forward_hook(
            lambda module, args, output, layer=layer: keep(layer, output[1].detach())
        )
        for layer, block in enumerate(net.transformer.h)
    ]
    yield
    for handle in handles:
        handle.remove()


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of one call: on one thread, other processes hardly change them."""
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(variants: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median over rounds of each variant's time over the first variant's in the same round."""
    names = list(variants)
    for name in names:
        variants[name]()
    ratios: dict[str, list[float]] = {name: [] for name in names}
    for i in range(ROUNDS):
        order = names[i % len(names) :] + names[: i % len(names)]
        times = {name: seconds(variants[name]) for name in order}
        for name in names:
            ratios[name].append(times[name] / times[names[0]])
    return {name: statistics.median(ratios[name]) for name in names}


def mean(state: object, x: torch.Tensor) -> torch.Tensor:
    """A statistic that a chapter would keep."""
    m = x.mean(0)
    return m if state is None else state + m  # type: ignore[operator]


@torch.no_grad()
def costs(label: str, net: GPT2LMHeadModel, batch: int, length: int) -> None:
    """Prints the table for one size of model."""
    subject = Subject(net)
    ids = torch.randint(0, 1000, (batch, length))

    def bare() -> None:
        net(ids)

    def ours(site: str, reduce: Callable | None = None) -> None:
        with capture(subject, site, reduce=reduce):
            net(ids)

    def plain(hooks: Callable, reduce: Callable | None = None) -> None:
        kept: dict = {}
        if reduce:
            keep = lambda layer, x: kept.__setitem__(layer, reduce(kept.get(layer), x))  # noqa: E731
        else:
            keep = kept.__setitem__
        with hooks(net, keep):
            net(ids)

    result = compare(
        {
            "bare eager forward": bare,
            "no context open (any more)": bare,
            "resid_post, plain hooks": lambda: plain(plain_residual),
            "resid_post, capture": lambda: ours("resid_post"),
            "resid_post, plain hooks, reduced": lambda: plain(plain_residual, mean),
            "resid_post, capture, reduced": lambda: ours("resid_post", mean),
            "pattern, plain hooks": lambda: plain(plain_patterns),
            "pattern, capture": lambda: ours("pattern"),
            "pattern, plain hooks, reduced": lambda: plain(plain_patterns, mean),
            "pattern, capture, reduced": lambda: ours("pattern", mean),
        }
    )
    print(
        f"\n{label}: {batch} x {length} tokens; time over a bare eager forward ({seconds(bare) * 1e3:.1f} ms)"
    )
    for name, ratio in result.items():
        peer = name.replace("capture", "plain hooks")
        beside = f"   {ratio / result[peer]:.3f} of plain hooks" if peer != name else ""
        print(f"  {name:34} {ratio:.3f}{beside}")


@torch.no_grad()
def peak_memory(n_sequences: int) -> None:
    """Prints the peak memory, in MiB, of a process that folds the patterns of many sequences."""
    subject = Subject(model(4, 128, 8))
    with capture(subject, "pattern", reduce=mean):
        for _ in range(n_sequences):
            subject.model(torch.randint(0, 1000, (1, 128)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        peak_memory(int(sys.argv[1]))
        sys.exit()
    costs("tiny (4 layers, 128 wide)", model(4, 128, 8), batch=16, length=64)
    costs("tiny, one short sequence", model(4, 128, 8), batch=1, length=16)
    costs("GPT-2 small's blocks (3 layers, 768 wide)", model(3, 768, 12), batch=2, length=128)
    print("\npeak memory of a reduced capture of all patterns (4 layers, 8 heads, 128 tokens)")
    for n in (5, 50, 500):
        command = [sys.executable, __file__, str(n)]
        peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"  {n:4} sequences: {peak:.0f} MiB")
    print(f"  kept without `reduce`, 500 sequences would add {500 * 4 * 8 * 128 * 128 * 4 / 2**20:.0f} MiB")
