"""Loading, encoding and dimensions; and what a person is told who gives `load` something it cannot load."""

import hashlib
import json
import shutil
from copy import deepcopy
from inspect import signature

import huggingface_hub.errors as hub
import numpy as np
import pytest
import torch
import transformers as hf
from families import (
    ALL,
    IMAGE_ID,
    LANGUAGE,
    LLAMA_SIZE,
    N_BYTES,
    PROMPTS,
    SIZE,
    VISION,
    VISION_LANGUAGE,
    VOCABULARY,
    byte_tokenizer,
    checkpoint,
    inputs,
    picture,
    subject,
    tokenizer,
)
from PIL import Image
from tokenizers.processors import Sequence
from transformers.utils import is_torchvision_available

from data.recipes.tokenizer import word_tokenizer
from data.worlds.digits import digits
from lib import models, organisms
from lib.generate import next_logprobs
from lib.models import Subject, images_only, load

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma


@pytest.fixture
def folder(tmp_path):
    """A private copy of a checkpoint, to be damaged."""
    return shutil.copytree(checkpoint("llama"), tmp_path / "llama")


@pytest.mark.parametrize("family", ALL)
def test_dimensions_are_those_of_the_configuration(family):
    s = subject(family)
    config = s.model.config if s.tower_name == "vision" else s.model.config.get_text_config()
    assert (s.n_layers, s.n_heads, s.d_model) == (3, 4, 32)
    assert s.n_layers == config.num_hidden_layers
    assert s.n_kv_heads == (
        2 if getattr(config, "num_key_value_heads", 4) == 2 and family not in ("clip", "siglip") else 4
    )
    assert s.d_head == getattr(config, "head_dim", None) or 8
    assert s.device == torch.device("cpu")
    assert not s.model.training
    assert type(s.model).__name__ == ALL[family].architecture


@pytest.mark.parametrize("family", ALL)
def test_the_saved_weights_are_the_loaded_ones(family):
    from safetensors.torch import load_file

    saved = {k: v for file in checkpoint(family).glob("*.safetensors") for k, v in load_file(file).items()}
    loaded = subject(family).model.state_dict()
    shared = {tuple(v.flatten()[:5].tolist()) for v in saved.values()}
    for name, tensor in loaded.items():
        if (
            tensor.is_floating_point()
            and dict(subject(family).model.named_parameters()).get(name) is not None
        ):
            assert tuple(tensor.flatten()[:5].tolist()) in shared, name


def test_dtype_is_float32_on_a_cpu_unless_one_is_asked_for(folder):
    load(folder).model.half().save_pretrained(folder)
    assert load(folder).model.dtype == torch.float32
    assert load(folder, dtype="float16").model.dtype == torch.float16
    assert load(folder, dtype=torch.bfloat16).model.dtype == torch.bfloat16


def test_a_name_is_an_organism_first_then_a_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(organisms, "FOLDER", tmp_path / "organisms")
    shutil.copytree(checkpoint("gpt2"), organisms.FOLDER / "llama")
    monkeypatch.chdir(tmp_path)
    assert load("llama").model.config.model_type == "gpt2"
    assert load("./llama").model.config.model_type == "llama"
    assert load(folder).model.config.model_type == "llama"
    shutil.move(tmp_path / "llama", tmp_path / "other")
    assert load("other").model.config.model_type == "llama"


