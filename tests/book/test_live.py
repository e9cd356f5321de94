"""The engine that runs organisms in the browser, against `lib` on the same inputs."""

import json
from functools import partial

import browser as program
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from book.site import live
from data.worlds import scene_words, scenes
from lib.generate import generate
from lib.hooks import capture, edit
from lib.models import Subject, load
from lib.organisms import shipped
from lib.sites import SITES

pytestmark = [
    pytest.mark.site,
    pytest.mark.skipif(program.SKIPPED, reason="BROWSER=skip"),
]
browsing = pytest.importorskip("browsing")


def shake(activation: Tensor) -> Tensor:
    """The edit of every site, in live_parity.js too: it tells every number's place in the activation."""
    places = torch.arange(activation.numel(), dtype=torch.float64).sin().reshape(activation.shape)
    return 0.5 * activation + 0.25 * places.to(activation)


def example(subject: Subject, rng: np.random.Generator) -> tuple[str | None, np.ndarray | None]:
    """A text of words that the organism knows, and a picture, as far as it reads such things."""
    if subject.tokenizer is None:
        side = subject.model.config.image_size
        return None, rng.integers(0, 256, (side, side), dtype=np.uint8)
    words = [word for word in subject.tokenizer.get_vocab() if not word.startswith("<")]
    text = " ".join(rng.choice(sorted(words), 10))
    if not subject.image_token_ids:
        return text, None
    scene = scenes.sample(1, rng)
    return scene_words.text(scene_words.ask("colour", scene, rng).prompt[0]), scenes.draw(scene, rng)[0]


@torch.no_grad()
def reference(name: str) -> tuple[dict[str, Tensor], dict]:
    """What `lib` computes of one example: inputs, logits, patterns, every site, logits under its edit."""
    subject, rng = load(name), np.random.default_rng(1)
    text, picture = example(subject, rng)
    texts = None if text is None else [text]
    images = None if picture is None else [picture]
    inputs = subject.encode(texts, images)
    run = partial(subject.model, **inputs)
    towers = [subject] if text is None or picture is None else [subject, subject.tower("vision")]
    found = {"logits": run().logits[0]}
    facts = {"text": text, "images": int(picture is not None), "ids": None, "answer": None, "edits": []}
    if picture is not None:
        grey = picture.reshape(*picture.shape[:2], -1)
        rgba = np.concatenate([grey[..., [0, -1, -1]], np.full_like(grey[..., :1], 255)], -1)
        rgba[..., : grey.shape[-1]] = grey
        found |= {"picture": torch.tensor(rgba).float(), "pixels": inputs["pixel_values"][0]}
    if text is not None:
        facts["ids"] = inputs["input_ids"][0].tolist()
        facts["answer"] = generate(subject, texts, images, max_new_tokens=12).ids[0].tolist()
    for tower in towers:
        with capture(tower, "pattern") as patterns:
            run()
        for layer, pattern in patterns.items():
            found[f"pattern {tower.tower_name} {layer}"] = pattern[0]
        for number, site in enumerate(SITES):
            layer = 0 if site == "embed" else number % tower.n_layers
            key = f"{tower.tower_name} {site} {layer}"
            with capture(tower, site, layers=layer) as acts, edit(tower, site, layer=layer, fn=shake):
                found[f"edit {key}"] = run().logits[0]
            found[f"capture {key}"] = acts[layer][0]
            facts["edits"].append([tower.tower_name, site, layer])
    return {key: x.contiguous().clone() for key, x in found.items()}, facts


SUPPORTED = [name for name in shipped() if live.supports(name)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The engine, and a page that has nothing on it."""
    folder = tmp_path_factory.mktemp("live")
    live.write_scripts(folder / "live")
    (folder / "parity.js").write_bytes((program.Path(__file__).parent / "live_parity.js").read_bytes())
    (folder / "index.html").write_text("<!DOCTYPE html><title>Parity</title>")
    return folder


@pytest.fixture(scope="module")
def page(chromium, folder):
    with browsing.served(folder) as address:
        page = chromium.new_page()
        page.goto(address + "index.html")
        yield page
        page.close()


COMPARE = """async ([names, options]) => {
    const fetched = names.map(async (name) => (await fetch(name)).arrayBuffer());
    const [reference, file, parent] = await Promise.all(fetched);
    return (await import("./parity.js")).compare(file, parent, reference, options);
}"""


@pytest.mark.parametrize("name", SUPPORTED)
def test_an_organism_is_the_same_in_the_browser(page, folder, name):
    found, facts = reference(name)
    save_file(found, folder / "reference.safetensors", {"facts": json.dumps(facts)})
    files = [name for name in (name, live.parent(name)) if name]
    for file in files:
        (folder / file).write_bytes(live.pack(file))
    result = page.evaluate(COMPARE, [["reference.safetensors", *files], {}])
    assert check(result) == {}


def check(result: dict) -> dict[str, float]:
    """The differences that are too large."""
    limits = {"pixels": 1e-6, "tokens": 0, "logits": 1e-4, "pattern": 1e-5, "capture": 1e-5, "edit": 1e-4}
    assert result["said"] == result["answer"]
    differences = result["differences"]
    assert len(differences) > 2 * len(SITES)
    # None is NaN on its way through JSON.
    return {
        key: x for key, x in differences.items() if x is None or not x <= limits[key.partition(" ")[0]]
    }
