"""Children of a language model: fine-tuned, rounded, pruned, merged; and copies rewritten without a change.

A family tree whose every descent is known is made of these. Whatever is made is a new model; the parent stays
as it is. Cutting parts out and rewriting take models of the kinds in `LLAMAS`.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lib.models import Subject
from lib.sites import module

LLAMAS = ("llama", "mistral", "qwen2")
"""Kinds of models whose weights are taken apart here: RMSNorm before each half of a block, gated MLP."""
BATCH = 100
"""Sentences that a loss is measured on at a time."""


def known(subject: Subject) -> bool:
    """Whether the model's weights can be taken apart."""
    config = subject.model.config
    return config.model_type in LLAMAS and not getattr(config, "mlp_bias", False)


def llama(subject: Subject) -> Any:
    """The model, if its weights have the places that are meant here."""
    if not known(subject):
        raise LookupError(
            f"the weights of this {subject.model.config.model_type!r} model are not known here: ICS, "
            f"structured pruning and rewriting take {', '.join(LLAMAS)}, without biases in the MLP"
        )
    return subject.model


def encode(subject: Subject, name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Inputs of a model; refuses a text that has words which the model cannot read."""
    inputs = subject.encode(list(texts), chat=False)
    tokenizer = subject.tokenizer
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        bad = ((inputs["input_ids"] == unknown) & (inputs["attention_mask"] == 1)).any(1)
        if bad.any():
            first = texts[int(bad.float().argmax())]
            raise ValueError(
                f"{name} cannot read {int(bad.sum())} of {len(texts)} prompts, they have words that its "
                f"tokenizer does not know; the first is {first!r:.80}: take prompts that all models can read"
            )
    return inputs


_ENCODED: dict[tuple[int, torch.device, tuple[str, ...]], tuple[Any, dict[str, Tensor]]] = {}


def encoded(subject: Subject, name: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """`encode`, done once for a tokenizer and texts: all children of a victim read the same prompts."""
    key = id(subject.processor), subject.device, tuple(texts)
    if key not in _ENCODED:  # with the tokenizer itself, so that no other one gets its id
        _ENCODED[key] = subject.processor, encode(subject, name, texts)
    return dict(_ENCODED[key][1])


def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Mean loss of the next token in nats; padding does not count, and nothing is predicted from it."""
    real = inputs["attention_mask"] == 1
    labels = inputs["input_ids"].masked_fill(~(real & real.roll(1, 1)), -100)
    return model(**inputs, labels=labels).loss


@torch.inference_mode()
def loss_on(subject: Subject, name: str, texts: Sequence[str]) -> float:
    """Mean loss over sentences."""
    starts = range(0, len(texts), BATCH)
    parts = [texts[start : start + BATCH] for start in starts]
    total = sum(len(p) * float(loss(subject.model, encoded(subject, name, p))) for p in parts)
    return total / len(texts)


def batches(
    base: Sequence[str], new: Sequence[str], share_new: float, *, size: int, rng: np.random.Generator
) -> Iterator[list[str]]:
    """Endless batches, a share of them in the new language; each pass takes the sentences in a new order."""
    n_new = round(share_new * size)
    pools = [(base, size - n_new), (new, n_new)]
    unused: list[list[int]] = [[], []]
    while True:
        batch = []
        for rest, (pool, n) in zip(unused, pools, strict=True):
            while len(rest) < n:
                rest.extend(rng.permutation(len(pool)))
            batch += [pool[rest.pop()] for _ in range(n)]
        yield batch


class LowRank(nn.Module):
    """W + B A with a small inner rank; B starts at 0, so that nothing changes at first."""

    def __init__(self, weight: Float[Tensor, "out in"], rank: int = 8) -> None:
        """Of a weight of that shape."""
        super().__init__()
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.A = nn.Parameter(torch.randn(rank, weight.shape[1], **like) / weight.shape[1] ** 0.5)
        self.B = nn.Parameter(torch.zeros(weight.shape[0], rank, **like))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The weight that is used."""
        return weight + self.B @ self.A


def finetuned(
    subject: Subject,
    sentences: Iterator[list[str]],
    steps: Sequence[int],
    lr: float,
    *,
    low_rank: bool = False,
) -> Iterator[tuple[int, Subject]]:
    """Copies of one run of fine-tuning after each number of `steps`; AdamW, constant rate after a warm-up."""
    child = Subject(deepcopy(subject.model).train(), subject.processor)
    if low_rank:
        child.model.requires_grad_(False)
        paths = child.layout.family.projections
        adapted = [module(layer, path) for layer in child.layout.blocks for path in paths]
        for linear in adapted:
            parametrize.register_parametrization(linear, "weight", LowRank(linear.weight))
    trained = [p for p in child.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(1, steps[-1] + 1):
        optimizer.param_groups[0]["lr"] = lr * min(1, step / 5)
        value = loss(child.model, encode(child, "the model in training", next(sentences)))
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step in steps:
            copy = deepcopy(child.model).requires_grad_(True).eval()
            if low_rank:
                for linear in copy.modules():
                    if parametrize.is_parametrized(linear):
                        parametrize.remove_parametrizations(linear, "weight")
            yield step, Subject(copy, subject.processor)


def copied(subject: Subject) -> Subject:
    """The same model, with separate weights."""
    return Subject(deepcopy(subject.model), subject.processor)


def matrices(subject: Subject) -> Iterator[Tensor]:
    """The weight matrices inside the blocks."""
    for layer in subject.layout.blocks:
        yield from (p.data for p in layer.parameters() if p.ndim == 2)


def rounded(subject: Subject, bits: int) -> Subject:
    """Each row of each matrix rounded to 2^bits - 1 levels, symmetric about 0."""
    child, top = copied(subject), 2 ** (bits - 1) - 1
    for W in matrices(child):
        scale = W.abs().amax(1, keepdim=True).clamp_min(1e-12) / top
        W.copy_((W / scale).round() * scale)
    return child


def magnitude_pruned(subject: Subject, ratio: float) -> Subject:
    """In each matrix the smallest weights set to zero."""
    child = copied(subject)
    for W in matrices(child):
        if n := int(ratio * W.numel()):
            W[W.abs() <= W.abs().flatten().kthvalue(n).values] = 0
    return child


def merged(a: Subject, b: Subject) -> Subject:
    """The mean of two models' weights."""
    child = copied(a)
    with torch.no_grad():
        for mine, other in zip(child.model.parameters(), b.model.parameters(), strict=True):
            mine.lerp_(other.to(mine), 0.5)
    return child


def largest(importance: Float[Tensor, " part"], share: float) -> list[int]:
    """The more important parts, in their order, when a share is dropped; at least one stays."""
    n = max(1, len(importance) - round(share * len(importance)))
    return sorted(importance.topk(n).indices.tolist())


def shrunk(
    subject: Subject, *, groups: float = 0, neurons: float = 0, channels: float = 0, drop: Sequence[int] = ()
) -> Subject:
    """A smaller model: shares of head groups (a key head and its queries), neurons and hidden units cut out.

    In each block the parts with the smallest weights go; hidden units are the same everywhere. `drop` lists
    whole blocks.
    """
    model, d = llama(subject), subject.d_head
    per_group = subject.n_heads // subject.n_kv_heads
    state = model.state_dict()
    # What indexes the output and the input of each kind of matrix; None is the residual stream.
    sides = {
        "q_proj": ("q", None), "k_proj": ("kv", None), "v_proj": ("kv", None), "o_proj": (None, "q"),
        "gate_proj": ("mlp", None), "up_proj": ("mlp", None), "down_proj": (None, "mlp"),
        "embed_tokens": ("vocabulary", None), "lm_head": ("vocabulary", None),
    }  # fmt: skip
    kinds = {name: name.split(".")[-2] for name in state}
    in_use = [
        w.float().square().sum(int(sides[kinds[n]][1] is not None)) for n, w in state.items() if w.ndim == 2
    ]
    kept_channels = largest(torch.stack(in_use).sum(0), channels)
    config = deepcopy(model.config)
    kept_layers = [i for i in range(subject.n_layers) if i not in drop]
    kept: dict[str, dict[str, list[int]]] = {}
    for prefix in (f"model.layers.{i}." for i in kept_layers):
        out = state[f"{prefix}self_attn.o_proj.weight"].float().square().sum(0)
        heads = largest(out.view(subject.n_kv_heads, -1).sum(1), groups)
        kept[prefix] = {
            "q": [g * per_group * d + j for g in heads for j in range(per_group * d)],
            "kv": [g * d + j for g in heads for j in range(d)],
            "mlp": largest(state[f"{prefix}mlp.down_proj.weight"].float().square().sum(0), neurons),
        }
    config.num_hidden_layers = len(kept_layers)
    config.hidden_size = len(kept_channels)
    config.head_dim = d
    first = next(iter(kept.values()))
    config.num_key_value_heads = len(first["kv"]) // d
    config.num_attention_heads = len(first["q"]) // d
    config.intermediate_size = len(first["mlp"])
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[i] for i in kept_layers]
    small = {}
    for name, w in state.items():
        prefix = next((prefix for prefix in kept if name.startswith(prefix)), "")
        if name.startswith("model.layers.") and not prefix:
            continue
        if prefix and kinds[name] in sides:
            out, into = (kept[prefix][side] if side else kept_channels for side in sides[kinds[name]])
            w = w[out] if w.ndim == 1 else w[out][:, into]
        else:  # embeddings, output matrix, norms
            w = w[..., kept_channels]
        small[f"model.layers.{list(kept).index(prefix)}.{name.removeprefix(prefix)}" if prefix else name] = w
    child = type(model)(config).to(subject.device, model.dtype).eval()
    child.load_state_dict(small)
    return Subject(child, subject.processor)