def test_seeds_of_an_organism_are_found_and_other_models_are_alone(tmp_path, monkeypatch):
    for name in ("toy", "toy-seed2", "toy-seed1", "toy-joint", "other-seed1"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(organisms, "FOLDER", tmp_path)
    assert organisms.seeds_of("toy") == ["toy", "toy-seed1", "toy-seed2"]
    assert organisms.seeds_of("toy", 2) == ["toy", "toy-seed1"]
    assert organisms.seeds_of("toy", 9) == organisms.seeds_of("toy")
    with pytest.raises(ValueError, match="0 networks of toy: expected at least 1"):
        organisms.seeds_of("toy", 0)
    for alone in ("toy-seed1", "toy-joint", "somebody/toy", str(tmp_path / "toy")):
        assert organisms.seeds_of(alone) == [alone]


def test_towers_are_views_of_one_model():
    s = subject("clip")
    vision = s.tower("vision")
    assert (s.tower_name, vision.tower_name) == ("text", "vision")
    assert vision.model is s.model
    assert vision.layout.owner is s.model.vision_model
    with pytest.raises(LookupError, match="no audio tower in CLIPModel: it has text, vision"):
        s.tower("audio")


# Encoding


@pytest.mark.parametrize("family", [*LANGUAGE, *VISION_LANGUAGE])
def test_models_that_generate_get_left_padded_batches(family):
    s = subject(family)
    batch = inputs(s)
    mask = batch["attention_mask"]
    assert mask[0].all()
    assert mask[1].tolist() == sorted(mask[1].tolist())
    assert mask[1].sum() < mask.shape[1]
    if "position_ids" in batch:
        n = int(mask[1].sum())
        assert batch["position_ids"][..., 1, -n:].amin() == 0
        if family not in ("qwen2_vl", "qwen2_5_vl"):  # rows and columns of the image
            assert batch["position_ids"][1, -n:].tolist() == list(range(n))


@pytest.mark.parametrize("family", ["bert", "clip"])
def test_encoders_get_right_padded_batches(family):
    mask = inputs(subject(family))["attention_mask"]
    assert mask[1].tolist() == sorted(mask[1].tolist(), reverse=True)
    assert mask[1].sum() < mask.shape[1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2", "bloom"])
def test_the_tokens_are_the_tokenizers(family):
    s = subject(family)
    ids = s.encode(PROMPTS[0], chat=False)["input_ids"]
    assert s.tokenizer.decode(ids[0]) == f"<s> {PROMPTS[0]}"


def test_prompts_go_through_the_chat_template_if_there_is_one():
    s = subject("llama")
    expected = "<s> user : the cat sees a red star . assistant :"
    assert s.tokenizer.decode(s.encode(PROMPTS[0])["input_ids"][0]) == expected
    conversation = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "sees"}]
    ids = s.encode([conversation, PROMPTS[1]])["input_ids"]
    assert s.tokenizer.decode(ids[0]) == "<s> user : the cat assistant : sees assistant :"
    assert s.tokenizer.decode(ids[1], skip_special_tokens=True) == "user : a dog assistant :"
    with pytest.raises(ValueError, match="there is no chat template"):
        subject("gpt2").encode([conversation])
    with pytest.raises(ValueError, match="chat=True, but GPT2LMHeadModel's tokenizer has no chat template"):
        subject("gpt2").encode("a dog", chat=True)


TURNS = (
    "{% for message in messages %}{{ message.role }} :"
    "{% for part in message.content if message.content is not string %}"
    "{% if part.type == 'image' %}<image>{% else %} {{ part.text }}{% endif %}{% endfor %} "
    "{{ message.content if message.content is string }}{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def other_tokens(family, make, template):
    """A family with another tokenizer and chat template; ids of image tokens are the same."""
    s = Subject(deepcopy(subject(family).model), deepcopy(subject(family).processor))
    s.model.resize_token_embeddings(N_BYTES, mean_resizing=False)
    if s.processor is s.tokenizer:
        s.processor = make()
    else:
        s.processor.tokenizer = make()
    s.processor.chat_template = template
    return Subject(s.model, s.processor)


def conversation(text, *images):
    shown = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*shown, {"type": "text", "text": text}]}]


@pytest.mark.parametrize("make", [tokenizer, byte_tokenizer])
@pytest.mark.parametrize("bos", ["", "<s>"], ids=["without BOS", "with BOS"])
@pytest.mark.parametrize("family", ["llama", "gpt2", *VISION_LANGUAGE])
def test_chats_are_encoded_as_by_transformers_own_apply_chat_template(family, bos, make):
    """Which leaves BOS to the tokenizer where a processor's template writes none, as LLaVA-1.5's."""
    s = other_tokens(family, make, bos + TURNS)
    padded = {"padding": True, "padding_side": "left"}
    if s.processor is s.tokenizer:
        pictures, chats = None, [[{"role": "user", "content": text}] for text in PROMPTS]
        s.tokenizer.padding_side = "left"
        options = {"padding": True, "tokenize": True}
    else:
        pictures = [picture(0), picture(1)]
        chats = [conversation(text, image) for text, image in zip(PROMPTS, pictures, strict=True)]
        options = {"processor_kwargs": padded, "tokenize": True}
    expected = s.processor.apply_chat_template(
        chats, add_generation_prompt=True, return_dict=True, return_tensors="pt", **options
    )
    for texts in (PROMPTS, chats):
        found = s.encode(texts, pictures)
        for name in ("input_ids", "attention_mask", "pixel_values"):
            if name in expected:
                assert torch.equal(found[name], expected[name]), name
    if family != "paligemma":  # whose processor adds one in any case
        n_bos = (found["input_ids"] == 1).sum(1).tolist()
        assert n_bos == ([1, 1] if bos or pictures else [0, 0])


