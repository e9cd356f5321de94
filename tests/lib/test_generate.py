"""Batched generation and answer log-probabilities against slow, one-at-a-time references."""

from contextlib import ExitStack
from copy import deepcopy

import numpy as np
import pytest
import torch
import transformers as hf
from families import (
    IMAGE_ID,
    LANGUAGE,
    LLAMA_SIZE,
    SIZE,
    VISION,
    VISION_LANGUAGE,
    picture,
    subject,
    tokenizer,
)

from lib.encode import inputs
from lib.generate import answer_logprobs, generate, next_logprobs
from lib.hooks import capture, edit
from lib.models import Subject, load

FAMILIES = [*LANGUAGE, *VISION_LANGUAGE]
TEXTS = ["the cat sees a red star .", "a dog", "where is the blue star ?"]
NEW = 6
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma


def pictures(s, n=3):
    return None if s.processor is s.tokenizer else [picture(seed) for seed in range(n)]


def one_by_one(s, text, image, n_new=NEW, start=()):
    """The tokens and their logits, each by a pass over the whole text so far, without batch or cache."""
    encoded = s.encode([text], None if image is None else [image])
    ids, logits = [*start], []
    for _ in range(n_new):
        further = dict(encoded)
        more = torch.tensor([ids], dtype=torch.long)
        further["input_ids"] = torch.cat([encoded["input_ids"], more], 1)
        further["attention_mask"] = torch.ones_like(further["input_ids"])
        if "position_ids" in encoded:
            last = encoded["position_ids"][..., -1:]
            behind = last + torch.arange(1, 1 + len(ids))
            further["position_ids"] = torch.cat([encoded["position_ids"], behind], -1)
        for name, kind in [("token_type_ids", 1), ("mm_token_type_ids", 0)]:
            if name in encoded:
                further[name] = torch.cat([encoded[name], torch.full_like(more, kind)], 1)
        with torch.no_grad():
            logits.append(s.model(**further).logits[0, -1])
        ids.append(int(logits[-1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(start) :], torch.stack(logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_says_what_each_prompt_alone_says_without_a_cache(family):
    s = subject(family)
    images = pictures(s)
    said = generate(s, TEXTS, images, max_new_tokens=NEW)
    for i, text in enumerate(TEXTS):
        expected, _ = one_by_one(s, text, images and images[i])
        assert said.ids[i].tolist()[: len(expected)] == expected
        assert said.texts[i] == s.tokenizer.decode(expected, skip_special_tokens=True)
    small = generate(s, TEXTS, images, max_new_tokens=NEW, batch_size=2)
    assert torch.equal(small.ids, said.ids)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2_5_vl", "llava"])
def test_greedy_generation_is_transformers_own(family):
    s = subject(family)
    images = pictures(s)
    batch = s.encode(TEXTS, images)
    expected = s.model.generate(**batch, max_new_tokens=NEW, do_sample=False)[
        :, batch["input_ids"].shape[1] :
    ]
    assert torch.equal(generate(s, TEXTS, images, max_new_tokens=NEW).ids, expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_next_logprobs_are_those_of_each_prompt_alone(family):
    s = subject(family)
    images = pictures(s)
    found = next_logprobs(s, TEXTS, images, batch_size=2)
    for i, text in enumerate(TEXTS):
        _, logits = one_by_one(s, text, images and images[i], n_new=1)
        torch.testing.assert_close(found[i], logits[0].log_softmax(-1), atol=1e-4, rtol=1e-4)


ANSWERS = [["a red star", "dog"], ["the cat sees a dog", "blue"], ["left"]]


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_logprobs_sum_to_the_models_own_loss(family):
    s = subject(family)
    images = pictures(s)
    found = answer_logprobs(s, TEXTS, images, answers=ANSWERS, batch_size=2)
    assert found.shape == (3, 2)
    assert found[2, 1] == -torch.inf
    for i, own in enumerate(ANSWERS):
        for j, answer in enumerate(own):
            ids = s.tokenizer(answer, add_special_tokens=False)["input_ids"]
            total = 0.0
            for k, token in enumerate(ids):
                _, logits = one_by_one(s, TEXTS[i], images and images[i], n_new=1, start=ids[:k])
                total += logits[0].log_softmax(-1)[token].item()
            assert found[i, j].item() == pytest.approx(total, abs=2e-4), (i, j)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_the_loss_that_transformers_computes_is_the_mean_of_the_answers_logprobs(family):
    s = subject(family)
    images = pictures(s, 1)
    encoded = s.encode(TEXTS[:1], images)
    answer = torch.tensor([s.tokenizer("a red star", add_special_tokens=False)["input_ids"]])
    ids = torch.cat([encoded["input_ids"], answer], 1)
    labels = ids.clone()
    labels[:, : -answer.shape[1]] = -100
    pixels = {k: v for k, v in encoded.items() if k == "pixel_values"}
    with torch.no_grad():
        loss = s.model(input_ids=ids, labels=labels, **pixels).loss
    found = answer_logprobs(s, TEXTS[:1], images, answers=[["a red star"]])
    assert found.item() == pytest.approx(-3 * loss.item(), abs=1e-4)


def test_answers_of_one_token_are_entries_of_the_next_logprobs_and_cost_one_pass():
    s = subject("llava")
    images = pictures(s)
    with capture(s, "resid_post", layers=0) as acts:
        found = answer_logprobs(s, TEXTS, images, answers=[["cat", "dog"]] * 3)
    assert len(acts.passes[0]) == 1
    ids = s.tokenizer.convert_tokens_to_ids(["cat", "dog"])
    assert torch.equal(found, next_logprobs(s, TEXTS, images)[:, ids])


def test_nothing_is_said_after_the_end():
    s = subject("llama")
    first = generate(s, TEXTS, max_new_tokens=1).ids[:, 0].tolist()
    own = s.model.generation_config.eos_token_id
    try:
        s.model.generation_config.eos_token_id = first[:1]  # the first prompt now stops at once
        said = generate(s, TEXTS, max_new_tokens=NEW)
        assert said.ids[0, 0] == first[0]
        assert (said.ids[0, 1:] == 0).all()
        assert said.ids.shape == (3, NEW)
        alone = generate(s, TEXTS[:1], max_new_tokens=NEW)
        assert alone.ids.shape == (1, 1)  # and no pass is spent on it
    finally:
        s.model.generation_config.eos_token_id = own


# Under edits and captures


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava", "qwen2_5_vl"])
def test_an_identity_edit_changes_no_bit(family):
    s = subject(family)
    images = pictures(s)

    def everything():
        said = generate(s, TEXTS, images, max_new_tokens=NEW)
        return said.ids, next_logprobs(s, TEXTS, images), answer_logprobs(s, TEXTS, images, answers=ANSWERS)

    own = s.layout.owner.config._attn_implementation
    s.layout.owner.set_attn_implementation("eager")
    expected = everything()
    s.layout.owner.set_attn_implementation(own)
    with ExitStack() as stack:
        for site in ("resid_post", "z", "pattern", "scores"):
            stack.enter_context(edit(s, site, layer=range(s.n_layers), fn=lambda x: x))
        edited = everything()
    assert all(torch.equal(a, b) for a, b in zip(edited, expected, strict=True))


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_5_vl"])
def test_an_edit_acts_on_the_prefill_and_on_every_step_and_a_capture_sees_both(family):
    s = subject(family)
    images = pictures(s)
    queries = []

    def watch(pattern):
        queries.append(pattern.shape[2:])
        return pattern

    with edit(s, "pattern", layer=1, fn=watch), capture(s, "resid_post", layers=2) as acts:
        said = generate(s, TEXTS, images, max_new_tokens=3)
    length = queries[0][0]
    assert queries[0] == (length, length)
    n = said.ids.shape[1]
    assert queries[1:] == [(1, length + i) for i in range(1, n)]
    assert [x.shape[1] for x in acts.passes[2]] == [length] + [1] * (n - 1)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_batch_under_an_edit_says_what_each_prompt_says_under_it(family):
    s = subject(family)
    images = pictures(s)
    plain = generate(s, TEXTS, images, max_new_tokens=NEW)
    with edit(s, "z", layer=[0, 1], fn=lambda z: z * torch.tensor([0.0, 1, -1, 2])[:, None]):
        said = generate(s, TEXTS, images, max_new_tokens=NEW)
        for i, text in enumerate(TEXTS):
            expected, _ = one_by_one(s, text, images and images[i])
            assert said.ids[i].tolist()[: len(expected)] == expected
    assert not torch.equal(said.ids, plain.ids)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("site", ["pattern", "scores", "resid_pre"])
def test_an_edit_that_hides_the_image_makes_all_answers_the_same(family, site):
    """Its tokens stand at the same places in the prefill's keys and in those of every later step."""
    s = subject(family)
    texts, images = [TEXTS[0]] * 3, pictures(s)
    image = s.spans(s.encode(texts, images)).image[0]
    found = next_logprobs(s, texts, images)
    assert (found[0] - found[1]).abs().max() > 1e-3

    def hide(x):
        if site == "scores":
            x[..., : len(image)][..., image] = -1e9
        elif site == "pattern":
            x[..., : len(image)][..., image] = 0
            x = x / x.sum(-1, keepdim=True).clamp_min(1e-9)
        elif x.shape[1] == len(image):  # the prefill
            x[:, image] = 0
        return x

    with edit(s, site, layer=0 if site == "resid_pre" else range(s.n_layers), fn=hide):
        hidden = next_logprobs(s, texts, images)
        said = generate(s, texts, images, max_new_tokens=NEW)
    torch.testing.assert_close(hidden[1:], hidden[:1].expand(2, -1), atol=1e-5, rtol=1e-5)
    assert (said.ids == said.ids[0]).all()


def broken_at(n_tokens, value):
    """An edit that makes values of the second text, in passes over so many tokens, not finite."""

    def spoil(x):
        if n_tokens is None or x.shape[1] == n_tokens:
            x[1] = value
        return x

    return spoil


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_logits_that_are_not_finite_are_no_answer_but_an_error_that_names_the_token(family, value):
    s = subject(family)
    images = pictures(s)
    with edit(s, "resid_post", layer=2, fn=broken_at(None, value)):
        for asked in (
            lambda: generate(s, TEXTS, images, max_new_tokens=2),
            lambda: next_logprobs(s, TEXTS, images),
            lambda: answer_logprobs(s, TEXTS, images, answers=ANSWERS),
        ):
            with pytest.raises(FloatingPointError, match="logits that are not finite for token 1 after"):
                asked()
    with (
        edit(s, "resid_post", layer=2, fn=broken_at(1, value)),
        pytest.raises(FloatingPointError, match="logits that are not finite for token 2 after"),
    ):
        generate(s, TEXTS, images, max_new_tokens=2)


def test_a_word_that_a_model_rules_out_has_the_log_probability_minus_infinity():
    """Padding of the vocabulary, for example: single logits may well be minus infinity."""
    s = Subject(deepcopy(subject("llama").model), subject("llama").processor)
    expected = next_logprobs(s, TEXTS)
    handle = s.model.lm_head.register_forward_hook(
        lambda module, args, y: y.index_fill(-1, RULED_OUT, -np.inf)
    )
    found = next_logprobs(s, TEXTS)
    handle.remove()
    assert (found[:, RULED_OUT] == -np.inf).all()
    assert (found[:, :90] > expected[:, :90]).all()


RULED_OUT = torch.arange(90, 96)


def test_half_precision_that_overflows_is_an_error():
    s = Subject(deepcopy(subject("llama").model).half(), subject("llama").processor)
    with torch.no_grad():
        s.model.model.layers[1].mlp.down_proj.weight.mul_(1e4)
        s.model.model.layers[1].mlp.up_proj.weight.mul_(1e4)
    with pytest.raises(FloatingPointError, match="half precision overflows"):
        generate(s, TEXTS, max_new_tokens=2)


def mllama():
    """Its images are read by cross-attention, whose mask says which tokens see which image."""
    text = LLAMA_SIZE | {
        "cross_attention_layers": [1],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
    }
    vision = {"hidden_size": 32, "attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 2}
    vision |= {"num_global_layers": 1, "image_size": 16, "patch_size": 4, "max_num_tiles": 2}
    vision |= {
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": [[1, 1]],
    }
    config = hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_ID)
    torch.manual_seed(0)
    model = hf.MllamaForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    images = hf.MllamaImageProcessor(size={"height": 16, "width": 16}, max_image_tiles=2)
    return Subject(model, hf.MllamaProcessor(images, tokenizer(), chat_template=None), tower="vision")


def test_what_a_decoded_token_sees_of_an_image_is_what_the_model_itself_lets_it_see():
    s = mllama()
    images = pictures(s)
    batch = s.encode(TEXTS, images)
    assert "cross_attention_mask" in batch
    expected = s.model.generate(**batch, max_new_tokens=NEW, do_sample=False)
    found = generate(s, TEXTS, images, max_new_tokens=NEW).ids
    assert torch.equal(found, expected[:, batch["input_ids"].shape[1] :])


def test_images_that_are_read_by_cross_attention_are_equally_many_in_a_batch():
    """Tokens that see no image attend to all images alike, and to what fills up their number."""
    s = mllama()
    for images in ([None, picture()], [[picture(), picture(1)], picture(2)]):
        with pytest.raises(
            ValueError, match=r"Mllama\w+ cannot read texts with \[., .\] images: give each one"
        ):
            next_logprobs(s, TEXTS[:2], images)


@pytest.mark.parametrize(
    ("kind", "options", "longest"),
    [
        ("GPT2", {"n_positions": 8}, 8),
        ("OPT", {"max_position_embeddings": 8, "ffn_dim": 48, "word_embed_proj_dim": 32}, 8),
        ("Roberta", {"max_position_embeddings": 8, "intermediate_size": 48, "is_decoder": True}, 7),
    ],
)
def test_what_is_longer_than_a_models_table_of_positions_is_an_error_with_both_numbers(
    kind, options, longest
):
    """A table that is read beyond its end stops a GPU's whole process."""
    config = getattr(hf, f"{kind}Config")(**SIZE | {"eos_token_id": None}, **options)
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    s = Subject(getattr(hf, name)(config), tokenizer(eos_token=None))
    fits = ["a " * (longest - 1), "a"]  # after the token that begins a text
    assert s.model(**s.encode(fits)).logits.shape[1] == longest
    assert generate(s, ["a", "a dog"], max_new_tokens=longest - 2).ids.shape == (2, longest - 2)
    for too_long in (
        lambda: s.encode(["a", "a " * longest]),
        lambda: generate(s, fits, max_new_tokens=3),
        lambda: answer_logprobs(s, fits, answers=[["a a"], ["a " * longest]]),
    ):
        with pytest.raises(
            ValueError, match=rf"has \d+ tokens, but the model {longest} positions: shorten it"
        ):
            too_long()


def test_rotary_positions_have_no_end():
    s = subject("llama")
    assert s.model(**s.encode("a " * 300)).logits.shape[1] > s.model.config.max_position_embeddings


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_quantised_weights_generate_under_edits(tmp_path, bits):
    pytest.importorskip("bitsandbytes", reason="quantised weights need bitsandbytes")
    wide = {"hidden_size": 64, "intermediate_size": 128}  # whole blocks of 64 weights
    torch.manual_seed(0)
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**LLAMA_SIZE | wide),
        vision_config=hf.CLIPVisionConfig(**VISION | wide),
        image_token_index=IMAGE_ID,
        image_seq_length=16,
    )
    hf.LlavaForConditionalGeneration(config).save_pretrained(tmp_path)
    VISION_LANGUAGE["llava"].processor().save_pretrained(tmp_path)
    full, small = load(tmp_path), load(tmp_path, quantization=bits)
    images = pictures(full)
    assert small.model.get_memory_footprint() < 0.6 * full.model.get_memory_footprint()
    found, expected = (next_logprobs(s, TEXTS, images).flatten() for s in (small, full))
    assert torch.corrcoef(torch.stack([found, expected]))[0, 1] > 0.9
    said = generate(small, TEXTS, images, max_new_tokens=NEW)
    with capture(small, "z") as acts, edit(small, "resid_post", layer=1, fn=lambda x: x):
        again = generate(small, TEXTS, images, max_new_tokens=NEW)
    assert torch.equal(again.ids, said.ids)
    assert acts.passes[0][0].shape[2:] == (4, 16)


# What goes in


def test_images_are_8_bit_arrays_or_pictures():
    s = subject("llava")
    images = pictures(s)
    array = np.stack([np.asarray(image) for image in images])
    expected = next_logprobs(s, TEXTS, images)
    assert torch.equal(next_logprobs(s, TEXTS, array), expected)
    one, two = inputs(s, TEXTS, array, batch_size=2)
    assert one["pixel_values"].shape[0] == 2
    assert two["pixel_values"].shape[0] == 1
    assert {"input_ids", "attention_mask", "position_ids"} < one.keys()
    assert not torch.equal(next_logprobs(s, TEXTS, array[::-1]), expected)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (generate, {"texts": "a dog", "max_new_tokens": 3}, "give a list with at least one prompt"),
        (generate, {"texts": [], "max_new_tokens": 3}, "give a list with at least one prompt"),
        (generate, {"texts": TEXTS, "max_new_tokens": 0}, "max_new_tokens=0: it is at least 1"),
        (next_logprobs, {"texts": TEXTS, "batch_size": 0}, "batch_size=0"),
        (next_logprobs, {"texts": TEXTS, "images": [picture()]}, "3 texts and 1 images"),
        (answer_logprobs, {"texts": TEXTS, "answers": [["a"]]}, "3 texts and 1 entries of answers"),
        (answer_logprobs, {"texts": TEXTS, "answers": ["yes", "no", "a"]}, "a list of answers for each text"),
        (answer_logprobs, {"texts": TEXTS[:1], "answers": [["a", ""]]}, "the answer '' has no token"),
        (answer_logprobs, {"texts": TEXTS[:2], "answers": [["a"], []]}, "each text at least one answer"),
    ],
)
def test_mistakes_are_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(subject("llava"), **arguments)


def test_a_model_that_only_classifies_cannot_generate():
    with pytest.raises(ValueError, match="ViTForImageClassification cannot continue a prompt: no tokenizer"):
        next_logprobs(subject("vit"), ["a"], [picture()])
    with pytest.raises(ValueError, match="LlamaForCausalLM cannot continue a prompt"):
        generate(Subject(subject("llama").model), ["a"], max_new_tokens=1)


def test_a_model_without_position_ids_reads_prompts_one_at_a_time_and_refuses_padding():
    torch.manual_seed(0)
    config = hf.BartConfig(
        vocab_size=200, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
        max_position_embeddings=64, init_std=0.5, is_encoder_decoder=False,
    )  # fmt: skip
    subject = Subject(hf.BartForCausalLM(config).eval(), tokenizer=tokenizer())
    together = next_logprobs(subject, TEXTS)
    alone = torch.cat([next_logprobs(subject, [text]) for text in TEXTS])
    torch.testing.assert_close(together, alone)
    with pytest.raises(ValueError, match="takes no position ids"):
        subject.encode(TEXTS)