def orthogonal(n: int, rng: np.random.Generator) -> Float[Tensor, "n n"]:
    """A random rotation, uniform over the orthogonal group."""
    q, r = np.linalg.qr(rng.standard_normal((n, n)))
    return torch.from_numpy(q * np.sign(np.diag(r)))


def permutation(n: int, rng: np.random.Generator) -> Float[Tensor, "n n"]:
    """A random permutation matrix."""
    return torch.eye(n, dtype=torch.float64)[rng.permutation(n)]


def times(parameter: nn.Parameter, matrix: Tensor, side: str) -> None:
    """W <- W M ("in") or W <- M' W ("out"), in double precision."""
    W, M = parameter.data.double(), matrix.to(parameter.device)
    parameter.data.copy_(W @ M if side == "in" else M.T @ W)


def untied_head(model: Any) -> nn.Parameter:
    """The output matrix, cut loose from the embeddings if the two were one."""
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return model.lm_head.weight


def change_basis(subject: Subject, M: Float[Tensor, "d_model d_model"]) -> Subject:
    """The residual stream h <- h M for orthogonal M; gains have to be equal, or M a permutation."""
    model = llama(child := copied(subject))
    head = untied_head(model)
    for parameter in (model.model.embed_tokens.weight, head):
        times(parameter, M, "in")
    norms = [model.model.norm]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            times(linear.weight, M, "in")
        for linear in (attention.o_proj, mlp.down_proj):
            times(linear.weight, M, "out")
            if linear.bias is not None:
                times(linear.bias, M, "out")
        norms += [layer.input_layernorm, layer.post_attention_layernorm]
    for norm in norms:
        if not torch.equal(norm.weight, torch.ones_like(norm.weight)):
            times(norm.weight, M, "in")
    return child