@pytest.mark.parametrize("make", [tokenizer, byte_tokenizer])
@pytest.mark.parametrize("family", ["llama", "gpt2", *VISION_LANGUAGE])
def test_plain_texts_are_encoded_as_by_the_processors_own_call(family, make):
    s = other_tokens(family, make, TURNS)
    pictures, marker = None, ""
    if s.processor is not s.tokenizer:
        pictures, marker = [picture(0), picture(1)], s.processor.image_token
    shown = {} if pictures is None else {"images": [[image] for image in pictures]}
    texts = [marker + text for text in PROMPTS]
    expected = s.processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **shown)
    found = s.encode(PROMPTS, pictures, chat=False)
    for name in ("input_ids", "attention_mask"):
        assert torch.equal(found[name], expected[name]), name


@pytest.mark.parametrize("family", [*LANGUAGE, *VISION_LANGUAGE])
def test_a_model_gets_nothing_that_its_forward_has_no_argument_for(family):
    s = subject(family)
    s = Subject(s.model, deepcopy(s.processor))
    s.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    batch = inputs(s)
    expected = inputs(subject(family))
    assert batch.keys() == expected.keys() <= signature(type(s.model).forward).parameters.keys()
    assert ("token_type_ids" in batch) == (family == "paligemma")


def test_an_encoder_gets_the_kinds_of_tokens_that_it_knows():
    s = Subject(subject("bert").model, tokenizer(encoder=True))
    s.tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    assert "token_type_ids" in s.encode(PROMPTS)


def wrapped(model, how):
    if how == "compiled":
        return torch.compile(model, backend="eager")
    peft = pytest.importorskip("peft", reason="adapters need peft")
    names = ["c_attn"] if model.config.model_type == "gpt2" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=2, target_modules=names, init_lora_weights=False)
    return peft.get_peft_model(model, config).eval()


@pytest.mark.parametrize("how", ["compiled", "LoRA"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2_vl", "llava"])
def test_a_wrapped_model_gets_the_same_inputs_and_a_batch_says_what_each_prompt_alone_says(family, how):
    plain = subject(family)
    s = Subject(wrapped(deepcopy(plain.model), how), plain.processor)
    batch, expected = inputs(s), inputs(plain)
    assert batch.keys() == expected.keys()
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    pictures = None if s.processor is s.tokenizer else [picture(0), picture(1)]
    with torch.compiler.set_stance("force_eager"):  # compiling takes a while, and adds nothing here
        together = next_logprobs(s, PROMPTS, pictures)
        for i, text in enumerate(PROMPTS):
            alone = next_logprobs(s, [text], pictures and pictures[i : i + 1])
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["GPT2Model", "GPT2ForSequenceClassification", "LlamaModel", "BertModel"])
def test_models_without_a_head_for_words_get_right_padded_batches_whatever_the_tokenizers_side(kind):
    base = {"Llama": "llama", "GPT2": "gpt2", "Bert": "bert"}
    family = next(family for start, family in base.items() if kind.startswith(start))
    torch.manual_seed(0)
    model = getattr(hf, kind)(subject(family).model.config).eval()
    s = Subject(model, tokenizer(encoder=family == "bert", padding_side="left"))
    with torch.no_grad():
        together, alone = (model(**s.encode(texts))[0] for texts in (PROMPTS, PROMPTS[1:]))
    if together.ndim == 3:
        together = together[:, : alone.shape[1]]
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-5)


def test_a_text_without_a_token_and_a_token_without_an_embedding_are_errors():
    bare = tokenizer()
    bare.backend_tokenizer.post_processor = Sequence([])
    with pytest.raises(ValueError, match="text 1 has no token: give every text a word at least"):
        Subject(subject("gpt2").model, bare).encode(["a dog", ""])
    with pytest.raises(ValueError, match="text 0 has no token"):
        Subject(subject("bert").model, bare).encode([""])
    foreign = Subject(subject("gpt2").model, byte_tokenizer())
    with pytest.raises(
        ValueError, match=r"writes the token \d+, but GPT2LMHeadModel has 96 embeddings: give"
    ):
        foreign.encode(["the cat"])


