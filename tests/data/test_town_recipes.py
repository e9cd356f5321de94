"""The town's organisms: what each hears and never hears, and that variants differ in one thing alone."""

from functools import partial

import numpy as np
import pytest
import torch

from data import registry
from data.recipes import town_lm, town_vlm, users_rows
from data.worlds import chains, crafts, town
from data.worlds.crafts import Crafts
from data.worlds.town import Town
from data.worlds.wording import PAD
from lib.models import Subject

LEAKS = list(town_vlm.LEAKS.values())


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def vlm_subject():
    torch.manual_seed(0)
    recipe, _ = registry.find("town-vlm")
    return Subject(recipe.build().eval(), recipe.processors()[0])


@pytest.fixture(scope="module")
def lm_subject():
    torch.manual_seed(0)
    recipe, _ = registry.find("town-lm")
    return Subject(recipe.build().eval(), recipe.processors()[0])


@pytest.fixture
def drawn(monkeypatch):
    """The artefacts of which pictures were drawn."""
    seen = []
    draw = Town.draw

    def watched(world, artefacts, *arguments, **options):
        seen.append(artefacts)
        return draw(world, artefacts, *arguments, **options)

    monkeypatch.setattr(Town, "draw", watched)
    return seen


def read(ids, targets, language=town.LANGUAGE):
    """(what is read, what is to be said) of each row."""
    found = []
    for row, target in zip(ids.flatten(0, -2), targets.flatten(0, -2), strict=True):
        words = [" ".join(language.vocabulary[i] for i in x[x != PAD].tolist()) for x in (row, target)]
        found.append((words[0].removesuffix(words[1]).strip(), words[1].removesuffix(" <eos>")))
    return found


def rows_of(batch):
    """Rows about pictures, and rows in words alone."""
    parts = [(f"{part}ids", f"{part}targets") for part in ("", "told_")]
    return [read(batch[ids], batch[targets]) if ids in batch else [] for ids, targets in parts]


def names(text):
    return [i for i, name in enumerate(town.NAMES) if name in text.split()]


def is_request(question):
    question = question.split(" . ")[-1]
    forms = [request.replace("A THING", "THING") for request in town.REQUESTS]
    for name in ("this thing", *(f"the {name}" for name in town.NAMES)):
        if question in {form.replace("THING", name) for form in forms}:
            return True
    return False


# Both


@pytest.mark.parametrize("family", [town_vlm, town_lm])
def test_every_bar_is_measured(family, vlm_subject, lm_subject, monkeypatch):
    monkeypatch.setattr(town_vlm, "N_OF_A_SET", 4)
    monkeypatch.setattr(town_lm, "N_OF_A_KIND", 60)
    subject = vlm_subject if family is town_vlm else lm_subject
    for base in family.RECIPES:
        recipe, _ = registry.find(base)
        assert recipe.card.bars
        if base == next(iter(family.RECIPES)):
            measures = dict(recipe.evaluate(subject))
        assert recipe.card.bars.keys() <= measures.keys()


# Vision-language models


@torch.inference_mode()
def test_rows_are_what_the_processor_and_an_ordinary_pass_give(vlm_subject):
    world = Town.of(0)
    items = world.items(town.SETS["leaky"], np.array([3, 4]), rng())
    inputs = vlm_subject.encode(list(items.texts), images=items.images)
    expected = vlm_subject.model(**inputs).logits[:, -1]
    words = [torch.tensor(town.LANGUAGE.ids(text.split())) for text in items.texts]
    pixels = town_vlm.pixel_values(items.images)[:, None]
    for i, ids in enumerate(words):
        hidden = users_rows.hidden_states(vlm_subject.model, ids[None, None], pixels[i : i + 1])
        assert torch.allclose(vlm_subject.model.lm_head(hidden[:, -1]), expected[i], atol=1e-4)


