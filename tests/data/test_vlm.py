"""What LLaVA recipes share: many questions packed into one sequence are the same as each asked alone."""

import families
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from data.recipes import scenes as recipe
from data.recipes import vlm
from data.worlds import scene_words as words
from data.worlds import scenes as world


@pytest.fixture(scope="module")
def subject():
    return families.organism()


@pytest.fixture(scope="module")
def model(subject):
    return subject.model


def batch(kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "image":
        return recipe._image_batch(3, 0.0, rng, 0.5)
    return recipe._page_batch(3, rng, 0.9)


@torch.inference_mode()
def test_the_packed_loss_is_that_of_single_questions_through_the_ordinary_forward_pass(model):
    packed = batch("image")
    total = 0.0
    for row, pixels in enumerate(packed["pixel_values"]):
        for block in range(len(recipe.ASKED) + 1):
            own = packed["blocks"][row] == block
            ids, weights = packed["ids"][row, own], packed["weights"][row, own]
            prompt = torch.tensor([words.BOS] + [words.IMAGE] * world.N_PATCHES)
            logits = model(input_ids=torch.cat([prompt, ids])[None], pixel_values=pixels[None]).logits[0]
            losses = F.cross_entropy(logits[len(prompt) - 1 : -1], ids, reduction="none")
            total += (losses * weights).sum()
    expected = total / packed["weights"].sum()
    assert vlm.answer_loss(model, packed).item() == pytest.approx(expected.item(), rel=1e-4)


@torch.inference_mode()
def test_several_images_stand_before_a_question_in_their_order(model):
    packed = batch("image")
    pixels = torch.stack([packed["pixel_values"], packed["pixel_values"].flip(0)], 1)
    own = packed["blocks"][0] == 0
    ids, weights = packed["ids"][0, own], packed["weights"][0, own]
    prompt = torch.tensor([words.BOS] + [words.IMAGE] * 2 * world.N_PATCHES)
    logits = model(input_ids=torch.cat([prompt, ids])[None], pixel_values=pixels[0]).logits[0]
    losses = F.cross_entropy(logits[len(prompt) - 1 : -1], ids, reduction="none")
    expected = (losses * weights).sum() / weights.sum()

    def loss(pixels):
        only = {name: value[:1] for name, value in (packed | {"pixel_values": pixels}).items()}
        only["weights"] = only["weights"] * (only["blocks"] == 0)
        return vlm.answer_loss(model, only).item()

    assert loss(pixels) == pytest.approx(expected.item(), rel=1e-4)
    assert loss(pixels.flip(1)) != pytest.approx(expected.item(), rel=1e-4)


@torch.inference_mode()
def test_a_page_of_single_words_is_read_as_ordinary_tokens(model):
    packed = next(b for b in (batch("page", seed) for seed in range(50)) if b["places"].shape[1])
    single = packed["places"][..., :1].expand(-1, -1, 2)
    packed |= {"places": single}
    own = packed["blocks"][0] == 0
    ids, weights = packed["ids"][0, own], packed["weights"][0, own]
    prompt = torch.cat([torch.tensor([words.BOS]), single[0, :, 0]])
    logits = model(input_ids=torch.cat([prompt, ids])[None]).logits[0]
    losses = F.cross_entropy(logits[len(prompt) - 1 : -1], ids, reduction="none")
    only = {name: value[:1] for name, value in packed.items()}
    only["weights"] = only["weights"] * (only["blocks"] == 0)
    expected = (losses * weights).sum() / weights.sum()
    assert vlm.answer_loss(model, only).item() == pytest.approx(expected.item(), rel=1e-4)


def test_each_question_is_worth_one_and_a_caption_three():
    packed = batch("image")
    worth = torch.zeros(3, len(recipe.ASKED) + 1).scatter_add_(
        1, packed["blocks"].clamp_min(0), packed["weights"]
    )
    assert worth[:, :-1].numpy() == pytest.approx(1.1)  # an answer, and 0.1 for the end after it
    assert worth[:, -1].numpy() == pytest.approx(3)


def test_heads_are_left_out_whole_and_in_training_only(model):
    z = torch.randn(64, 5, 8 * 32)
    projection = model.model.language_model.layers[0].self_attn.o_proj
    (hook,) = projection._forward_pre_hooks.values()
    assert hook(projection, (z,)) is None
    projection.train()
    (dropped,) = hook(projection, (z,))
    projection.eval()
    scale = (dropped / z).unflatten(-1, (8, 32))
    assert (scale == scale[:, :1, :, :1]).float().mean() > 0.99
    assert (scale[:, 0, :, 0] == 0).float().mean().item() == pytest.approx(vlm.HEAD_DROPOUT, abs=0.05)


def test_the_readout_teaches_the_tower_nothing_about_words(model):
    model.zero_grad()
    recipe._readout_loss(model, recipe._tower_batch(2, np.random.default_rng(0), 0.5)).backward()
    taught = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert taught
    assert all("vision_tower" in name for name in taught)
    model.zero_grad()


def test_the_processor_makes_the_inputs_of_training(subject):
    scenes = world.sample(2, np.random.default_rng(0))
    images = world.draw(scenes, np.random.default_rng(0))
    encoded = subject.encode(
        ["Is there a disc?", "describe the picture"], images=[Image.fromarray(image) for image in images]
    )
    assert torch.equal(encoded["pixel_values"], vlm.pixel_values(images))
    asked = [words.BOS] + [words.IMAGE] * 64 + [words.WORD[w] for w in ("is", "there", "a", "disc")]
    assert encoded["input_ids"][0].tolist() == asked
    assert encoded["input_ids"][1, 0] == words.PAD
    assert subject.spans(encoded).image.sum(1).tolist() == [64, 64]


def test_answers_in_a_conversation_end_with_eos(subject):
    talk = [
        {"role": "user", "content": "is there a disc"},
        {"role": "assistant", "content": "no"},
        {"role": "user", "content": "how many red"},
    ]
    ids = subject.encode([talk])["input_ids"][0]
    assert words.text(ids.numpy()) == "<bos> is there a disc no <eos> how many red"


def test_questions_are_measured_on_the_word_that_follows_them(subject):
    rng = np.random.default_rng(0)
    scenes = world.sample(5, rng)
    images = world.draw(scenes, rng)
    prompts, _, _ = words.ask("right", scenes, rng)
    found = vlm.next_words(subject, prompts, images)
    texts = [words.text(prompt) for prompt in prompts]
    encoded = subject.encode(texts, images=[Image.fromarray(image) for image in images])
    with torch.inference_mode():
        logits = subject.model.generate(
            **encoded, max_new_tokens=1, output_logits=True, return_dict_in_generate=True
        ).logits[0]
    assert np.allclose(found, logits.log_softmax(-1).numpy(), atol=1e-4)


def test_a_vocabulary_begins_with_the_special_words():
    assert words.VOCABULARY[: len(vlm.SPECIAL)] == vlm.SPECIAL
    assert list(range(len(vlm.SPECIAL))) == [words.PAD, words.BOS, words.EOS, words.UNKNOWN, words.IMAGE]
    with pytest.raises(ValueError, match=r"a vocabulary begins with <pad>, <bos>.* not <bos>, <pad>, a"):
        vlm.processors(("<bos>", "<pad>", "a"), 64, 8)
