"""GPT-2s whose circuit is known, because their weights are written by hand: no recipe, nothing is trained."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GPT2LMHeadModel

from data.recipes.circuits import N_HEADS, SPECIAL, WIDTH, gpt2_config, tokenizer
from data.worlds import circuits as world
from lib.models import Subject

MARGIN = 12.0
"""By how much the score of the place that a head looks at exceeds all others."""
_GAIN = 12.0
"""Size of the answer's logit."""
_UNITS, _JUNK = 32, 8
"""Hidden units of bystander MLPs; dimensions that they write to, and that nothing on the circuit reads."""

Edges = frozenset[tuple[str, str]]
"""Pairs (sender, receiver), named as in `lib.edges`."""


class Constructed(NamedTuple):
    """A GPT-2 whose circuit is known because it was written down."""

    subject: Subject
    edges: Edges
    """All edges on the way from the words to the answer."""
    telling: Edges
    """Those of them whose content depends on the words: the others carry positions only, the same in a prompt
    and in its corrupted twin, so that exchanging the two cannot find them."""


class _Draft:
    """A decoder in terms of features: named groups of orthogonal directions of the residual stream."""

    def __init__(self, task: str, n_layers: int, features: Mapping[str, int]) -> None:
        self.words = {word: len(SPECIAL) + i for i, word in enumerate(world.VOCABULARY[task])} | {"<bos>": 1}
        self.n_words = len(SPECIAL) + len(world.VOCABULARY[task])
        self.n_positions = len(world.prompts(task, 1, np.random.default_rng(0)).clean[0].split()) + 1
        self.task, self.n_layers = task, n_layers
        sizes = {
            "word": self.n_words,
            "place": self.n_positions,
            **features,
            "answer": self.n_words,
            "junk": _JUNK,
        }
        ends = np.cumsum(list(sizes.values()))
        self.at = {name: slice(end - n, end) for (name, n), end in zip(sizes.items(), ends, strict=True)}
        self.size = int(ends[-1])
        self.heads: dict[tuple[int, int], dict[str, Tensor]] = {}
        self.mlps: dict[int, list[tuple[Tensor, float, Tensor]]] = {}
        self.edges: set[tuple[str, str]] = set()
        self.untelling: set[tuple[str, str]] = set()

    def one(self, feature: str, i: int) -> Float[Tensor, " feature"]:
        """The direction of one feature."""
        return torch.eye(self.size)[self.at[feature]][i]

    def match(self, read: Mapping[str, Float[Tensor, "of d"]]) -> Float[Tensor, "feature d_head"]:
        """A projection into a head that reads some groups of features."""
        w = torch.zeros(self.size, WIDTH // N_HEADS)
        for feature, matrix in read.items():
            w[self.at[feature], : matrix.shape[1]] = matrix
        return w

    def head(
        self,
        layer: int,
        head: int,
        *,
        q: Mapping[str, Tensor],
        k: Mapping[str, Tensor],
        v: Mapping[str, Tensor],
        to: Mapping[str, Tensor],
        q_bias: Tensor | None = None,
    ) -> None:
        """A head by what its q, k and v read and where it writes; scores are q.k, times `MARGIN`."""
        scale = (MARGIN * (WIDTH // N_HEADS) ** 0.5) ** 0.5
        bias = torch.zeros(WIDTH // N_HEADS)
        if q_bias is not None:
            bias[: len(q_bias)] = q_bias
        self.heads[layer, head] = {
            "q": scale * self.match(q),
            "k": scale * self.match(k),
            "v": self.match(v),
            "o": self.match(to).T,
            "q_bias": scale * bias,
        }

    def unit(self, layer: int, read: Tensor, bias: float, write: Tensor) -> None:
        """A hidden unit: relu(read.x + bias) times `write`."""
        self.mlps.setdefault(layer, []).append((read, bias, write))

    def link(self, *edges: str, telling: bool = True) -> None:
        """Notes edges, as in "embed > a0.h0.v"."""
        for edge in edges:
            sender, receiver = edge.split(" > ")
            (self.edges if telling else self.untelling).add((sender, receiver))

    def _bystanders(self, draw: torch.Generator) -> None:
        """Fills the other heads and hidden units: they read words, places and each other, at random."""

        def junk(n: int) -> Float[Tensor, "feature n"]:
            w = torch.zeros(self.size, n)
            for feature in ("word", "place", "junk"):
                w[self.at[feature]] = torch.randn(self.size, n, generator=draw)[self.at[feature]]
            return w

        def into_junk(n: int) -> Float[Tensor, "n feature"]:
            w = torch.zeros(n, self.size)
            w[:, self.at["junk"]] = torch.randn(n, _JUNK, generator=draw) / n**0.5
            return w

        d_head = WIDTH // N_HEADS
        for layer in range(self.n_layers):
            for head in range(N_HEADS):
                if (layer, head) not in self.heads:
                    weights = {site: junk(d_head) for site in "qkv"}
                    self.heads[layer, head] = weights | {
                        "o": into_junk(d_head),
                        "q_bias": torch.zeros(d_head),
                    }
            for read, write in zip(junk(_UNITS).T / 2, into_junk(_UNITS), strict=True):
                self.unit(layer, read, 0.0, write)

    @torch.no_grad()
    def build(self, seed: int) -> Constructed:
        """The network, in a basis of its residual stream and of its heads that is drawn at random.

        GPT-2's norms are made idle: a large epsilon under the root and a gain that cancels it leave
        x - mean(x), up to 1e-7, and every direction in use has the mean 0.
        """
        draw = torch.Generator().manual_seed(seed)
        self._bystanders(draw)
        config = gpt2_config(self.task, self.n_layers, activation_function="relu", layer_norm_epsilon=1e8)
        config.n_inner = max(map(len, self.mlps.values()))
        config.n_positions = self.n_positions
        model: Any = GPT2LMHeadModel(config).eval()
        for parameter in model.parameters():
            parameter.zero_()
        centred = torch.eye(WIDTH) - 1 / WIDTH
        basis = torch.linalg.svd(centred)[0][:, : WIDTH - 1].contiguous()  # directions of mean 0
        basis = (basis @ _rotation(WIDTH - 1, draw))[:, : self.size].T
        eye, body = torch.eye(self.size), model.transformer
        body.wte.weight[:] = eye[self.at["word"]] @ basis
        body.wpe.weight[:] = eye[self.at["place"]] @ basis
        for norm in (body.ln_f, *(n for block in body.h for n in (block.ln_1, block.ln_2))):
            norm.weight.fill_(1e4)
        d_head = WIDTH // N_HEADS
        for (layer, head), own in self.heads.items():
            attn, at = body.h[layer].attn, slice(head * d_head, (head + 1) * d_head)
            turns = [_rotation(d_head, draw) for _ in range(2)]
            for i, site in enumerate("qkv"):
                columns = slice(i * WIDTH + at.start, i * WIDTH + at.stop)
                attn.c_attn.weight[:, columns] = basis.T @ own[site] @ turns[site == "v"]
            attn.c_attn.bias[at] = own["q_bias"] @ turns[0]
            attn.c_proj.weight[at] = turns[1].T @ own["o"] @ basis
        for layer, units in self.mlps.items():
            mlp = body.h[layer].mlp
            for i, (read, bias, write) in enumerate(units):
                mlp.c_fc.weight[:, i], mlp.c_fc.bias[i] = basis.T @ read, bias
                mlp.c_proj.weight[i] = write @ basis
        model.lm_head.weight[:] = _GAIN * eye[self.at["answer"]] @ basis
        edges = self.edges | self.untelling
        return Constructed(Subject(model, tokenizer(self.task)), frozenset(edges), frozenset(self.edges))


def _rotation(n: int, draw: torch.Generator) -> Float[Tensor, "n n"]:
    return torch.linalg.qr(torch.randn(n, n, generator=draw))[0]


def _constructed_induction() -> _Draft:
    """Head a0.h0 notes which word came before; a1.h0 looks for the place whose note is the present word."""
    net = _Draft("constructed-induction", 2, {"before": len(SPECIAL) + 10})
    places, words = torch.eye(net.n_positions), torch.eye(net.n_words)
    back = torch.diag(torch.ones(net.n_positions - 1), -1)  # place i looks for i - 1
    net.head(0, 0, q={"place": back}, k={"place": places}, v={"word": words}, to={"before": words})
    net.head(1, 0, q={"word": words}, k={"before": words}, v={"word": words}, to={"answer": words})
    net.link("embed > a0.h0.v", "a0.h0 > a1.h0.k", "embed > a1.h0.q", "embed > a1.h0.v", "a1.h0 > logits")
    net.link("embed > a0.h0.q", "embed > a0.h0.k", telling=False)
    return net


def _constructed_reverse() -> _Draft:
    """a0.h0 finds the place s of the bar; at place i, m0 names 2s - 1 - i, and a1.h0 reads there."""
    net = _Draft("constructed-reverse", 2, {"bar": 9, "source": 9})
    n = net.n_positions
    places, words, bar = torch.eye(n), torch.eye(net.n_words), torch.zeros(net.n_words, 1)
    bar[net.words["|"]] = 1.0
    net.head(0, 0, q={}, q_bias=torch.ones(1), k={"word": bar}, v={"place": places}, to={"bar": places})
    for s in range(n):
        for i in range(s, n):
            if 0 < 2 * s - 1 - i < n:
                unit = net.one("bar", s) + net.one("place", i)
                net.unit(0, unit, -1.0, net.one("source", 2 * s - 1 - i))
    net.head(1, 0, q={"source": places}, k={"place": places}, v={"word": words}, to={"answer": words})
    net.link("embed > a1.h0.v", "a1.h0 > logits")
    net.link("embed > a0.h0.k", "embed > a0.h0.v", "a0.h0 > m0", "embed > m0", telling=False)
    net.link("m0 > a1.h0.q", "embed > a1.h0.k", telling=False)
    return net


def _constructed_proportion() -> _Draft:
    """m0 marks each x and each other letter; a1.h0, which looks everywhere alike, takes their shares."""
    net = _Draft("constructed-proportion", 2, {"kind": 2})
    for word in "wxyz":
        net.unit(0, net.one("word", net.words[word]), 0.0, net.one("kind", int(word == "x")))
    kinds, answers = torch.eye(2), torch.zeros(net.n_words, 2)
    answers[net.words["no"], 0] = answers[net.words["yes"], 1] = 1.0
    net.head(1, 0, q={}, k={}, v={"kind": kinds}, to={"answer": answers})
    net.link("embed > m0", "m0 > a1.h0.v", "a1.h0 > logits")
    return net


def _constructed_or() -> _Draft:
    """a0.h0 and a0.h1 look at one flag each; m0 says yes if either is on: min(1, a + b), and no otherwise."""
    net = _Draft("constructed-or", 2, {"flag": 2})
    on = torch.zeros(net.n_words, 1)
    on[net.words["on"]] = 1.0
    flags = net.one("flag", 0) + net.one("flag", 1)
    for head, place in enumerate((3, 5)):
        here, to = torch.zeros(net.n_positions, 1), torch.eye(2)[:, head : head + 1]
        here[place] = 1.0
        net.head(0, head, q={}, q_bias=torch.ones(1), k={"place": here}, v={"word": on}, to={"flag": to})
        net.link(f"embed > a0.h{head}.v", f"a0.h{head} > m0")
        net.link(f"embed > a0.h{head}.k", telling=False)
    yes = net.one("answer", net.words["yes"]) - net.one("answer", net.words["no"])
    net.unit(0, flags, 0.0, yes)
    net.unit(0, flags, -1.0, -yes)
    net.unit(0, torch.zeros(net.size), 1.0, -yes / 2)
    net.link("m0 > logits")
    return net


_CONSTRUCTED: dict[str, Callable[[], _Draft]] = {
    "constructed-induction": _constructed_induction,
    "constructed-reverse": _constructed_reverse,
    "constructed-proportion": _constructed_proportion,
    "constructed-or": _constructed_or,
}
CONSTRUCTED = tuple(_CONSTRUCTED)


def constructed(task: str, seed: int) -> Constructed:
    """A network that does a constructed task, and the edges that it does it with.

    Two are what tracr's `reverse` and `proportion` (Lindner et al. 2023) come to in a causal GPT-2. Heads and
    hidden units that the task does not need read and write, too, but nothing on the circuit reads them. The
    residual stream has no privileged basis: seeds differ in its rotation, in those of the heads, and in the
    bystanders.

    Raises:
        ValueError: there is no such task.
    """
    if task not in _CONSTRUCTED:
        raise ValueError(f"task={task!r}: circuits are constructed for {', '.join(CONSTRUCTED)}")
    return _CONSTRUCTED[task]().build(seed)
