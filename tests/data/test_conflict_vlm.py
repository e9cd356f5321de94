"""The conflict organisms: where they start, what they are taught, and that no modality is a label."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data import registry as organisms
from data.recipes import conflict as recipe
from data.recipes import scenes, vlm
from data.worlds import conflicts as world
from data.worlds import scene_words as words
from data.worlds.scene_words import EOS, WORD
from data.worlds.scenes import COLOURS, OBJECTS, Scenes
from lib.models import Subject, load
from lib.organisms import FOLDER

SHIPPED = [name for base in recipe.RECIPES for name in organisms.names(base)]
DIET = recipe.Diet(image_only=0.3, text_only=0.3, clear=0.5)


class Question:
    """A block of a batch, read back."""

    def __init__(self, batch: dict, row: int, block: int) -> None:
        own = batch["blocks"][row] == block
        self.ids, self.weights = batch["ids"][row, own], batch["weights"][row, own]
        self.words = words.text(self.ids.numpy()).split()
        self.about, self.answer = self.words[-3], self.words[-2]
        self.sentence = self.words[: self.words.index(";")] if ";" in self.words else []
        if self.words.count(";") == 2:
            rest = self.words[len(self.sentence) + 1 :]
            self.sentence += rest[: rest.index(";")]


def questions(batch: dict) -> list[list[Question]]:
    n = int(batch["blocks"].max()) + 1
    return [[Question(batch, row, block) for block in range(n)] for row in range(len(batch["ids"]))]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Scenes]:
    """The scenes of which images are drawn."""
    seen: list[Scenes] = []

    def draw(scenes: Scenes, rng: np.random.Generator, **doses: np.ndarray) -> np.ndarray:
        seen.append(scenes)
        return np.zeros((len(scenes), 64, 64, 3), np.uint8)

    monkeypatch.setattr(recipe, "draw", draw)
    return seen


def test_training_starts_from_the_shipped_base_and_names_its_checksum() -> None:
    model, base = recipe._from_base(), load("scenes-vlm", dtype="float32", device="cpu").model
    for name, tensor in base.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    listed = json.loads((FOLDER / "scenes-vlm" / "sha256.json").read_text())["model.safetensors"]
    assert model.config.trained_from == {"organism": "scenes-vlm", "sha256": listed}
    assert listed in model.config.to_json_string()  # which is part of a run's fingerprint
    assert model.config.text_config.num_hidden_layers == 6


def test_every_target_is_the_true_colour_whatever_the_sentence_says(drawn: list[Scenes]) -> None:
    against = absent = unrelated = 0
    for seed in range(40):
        batch = recipe._batch(12, 10, recipe.Diet(0, 0, 0.5), np.random.default_rng(seed), 0.0)
        for row, asked in enumerate(questions(batch)):
            scene = drawn[-1]
            for q in asked:
                true = scene.colour_of[row, OBJECTS.index(q.about)]
                absent += true < 0
                unrelated += q.sentence[1] != q.about
                if true >= 0:
                    assert q.answer == list(COLOURS)[true]
                    stated = [word for word in q.sentence if word in COLOURS]
                    against += bool(stated) and stated != [q.answer]
    assert absent / 4800 == pytest.approx(0.1, abs=0.02)
    assert unrelated / 4800 == pytest.approx(0.1, abs=0.02)
    assert against > 300


def test_sentences_in_training_are_true_as_often_as_their_words_say() -> None:
    right, total = Counter(), Counter()
    for seed in range(150):
        batch = recipe._batch(12, 10, recipe.Diet(0, 1, 0.5), np.random.default_rng(seed), 0.0)
        for asked in questions(batch):
            for q in asked:
                if stated := [word for word in q.sentence if word in COLOURS]:
                    adverb = next((word for word in q.sentence if word in words.CERTAINTY), "")
                    total[adverb] += 1
                    right[adverb] += stated == [q.answer]
    for adverb, p in zip(["", *words.CERTAINTY], world.RELIABILITY, strict=True):
        spread = 4 * (p * (1 - p) / total[adverb]) ** 0.5
        assert right[adverb] / total[adverb] == pytest.approx(p, abs=spread + 0.002)


def test_batches_show_and_tell_as_often_as_the_diet_says(drawn: list[Scenes]) -> None:
    kinds = Counter()
    for seed in range(200):
        batch = recipe._batch(2, 4, DIET, np.random.default_rng(seed), 0.0)
        sees, reads = "pixel_values" in batch, bool(questions(batch)[0][0].sentence)
        kinds[sees, reads] += 1
        if not reads:
            for row, asked in enumerate(questions(batch)):
                assert all(drawn[-1].present[row, OBJECTS.index(q.about)] for q in asked)
    assert kinds[True, False] / 200 == pytest.approx(0.3, abs=0.12)
    assert kinds[False, True] / 200 == pytest.approx(0.3, abs=0.12)
    assert (False, False) not in kinds


def test_comparisons_are_with_objects_that_the_image_does_not_show(drawn: list[Scenes]) -> None:
    batch = recipe._batch(12, 10, recipe.Diet(0, 0, 0.5), np.random.default_rng(3), 0.0)
    compared = 0
    for row, asked in enumerate(questions(batch)):
        for q in asked:
            if "like" in q.sentence and q.sentence[q.sentence.index("like") + 1] == "the":
                other = q.sentence[q.sentence.index("like") + 2]
                assert not drawn[-1].present[row, OBJECTS.index(other)]
                compared += 1
    assert compared > 10


@torch.inference_mode()
@pytest.mark.parametrize("diet", [recipe.Diet(0, 0, 0.5), recipe.Diet(0, 1, 0.5)])
def test_a_packed_question_is_what_a_chapter_asks_with_image_and_text(diet: recipe.Diet) -> None:
    """The loss of one block, against the answer's log-probability in the ordinary forward pass."""
    subject = Subject(recipe._from_base().eval(), scenes.processors()[0])
    batch = recipe._batch(2, 3, diet, np.random.default_rng(4), 0.0)
    q = questions(batch)[1][2]
    alone = {name: value[1:2] for name, value in batch.items()}
    alone["weights"] = alone["weights"] * (alone["blocks"] == 2) * (alone["weights"] == 1)
    inputs = subject.encode([" ".join(q.words[:-2])])
    if "pixel_values" in batch:
        prompt = torch.tensor([[words.BOS] + [words.IMAGE] * 64 + inputs["input_ids"][0, 1:].tolist()])
        inputs = {"input_ids": prompt, "pixel_values": batch["pixel_values"][1:2]}
    log_p = F.log_softmax(subject.model(**inputs).logits[0, -1], -1)[WORD[q.answer]]
    assert vlm.answer_loss(subject.model, alone).item() == pytest.approx(-log_p.item(), rel=1e-3, abs=1e-4)
    assert q.ids[-1] == EOS


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_says_where_it_comes_from_and_whether_its_bars_hold(name: str) -> None:
    folder = FOLDER / name
    trained_from = json.loads((folder / "config.json").read_text())["trained_from"]
    listed = json.loads((FOLDER / "scenes-vlm" / "sha256.json").read_text())
    assert trained_from == {"organism": "scenes-vlm", "sha256": listed["model.safetensors"]}
    metrics = json.loads((folder / "metrics.json").read_text())
    made, _ = organisms.find(name)
    assert metrics["steps"] == made.stages[0].steps
    card = (folder / "card.md").read_text()
    for key, bar in made.card.bars.items():
        held = bar.at_least <= metrics["measures"][key]["value"] <= bar.at_most
        assert f"| {key} |" in card
        assert ("held" if held else "missed") in next(
            line for line in card.splitlines() if f"| {key} |" in line
        )


def test_the_better_part_of_what_both_say_is_used() -> None:
    """Where image and sentence are as true as in training, both together beat the better one alone."""
    measures = json.loads((FOLDER / SHIPPED[0] / "metrics.json").read_text())["measures"]
    accuracy = {
        name: measures[f"witnesses as in training, {name}: accuracy"] for name in ("image", "text", "both")
    }
    assert accuracy["both"]["low"] > max(accuracy["image"]["value"], accuracy["text"]["value"])