def test_a_single_prompt_is_a_batch_of_one():
    assert inputs(subject("gpt2"))["input_ids"].shape[0] == 2
    assert subject("gpt2").encode("a dog")["input_ids"].shape == (1, 3)
    assert subject("vit").encode(images=picture())["pixel_values"].shape == (1, 3, 16, 16)
    one = subject("llava").encode("a dog", picture())
    assert one["input_ids"].shape[0] == one["pixel_values"].shape[0] == 1


def with_images(family):
    """Of a listed family, or of classes whose processors want a list of images for every text."""
    if family in VISION_LANGUAGE:
        return subject(family)
    if family == "gemma3":
        sizes = LLAMA_SIZE | {"head_dim": 16, "query_pre_attn_scalar": 4, "sliding_window": 4}
        config = hf.Gemma3Config(
            text_config=sizes, vision_config=VISION, mm_tokens_per_image=4, image_token_index=IMAGE_ID
        )
        processor = hf.Gemma3Processor(
            hf.Gemma3ImageProcessor(size={"height": 16, "width": 16}), tokenizer(), image_seq_length=4
        )
    elif family == "idefics2":
        perceiver = {"resampler_n_latents": 4, "resampler_depth": 1, "hidden_size": 32}
        perceiver |= {"resampler_n_heads": 4, "num_key_value_heads": 2, "resampler_head_dim": 8}
        config = hf.Idefics2Config(
            text_config=LLAMA_SIZE, vision_config=VISION, image_token_id=IMAGE_ID, perceiver_config=perceiver
        )
        images = hf.Idefics2ImageProcessor(size={"shortest_edge": 8, "longest_edge": 16})
        processor = hf.Idefics2Processor(images, tokenizer(), image_seq_len=4)
    else:
        config = hf.Blip2Config(
            vision_config=VISION,
            qformer_config=VISION | {"encoder_hidden_size": 32, "cross_attention_frequency": 1},
            text_config=hf.OPTConfig(**SIZE, ffn_dim=48, word_embed_proj_dim=32),
            num_query_tokens=4,
            image_token_index=IMAGE_ID,
        )
        plain = word_tokenizer(VOCABULARY, bos="<s>", eos="</s>", ends=False)
        images = hf.BlipImageProcessor(size={"height": 16, "width": 16})
        processor = hf.Blip2Processor(images, plain, num_query_tokens=4)
    torch.manual_seed(0)
    model = getattr(hf, type(config).__name__.replace("Config", "ForConditionalGeneration"))(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Subject(model, processor)


def wide(seed, height, width):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


IMAGES = {
    "none": [None, picture(0)],
    "two": [[picture(0), picture(1)], picture(2)],
    "none and two": [[], [picture(0), wide(1, 30, 20)]],
    "other sizes": [wide(0, 40, 24), wide(1, 16, 48)],
}
ONE_EACH = {"paligemma": ("none", "none and two"), "blip2": ("none", "two", "none and two")}


@pytest.mark.parametrize("images", IMAGES)
@pytest.mark.parametrize("family", [*VISION_LANGUAGE, "gemma3", "idefics2", "blip2"])
def test_each_prompt_gets_its_own_images_and_a_batch_says_what_each_alone_says(family, images):
    s, shown = with_images(family), IMAGES[images]
    texts = ["the cat sees", "a dog sees" if family == "blip2" else "a dog"]  # BLIP-2 takes no position ids
    if images in ONE_EACH.get(family, ()):
        with pytest.raises(ValueError, match=r"cannot read texts with \[\d(, \d)?\] images: give each one"):
            s.encode(texts, shown)
        return
    together = next_logprobs(s, texts, shown)
    n_tokens = s.spans(s.encode(texts, shown)).image.sum(1)
    for i, entry in enumerate(shown):
        alone = s.encode(texts[i : i + 1], [entry])
        assert s.spans(alone).image.sum() == n_tokens[i]
        assert (n_tokens[i] > 0) == bool(entry)
        with torch.no_grad():
            expected = s.model(**alone).logits[0, -1].log_softmax(-1)
        torch.testing.assert_close(together[i], expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_gets_the_processor_that_it_names_or_is_told_what_that_needs(tmp_path):
    """Pixtral's has the configuration of LLaVA, and a processor that counts image tokens otherwise."""
    shutil.copytree(checkpoint("llava"), tmp_path / "pixtral")
    path = tmp_path / "pixtral" / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "LlavaNextProcessor"}))
    assert type(load(tmp_path / "pixtral").processor).__name__ == "LlavaNextProcessor"
    if is_torchvision_available():
        return
    path.write_text(json.dumps(json.loads(path.read_text()) | {"processor_class": "PixtralProcessor"}))
    with pytest.raises(ImportError, match="PixtralProcessor requires the Torchvision library but it was not"):
        load(tmp_path / "pixtral")