def without_gains(subject: Subject) -> Subject:
    """The norms' gains multiplied into the matrices that read what is normed."""
    model = llama(child := copied(subject))
    readers = [(model.model.norm, [untied_head(model)])]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        qkv = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
        readers.append((layer.input_layernorm, qkv))
        readers.append((layer.post_attention_layernorm, [mlp.gate_proj.weight, mlp.up_proj.weight]))
    for norm, parameters in readers:
        for parameter in parameters:
            parameter.data.mul_(norm.weight.data)
        norm.weight.data.fill_(1)
    return child


def hidden_permutation(subject: Subject, rng: np.random.Generator) -> Subject:
    """A random permutation of the residual stream."""
    return change_basis(subject, permutation(subject.d_model, rng))


def hidden_rotation(subject: Subject, rng: np.random.Generator) -> Subject:
    """A random rotation of the residual stream."""
    return change_basis(without_gains(subject), orthogonal(subject.d_model, rng))


def neuron_shuffle(subject: Subject, rng: np.random.Generator) -> Subject:
    """Neurons permuted, their inputs and outputs scaled against one another."""
    child = copied(subject)
    for layer in llama(child).model.layers:
        gate, up, down = (getattr(layer.mlp, f"{name}_proj").weight.data for name in ("gate", "up", "down"))
        order = torch.from_numpy(rng.permutation(len(up))).to(subject.device)
        scale = torch.from_numpy(np.exp(rng.normal(0, 0.5, len(up)))).to(subject.device)
        gate.copy_(gate[order])
        up.copy_(up[order].double() * scale[:, None])
        down.copy_(down[:, order].double() / scale)
    return child


def principal_rotation(subject: Subject, x: Float[Tensor, "prompt d_model"]) -> Subject:
    """The hidden space rotated to the principal axes of the given states."""
    axes = torch.linalg.svd((x - x.mean(0)).double())[2]
    return change_basis(without_gains(subject), axes.T)


PRINCIPAL = "rotation to principal axes"
Rewrite = Callable[[Subject, np.random.Generator], Subject]
REWRITINGS: dict[str, Rewrite] = {
    "hidden permutation": hidden_permutation,
    "hidden rotation": hidden_rotation,
    "neurons": neuron_shuffle,
}
