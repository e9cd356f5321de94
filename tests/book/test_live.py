"""The organisms in the browser: the engine against `lib` on the same inputs, and the widgets' own methods."""

import json
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import browser as program
import numpy as np
import pytest
import torch
from numpy import ndarray
from safetensors.torch import save_file
from torch import Tensor

from book.site import live, samples
from data.recipes.diffusion import load_denoiser
from data.worlds import chains, scans, scene_words, scenes, town, videos
from lib import chapters
from lib.generate import generate, next_logprobs
from lib.hooks import capture, edit
from lib.models import Subject, load
from lib.organisms import FOLDER, shipped
from lib.probes import cka_map
from lib.sites import SITES

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(program.SKIPPED, reason="BROWSER=skip"),
]
browsing = pytest.importorskip("browsing")

DENOISERS = [name for name in shipped() if "ddpm" in name]
TRANSFORMERS = [name for name in shipped() if live.supports(name) and name not in DENOISERS]
ENGINE = ("hooks", "matmul", "model", "pictures", "text", "transformer", "weights", "worker")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The scripts as the site has them, and a page that has nothing on it."""
    folder = tmp_path_factory.mktemp("live")
    live.write_scripts(folder / "live")
    (folder / "parity.js").write_bytes((Path(__file__).parent / "live_parity.js").read_bytes())
    (folder / "index.html").write_text("<!DOCTYPE html><title>Parity</title>")
    return folder


@pytest.fixture(scope="module")
def page(chromium, folder):
    with browsing.served(folder) as address:
        page = chromium.new_page()
        page.goto(address + "index.html")
        yield page
        page.close()


def test_the_engine_is_small(folder):
    assert sum((folder / "live" / f"{name}.js").stat().st_size for name in ENGINE) < 30_000


def test_comments_go_and_strings_stay():
    script = '/** What it is. */\n  const a = "https://x"; // why\n// gone\nconst b = `c // d`;\n'
    assert live.smaller(script) == 'const a = "https://x";\nconst b = `c // d`;\n'


def test_every_shipped_organism_is_supported():
    assert [name for name in shipped() if not live.supports(name)] == []


def shake(activation: Tensor) -> Tensor:
    """The edit of every site, in live_parity.js too: it tells every number's place in a row's activation."""
    places = torch.arange(activation[0].numel(), dtype=torch.float64).sin().reshape(activation.shape[1:])
    return 0.5 * activation + 0.25 * places.to(activation)


def example(name: str, subject: Subject, rng: np.random.Generator) -> tuple[str | None, list[ndarray]]:
    """A text of words that the organism knows, and pictures, as far as it reads such things."""
    config = subject.model.config
    if subject.tokenizer is None:
        return None, [rng.integers(0, 256, (config.image_size, config.image_size), dtype=np.uint8)]
    words = [word for word in subject.tokenizer.get_vocab() if not word.startswith("<")]
    text = " ".join(rng.choice(sorted(words), 10))
    if not subject.image_token_ids:
        return text, []
    if (side := config.vision_config.image_size) == scenes.SIDE:
        scene = scenes.sample(1, rng)
        text = scene_words.text(scene_words.ask("colour", scene, rng).prompt[0])
        return text, list(scenes.draw(scene, rng))
    n = videos.N_FRAMES if name.startswith("video-vlm") else 1
    return text, list(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8))


def as_read(subject: Subject, text: str) -> str:
    """A text as a conversation has it, without what the tokenizer and the pictures put before it."""
    if not subject.tokenizer.chat_template or subject.image_token_ids:
        return text
    turn = [{"role": "user", "content": text}]
    written = subject.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
    return written.removeprefix(subject.tokenizer.bos_token)


def rgba(picture: ndarray) -> ndarray:
    """A picture as a canvas has it."""
    colours = picture if picture.shape[-1] == 3 else picture[..., None].repeat(3, -1)
    return np.concatenate([colours, np.full_like(colours[..., :1], 255)], -1)


@torch.no_grad()
def reference(name: str) -> tuple[dict[str, Tensor], dict]:
    """What `lib` computes of one example: inputs, logits, patterns, every site, logits under its edit."""
    subject, rng = load(name), np.random.default_rng(1)
    text, pictures = example(name, subject, rng)
    texts = None if text is None else [text]
    images = None if not pictures else pictures if text is None else [pictures]
    inputs = subject.encode(texts, images)
    run = partial(subject.model, **inputs)
    towers = [subject] if text is None or images is None else [subject, subject.tower("vision")]
    found = {"logits": run().logits[0]}
    facts = {"text": text, "images": len(pictures), "ids": None, "answer": None, "edits": []}
    if pictures:
        canvas = torch.from_numpy(rgba(np.stack(pictures))).float()
        found |= {"pictures": canvas, "pixels": inputs["pixel_values"]}
    if text is not None:
        facts["text"] = as_read(subject, text)
        facts["ids"] = inputs["input_ids"][0].tolist()
        facts["answer"] = generate(subject, texts, images, max_new_tokens=12).ids[0].tolist()
    for tower in towers:
        with capture(tower, "pattern") as patterns:
            run()
        for layer, pattern in patterns.items():
            found[f"pattern {tower.tower_name} {layer}"] = pattern[-1]
        for number, site in enumerate(SITES):
            layer = 0 if site == "embed" else number % tower.n_layers
            key = f"{tower.tower_name} {site} {layer}"
            with capture(tower, site, layers=layer) as acts, edit(tower, site, layer=layer, fn=shake):
                found[f"edit {key}"] = run().logits[0]
            found[f"capture {key}"] = acts[layer][-1]
            facts["edits"].append([tower.tower_name, site, layer])
    return {key: x.contiguous().clone() for key, x in found.items()}, facts


COMPARE = """async ([names, options]) => {
    // The same names have other contents in the next test.
    const fetched = names.map(async (name) => (await fetch(name, { cache: "no-store" })).arrayBuffer());
    const [reference, file, parent] = await Promise.all(fetched);
    return (await import("./parity.js")).compare(file, parent, reference, options);
}"""
LIMITS = {"pixels": 1e-6, "tokens": 0, "logits": 1e-4, "pattern": 1e-5, "capture": 1e-5, "edit": 1e-4}


def too_large(page, folder, name: str, **options: bool) -> dict[str, float | None]:
    """The differences between the browser and `lib` that are above their limit; None is not a number."""
    tensors, facts = reference(name)
    save_file(tensors, folder / "reference.safetensors", {"facts": json.dumps(facts)})
    files = [file for file in (name, live.parent(name)) if file]
    for file in files:
        (folder / file).write_bytes(live.pack(file))
    result = page.evaluate(COMPARE, [["reference.safetensors", *files], options])
    differences = result["differences"]
    assert len(differences) >= 2 * len(SITES) + 2  # all was compared
    assert result["said"] == result["answer"]
    limits = {key: LIMITS[key.partition(" ")[0]] for key in differences}
    return {key: x for key, x in differences.items() if x is None or not x <= limits[key]}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_organism_is_the_same_in_the_browser(page, folder, name):
    assert too_large(page, folder, name) == {}


@pytest.mark.parametrize("name", ["docstring-gpt", "concept-vlm"])
def test_plain_javascript_computes_the_same(page, folder, name):
    assert too_large(page, folder, name, simd=False) == {}


@pytest.mark.parametrize("name", DENOISERS)
def test_a_denoiser_is_the_same_in_the_browser(page, folder, name):
    (folder / name).write_bytes(live.pack(name))
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    run = """async ([name, x, levels]) => {
        await import("./live/denoiser.js");
        const model = (await import("./live/model.js")).open(await (await fetch(name)).arrayBuffer());
        return levels.map((t) => [...model.forward(Float32Array.from(x), t)]);
    }"""
    levels = [0, 37, 500, 999]
    found = page.evaluate(run, [name, noise.flatten().tolist(), levels])
    model = load_denoiser(FOLDER / name)
    with torch.no_grad():
        expected = torch.stack([model(noise, torch.full((3,), t)).sample for t in levels])
    torch.testing.assert_close(torch.tensor(found), expected.reshape(4, -1), atol=1e-4, rtol=0)


OPEN = """async ([name, change]) => {
    const { open } = await import("./live/model.js");
    const { capture } = await import("./live/hooks.js");
    const bytes = await (await fetch(name)).arrayBuffer();
    const tried = {
        incomplete: () => open(bytes.slice(0, bytes.byteLength - 8)),
        empty: () => open(new ArrayBuffer(0)),
        long: () => open(bytes).forward({ ids: new Array(40).fill(3) }),
        token: () => open(bytes).forward({ ids: [1000] }),
        site: () => open(bytes).forward({ ids: [1] }, [capture("residual")]),
        layer: () => open(bytes).forward({ ids: [1] }, [capture("z", { layers: [3] })]),
        tower: () => open(bytes).forward({ ids: [1] }, [capture("z", { tower: "vision" })]),
    };
    try { tried[change](); } catch (error) { return error.message; }
}"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("incomplete", "the weights are incomplete"),
        ("empty", "no safetensors"),
        ("long", "the text has 40 tokens, the model 32 positions"),
        ("token", "a token is none of the model's 52"),
        ("site", "no site residual; the sites are embed, "),
        ("layer", "no layer 3 of site z: there are 3"),
        ("tower", "no vision tower; there is text"),
    ],
)
def test_what_cannot_be_run_is_refused_in_words(page, folder, change, said):
    (folder / "ioi-gpt").write_bytes(live.pack("ioi-gpt"))
    assert said in page.evaluate(OPEN, ["ioi-gpt", change])