def test_a_processor_that_insists_on_a_part_for_videos_does_without():
    class Insists(hf.Qwen2VLProcessor):  # as SmolVLM's
        def __init__(self, image_processor, tokenizer, video_processor, chat_template=None):
            super().__init__(image_processor, tokenizer, video_processor, chat_template)

    kind = images_only(Insists)
    s = Subject(subject("qwen2_vl").model, kind.from_pretrained(checkpoint("qwen2_vl")))
    found, expected = inputs(s), inputs(subject("qwen2_vl"))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("is_decoder", [True, False])
def test_a_bert_with_a_head_for_words_continues_texts_if_it_is_a_decoder(is_decoder):
    config = hf.BertConfig(**SIZE, intermediate_size=48, is_decoder=is_decoder)
    s = Subject(hf.BertLMHeadModel(config).eval(), tokenizer())
    assert s.encode(PROMPTS)["attention_mask"][1, 0] == (not is_decoder)  # padded on the left, or right
    if is_decoder:
        alone = next_logprobs(s, PROMPTS[1:])
        torch.testing.assert_close(next_logprobs(s, PROMPTS)[1:], alone, atol=1e-4, rtol=1e-4)
    else:
        with pytest.raises(ValueError, match=r"BertLMHeadModel cannot continue a prompt: .* or an encoder"):
            next_logprobs(s, PROMPTS)


def test_gpt_neox_continues_texts_whatever_its_unused_setting_says():
    config = hf.GPTNeoXConfig(**SIZE, intermediate_size=48)
    assert not config.is_decoder
    s = Subject(hf.GPTNeoXForCausalLM(config).eval(), tokenizer())
    assert s.encode(PROMPTS)["attention_mask"][1, 0] == 0


@pytest.mark.parametrize("family", [f for f in VISION_LANGUAGE if f != "paligemma"])
def test_vision_language_models_take_text_alone(family):
    s = subject(family)
    batch = s.encode(PROMPTS)
    assert not s.spans(batch).image.any()
    with torch.no_grad():
        assert s.model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("family", [f for f in ALL if f not in ("vit", "deit")])
def test_spans_part_the_positions(family):
    s = subject(family)
    batch = inputs(s)
    spans = s.spans(batch)
    total = spans.image.int() + spans.text.int() + spans.padding.int()
    assert (total == 1).all()
    tokens = [s.tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"].tolist()]
    for row, words in enumerate(tokens):
        for position, word in enumerate(words):
            assert spans.image[row, position] == (word == "<image>")
            if "attention_mask" in batch:
                assert spans.padding[row, position] == (word == "<pad>")
    if family in VISION_LANGUAGE:
        assert (spans.image.sum(1) > 0).all()


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_image_tokens_are_where_the_image_acts(family):
    """Another picture changes what enters the first block at the image tokens, and nowhere else."""
    from lib.hooks import capture

    s = subject(family)
    entering = []
    for seed in (0, 1):
        with torch.no_grad(), capture(s, "resid_pre", layers=0) as acts:
            batch = s.encode("the cat sees", picture(seed))
            s.model(**batch)
        entering.append(acts[0])
    differs = (entering[0] != entering[1]).any(-1)
    spans = s.spans(batch)
    assert not differs[~spans.image].any()
    newline = {"llava_next": 4, "llava_onevision": 4}.get(
        family, 0
    )  # learned line ends count as image tokens
    assert differs[spans.image].sum() >= spans.image.sum() - newline


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("llama", {}, "needs texts, images or both"),
        (
            "llama",
            {"texts": "a", "images": picture()},
            "LlamaForCausalLM has no image tokens: it reads texts only",
        ),
        ("vit", {"texts": "a"}, "ViTForImageClassification reads images only"),
        ("llava", {"texts": ["a", "b"], "images": [picture()]}, "2 texts and 1 entries of images"),
        ("llava", {"texts": "a <image> b"}, r"'a <image> b' has 1 image tokens \(<image>\), and 0 images"),
        ("llava", {"texts": "<image> <image> b", "images": picture()}, "2 image tokens .* and 1 images"),
        (
            "qwen2_5_vl",
            {"texts": [[{"role": "user", "content": "a"}]], "images": [picture()]},
            "has 0 image tokens .* and 1 images are given: give one image a token$",
        ),
        (
            "qwen2_5_vl",
            {"texts": [[{"role": "user", "content": [{"type": "image"}]}]]},
            "has 1 image tokens .* and 0 images",
        ),
    ],
)
def test_what_cannot_be_encoded_is_an_error(family, arguments, message):
    with pytest.raises(ValueError, match=message):
        subject(family).encode(**arguments)


