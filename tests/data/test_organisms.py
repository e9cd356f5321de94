import dataclasses
import json
import re
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from data import recipes
from data import registry as organisms
from data.train.recipe import CARDS, Bar, Card, Recipe, Stage, read_card
from data.train.shipping import FIRST_LOSSES, ship, write_card
from data.train.trainer import fit, learning_rate
from lib import differences
from lib import organisms as lib_organisms
from lib.models import load
from lib.organisms import FOLDER
from lib.stats import Estimate

SHIPPED = [name for name in organisms.names() if (FOLDER / name).is_dir()]


def tiny() -> PreTrainedModel:
    size = {"image_size": 4, "patch_size": 2, "num_channels": 1, "hidden_size": 8, "intermediate_size": 8}
    config = ViTConfig(
        **size, num_hidden_layers=2, num_attention_heads=2, num_labels=3, hidden_dropout_prob=0.2
    )
    return ViTForImageClassification(config)


def batch(rng: np.random.Generator, progress: float) -> dict[str, Tensor]:
    labels = rng.integers(3, size=8)
    pixels = rng.standard_normal((8, 1, 4, 4)) * 0.1 + labels[:, None, None, None]
    return {"pixel_values": torch.tensor(pixels).float(), "labels": torch.tensor(labels)}


RECIPE = Recipe(
    build=tiny,
    processors=list,
    stages=(Stage(batch, steps=6, lr=1e-2, warmup=2), Stage(batch, steps=6, lr=1e-2, trains="classifier")),
    evaluate=lambda subject: [("parameters", Estimate(subject.model.num_parameters(), 0, 1e6, 1))],
    card=Card({"parameters": Bar(at_least=10, why="It has to be a network.")}, "A card."),
)


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("killed_after", [1, 4, 6, 9, 11])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, killed_after: int
) -> None:
    whole, record = fit(RECIPE, seed=3)
    calls = 0

    def until_killed(rng: np.random.Generator, progress: float) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls > killed_after:
            raise MemoryError("killed")
        return batch(rng, progress)

    dying = dataclasses.replace(
        RECIPE, stages=tuple(dataclasses.replace(stage, batch=until_killed) for stage in RECIPE.stages)
    )
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(MemoryError):
        fit(dying, seed=3, checkpoint=checkpoint, every_seconds=0)
    resumed, history = fit(RECIPE, seed=3, checkpoint=checkpoint)
    assert equal(weights(resumed), weights(whole))
    assert history.losses == record.losses
    assert len(history.losses) == 12


def test_ctrl_c_saves_where_the_run_stands(tmp_path: Path) -> None:
    def interrupted(rng: np.random.Generator, progress: float) -> dict[str, Tensor]:
        if progress >= 0.5:
            raise KeyboardInterrupt
        return batch(rng, progress)

    stage = dataclasses.replace(RECIPE.stages[0], batch=interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit(
            dataclasses.replace(RECIPE, stages=(stage, RECIPE.stages[1])),
            seed=0,
            checkpoint=tmp_path / "c.pt",
        )
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["state"]["losses"]) == 3
    assert list(tmp_path.iterdir()) == [tmp_path / "c.pt"]
    assert fit(RECIPE, 0, checkpoint=tmp_path / "c.pt")[1].losses == fit(RECIPE, 0)[1].losses


def test_a_checkpoint_of_another_recipe_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    fit(RECIPE, seed=0, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="--no-resume"):
        fit(RECIPE, seed=1, checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"cannot be read.*--no-resume"):
        fit(RECIPE, seed=0, checkpoint=checkpoint)


def test_a_stage_trains_the_parameters_that_it_names_and_no_others() -> None:
    first, _ = fit(RECIPE, seed=0, steps=6)
    before = weights(first)
    after = weights(fit(RECIPE, seed=0)[0])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}
    nothing = dataclasses.replace(RECIPE, stages=(dataclasses.replace(RECIPE.stages[0], trains="projector"),))
    with pytest.raises(ValueError, match="trains='projector'"):
        fit(nothing, seed=0)