class Constant:
    """Stands in for a generator: every number is the middle of its range, or its mean."""

    def uniform(self, low: float, high: float, size: Any) -> ndarray:
        return np.full(size, (low + high) / 2)

    def random(self, size: Any) -> ndarray:
        return np.full(size, 0.5)

    def standard_normal(self, size: Any, dtype: type = float) -> ndarray:
        return np.zeros(size, dtype)

    def integers(self, *bounds: Any, size: Any = None) -> ndarray:
        return np.zeros(bounds[-1] if size is None else size, int)


def test_a_scene_is_drawn_as_its_world_draws_it(page):
    kinds = np.arange(len(scenes.OBJECTS))
    objects = np.full((2, scenes.N_CELLS), -1)
    objects[0], objects[1, :2] = kinds[:16], kinds[16:]
    some = scenes.Scenes(objects, np.where(objects < 0, -1, objects % len(scenes.COLOURS)))
    expected = scenes.draw(some, Constant(), split="test").astype(int)
    draw = """async ([objects, colours, digits]) => {
        const { COLOURS, OBJECTS, draw } = await import("./live/scene.js");
        const names = Object.keys(COLOURS);
        const thing = (kind, i) => ({ object: OBJECTS[kind], colour: names[colours[i]] });
        const cells = objects.map((kind, i) => (kind < 0 ? null : thing(kind, i)));
        return [...draw(cells, digits).data];
    }"""
    digits = samples.some_digits()
    chosen = scenes.digits("test")
    for name, digit in scenes.DIGITS.items():  # of the world's images, the one that is drawn here
        own = np.nonzero(chosen.labels == digit)[0]
        digits[digit][0] = chosen.images[own[len(own) // 2]].ravel().tolist()
        assert name in scenes.OBJECTS
    for i in range(2):
        found = page.evaluate(draw, [some.objects[i].tolist(), some.colours[i].tolist(), digits])
        assert np.abs(np.reshape(found, (64, 64, 4))[..., :3] - expected[i]).max() <= 1


@pytest.mark.parametrize("kind", ["frames", "scan", "artefact"])
def test_small_pictures_are_drawn_as_their_worlds_draw_them(page, kind):
    rng, here = np.random.default_rng(5), town.Town.of(0)
    if kind == "frames":
        things = samples.some_videos()["shown"]
        expected = videos.draw(videos.sample(len(things), rng), Constant(), noise=0, clutter=0)
    elif kind == "scan":
        things = samples.some_scans()["shown"]
        expected = scans.draw(scans.sample(len(things), rng), Constant(), noise=0)[:, None]
    else:
        things = samples.some_artefacts()["artefacts"]
        expected = here.draw(np.arange(town.N), Constant(), noise=0)[:, None]
    draw = """async ([kind, things]) => {
        const draw = (await import("./live/worlds.js"))[kind];
        return things.map((thing) => [draw(thing, 0)].flat().map(({ data }) => [...data]));
    }"""
    found = np.reshape(page.evaluate(draw, [kind, things]), (*expected.shape[:4], 4))
    assert np.abs(found[..., :3] - expected.astype(int)).max() <= 1


# What widgets compute beside what the chapters' own methods, or `lib`, compute.


@pytest.fixture(scope="module")
def compute(page, folder):
    """A widget's answer to a request."""
    live.write_models(folder / "live" / "models")
    script = """async ([slug, files, request]) => {
        const { open } = await import("./live/model.js");
        const widget = await import(`./live/widgets/${slug}.js`);
        const [buffers, models] = [{}, {}];
        for (const { name } of files) {
            buffers[name] = await (await fetch(`./live/models/${name}.safetensors`)).arrayBuffer();
        }
        for (const { name, parent, used } of files) {
            if (used) models[name] = open(buffers[name], buffers[parent]);
        }
        const plain = (key, value) => (ArrayBuffer.isView(value) ? [...value] : value);
        return JSON.parse(JSON.stringify(await widget.compute(models, request), plain));
    }"""

    def ask(slug: str, **request: Any) -> dict:
        return page.evaluate(script, [slug, [vars(file) for file in live.files(slug)], request])

    return ask


subject = cache(load)


def as_request(picture: ndarray) -> dict:
    height, width = picture.shape[:2]
    return {"data": rgba(picture).ravel().tolist(), "width": width, "height": height}


@pytest.fixture(scope="module")
def scene():
    """A scene with noise on its objects, and its picture."""
    rng = np.random.default_rng(4)
    some = scenes.sample(1, rng, pairs=(2, 2))
    return some, scenes.draw(some, rng, split="test", cell_noise=0.8)[0]


@torch.no_grad()
def test_knocked_out_heads_say_what_they_say_on_the_other_prompt(compute):
    model = subject("ioi-gpt")
    clean = "now now well Dan and Sam walked , now Dan sent to"
    other = "now now well Tess and Amos walked , now Flo sent to"
    out = [[1, 2], [2, 0], [2, 3]]
    found = compute("pahq", name="ioi-gpt", prompt=clean, other=other, out=[f"{a}.{b}" for a, b in out])
    with capture(model, "z") as spoken:
        model.model(**model.encode([other]))

    def patched(layer: int, heads: list[int]):
        def patch(z: Tensor) -> Tensor:
            z[:, :, heads] = spoken[layer][:, :, heads]
            return z

        return edit(model, "z", layer=layer, fn=patch)

    base = next_logprobs(model, [clean])[0]
    with patched(1, [2]), patched(2, [0, 3]):
        left = next_logprobs(model, [clean])[0]
    vocabulary = model.tokenizer.get_vocab()
    assert found["answer"] == "Sam"
    for word, p in found["before"]:
        assert p == pytest.approx(base[vocabulary[word]].exp().item(), abs=1e-5)
    for word, p in found["after"]:
        assert p == pytest.approx(left[vocabulary[word]].exp().item(), abs=1e-5)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            with patched(layer, [head]):
                lost = base - next_logprobs(model, [clean])[0]
            assert found["effects"][layer][head] == pytest.approx(lost[vocabulary["Sam"]].item(), abs=1e-3)


@torch.no_grad()
def test_attention_that_is_off_adds_nothing(compute):
    model, digits, chosen = subject("canvas-vit"), samples.some_digits(), [4, 7, 2, 9]
    found = compute("lambda-vit", chosen=chosen, off=[1, 4], digits=digits)
    cells = np.array([digits[digit][cell] for cell, digit in enumerate(chosen)], np.uint8).reshape(2, 2, 8, 8)
    canvas = cells.transpose(0, 2, 1, 3).reshape(16, 16)
    with edit(model, "attn_out", layer=[1, 4], fn=torch.zeros_like):
        expected = model.model(**model.encode(images=[canvas])).logits[0].softmax(-1)
    assert found["probabilities"] == pytest.approx(expected.tolist(), abs=1e-5)
    assert compute("lambda-vit", chosen=chosen, off=[], digits=digits)["right"] > 0.8 * found["of"]


@torch.no_grad()
@pytest.mark.parametrize("order", ["least", "most"])
def test_simignores_walk_is_the_chapters(compute, scene, order):
    method, model = chapters.method("simignore"), subject("scenes-vlm")
    _, picture = scene
    options, question = list(scenes.COLOURS), "what colour is the star"
    request = {"question": question, "options": options, "hidden": 20, "order": order}
    found = compute("simignore", picture=as_request(picture), **request)
    items = type("Items", (), {"prompts": [question], "images": picture[None], "chat": None})
    prompts = method.read(model, items)
    ranked = method.ranking(method.pairs(model, prompts, [" ".join(options)]))
    ignored = method.first(method.ignoring_order(ranked, order), 20)
    assert set(found["ignored"]) == set(ignored[0].nonzero()[:, 0].tolist())
    ids = model.tokenizer(options, add_special_tokens=False)["input_ids"]
    for key, shown in (("whole", prompts), ("left", method.masked(prompts, ignored))):
        expected = method.logits(model, shown)[0, [i for (i,) in ids]].softmax(-1)
        assert found[key] == pytest.approx(expected.tolist(), abs=1e-4)


@torch.no_grad()
def test_sinks_and_the_broadcast_are_the_chapters(compute, scene):
    method, model = chapters.method("eah"), subject("scenes-vlm")
    _, picture = scene
    found = compute("eah", picture=as_request(picture), layer=1, source="dense")
    inputs = model.encode(["describe the picture"], [picture])
    spans = model.spans(inputs)
    with capture(model, "pattern", layers=1) as acts:
        model.model(**inputs)
    beta = method.threshold(spans.image, ~spans.padding, 0.84)
    counts = method.sink_counts(acts[1], spans.image, beta)
    assert [head["sinks"] for head in found["heads"]] == counts[0].tolist()
    assert found["chosen"] == counts[0].argmax()
    everyone = torch.ones(1, model.n_heads, dtype=torch.bool)
    prompt = {"texts": ["describe the picture"], "images": [picture], "max_new_tokens": 16}
    assert found["before"] == generate(model, **prompt).texts[0]
    with edit(model, "pattern", layer=1, fn=lambda p: method.broadcast(p, counts.argmax(-1), everyone)):
        assert found["after"] == generate(model, **prompt).texts[0]


@torch.no_grad()
@pytest.mark.parametrize("where", ["flagged", "3"])
def test_d_leafs_correction_is_the_chapters(compute, scene, where):
    method, model = chapters.method("d-leaf"), subject("scenes-vlm")
    _, picture = scene
    found = compute("d-leaf", picture=as_request(picture), where=where, gamma=0.7)
    image = model.spans(model.encode(["describe the picture"], [picture])).image
    threshold, rng, first = method.Threshold("running_min", 0.2), torch.Generator(), []

    def correct(layer: int):
        def change(pattern: Tensor) -> Tensor:
            rows = pattern[:, :, -1].clone()
            seen = torch.nn.functional.pad(image, (0, rows.shape[-1] - image.shape[1]))
            entropy, focus = method.layer_entropy(rows, seen), method.image_focus(rows, seen)
            flagged = threshold.flag(layer, entropy)
            if pattern.shape[2] > 1:
                first.append((entropy.item(), flagged.item()))
            heads = method.low_focus_heads("median", focus, rng)
            if not (flagged.item() if where == "flagged" else int(where) == layer):
                return pattern
            best = method.target_head("iaf", focus, rng)
            pattern[:, :, -1] = method.corrected(rows, best, heads, 0.7)
            return pattern

        return edit(model, "pattern", layer=layer, fn=change)

    with ExitStack() as stack:
        for layer in range(model.n_layers):
            stack.enter_context(correct(layer))
        after = generate(model, ["describe the picture"], [picture], max_new_tokens=16).texts[0]
    assert found["after"] == after
    for (entropy, flagged), (expected, is_flagged) in zip(found["layers"], first, strict=True):
        assert entropy == pytest.approx(expected, abs=1e-3)
        assert flagged == is_flagged


def test_uncertainties_of_picture_and_sentence_are_the_models(compute, scene):
    model = subject("conflict-vlm-clear-look")
    _, picture = scene
    sentence, question = "the star is probably red ;", "what colour is the star"
    found = compute("modality-following", picture=as_request(picture), sentence=sentence, question=question)
    both = f"{sentence} {question}"
    asked = {"vision": (question, [picture]), "text": (both, None), "both": (both, [picture])}
    ids = [i for (i,) in model.tokenizer(list(scenes.COLOURS), add_special_tokens=False)["input_ids"]]
    for key, (text, images) in asked.items():
        log_p = next_logprobs(model, [text], images)[0]
        entropy = torch.special.entr(log_p.exp()).sum().item()
        assert found[key]["entropy"] == pytest.approx(entropy, abs=1e-4)
        assert found[key]["colours"] == pytest.approx(log_p.exp()[ids].tolist(), abs=1e-4)


def test_the_survey_s_occlusion_is_the_lead_that_goes(compute, scene):
    model, (some, picture) = subject("scenes-vlm"), scene
    cells = np.nonzero(some.objects[0] >= 0)[0]
    background = picture[0, 0]

    def without(*gone: int) -> ndarray:
        image = picture.reshape(4, 16, 4, 16, 3).copy()
        for cell in gone:
            image[cell // 4, :, cell % 4] = background
        return image.reshape(64, 64, 3)

    question = f"what colour is the {scenes.OBJECTS[some.objects[0][cells[0]]]}"
    options = list(scenes.COLOURS)
    request = {"question": question, "options": options, "whole": as_request(picture)}
    each = [without(cell) for cell in cells]
    found = compute(
        "mllm-survey", part=as_request(without(*cells[:2])), each=list(map(as_request, each)), **request
    )
    ids = [i for (i,) in model.tokenizer(options, add_special_tokens=False)["input_ids"]]
    log_p = next_logprobs(model, [question] * (1 + len(each)), [picture, *each])[:, ids]
    answer, foil = (options.index(found[key]) for key in ("answer", "foil"))
    assert log_p[0].topk(2).indices.tolist() == [answer, foil]
    lead = log_p[:, answer] - log_p[:, foil]
    assert found["lost"] == pytest.approx((lead[0] - lead[1:]).tolist(), abs=1e-3)


@pytest.mark.parametrize(("name", "rho"), [("video-vlm-rho90", 0.9), ("video-vlm-rho25", 0.25)])
def test_answers_after_a_remark_and_the_listeners_are_the_chapters(compute, name, rho):
    method, kinds = chapters.method("vise"), ["retest", "strong", "reject"]
    items = method.video_items(len(kinds), [0.3, 0.3], np.random.default_rng(2))
    asker = method.Asker(subject(name), method.WORLD, len(items), 0)
    r = method.interviews(asker, items, {"": None}, kinds=kinds)[""]
    heard = method.listening(r, rho)
    for i, (item, kind) in enumerate(zip(items, kinds, strict=True)):
        found = compute(
            "vise",
            name=name,
            shown=[as_request(frame) for frame in item.frames],
            asked={"question": item.question, "options": item.options},
            kind=kind,
            pattern=samples.some_videos()["remarks"][kind],
            named=int(r.w[i]),
        )
        assert found["first"] == pytest.approx(r.first[i].tolist(), abs=1e-4)
        assert found["after"] == pytest.approx(r.after[kind][i].tolist(), abs=1e-4)
        assert found["listener"] == pytest.approx(heard.after[kind][i].tolist(), abs=1e-4)


@pytest.mark.parametrize("mitigation", ["repeat", "one-call", "two-call"])
def test_pressure_and_filter_are_the_chapters(compute, mitigation):
    method, kind = chapters.method("viper"), "stylistic_mimicry with order"
    items, said = method.draw_scans(2, 3), samples.some_scans()
    language = method.scan_language(items)
    session = method.Session(subject("scan-vlm-rho90"), items, language)
    of = method.study(session, [kind], items.images, 0)
    remarks = language.remark(kind, of.first.answer, of.thinks)
    treated = method.reply(session, method.treated(session, mitigation, remarks, items.images), items.images)
    for i, image in enumerate(items.images):
        found = compute(
            "viper",
            name="scan-vlm-rho90",
            picture=as_request(image),
            asked={"question": items.question[i], "options": items.options[i]},
            patterns=[said["remarks"]["stylistic_mimicry"], said["order"]],
            named=int(of.thinks[i]),
            mitigation=mitigation,
        )
        assert found["said"] == remarks[i]
        for key, reply in (("first", of.first), ("pressed", of.after[kind]), ("treated", treated)):
            assert found[key] == pytest.approx(np.exp(reply.log_p[i]).tolist(), abs=1e-4)


@pytest.mark.parametrize("form", ["leak-free", "conflict-named", "text-only"])
def test_refusals_of_what_is_shown_and_named_are_the_models(compute, form):
    items = town.Town.of(0).test_set(form, 1, np.random.default_rng(3))
    (text,), picture = items.texts, None if items.images is None else items.images[0]
    shown = None if picture is None else as_request(picture)
    refusal = samples.some_artefacts()["refusal"]
    found = compute("vlsbench", text=text, picture=shown, refusal=refusal)
    assert len(found) == 3
    for one in found:
        model, images = subject(one["name"]), None if picture is None else [picture]
        p = next_logprobs(model, [text], images)[0].exp()
        assert one["refuses"] == pytest.approx(p[model.tokenizer.get_vocab()[refusal]].item(), abs=1e-4)
        assert one["said"] == generate(model, [text], images, max_new_tokens=8).texts[0]


def test_chains_of_questions_get_the_models_answers(compute):
    model, some = subject("town-lm-aligned"), samples.some_crafts()
    craft, asked = some["crafts"][0]["name"], some["asked"]
    request = {"craft": craft, "kind": "executor", "asked": asked, "ordinals": some["ordinals"]}
    found = compute("actor-attack", name="town-lm-aligned", **request)
    actor = chains.network(found["network"][0]["said"])["executor"]
    assert len(found["chain"]) == 5
    assert actor in found["chain"][0]["asked"]
    assert not any(craft in turn["asked"] for turn in found["chain"])
    for talk in found.values():
        messages: list[dict[str, str]] = []
        for turn in talk:
            messages.append({"role": "user", "content": turn["asked"]})
            assert generate(model, [messages], max_new_tokens=24).texts[0] == turn["said"]
            messages.append({"role": "assistant", "content": turn["said"]})


@torch.no_grad()
def test_refusals_of_recipes_are_the_models(compute):
    some = samples.some_recipes()
    background = "{} {} for {} : ".format(*(slot["sinister"][0] for slot in some["words"]))
    text = background + some["form"].replace("RECIPE", some["recipes"][1]["name"])
    found = compute("consequence-blindness", text=text)
    assert len(found) == 3
    for one in found:
        model = subject(one["name"])
        reply = generate(model, [text], max_new_tokens=16)
        assert one["said"] == reply.texts[0]
        decisions = [model.tokenizer.get_vocab()[word] for word in ("sure", "sorry")]
        at = next(i for i, token in enumerate(reply.ids[0].tolist()) if token in decisions)
        read = torch.cat([model.encode([text])["input_ids"], reply.ids[:, :at]], 1)
        p = model.model(read).logits[0, -1, decisions].softmax(-1)
        assert one["refuses"] == pytest.approx(p[1].item(), abs=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("s", [0.5, 0.85])
def test_pixels_directions_and_pushes_are_the_chapters(compute, s):
    method, model, layer = chapters.method("pixel"), subject("myths-lm"), 2
    facts = samples.some_myths()["facts"]
    train, test = facts["train"], facts["test"][:4]
    found = compute("pixel", train=train, test=test, layer=layer, s=s, seed=1)

    def views(texts: list[str]) -> Tensor:
        rows = []
        for text in texts:
            with capture(model, "resid_post", layers=layer) as acts:
                model.model(**model.encode([text]))
            h = acts[layer][0].double()
            rows.append(torch.stack([h[-method.tail_length(len(h)) :].mean(0), h[-1]]))
        return torch.stack(rows)

    plain = views([one["question"] for one in train])
    careful = [views([f"{one['careful'][i]} {one['question']}" for one in train]) for i in (0, 1)]
    x = torch.cat([of - plain for of in careful], 1).flatten(0, 1)
    shift = x.mean(0)
    directions = {"plain": None, "pixel": method.subspace(x).sum(0), "shift": shift, "prompt": None}
    vocabulary = model.tokenizer.get_vocab()
    for one, answers in zip(test, found["answers"], strict=True):
        ids = [vocabulary[word] for word in one["options"]]
        for way, v in directions.items():
            source = f"{one['careful'][0]} " if way == "prompt" else ""

            def change(h: Tensor, v: Tensor | None = v) -> Tensor:
                if v is not None:
                    at = h[:, -3:].double()
                    h[:, -3:] = (at + method.strength(at, v, s)[..., None] * v).to(h.dtype)
                return h

            with edit(model, "resid_post", layer=layer, fn=change):
                p = next_logprobs(model, [f"{source}{one['question']} it is"])[0].exp()
            assert answers[way] == pytest.approx(p[ids].tolist(), abs=1e-3), way
    assert len({str(answers["random"]) for answers in found["answers"]}) == len(test)


@torch.no_grad()
@pytest.mark.parametrize("apart", [False, True])
def test_pushes_for_two_attributes_are_the_librarys(compute, apart):
    model, layer, strengths, some = subject("myths-lm"), 2, [0.75, 0.5], samples.some_myths()
    sets = {"contested": ("facts", "test"), "uncontested": ("facts", "uncontested")}
    sets |= {"blind": ("choices", "test"), "evident": ("choices", "evident")}
    found = compute("msrs", strengths=strengths, apart=apart, **some)

    def end(text: str) -> Tensor:
        with capture(model, "resid_post", layers=layer, positions=-1) as acts:
            model.model(**model.encode([text]))
        return acts[layer][0].double()

    shifts = [
        torch.stack(
            [
                end(f"{source} {one['question']}") - end(one["question"])
                for one in some[kind]["train"]
                for source in one["careful"]
            ]
        ).mean(0)
        for kind in ("facts", "choices")
    ]
    u = [v / v.norm() for v in shifts]
    assert found["cosine"] == pytest.approx((u[0] @ u[1]).item(), abs=1e-3)
    used = [shifts[i] - (shifts[i] @ u[1 - i]) * u[1 - i] if apart else shifts[i] for i in (0, 1)]
    assert found["left"] == pytest.approx((used[0].norm() / shifts[0].norm()).item(), abs=1e-3)
    push = sum(k * v for k, v in zip(strengths, used, strict=True)).float()

    def change(h: Tensor) -> Tensor:
        h[:, -3:] += push
        return h

    vocabulary = model.tokenizer.get_vocab()
    for name, (kind, part) in sets.items():
        assert len(found["answers"][name]) == len(some[kind][part])
        for one, answers in list(zip(some[kind][part], found["answers"][name], strict=True))[:3]:
            with edit(model, "resid_post", layer=layer, fn=change):
                p = next_logprobs(model, [f"{one['question']} it is"])[0].exp()
            assert answers == pytest.approx([p[vocabulary[w]].item() for w in one["options"]], abs=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("target", ["", "stand", "regret"])
def test_regret_that_is_set_is_the_chapters(compute, target):
    method, model, layer, some = chapters.method("regret"), subject("regret-lm"), 4, samples.some_regrets()
    words = {kind: some[kind] for kind in ("regret", "stand")}
    document = some["told"].replace("VALUE", some["values"][1]).replace("OTHER", some["values"][0])
    document += " " + some["record"].replace("VALUE", some["values"][0])
    turns = {"helper": f"{document} helper i", "other": f"{document} {some['name']} i"}
    request = {"episodes": some["episodes"], "words": words, "turns": turns}
    found = compute("regret", layer=layer, target=target, seed=1, **request)
    vocabulary = model.tokenizer.get_vocab()

    def next_words(text: str) -> list[float]:
        p = next_logprobs(model, [text])[0].exp()
        return [sum(p[vocabulary[word]].item() for word in words[kind]) for kind in words]

    def end(text: str) -> ndarray:
        with capture(model, "resid_post", layers=layer, positions=-1) as acts:
            model.model(**model.encode([text]))
        return acts[layer][0].double().numpy()

    first = generate(model, some["episodes"], max_new_tokens=1).texts
    regrets = np.array([text in words["regret"] for text in first])
    z = np.stack([end(text) for text in some["episodes"]])
    means = {"regret": z[regrets].mean(0), "stand": z[~regrets].mean(0)}
    gap = means["regret"] - means["stand"]
    at = (end(turns["helper"]) - means["stand"]) @ gap / (gap @ gap)
    assert found["coordinates"][layer] == pytest.approx(at, abs=1e-3)
    for who, text in turns.items():
        assert found[who] == pytest.approx(next_words(text), abs=1e-4)
    with ExitStack() as stack:
        if target:
            value = float(means[target] @ gap / np.linalg.norm(gap))
            change = method.at_end_of_prompt(method.set_direction(gap, value))
            stack.enter_context(edit(model, "resid_post", layer=layer, fn=change))
        assert found["set"] == pytest.approx(next_words(turns["helper"]), abs=1e-3)
    assert (found["random"] == found["helper"]) == (not target)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "chosen"), [("discretion-lm", "coupled"), ("discretion-lm-late", "privacy")]
)
def test_answers_with_neurons_multiplied_are_the_librarys(compute, name, chosen):
    model, kinds, share, factor = subject(name), samples.some_questions()["kinds"], 0.3, 2.0
    found = compute("dean", name=name, kinds=kinds, set=chosen, share=share, factor=factor, seed=1)
    # Read as they are: the chat template would put the helper's turn behind them once more.
    texts = {kind: [one["text"] for one in questions] for kind, questions in kinds.items()}
    ids = {kind: torch.tensor(model.tokenizer(of)["input_ids"]) for kind, of in texts.items()}
    lists: dict[str, list[set[int]]] = {}
    for kind in kinds:
        with capture(model, "mlp_act") as acts:
            model.model(ids[kind])
        active = [acts[layer].abs().double().mean((0, 1)) for layer in range(model.n_layers)]
        lists[kind] = [{*of.topk(round(share * len(of))).indices.tolist()} for of in active]
    coupled = [a & b - c for a, b, c in zip(*lists.values(), strict=True)]
    neurons = [sorted(of) for of in (coupled if chosen == "coupled" else lists[chosen])]
    assert found["n"] == sum(map(len, neurons))

    vocabulary = model.tokenizer.get_vocab()
    for kind, questions in kinds.items():
        for way, k in (("plain", 1.0), ("chosen", factor)):
            with ExitStack() as stack:
                for layer, of in enumerate(neurons):

                    def change(x: Tensor, of: list[int] = of, k: float = k) -> Tensor:
                        x[..., of] *= k
                        return x

                    stack.enter_context(edit(model, "mlp_act", layer=layer, fn=change))
                p = model.model(ids[kind]).logits[:, -1].softmax(-1)
            expected = [p[i, vocabulary[one["word"]]].item() for i, one in enumerate(questions)]
            assert found["answers"][kind][way] == pytest.approx(expected, abs=1e-3), (kind, way)
    assert found["answers"]["privacy"]["random"] != found["answers"]["privacy"]["plain"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["persona-lm", "persona-lm-no-effect"])
def test_traits_and_abilities_under_a_vector_are_the_chapters(compute, name):
    method, model, layer, trait, alpha = chapters.method("personality-safety"), subject(name), 1, 2, 1.5
    some, head = samples.some_personas(), ["harbour", "chatty"]
    asked = {"name": name, "head": head, "trait": trait, "layer": layer, "alpha": alpha, "seed": 1}
    found = compute("personality-safety", dimensions=some["dimensions"], abilities=some["abilities"], **asked)
    vocabulary, about = model.tokenizer.get_vocab(), some["dimensions"][trait]
    ends = []
    for pole in about["words"]:
        texts = [f"{word} {item}" for word in pole for item in about["contrast"]]
        with capture(model, "resid_post", layers=layer, positions=-1) as acts:
            model.model(**model.encode(texts))
        ends.append(acts[layer])
    v = alpha * method.steering_vector(ends[1], ends[0])

    def shares(questions: list[dict], vectors: Tensor) -> float:
        with edit(model, "resid_post", layer=layer, fn=method.add_last(vectors)):
            p = next_logprobs(model, [" ".join([*head, one["question"]]) for one in questions]).exp()
        each = [p[i, [vocabulary[word] for word in one["answers"]]] for i, one in enumerate(questions)]
        return float(torch.stack([of[1] / of.sum() for of in each]).mean())

    groups = [one["items"] for one in some["dimensions"]] + [one["scenarios"] for one in some["abilities"]]
    for way, push in (("plain", 0 * v), ("vector", v)):
        expected = [shares(group, push[None]) for group in groups]
        assert found[way] == pytest.approx(expected, abs=1e-3), way
    assert found["random"] != found["plain"]


@torch.no_grad()
def test_interactions_are_the_chapters_transform_of_the_models_log_odds(compute):
    method, model = chapters.method("two-phase-interactions"), subject("digits-vit")
    image, players = np.array(samples.some_digits()[3][1], np.uint8).reshape(8, 8), [5, 6, 9, 10, 13]
    found = compute("two-phase-interactions", image=image.ravel().tolist(), players=players)
    patch = np.arange(16).reshape(4, 4).repeat(2, 0).repeat(2, 1)
    owner = torch.tensor([[players.index(p) if p in players else -1 for p in row] for row in patch.tolist()])
    stays = method.kept(owner, len(players)).numpy()
    logits = model.model(**model.encode(images=[image * mask for mask in stays.astype(np.uint8)])).logits
    assert found["label"] == logits[-1].argmax()
    v = method.log_odds(logits, found["label"])
    assert found["effects"] == pytest.approx(method.moebius(v).tolist(), abs=2e-3)


@torch.no_grad()
def test_reefs_similarity_is_linear_cka_of_standardised_streams(compute, page):
    method = chapters.method("reef")
    found = compute("reef", layer=2, share=0.5)
    texts = page.evaluate("""async () => {
        const { open } = await import("./live/model.js");
        const { sentences } = await import("./live/widgets/reef.js");
        return sentences(open(await (await fetch("./live/models/tree-a.safetensors")).arrayBuffer()));
    }""")
    assert len(texts) == len({tuple(ids) for ids in texts}) >= 40

    def streams(model: Subject) -> Tensor:
        rows = []
        for ids in texts:
            with capture(model, "resid_post", layers=2, positions=-1) as acts:
                model.model(torch.tensor([ids]))
            rows.append(acts[2][0])
        return method.standardised(torch.stack(rows))

    known = streams(load("tree-a"))
    for name, value in found["strangers"]:
        assert value == pytest.approx(float(cka_map([known], [streams(load(name))])[0, 0]), abs=1e-4)
    child = load("tree-a")
    for block in child.layout.blocks:
        for part in (block.self_attn, block.mlp):
            for weight in part.parameters():
                limit = weight.abs().flatten().sort().values[weight.numel() // 2]
                weight[weight.abs() < limit] = 0
    assert found["child"] == pytest.approx(float(cka_map([known], [streams(child)])[0, 0]), abs=1e-4)


def test_influences_in_the_page_are_the_chapters(compute, page):
    method, digits, rho = chapters.method("sam-influence"), samples.some_digits(), 1.5
    training = [{"image": image, "label": k} for k in range(10) for image in digits[k][:3]]
    training[4]["label"] = 7
    validation = [{"image": image, "label": k} for k in range(10) for image in digits[k][8:10]]
    found = compute("sam-influence", train=training, validation=validation, rho=rho, without=4)
    fit = """async ([data, rho]) => {
        const { train } = await import("./live/widgets/sam-influence.js");
        const read = ({ image, label }) => ({ x: [...image.map((ink) => ink / 255), 1], y: label });
        const samples = data.map(read);
        return [...train(samples, rho)];
    }"""

    def labelled(some: list[dict]) -> Any:
        x = torch.tensor([[ink / 255 for ink in one["image"]] + [1] for one in some], dtype=torch.float64)
        return method.Labelled(x, torch.tensor([one["label"] for one in some]))

    def loss(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ w.reshape(10, -1).mT, y, reduction="none")

    data, held_out = labelled(training), labelled(validation)
    sam = method.Sam(loss, rho, 0.1)
    w = torch.tensor(page.evaluate(fit, [training, rho]), dtype=torch.float64)
    ones = torch.ones(len(training), dtype=torch.float64)
    assert sam.gradient(w, ones, *data).norm() < 1e-7  # training has ended
    curve = method.with_matrices(method.curvature(sam, w, *data))
    pull = torch.func.grad(lambda w: loss(w, *held_out).mean())(w)
    for kind in method.KINDS:
        v = method.solve(curve.transposed(kind, 0.1), pull, "exact")
        expected = method.influence(sam, w, data, curve, kind, v)
        assert found["scores"][kind] == pytest.approx(expected.tolist(), abs=1e-7)


def test_a_fit_in_the_page_takes_torchs_steps(page):
    """Two steps of Adam on the distance to the next sweep, from the same weights."""
    fit = """async ([street, n]) => {
        const { fit, network } = await import("./live/widgets/scene-flow.js");
        const layers = network(1);
        const first = layers.map(({ inputs, outputs, weight }) => [inputs, outputs, [...weight]]);
        const [source, target] = [street.source, street.target].map((rows) => rows.slice(0, n));
        const [fitted, free] = [fit(source, target, layers), fit(source, target, null)];
        const losses = [fitted.step(), fitted.step()];
        free.step();
        return [first, losses, fitted.flow(), free.flow()];
    }"""
    street = samples.some_street()
    first, losses, flow, free_flow = page.evaluate(fit, [street, 100])
    source, target = (torch.tensor(street[part][:100], dtype=torch.float64) for part in ("source", "target"))
    layers: list[torch.nn.Module] = []
    for inputs, outputs, weight in first:
        layers += [torch.nn.Linear(inputs, outputs, dtype=torch.float64), torch.nn.ReLU()]
        layers[-2].weight.data = torch.tensor(weight, dtype=torch.float64).reshape(outputs, inputs)
        layers[-2].bias.data.zero_()
    net, free = torch.nn.Sequential(*layers[:-1]), torch.zeros_like(source, requires_grad=True)
    for found, move, parameters, n_steps in (
        (flow, lambda: net(source), list(net.parameters()), 2),
        (free_flow, lambda: free, [free], 1),
    ):
        optimizer = torch.optim.Adam(parameters, lr=0.008)
        for step in range(n_steps):
            optimizer.zero_grad()
            loss = torch.cdist(source + move(), target).min(1).values.mean()
            loss.backward()
            optimizer.step()
            if found is flow:
                assert losses[step] == pytest.approx(loss.item(), abs=1e-9)
        assert np.abs(np.array(found) - move().detach().numpy()).max() < 1e-7


@pytest.mark.parametrize("kind", ["network", "free"])
def test_only_the_network_finds_the_motion(compute, kind):
    found = compute("scene-flow", street=samples.some_street(), points=384, kind=kind, seed=1, steps=150)
    assert found["loss"] < 0.25  # both reach the next sweep, in metres
    assert (found["error"] < 0.5 * found["still"]) == (kind == "network")