NAN = np.full((16, 16, 3), np.nan)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (picture().convert("L"), "image 1 has mode 'L', not 'RGB': give image.convert"),
        (picture().convert("RGBA"), "image 1 has mode 'RGBA'"),
        (NAN, "image 1 has pixels that are NaN or infinite: give 8-bit pixels"),
        (NAN * 0 + np.inf, "image 1 has pixels that are NaN or infinite"),
        (np.zeros((16, 16, 3)), "image 1 has the dtype float64: give 8-bit pixels from 0 to 255"),
        (np.zeros((3, 16, 16), np.uint8), r"image 1 has the shape \(3, 16, 16\): give \[height, width, 3\]"),
        (np.zeros((16, 16), np.uint8), "give \\[height, width, 3\\], the colours last"),
        (np.zeros((0, 16, 3), np.uint8), "the shape"),
        ("cat.png", "image 1 is of type str: give a PIL image"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "vit"])
def test_what_is_no_picture_is_an_error(family, image, message):
    texts = None if family == "vit" else ["a", "b"]
    with pytest.raises(ValueError, match=message):
        subject(family).encode(texts, images=[picture(), image])


def test_a_model_of_one_channel_takes_grey_images():
    s = load("digits-vit")
    grey = picture().convert("L")
    expected = s.encode(images=[grey])["pixel_values"]
    assert torch.equal(s.encode(images=[np.asarray(grey)])["pixel_values"], expected)
    with pytest.raises(ValueError, match=r"image 0 has mode 'RGB', not 'L': give image.convert"):
        s.encode(images=[picture()])
    with pytest.raises(ValueError, match=r"image 0 has the shape \(16, 16, 3\): give \[height, width\]"):
        s.encode(images=[np.asarray(picture())])


@pytest.mark.parametrize("family", [*VISION_LANGUAGE, "vit"])
def test_8_bit_pixels_are_as_good_as_a_picture(family):
    s = subject(family)
    text = None if family == "vit" else "a dog"
    expected, found = s.encode(text, picture()), s.encode(text, np.asarray(picture()))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_processors_own_chat_template_gets_parts_of_text_and_images():
    """As llava-hf/llava-1.5-7b-hf has it: its template goes through the parts of a turn."""
    s = subject("llava")
    template = (
        "<s>{% for message in messages %}{{ message.role }} : {% for part in message.content %}"
        "{% if part.type == 'image' %}<image> {% else %}{{ part.text }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}assistant :{% endif %}"
    )
    s.processor.chat_template = template
    try:
        for text, after in (("the cat", "the cat"), ("the <image> cat", "cat")):
            batch = s.encode(text, picture())
            assert s.spans(batch).image.sum() == 16
            words = s.tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist())
            end = len(words) - words[::-1].index("<image>")
            assert words[end:] == [*after.split(), "assistant", ":"]
        alone = s.tokenizer.decode(s.encode("the cat")["input_ids"][0])
        assert alone == "<s> user : the cat assistant :"
    finally:
        s.processor.chat_template = None


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_an_image_token_in_a_prompt_is_where_the_image_goes(family):
    s = subject(family)
    marker = s.processor.image_token
    first, given = (s.encode(text, picture()) for text in ("the cat", f"{marker}the cat"))
    assert torch.equal(first["input_ids"], given["input_ids"])
    later = s.spans(s.encode(f"the cat {marker} sees", picture())).image[0].tolist()
    assert later.index(True) > s.spans(first).image[0].tolist().index(True)


