"""The organisms that show their reasons: the bottleneck is one, and its units are set by name."""

import numpy as np
import pytest
import torch

from data.recipes import concept, vlm
from data.train.recipe import Stage
from data.train.trainer import _optimizer
from data.worlds import scene_words as words
from data.worlds import scenes as world
from lib.models import Subject, load
from lib.organisms import FOLDER

pytestmark = pytest.mark.skipif(not (FOLDER / "scenes-vlm").is_dir(), reason="scenes-vlm is not shipped")
N = len(concept.CONCEPTS)


@pytest.fixture(scope="module")
def bottleneck():
    torch.manual_seed(0)
    return concept._bottleneck(named=True).eval()


def batch(seed=0):
    return concept._concept_batch(2, np.random.default_rng(seed), 0.5)


@torch.no_grad()
def test_all_that_a_patch_tells_the_language_model_are_as_many_numbers_as_there_are_concepts(bottleneck):
    projector = bottleneck.model.multi_modal_projector
    hidden = torch.rand(5, projector.linear_2.in_features)
    changed = hidden.clone()
    changed[:, N:] = torch.rand(5, hidden.shape[1] - N)
    assert torch.equal(projector.linear_2(hidden), projector.linear_2(changed))
    assert torch.linalg.matrix_rank(projector.linear_2.weight) == N


def test_training_keeps_the_other_units_without_a_way_out():
    torch.manual_seed(0)
    bottleneck = concept._bottleneck(named=True)
    projector = bottleneck.model.multi_modal_projector
    before = projector.linear_2.weight.detach().clone()
    stage = Stage(lambda rng, progress: batch(), 2, 1e-2, trains="projector", loss=concept._named_loss)
    optimizer = _optimizer(bottleneck, stage)
    stage.loss(bottleneck, batch()).backward()
    optimizer.step()
    after = projector.linear_2.weight.detach()
    assert (after[:, N:] == 0).all()
    assert (after[:, :N] != before[:, :N]).any()


@torch.no_grad()
def test_a_named_unit_s_way_out_starts_as_its_word(bottleneck):
    projector = bottleneck.model.multi_modal_projector
    vectors = bottleneck.get_input_embeddings().weight
    hidden = torch.zeros(projector.linear_2.in_features)
    torch.testing.assert_close(projector.linear_2(hidden), vectors[words.WORD["."]])
    hidden[[concept.CONCEPTS.index("star"), concept.CONCEPTS.index("blue")]] = 1
    expected = (vectors[words.WORD["star"]] + vectors[words.WORD["blue"]]) / 2**0.5
    torch.testing.assert_close(projector.linear_2(hidden), expected, atol=1e-5, rtol=1e-4)


def test_concepts_shown_are_those_of_the_patch_s_cell():
    scenes = world.sample(3, np.random.default_rng(0))
    shown = concept.shown(scenes)
    assert shown.shape == (3, world.N_PATCHES, N)
    for patch, cell in enumerate(world.CELL_OF_PATCH):
        for image in range(3):
            expected = set()
            if scenes.objects[image, cell] >= 0:
                expected = {world.OBJECTS[scenes.objects[image, cell]]}
                expected |= {list(world.COLOURS)[scenes.colours[image, cell]]}
            assert {concept.CONCEPTS[i] for i in shown[image, patch].nonzero()[:, 0]} == expected


def test_concept_loss_is_least_where_the_units_are_right(bottleneck):
    one = batch()
    silent = one | {"concepts": torch.zeros_like(one["concepts"])}
    with torch.no_grad():
        projector = bottleneck.model.multi_modal_projector
        bias = projector.linear_1.bias.clone()
        projector.linear_1.bias[:N] = -1e3  # all units say: absent
        answer = vlm.answer_loss(bottleneck, one)
        assert concept._named_loss(bottleneck, silent) - answer < 1e-3
        assert concept._named_loss(bottleneck, one) - answer > 1
        projector.linear_1.bias.copy_(bias)


def test_a_question_with_the_cue_is_answered_by_the_cell_and_then_as_without():
    scenes = world.sample(20, np.random.default_rng(0))
    plain = words.ask("colour", scenes, np.random.default_rng(1))
    cued = concept.stepwise("colour", scenes, np.random.default_rng(1))
    for row in range(20):
        assert words.text(cued.prompt[row]) == f"where ; {words.text(plain.prompt[row])}"
        cell = world.CELLS[scenes.cell_of[row, plain.about[row]]]
        assert words.text(cued.answer[row]) == f"{cell} {words.text(plain.answer[row])}"


def test_training_of_stated_steps_has_both_kinds_of_questions():
    packed = concept._stepwise_batch(2, np.random.default_rng(0), 0.5)
    own = [packed["ids"][0, packed["blocks"][0] == block] for block in range(10)]
    texts = [words.text(ids.numpy()) for ids in own]
    assert [text.startswith("where ;") for text in texts] == [False] * 4 + [True] * 6


@pytest.mark.parametrize("name", [name for name in concept.RECIPES if (FOLDER / name).is_dir()])
def test_shipped_organisms_are_ordinary_llavas_that_load(name):
    subject = load(name)
    assert isinstance(subject, Subject)
    assert type(subject.model).__name__ == "LlavaForConditionalGeneration"
    projector = subject.model.model.multi_modal_projector
    narrow = name != "cot-vlm"
    assert (type(projector.act).__name__ == "Sigmoid") == narrow
    assert bool((projector.linear_2.weight[:, N:] == 0).all()) == narrow
