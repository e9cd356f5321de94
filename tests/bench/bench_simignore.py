"""What it saves to ignore image tokens: by an attention mask against taking them out of the sequence.

Run as `python tests/bench_simignore.py`. The same batch of questions with the same tokens ignored, at the
organism's size and at one with as many image tokens as LLaVA-1.5 has; logits agree (the gap is printed). One
thread; all variants take turns in each round.
"""

import families
import numpy as np
import torch

from lib import chapters
from lib.models import Subject
from lib.timing import in_rounds

m = chapters.method("simignore")
ROUNDS = 5
WORDS = 14


def questions(subject: Subject, n: int, n_image: int) -> object:
    """Prompts that were read: BOS, an image, some words."""
    length = 1 + n_image + WORDS
    return m.Prompts(
        torch.randn(n, length, subject.d_model, generator=torch.Generator().manual_seed(1)),
        torch.ones(n, length, dtype=torch.long),
        torch.arange(length).repeat(n, 1),
        torch.arange(1, 1 + n_image).repeat(n, 1),
    )


@torch.no_grad()
def compare(subject: Subject, prompts: object) -> None:
    """Print one line each for Simignore at two shares."""
    n, n_image = prompts.image.shape
    order = torch.rand(n, n_image, generator=torch.Generator().manual_seed(2)).argsort(1)
    for share in (0.25, 0.75):
        gone = m.first(order, round(share * n_image))
        report(
            f"{n_image} image tokens, {share:.0%} ignored",
            subject,
            {
                "nothing": lambda: m.logits(subject, prompts),
                "masked": lambda gone=gone: m.logits(subject, m.masked(prompts, gone)),
                "taken out": lambda gone=gone: m.logits(subject, m.removed(prompts, gone)),
            },
        )


def report(title: str, subject: Subject, variants: dict) -> None:
    """One line: seconds of a batch with nothing done, and ratios, medians over rounds."""
    seconds = in_rounds(variants, ROUNDS)
    nothing, masked, out = (float(np.median(x)) for x in seconds.values())
    gap = float((variants["masked"]() - variants["taken out"]()).abs().max())
    ratios = f"{masked / nothing:>10.2f}{out / nothing:>11.2f}{out / masked:>12.2f}"
    print(f"{title:36}{nothing:>7.3f} s{ratios}{gap:>9.0e}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"{'':36}{'nothing':>9}{'masked':>10}{'taken out':>11}{'out / mask':>12}{'gap':>9}")
    for side, layers, n in ((8, 6, 40), (24, 6, 2)):
        subject = Subject(families.wide_llava(side, 128, layers, n_heads=8))
        compare(subject, questions(subject, n, side**2))