def test_a_network_without_a_processor_says_so():
    s = Subject(subject("vit").model)
    with pytest.raises(ValueError, match="ViTForImageClassification has no tokenizer or processor"):
        s.encode(images=picture())
    with pytest.raises(ValueError, match=r"spans.. needs 'input_ids'; the inputs have pixel_values"):
        s.spans({"pixel_values": torch.zeros(1)})


# What cannot be loaded


def test_a_folder_that_is_not_there():
    for name in ("./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c"):
        with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere|no folder a/b/c"):
            load(name)


def test_a_folder_without_configuration_or_weights(tmp_path, folder):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty has no config.json; it has nothing"):
        load(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"llama has no model.safetensors; it has .*config.json"):
        load(folder)


def test_damaged_weights(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    for damage in (
        whole[: len(whole) // 2],
        b"",
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\xff" * 64,
    ):
        weights.write_bytes(damage)
        with pytest.raises(
            ValueError, match=r"model.safetensors is damaged or truncated \(.*\): fetch it again"
        ):
            load(folder)


def test_a_flipped_bit_is_found_by_the_checksum(folder):
    weights = folder / "model.safetensors"
    whole = bytearray(weights.read_bytes())
    (folder / "sha256.json").write_text(json.dumps({weights.name: hashlib.sha256(whole).hexdigest()}))
    load(folder)
    whole[-5] ^= 1
    weights.write_bytes(whole)
    with pytest.raises(ValueError, match=r"model.safetensors is not the published file \(its sha256"):
        load(folder)
    (folder / "sha256.json").write_text(json.dumps({"card.md": "00"}))
    with pytest.raises(FileNotFoundError, match=r"lacks card.md, which its sha256.json lists"):
        load(folder)


@pytest.mark.parametrize("whole", [True, False])
def test_an_adapter_is_neither_applied_nor_ignored(folder, whole):
    """transformers does the one or the other, by whether peft is installed."""
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    if not whole:
        (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"llama has an adapter \(adapter_config.json\).* the merged model"):
        load(folder)


def test_pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pickled weights only \(pytorch_model.bin\).* convert them to safetensors"
    ):
        load(folder)


def test_weights_that_lack_a_tensor_or_a_shard(folder):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    lost = tensors.pop("model.layers.1.mlp.down_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"lack 1 tensors that LlamaForCausalLM needs: model.layers.1.mlp.down_proj"
    ):
        load(folder)
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors") | {"x": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of 2 weight files: model-2.safetensors"):
        load(folder)
    assert lost.shape == (32, 48)


@pytest.mark.parametrize(
    "extra", [{}, {"auto_map": {"AutoConfig": "code.Config"}}], ids=["unknown", "with its own code"]
)
def test_an_unknown_architecture(folder, extra):
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llama9"} | extra
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text("raise SystemExit('code of a model was run')")
    with pytest.raises(
        LookupError, match=r"knows no `model_type` 'llama9'.*code that comes with a model is not run"
    ):
        load(folder)


def test_a_configuration_that_is_no_json(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no valid JSON"):
        load(folder)


@pytest.fixture
def one_organism(tmp_path, monkeypatch):
    (tmp_path / "digits-vit").mkdir()
    monkeypatch.setattr(organisms, "FOLDER", tmp_path)


def test_a_hub_id_without_network(one_organism, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        ConnectionError,
        match=r"'owner/never-heard-of' is no organism .*local cache, and the hub could not be asked",
    ):
        load("owner/never-heard-of")
    with pytest.raises(ConnectionError, match=r"'digits-vti' is no organism \(did you mean digits-vit\?\)"):
        load("digits-vti")


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (
            hub.RepositoryNotFoundError,
            LookupError,
            "no model 'a/b'.*has 1 others.* the hub has no such",
        ),
        (
            hub.GatedRepoError,
            PermissionError,
            "'a/b' is gated: accept its licence at https://huggingface.co/a/b",
        ),
        (hub.HfHubHTTPError, ConnectionError, "the hub could not be asked for it"),
    ],
)
def test_what_the_hub_refuses(one_organism, monkeypatch, error, expected, message):
    def refuse(*args, **kwargs):
        raise error.__new__(error, "status 4xx")

    monkeypatch.setattr(models, "snapshot_download", refuse)
    with pytest.raises(expected, match=message):
        load("a/b")