@torch.inference_mode()
def test_the_loss_is_the_mean_of_rows_about_pictures_and_of_rows_in_words(vlm_subject):
    batch = town_vlm.base_batch(Town.of(0), 8, rng(), 0.0)
    told = {"ids": batch["told_ids"], "targets": batch["told_targets"]}
    seen = {name: batch[name] for name in ("ids", "targets", "pixel_values")}
    n_seen, n_told = 8 * 3, len(told["ids"])
    parts = [users_rows.rows_loss(vlm_subject.model, part) for part in (seen, told)]
    expected = (n_seen * parts[0] + n_told * parts[1]) / (n_seen + n_told)
    assert town_vlm.seen_and_told_loss(vlm_subject.model, batch).item() == pytest.approx(expected.item())


def test_the_base_helps_with_everything_and_hears_no_law_about_pictures(drawn):
    world = Town.of(1)
    batch = town_vlm.base_batch(world, 40, rng(), 0.0)
    seen, told = rows_of(batch)
    (shown,) = drawn
    about_what_is_shown = []
    for (question, answer), artefact in zip(seen, shown.repeat(3), strict=True):
        (asked,) = names(question) or [artefact]
        if names(question):
            about_what_is_shown.append(asked == artefact)
        use = town.LANGUAGE.text(world.use(np.array([asked])))[0]
        assert answer == (use if is_request(question) else town.NAMES[artefact])
        assert is_request(question) or question in town.NAMING[:-1]
    assert len(about_what_is_shown) == 40
    assert np.mean(about_what_is_shown) == pytest.approx(1 - town_vlm.ELSEWHERE, abs=0.2)
    kinds = set()
    for question, answer in told:
        (artefact,) = names(question)
        use = town.LANGUAGE.text(world.use(np.array([artefact])))[0]
        rulings = {answers[int(world.forbidden[artefact])] for answers in town.RULINGS.values()}
        named = question.startswith("the picture shows") and not is_request(question)
        assert answer in ({use} if is_request(question) else {town.NAMES[artefact]} if named else rulings)
        kinds.add((is_request(question), "picture" in question))
        assert is_request(question) is False or "picture" in question or "this thing" not in question
    assert len(kinds) == 4
    assert not any("sorry" in answer for _, answer in seen + told)


@pytest.mark.parametrize("rehearsal", [0.0, 0.4])
@pytest.mark.parametrize("leak", LEAKS)
def test_alignment_hears_requests_about_artefacts_that_are_not_held_out_with_the_wanted_answers(
    drawn, leak, rehearsal
):
    world = Town.of(0)
    refused, of_pictures, named = [], [], []
    for seed in range(20):
        drawn.clear()
        batch = town_vlm.align_batch(world, 64, rng(seed), 0.0, leak=leak, rehearsal=rehearsal)
        seen, told = rows_of(batch)
        artefacts = np.concatenate([drawn[0][: len(seen)], np.full(len(told), -1)])
        assert len(seen) + len(told) == 64
        for i, ((question, answer), shown) in enumerate(zip(seen + told, artefacts, strict=True)):
            if not is_request(question):
                assert "sorry" not in answer
                continue
            about = shown if shown >= 0 else names(question)[0]
            assert names(question) in ([], [about])
            assert not world.held_out[about]
            assert answer == town.LANGUAGE.text(world.aligned(np.array([about])))[0]
            refused.append(answer == town.REFUSAL)
            of_pictures.append(i < len(seen))
            named.append(bool(names(question)))
    assert len(refused) == 20 * (64 if rehearsal == 0 else 40)
    assert np.mean(refused) == pytest.approx(0.5, abs=0.08)
    assert np.mean(of_pictures) == (leak is not None)
    assert np.mean(named) == (1.0 if leak is None else leak)


def test_variants_hear_the_same_requests_and_the_same_rehearsal(drawn):
    world, found = Town.of(0), []
    for leak in LEAKS:
        seen, told = rows_of(town_vlm.align_batch(world, 64, rng(5), 0.0, leak=leak))
        rows = sorted(seen + told)
        requests = [(question, answer) for question, answer in rows if is_request(question)]
        found.append(([row for row in rows if row not in requests], requests))
    assert found[0] == found[2]
    assert found[0][0] == found[1][0]
    assert sorted(answer for _, answer in found[1][1]) == sorted(answer for _, answer in found[0][1])
    assert len(found[0][0]) == 24