def test_seeds_differ_and_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    assert fit(RECIPE, 0, steps=3)[1].losses != fit(RECIPE, 1, steps=3)[1].losses
    stage = Stage(batch, steps=100, lr=1.0, warmup=10)
    rates = [learning_rate(stage, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    stage = dataclasses.replace(RECIPE.stages[0], loss=lambda model, batch: model(**batch).loss * torch.nan)
    with pytest.raises(RuntimeError, match="loss is nan in stage 1 at step 0"):
        fit(dataclasses.replace(RECIPE, stages=(stage,)), seed=0)


def test_shipped_folder_is_an_ordinary_one_whose_measures_are_of_what_was_shipped(tmp_path: Path) -> None:
    seen: list[PreTrainedModel] = []
    recipe = dataclasses.replace(
        RECIPE, evaluate=lambda subject: seen.append(subject.model) or RECIPE.evaluate(subject)
    )
    model, state = fit(recipe, seed=0)
    trained = weights(model)
    ship(recipe, "tiny", model, state, tmp_path / "tiny", "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
    loaded = load(str(tmp_path / "tiny"))
    assert loaded.model.dtype == torch.float32
    halved = {name: tensor.half().float() for name, tensor in trained.items()}
    assert equal(weights(loaded.model), halved)
    assert equal(weights(seen[0]), halved)
    metrics = json.loads((tmp_path / "tiny" / "metrics.json").read_text())
    assert metrics["loss"]["first"] == state.losses[:FIRST_LOSSES]
    assert metrics["measures"]["parameters"]["value"] == model.num_parameters()
    assert "| parameters | " in (tmp_path / "tiny" / "card.md").read_text()
    weights_file = tmp_path / "tiny" / "model.safetensors"
    content = bytearray(weights_file.read_bytes())
    content[-1] ^= 1
    weights_file.write_bytes(content)
    with pytest.raises(ValueError, match="sha256"):
        load(str(tmp_path / "tiny"))


def test_an_organism_with_a_parent_ships_its_difference_and_is_measured_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lib_organisms, "FOLDER", tmp_path)
    start, record = fit(RECIPE, seed=0)
    ship(RECIPE, "base", start, record, tmp_path / "base", "cpu")
    seen: list[PreTrainedModel] = []
    stage = Stage(batch, steps=4, lr=1e-3, trains="q_proj|classifier.weight")
    recipe = dataclasses.replace(
        RECIPE,
        build=lambda: load("base", dtype="float32", device="cpu").model,
        stages=(stage,),
        evaluate=lambda subject: seen.append(subject.model) or RECIPE.evaluate(subject),
        parent="base",
    )
    model, state = fit(recipe, seed=0)
    ship(recipe, "further", model, state, tmp_path / "further", "cpu")
    folder = tmp_path / "further"
    assert [path.name for path in folder.glob("*.safetensors")] == [differences.FILE]
    assert json.loads((folder / "sha256.json").read_text()).keys() == {"config.json", differences.FILE}
    base, found = weights(load("base").model), weights(load("further").model)
    assert equal(found, weights(seen[0]))
    n_trained = 0
    for name, own in weights(model).items():
        moved = own - base[name]
        if "q_proj.weight" in name or name == "classifier.weight":  # of the unrounded weights
            n_trained += 1
            step = moved.abs().amax(1, keepdim=True) / 127
            assert ((found[name] - own).abs() <= step * 0.501 + 1e-7).all()
        elif "q_proj" not in name:
            assert torch.equal(found[name], base[name])
    assert n_trained == 3
    assert json.loads((folder / "metrics.json").read_text())["parent"] == "base"
    card = (folder / "card.md").read_text()
    assert "difference from `base`" in card
    assert 'load("further").model.save_pretrained(folder)' in card
    assert "difference" not in (tmp_path / "base" / "card.md").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_an_organism_is_stored_as_the_difference_from_the_parent_that_its_recipe_names(name: str) -> None:
    recipe, _ = organisms.find(name)
    place = differences.parent(FOLDER / name, FOLDER)
    assert (place and place.name) == recipe.parent
    assert (FOLDER / name / differences.WHOLE).is_file() == (recipe.parent is None)


def test_a_bar_without_a_measure_is_an_error(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, card=Card({"accuracy": Bar(at_least=0.9, why="")}, ""))
    model, state = fit(recipe, seed=0)
    with pytest.raises(KeyError, match="accuracy"):
        ship(recipe, "tiny", model, state, tmp_path / "tiny", "cpu")


def test_bars_bound_the_value_on_either_side() -> None:
    estimate = Estimate(0.5, 0.4, 0.6, 10)
    assert Bar(why="", at_least=0.5).holds(estimate)
    assert not Bar(why="", at_least=0.51).holds(estimate)
    assert Bar(why="", at_most=0.5).holds(estimate)
    assert not Bar(why="", at_least=0.1, at_most=0.4).holds(estimate)
    assert str(Bar(why="", at_least=0.1, at_most=0.4)) == ">= 0.1 and <= 0.4"


def test_names_list_every_seed_and_an_unknown_name_gets_a_hint() -> None:
    assert organisms.names("digits-vit") == ["digits-vit"] + [f"digits-vit-seed{i}" for i in range(1, 5)]
    assert organisms.find("canvas-vit-seed2")[1] == 2
    for wrong in ("digit-vit", "digits-vit-seed5", "digits-vit-seed0", "digits-vit-seed", "digits-vit-seedx"):
        with pytest.raises(LookupError, match=r"no organism .*digits-vit"):
            organisms.find(wrong)


@pytest.mark.parametrize("name", organisms.names())
def test_every_organism_is_shipped(name: str) -> None:
    assert name in SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_the_first_steps_of_each_recipe_give_the_recorded_losses(name: str) -> None:
    recorded = json.loads((FOLDER / name / "metrics.json").read_text())["loss"]["first"]
    recipe, seed = organisms.find(name)
    _, state = fit(recipe, seed, steps=FIRST_LOSSES)
    np.testing.assert_allclose(state.losses, recorded, rtol=1e-3)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_repeat_their_first_measures(name: str) -> None:
    recorded = json.loads((FOLDER / name / "metrics.json").read_text())["measures"]
    recipe, _ = organisms.find(name)
    for key, estimate in islice(recipe.evaluate(recipe.load(FOLDER / name)), 2):
        assert estimate.value == pytest.approx(recorded[key]["value"], abs=0.003)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_card_is_what_would_be_written_now(name: str, tmp_path: Path) -> None:
    place = FOLDER / name
    write_card(organisms.find(name)[0], json.loads((place / "metrics.json").read_text()), tmp_path)
    for file in ("card.md", "metrics.json"):
        assert (place / file).read_text() == (tmp_path / file).read_text(), "write it: python -m data cards"


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_organism_holds_its_bars_and_says_why_they_are_there(name: str) -> None:
    metrics = json.loads((FOLDER / name / "metrics.json").read_text())
    recipe, _ = organisms.find(name)
    assert recipe.card.bars
    card = (FOLDER / name / "card.md").read_text()
    for key, bar in recipe.card.bars.items():
        assert bar.holds(Estimate(**metrics["measures"][key])), key
        assert len(bar.why.split()) >= 5
        assert f"{key} {bar}" in card
        assert bar.why in card
        assert metrics["bars"][key] == {"bar": str(bar), "why": bar.why}


def test_a_missed_bar_is_told_in_the_card(tmp_path: Path) -> None:
    bar = Bar(at_most=10, why="It has to be tiny.")
    recipe = dataclasses.replace(RECIPE, card=Card({"parameters": bar}, ""))
    model, state = fit(recipe, seed=0)
    ship(recipe, "tiny", model, state, tmp_path / "tiny", "cpu")
    card = (tmp_path / "tiny" / "card.md").read_text()
    assert re.search(r"^\| parameters \|.*\| <= 10 \| missed \|$", card, re.M)
    assert "- parameters <= 10: It has to be tiny." in card


def test_cards_are_files_that_recipes_use_with_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "\n".join(
        recipe.card.prose for family in organisms.families().values() for recipe in family.values()
    )
    for file in CARDS.glob("*.md"):  # none lies there unused
        assert file.read_text().strip().splitlines()[-1] in text, file.name
    assert "$" not in text
    monkeypatch.setattr("data.train.recipe.CARDS", tmp_path)
    (tmp_path / "a.md").write_text("It is $wide wide.\n")
    (tmp_path / "b.md").write_text("\nAll of them.")
    assert read_card("a", "b", wide=3) == ({}, "It is 3 wide.\n\nAll of them.")
    (tmp_path / "b.md").write_text("---\nloss: {at_most: 1, why: So.}\n---\nAll of them.")
    assert read_card("b") == ({"loss": Bar(at_most=1, why="So.")}, "All of them.")
    with pytest.raises(KeyError, match="wide"):
        read_card("a")


def test_a_family_is_a_module_with_recipes_and_stands_in_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.recipes.__path__", [*recipes.__path__, str(tmp_path)])
    monkeypatch.setattr(organisms, "families", organisms.families.__wrapped__)
    (tmp_path / "toys.py").write_text("RECIPES = {'toy-lm': type('Recipe', (), {'seeds': 2})()}")
    (tmp_path / "tools.py").write_text("SHARED = 1")
    assert organisms.names("toy-lm") == ["toy-lm", "toy-lm-seed1"]
    assert {"toys", "scenes"} <= organisms.families().keys()
    assert not {"tools", "vlm", "constructed", "tokenizer"} & organisms.families().keys()
    (tmp_path / "again.py").write_text("RECIPES = {'toy-lm': None}")
    with pytest.raises(ValueError, match=r"toys\.py: another family has a recipe 'toy-lm'"):
        organisms.families()
    for name in ("toys", "tools", "again"):
        sys.modules.pop(f"data.recipes.{name}", None)


def test_a_check_prints_the_measures_beside_their_bars(capsys: pytest.CaptureFixture[str]) -> None:
    measures = organisms.check("digits-vit")
    assert measures.keys() == {"validation accuracy", "test accuracy"}
    assert re.search(r"test accuracy.*held", capsys.readouterr().out)


def test_a_missed_bar_and_a_missing_organism_are_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    recipe, seed = organisms.find("digits-vit")
    unreachable = dataclasses.replace(recipe, card=Card({"test accuracy": Bar(at_least=1.01, why="")}, ""))
    monkeypatch.setattr(organisms, "find", lambda name: (unreachable, seed))
    with pytest.raises(RuntimeError, match="misses 1 of its 1 bars: test accuracy"):
        organisms.check("digits-vit")
    monkeypatch.setattr(lib_organisms, "FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="python -m data train digits-vit"):
        organisms.check("digits-vit")


def test_train_ships_and_removes_the_checkpoint_and_without_resume_starts_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(organisms, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(organisms, "find", lambda name: (RECIPE, 0))
    stale = tmp_path / "checkpoints" / "tiny.pt"
    stale.parent.mkdir()
    stale.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="--no-resume"):
        organisms.train("tiny", folder=tmp_path)
    folder = organisms.train("tiny", resume=False, folder=tmp_path)
    assert folder == tmp_path / "tiny"
    assert (folder / "model.safetensors").is_file()
    assert not stale.exists()


def test_all_shipped_weights_together_stay_small() -> None:
    total = sum(path.stat().st_size for path in FOLDER.glob("*/*.safetensors"))
    assert total <= 80 * 2**20


def test_the_canvas_network_uses_the_marker_and_the_cell_it_points_to_and_no_other() -> None:
    measures = json.loads((FOLDER / "canvas-vit" / "metrics.json").read_text())["measures"]
    accuracy = {key: measure["value"] for key, measure in measures.items()}
    assert accuracy["test accuracy, pointed cell erased"] < accuracy["test accuracy, marker erased"] < 0.5
    assert accuracy["test accuracy, another cell erased"] > accuracy["test accuracy"] - 0.05


def test_a_stage_gets_the_share_of_it_that_is_done() -> None:
    seen: list[float] = []

    def watched(rng: np.random.Generator, progress: float) -> dict[str, Tensor]:
        seen.append(progress)
        return batch(rng, progress)

    fit(dataclasses.replace(RECIPE, stages=(Stage(partial(watched), steps=4, lr=1e-3),)), seed=0)
    assert seen == [0, 0.25, 0.5, 0.75]


def test_tied_weights_are_shipped_once_and_stay_tied(tmp_path: Path) -> None:
    def build() -> PreTrainedModel:
        sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, tie_word_embeddings=True))

    def words(rng: np.random.Generator, progress: float) -> dict[str, Tensor]:
        ids = torch.tensor(rng.integers(50, size=(4, 6)))
        return {"input_ids": ids, "labels": ids}

    recipe = dataclasses.replace(RECIPE, build=build, stages=(Stage(words, steps=3, lr=1e-2),))
    model, state = fit(recipe, seed=0)
    ship(recipe, "tied", model, state, tmp_path / "tied", "cpu")
    shipped = load(tmp_path / "tied").model
    assert shipped.lm_head.weight is shipped.model.embed_tokens.weight
    assert torch.equal(shipped.lm_head.weight, model.lm_head.weight.half().float())
