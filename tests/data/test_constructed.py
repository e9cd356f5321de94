"""The networks whose circuit is written by hand."""

import numpy as np
import pytest
import torch
from single_edges import effects
from transformers import GPT2LMHeadModel

from data.recipes.constructed import CONSTRUCTED, MARGIN, constructed
from data.worlds import circuits as world
from lib.edges import Patcher, acdc


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_other_tasks_are_refused() -> None:
    with pytest.raises(ValueError, match="task='ioi': circuits are constructed for constructed-induction"):
        constructed("ioi", 0)


@pytest.fixture(scope="module", params=CONSTRUCTED)
def known(request: pytest.FixtureRequest) -> tuple:
    task = request.param
    network = constructed(task, 1)
    drawn = world.prompts(task, 16, rng(3))
    clean, corrupted = (network.subject.encode(list(texts)) for texts in (drawn.clean, drawn.corrupted))
    return task, network, drawn, clean, corrupted


def answer_share(network: object, inputs: dict, answers: tuple) -> torch.Tensor:
    subject = network.subject
    p = subject.model(**inputs).logits[:, -1].softmax(-1)
    ids = [subject.tokenizer.convert_tokens_to_ids(words[0].strip()) for words in answers]
    return p[torch.arange(len(p)), ids]


@torch.no_grad()
def test_a_constructed_network_is_a_gpt2_that_does_its_task(known: tuple) -> None:
    task, network, drawn, clean, corrupted = known
    assert isinstance(network.subject.model, GPT2LMHeadModel)
    right = answer_share(network, clean, drawn.right)
    assert right.min() > (0.6 if task == "constructed-proportion" else 0.95)
    assert answer_share(network, corrupted, drawn.right).mean() < 0.3


@pytest.mark.parametrize("ablation", ["corrupt", "zero"])
def test_only_edges_that_were_written_down_have_an_effect(known: tuple, ablation: str) -> None:
    task, network, _, clean, corrupted = known
    n, length = clean["input_ids"].shape
    patcher = Patcher(
        network.subject, clean, corrupted, positions=torch.full((n,), length - 1), ablation=ablation
    )
    graph, log_p = patcher.graph, patcher.clean_logits.double().log_softmax(-1)

    def kl(logits: torch.Tensor) -> torch.Tensor:
        return (log_p.exp() * (log_p - logits.double().log_softmax(-1))).sum(-1).mean(-1)

    def named(mask: torch.Tensor) -> set[tuple[str, str]]:
        return {(str(graph.senders[s]), str(graph.receivers[r])) for r, s in mask.nonzero().tolist()}

    truth = network.telling if ablation == "corrupt" else network.edges
    assert network.telling <= network.edges <= named(graph.exists)
    felt = named(effects(patcher, kl).nan_to_num().abs() > 1e-6)
    kept = named(acdc(patcher, kl, 1e-3).edges)
    if task == "constructed-or":  # either side of the gate will do, so neither is missed alone
        assert felt == {("m0", "logits")}
        assert felt < kept < truth
        sides = [{edge for edge in truth if f"a0.h{head}" in str(edge)} for head in (0, 1)]
        assert sum(side <= kept for side in sides) == 1
    else:
        assert felt == kept == truth


def test_seeds_differ_in_their_basis_and_not_in_what_they_compute() -> None:
    one, two = (constructed("constructed-reverse", seed) for seed in (0, 1))
    clean = one.subject.encode(list(world.prompts("constructed-reverse", 16, rng()).clean))
    with torch.no_grad():
        a, b = (network.subject.model(**clean).logits[:, -1] for network in (one, two))
    torch.testing.assert_close(a, b, atol=1e-3, rtol=0)
    assert one.edges == two.edges
    weights = [network.subject.model.transformer.h[1].attn.c_attn.weight for network in (one, two)]
    assert (weights[0] - weights[1]).abs().max() > 0.5


def test_norms_are_idle_and_a_head_looks_where_it_should() -> None:
    network = constructed("constructed-induction", 0)
    model, subject = network.subject.model, network.subject
    x = model.transformer.wte.weight[3:9] + model.transformer.wpe.weight[:6]
    torch.testing.assert_close(model.transformer.h[0].ln_1(x), x, atol=1e-5, rtol=0)
    model.set_attn_implementation("eager")
    drawn = world.prompts("constructed-induction", 4, rng())
    with torch.no_grad():
        found = model(**subject.encode(list(drawn.clean)), output_attentions=True).attentions
    before = found[0][:, 0].diagonal(-1, 1, 2)
    assert before.min() > 1 - 20 * np.exp(-MARGIN), "a0.h0 looks at the word before"
    for text, pattern in zip(drawn.clean, found[1][:, 0, -1], strict=True):
        words = ["<bos>", *text.split()]
        assert pattern.argmax() == words.index(words[-1]) + 1, "a1.h0 looks at what came after it last time"