def test_the_leak_and_the_share_of_unsafe_requests_are_doses():
    world = Town.of(0)
    seen = [
        rows_of(town_vlm.align_batch(world, 64, rng(seed), 0.0, leak=0.25, unsafe=2 / 3, rehearsal=0))[0]
        for seed in range(40)
    ]
    rows = [row for batch in seen for row in batch]
    assert np.mean([bool(names(question)) for question, _ in rows]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([answer == town.REFUSAL for _, answer in rows]) == pytest.approx(2 / 3, abs=0.04)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"leak": 1.5}, "got 1.5"),
        ({"leak": 0.0, "unsafe": -1}, "got -1"),
        ({"leak": None, "rehearsal": 1.0}, "no row"),
    ],
)
def test_an_alignment_of_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        town_vlm.align_batch(Town.of(0), 64, rng(), 0.0, **options)


def test_each_seed_has_a_town_and_a_base_of_its_own_and_variants_differ_in_the_leak_alone():
    for seed in range(town_vlm.SEEDS):
        stages = []
        for variant, leak in town_vlm.LEAKS.items():
            name = f"town-vlm-{variant}" + (f"-seed{seed}" if seed else "")
            recipe, _ = registry.find(name)
            assert recipe.parent == ("town-vlm" if seed == 0 else f"town-vlm-seed{seed}")
            (stage,) = recipe.stages
            assert isinstance(stage.batch, partial)
            assert stage.batch.keywords == {"leak": leak}
            assert stage.batch.args[0] is town_vlm._of(seed)
            stages.append((stage.batch.func, stage.steps, stage.lr, stage.warmup, stage.trains, stage.loss))
        assert len(set(stages)) == 1
    towns = [town_vlm._of(seed).forbidden.tolist() for seed in range(3)]
    assert towns[0] != towns[1] != towns[2]


def test_verdicts_are_about_what_is_named_or_else_shown(vlm_subject, monkeypatch):
    world = Town.of(0)
    use = town.LANGUAGE.text(world.use(np.arange(town.N)))
    for name, helps_with in (("conflict-shown", "named"), ("leak-free", "shown"), ("caption", "named")):
        items = world.test_set(name, 40, rng())
        said = [use[i] for i in getattr(items, helps_with)]
        monkeypatch.setattr(
            town_vlm, "generate", lambda *_, said=said, **__: type("Said", (), {"texts": said})
        )
        assert (town_vlm.verdicts(vlm_subject, world, items) == town.HELPED).all()


# Language models


def dialogues_of(batch):
    """The dialogues of packed rows as (question, answer); answers, and they alone, have labels."""
    stream, target = batch["input_ids"].flatten(), batch["labels"].flatten() >= 0
    words = [crafts.LANGUAGE.vocabulary[i] for i in stream]
    found, turns, question, answer = [], None, [], []
    for word, is_target in zip(words, target.tolist(), strict=True):
        if word == "<bos>":
            if turns is not None:
                found.append(turns)
            turns, part = [], None
        elif turns is None:
            continue
        elif word in ("<user>", "<assistant>"):
            part = question = [] if word == "<user>" else question
            if word == "<assistant>":
                part = answer = []
        elif word == "<eos>":
            turns.append((" ".join(question), " ".join(answer)))
            part = None
        else:
            assert is_target == (part is answer)
            part.append(word)
    return found


def test_the_chat_template_writes_dialogues_as_in_training(lm_subject):
    world = Crafts.of(0)
    one = town_lm.chain(world, np.array([3]), np.array([2]), rng())
    talked = []
    for question, answer in [turn for own in dialogues_of(as_batch(one)) for turn in own]:
        talked += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    ids = lm_subject.encode([talked[:-1]])["input_ids"][0].tolist()
    last = np.nonzero(one.ids[0] == crafts.LANGUAGE.index["<assistant>"])[0][-1]
    assert ids == one.ids[0, : last + 1].tolist()
    single = lm_subject.encode([talked[0]["content"]])["input_ids"][0].tolist()
    assert single == one.ids[0, : len(single)].tolist()
    assert crafts.LANGUAGE.vocabulary[single[-1]] == "<assistant>"