def test_a_hub_model_without_safetensors(one_organism, monkeypatch, folder):
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(models, "snapshot_download", lambda *args, **kwargs: str(folder))
    with pytest.raises(ValueError, match="'a/b' has no safetensors on the hub; pickled weights are not read"):
        load("a/b")


def test_a_name_that_is_none(one_organism):
    with pytest.raises(LookupError, match="no model 'not a model!'"):
        load("not a model!")


def test_quantization_needs_bitsandbytes_and_a_known_word(folder, monkeypatch):
    with pytest.raises(ValueError, match="quantization='2bit': it is None, '8bit' or '4bit'"):
        load(folder, quantization="2bit")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="quantization='4bit' needs bitsandbytes; install it: pip install"):
        load(folder, quantization="4bit")


@pytest.mark.parametrize("family", ALL)
def test_an_untrained_twin_has_each_tensors_entries_in_another_order(family):
    trained, twin = subject(family).model, load(checkpoint(family), untrained=True).model
    assert twin.config.to_dict() == trained.config.to_dict()
    theirs = dict(trained.named_parameters())
    for name, tensor in twin.named_parameters():
        ours, original = tensor.detach().numpy(), theirs[name].detach().numpy()
        assert np.array_equal(np.sort(ours, axis=None), np.sort(original, axis=None)), name
        if len(np.unique(original)) > 10:  # not a layer norm as it was initialised
            assert abs(np.corrcoef(ours.ravel(), original.ravel())[0, 1]) < 0.9, name
    again = load(checkpoint(family), untrained=True).model
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), again.parameters(), strict=True))
    assert (twin.get_output_embeddings() is None) or (
        (twin.get_output_embeddings().weight is twin.get_input_embeddings().weight)
        == (trained.get_output_embeddings().weight is trained.get_input_embeddings().weight)
    )


def test_an_untrained_twin_answers_otherwise_and_reads_the_same_tokens():
    trained, twin = load("ioi-gpt"), load("ioi-gpt", untrained=True)
    batch = torch.arange(12).view(2, 6)
    assert trained.tokenizer.get_vocab() == twin.tokenizer.get_vocab()
    assert not torch.allclose(trained.model(batch).logits, twin.model(batch).logits, atol=1.0)


def test_the_order_is_the_seeds_and_the_folders():
    copies = [hf.GPT2LMHeadModel(subject("gpt2").model.config) for _ in range(3)]
    for copy, seed in zip(copies, (1, 1, 2), strict=True):
        copy.load_state_dict(subject("gpt2").model.state_dict())
        models.shuffle_weights(copy, seed)
    first, same, other = (copy.transformer.h[0].mlp.c_fc.weight for copy in copies)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    # A child that stands as a difference from its parent is not left near it.
    child, parent = (load(name, untrained=True).model for name in ("scenes-vlm-joint", "scenes-vlm"))
    near = [load(name).model for name in ("scenes-vlm-joint", "scenes-vlm")]
    weights = [m.model.vision_tower.encoder.layers[0].mlp.fc1.weight.ravel() for m in (child, parent, *near)]
    assert abs(torch.corrcoef(torch.stack(weights[:2]))[0, 1]) < 0.05


def test_an_untrained_twin_does_not_do_the_task():
    test = digits("test")
    for name in organisms.seeds_of("digits-vit"):
        right = {}
        for untrained in (False, True):
            vit = load(name, untrained=untrained)
            pixels = vit.encode(images=list(test.images))["pixel_values"]
            right[untrained] = (vit.model(pixels).logits.argmax(-1).numpy() == test.labels).mean()
        assert right[False] > 0.9
        assert right[True] < 0.25  # of ten classes


def test_what_has_no_untrained_twin(folder):
    with pytest.raises(ValueError, match=r"untrained=True shuffles the weights.*quantization=None"):
        load(folder, untrained=True, quantization="4bit")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="weights that are not quantized"):
        load(folder, untrained=True)
    with torch.device("meta"):
        away = hf.GPT2LMHeadModel(subject("gpt2").model.config)
    with pytest.raises(ValueError, match="offloaded cannot be shuffled"):
        models.shuffle_weights(away)


def test_a_small_model_is_loaded_without_a_progress_bar(folder, capsys):
    load(folder)
    assert "%" not in capsys.readouterr().err
    assert hf.utils.logging.is_progress_bar_enabled()