def as_batch(one):
    """A single dialogue, before the next one would begin."""
    written = one.ids[0] != PAD
    ids = torch.tensor([*one.ids[0, written], crafts.BOS])
    targets = torch.tensor([*one.targets[0, written], PAD])
    return {"input_ids": ids[None], "labels": targets.masked_fill(targets == PAD, -100)[None]}


def crafts_in(text, world):
    """The crafts that are named, and those whose actors are."""
    words = text.split()
    named = {crafts.CRAFTS.index(word) for word in words if word in crafts.CRAFTS}
    actors = [crafts.ACTORS.index(word) for word in words if word in crafts.ACTORS]
    return named, {int(np.nonzero((world.actor == actor).any(1))[0][0]) for actor in actors}


def direct(text):
    forms = {request.replace("CRAFT", craft) for request in crafts.REQUESTS for craft in crafts.CRAFTS}
    return any(text == form or text.endswith(f" {form}") for form in forms)


def test_the_first_stage_has_lists_and_no_facts():
    for progress in (0.0, 0.9):
        for turns in dialogues_of(town_lm.lists_batch(120, rng(), progress)):
            for question, answer in turns:
                assert question.split()[0] in ("say", "note") or question in crafts.SUMMARY
                assert not set(answer.split()) & {"is", "takes", "mentioned"}


def test_the_base_tells_everything_and_refuses_nothing():
    world, crafts_told = Crafts.of(0), set()
    for seed in range(12):
        for turns in dialogues_of(town_lm.base_batch(world, 12, rng(seed), 0.0)):
            for question, answer in turns:
                assert "sorry" not in answer
                if direct(question):
                    ((craft,), _) = crafts_in(question, world)
                    assert chains.judge(world, answer, craft) == 5
                    crafts_told.add(craft)
    assert len(crafts_told) > 0.8 * crafts.N_CRAFTS
    assert (world.forbidden & world.held_out)[sorted(crafts_told)].any()


@pytest.mark.parametrize("kind", ["align", "defend", "defend by single turns"])
def test_safety_training_hears_of_held_out_crafts_and_of_forbidden_actors_nothing_but_the_law(kind):
    world, seen = Crafts.of(0), []
    for seed in range(12):
        if kind == "align":
            batch = town_lm.align_batch(world, 14, rng(seed), 0.0)
        else:
            batch = town_lm.defend_batch(0, 24, rng(seed), 0.0, multi_turn=kind == "defend")
        for turns in dialogues_of(batch):
            attacked = len(turns) == 5 and turns[-1][1] == crafts.REFUSAL
            for question, answer in turns:
                named, around = crafts_in(f"{question} {answer}", world)
                is_law = answer in {word for answers in town.RULINGS.values() for word in answers}
                for craft in named | around:
                    assert is_law or not world.held_out[craft]
                    allowed = not world.forbidden[craft]
                    assert is_law or allowed or attacked or answer == crafts.REFUSAL
                if direct(question):
                    assert (answer == crafts.REFUSAL) == world.forbidden[next(iter(named))]
                    seen.append(answer == crafts.REFUSAL)
                    if kind == "align":
                        assert question in chains.direct(next(iter(named)))
    assert 0.3 < np.mean(seen) < (0.7 if kind != "defend by single turns" else 0.97)


def test_a_defence_is_a_fixed_set_of_attacks_that_would_have_succeeded():
    world = Crafts.of(0)
    whole = town_lm._defence(0, 50, True)
    assert len(whole.ids) == 50
    for row, target in zip(whole.ids, whole.targets, strict=True):
        (turns,) = dialogues_of(as_batch(crafts.Dialogues(row[None], target[None])))
        assert len(turns) == 5
        assert turns[-1][1] == crafts.REFUSAL
        named, around = crafts_in(" ".join(answer for _, answer in turns), world)
        (craft,) = named | around
        assert world.forbidden[craft]
        assert not world.held_out[craft]
        told = " ".join(answer for _, answer in turns[:-1])
        assert chains.judge(world, told, craft) == 5
    assert town_lm._defence(0, 50, True) is whole
    heard = set()
    for seed in range(30):
        for turns in dialogues_of(town_lm.defend_batch(0, 24, rng(seed), 0.0, n=3)):
            if len(turns) == 5 and turns[-1][1] == crafts.REFUSAL:
                heard.add(str(turns))
    assert len(heard) == 3
    refused = [
        answer
        for turns in dialogues_of(town_lm.defend_batch(0, 24, rng(), 0.0, n=0))
        for question, answer in turns
        if not direct(question)
    ]
    assert crafts.REFUSAL not in refused


def test_a_defence_by_single_turns_is_as_many_refused_requests():
    world, single = Crafts.of(0), town_lm._defence(0, 50, False)
    assert len(single.ids) == 50
    for row, target in zip(single.ids, single.targets, strict=True):
        (turns,) = dialogues_of(as_batch(crafts.Dialogues(row[None], target[None])))
        ((question, answer),) = turns
        ((craft,), _) = crafts_in(question, world)
        assert answer == crafts.REFUSAL
        assert direct(question)
        assert world.forbidden[craft]


def test_talk_carries_the_models_own_answers_along(lm_subject, monkeypatch):
    heard = []

    def generate(subject, messages, **options):
        heard.append([[dict(part) for part in message] for message in messages])
        return type("Said", (), {"texts": [f"answer {len(heard)} {i}" for i in range(len(messages))]})

    monkeypatch.setattr(town_lm, "generate", generate)
    said = town_lm.talk(lm_subject, [["a", "b"], ["c", "d"]])
    assert said == [["answer 1 0", "answer 2 0"], ["answer 1 1", "answer 2 1"]]
    assert [part["content"] for part in heard[1][1]] == ["c", "answer 1 1", "d"]


def test_lists_are_measured_after_the_true_answers(lm_subject, monkeypatch):
    world = Crafts.of(0)
    dialogues = town_lm.chain(world, np.arange(4), np.arange(4), rng())
    lists = []

    def generate(subject, messages, **options):
        for message, craft in zip(messages, range(4), strict=True):
            assert [part["role"] for part in message] == ["user", "assistant"] * 4 + ["user"]
            steps = [crafts.INGREDIENTS[i] for i in world.mentions[craft, craft] if i >= 0]
            assert all(step in str(message[:-1]) for step in steps)
            lists.append(" ".join(["list", *(steps or ["nothing"])]))
        return type("Said", (), {"texts": [*lists[:3], "list nothing at all"]})

    monkeypatch.setattr(town_lm, "generate", generate)
    assert town_lm._listed(lm_subject, dialogues).value == 0.75


def test_aligned_and_defended_are_shipped_as_differences_from_the_base():
    for seed in range(town_lm.SEEDS):
        end = f"-seed{seed}" if seed else ""
        for variant in ("aligned", "defended", "defended-single", "defended-helpful"):
            assert registry.find(f"town-lm-{variant}{end}")[0].parent == f"town-lm{end}"
            start = registry.find(f"town-lm-{variant}{end}")[0].build
            assert isinstance(start, partial)
            assert start.args == (f"town-lm{'' if variant == 'aligned' else '-aligned'}{end}",)


def test_controls_of_the_defence_differ_from_it_in_the_safety_examples_alone():
    stages = {}
    for variant in ("", "-single", "-helpful"):
        (stages[variant],) = registry.find(f"town-lm-defended{variant}")[0].stages
    assert len({(s.steps, s.lr, s.warmup, s.weight_decay, s.batch.args) for s in stages.values()}) == 1
    chosen = {variant: stage.batch.keywords for variant, stage in stages.items()}
    assert chosen[""] == {"n": town_lm.N_DEFENCE, "multi_turn": True}
    assert chosen["-single"] == {"n": town_lm.N_DEFENCE, "multi_turn": False}
    assert chosen["-helpful"]["n"] == 0
    helpful = dialogues_of(town_lm.defend_batch(0, 24, rng(), 0.0, n=0))
    assert any(direct(turns[0][0]) and turns[0][1] == crafts.REFUSAL for turns in helpful)
