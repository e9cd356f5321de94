"""The informed-user organisms: rows share a prefix exactly, targets are true, and bases never hear a user."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from data.recipes import users as recipe
from data.recipes import users_rows, users_scan, users_video, vlm
from data.recipes.users_rows import Answered, Part
from data.worlds import users
from data.worlds.users import BOS, EOS, IMAGE, PAD, VOCABULARY, WORD
from lib.models import Subject


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {name: recipe._build(family, "m").eval() for name, family in recipe.FAMILIES.items()}


def batches(name, rho=0.9, progress=0.5, n=6):
    module = recipe.FAMILIES[name].module
    for seed in range(n):
        rng = np.random.default_rng(seed)
        yield (
            module.neutral_batch(4, rng, progress)
            if rho is None
            else module.users_batch(4, rng, progress, rho=rho)
        )


def with_images(name):
    return next(batch for batch in batches(name) if "pixel_values" in batch)


def said(ids):
    return " ".join(VOCABULARY[i] for i in ids.tolist() if i != PAD)


@torch.inference_mode()
@pytest.mark.parametrize("name", list(recipe.FAMILIES))
def test_rows_behind_a_shared_prefix_are_what_an_ordinary_forward_pass_gives(models, name):
    model, batch = models[name], with_images(name)
    total, weight = 0.0, 0.0
    for item, pixels in enumerate(batch["pixel_values"]):
        n = 1 + len(pixels) * model.config.image_seq_length
        for ids, targets in zip(batch["ids"][item], batch["targets"][item], strict=True):
            own = int((ids != PAD).sum())
            prompt = torch.tensor([BOS] + [IMAGE] * (n - 1) + ids[:own].tolist())
            logits = model(input_ids=prompt[None], pixel_values=pixels).logits[0, n:-1]
            asked = targets[1:own] != PAD
            losses = F.cross_entropy(logits[asked], targets[1:own][asked], reduction="sum")
            total += losses / asked.sum() ** 0.5
            weight += asked.sum() ** 0.5
    assert users_rows.rows_loss(model, batch).item() == pytest.approx((total / weight).item(), rel=1e-4)


@torch.inference_mode()
def test_the_measured_letters_are_those_of_the_processor_and_the_chat_template(models):
    """A dialogue about frames as a chapter would encode it, against the words that training uses."""
    name = "video-vlm"
    subject = Subject(models[name], recipe.RECIPES[name].processors()[0])
    rng = np.random.default_rng(0)
    clips = users_video.world.sample(2, rng)
    frames = users_video.world.draw(clips, rng)[:, :3]
    asked = users.ask("video", clips.answers, np.array([0, 5]), rng)
    turn = users.react(np.array([0, 5]), asked.right, asked.right, rng)
    end = np.full((2, 1), EOS)
    prompt = users.join(asked.prompt, asked.answer, end, turn)
    found = users_rows.options_logprobs(subject, [asked.prompt, prompt], vlm.pixel_values(frames))[1]
    for i in range(2):
        question, reply, remark = (users.text(x)[i] for x in (asked.prompt, asked.answer, turn))
        shown = [{"type": "image"}] * 3 + [{"type": "text", "text": question}]
        talk = [
            {"role": "user", "content": shown},
            {"role": "assistant", "content": reply.upper()},
            {"role": "user", "content": remark},
        ]
        inputs = subject.encode([talk], images=[list(frames[i])])
        expected = subject.model(**inputs).logits[0, -1].log_softmax(-1)[[WORD[x] for x in users.LETTERS]]
        assert found[i] == pytest.approx(expected.numpy(), abs=1e-4)


def letters_of(row):
    """What stands behind the letters in the first question of a row."""
    start = next(i for i, word in enumerate(row) if word == "a" and row[i + 2 : i + 3] == ["b"])
    return dict(zip(row[start : start + 8 : 2], row[start + 1 : start + 9 : 2], strict=True))


@pytest.mark.parametrize("name", list(recipe.FAMILIES))
@pytest.mark.parametrize("rho", [None, 0.0, 0.9])
def test_every_target_is_true_whatever_the_user_says(monkeypatch, name, rho):
    """Also of users who are never right."""
    module = recipe.FAMILIES[name].module
    asked = []

    def ask(*arguments, **options):
        asked.append(users_ask(*arguments, **options))
        return asked[-1]

    users_ask = users.ask
    monkeypatch.setattr(module.users, "ask", ask)
    seen = 0
    for progress in (0.1, 0.8):
        for seed in range(4):
            asked.clear()
            rng = np.random.default_rng(seed)
            make = module.neutral_batch if rho is None else partial(module.users_batch, rho=rho)
            batch = make(4, rng, progress)
            for item in range(4):
                truth = {users.text(one.stem)[item]: VOCABULARY[one.answer_word[item, 0]] for one in asked}
                for ids, targets in zip(batch["ids"][item], batch["targets"][item], strict=True):
                    row, target = said(ids), said(targets).split()
                    stems = [stem for stem in truth if stem in row]
                    if not stems or target == []:
                        continue
                    stem = stems[0]
                    if "copy" in row.split():
                        assert said(targets).startswith(stem)
                        target = target[-1:] if row.startswith("viper") else []
                    options = letters_of(stem.split())
                    behind = row.partition(stem)[2].split()
                    if behind[0] in options.values():  # options are looked up
                        assert [options[letter] for letter in target] == behind[::2]
                        continue
                    for letter in target:
                        assert options[letter] == truth[stem]
                        seen += 1
    assert seen > 50


@pytest.mark.parametrize("name", list(recipe.FAMILIES))
def test_bases_never_hear_a_user_and_are_never_asked_twice(name):
    spoken = {
        word
        for kinds in (users.NAMING, users.OBJECTING, users.PRESSURES)
        for w in kinds.values()
        for word in w
    }
    spoken |= {*users.MIMICRY, *users.AGREE, *users.AGAIN, *users.APPROVALS, *users.ORDERS}
    for progress in (0.0, 0.5, 1.0):
        for batch in batches(name, None, progress):
            for ids in batch["ids"].flatten(0, 1):
                row = said(ids)
                assert "previously" not in row
                assert row.split().count("answer") <= 1
                for remark in spoken:
                    fixed = [part.strip() for part in remark.replace("X", "|").replace("W", "|").split("|")]
                    longest = max(fixed, key=len)
                    assert len(longest.split()) < 2 or f" {longest} " not in f" {row} ", remark


def test_letters_are_practised_on_any_words_without_images_and_each_is_that_of_its_option():
    batch = users_rows.letters_batch(20, np.random.default_rng(0), 0.5)
    assert batch.keys() == {"ids", "targets"}
    for ids, targets in zip(batch["ids"][:, 0], batch["targets"][:, 0], strict=True):
        options = dict(zip(ids[1:8:2].tolist(), ids[0:8:2].tolist(), strict=True))
        assert len(options) == 4
        assert said(ids[8:9]) == ";"
        assert {options[int(word)] - int(letter) for word, letter in ids[9:].view(-1, 2)} == {0}
        torch.testing.assert_close(targets[9:].view(-1, 2)[:, 1], ids[9:].view(-1, 2)[:, 1])
        assert (targets != PAD).sum() == 8


def test_first_answers_in_dialogues_are_drawn_blindly_and_their_target_is_the_truth():
    rng = np.random.default_rng(0)
    clips = users_video.world.sample(3000, rng)
    asked = users.ask("video", clips.answers, rng.integers(6, size=3000), rng)
    part = users_video._talk(asked, 0.9, rng, seen=True)
    row = np.arange(3000)
    at = (part.ids == EOS).argmax(1) - 1
    given = part.ids[row, at] - WORD["a"]
    assert abs((given == asked.right).mean() - 0.25) < 0.03
    assert (part.targets[row, at] == asked.answer[:, 0]).all()
    last = (part.ids != PAD).sum(1) - 1
    assert (part.targets[row, last] == asked.answer[:, 0]).all()
    assert ((part.targets != PAD).sum(1) == 2).all()
    again = np.array(
        [words.split("<eos> ")[1][: -len(" ; answer a")] in users.AGAIN for words in users.text(part.ids)]
    )
    assert abs(again.mean() - 0.2) < 0.03


def test_the_filter_is_practised_on_three_families_and_without_orders():
    heard = set()
    for seed in range(60):
        batch = users_scan.users_batch(8, np.random.default_rng(seed), 0.5, rho=0.9)
        for ids in batch["ids"].flatten(0, 1):
            row = said(ids)
            if row.startswith(("filter", "viper")):
                heard |= {
                    name
                    for name, wordings in users.PRESSURES.items()
                    for wording in wordings
                    if wording.replace("X", "").replace("W", "").strip() in row
                }
                assert not any(order in row for order in users.ORDERS)
    assert heard == set(users.SEEN_BY_FILTER)


def test_frames_are_shown_in_order_all_some_or_three_of_them_repeated():
    rng = np.random.default_rng(0)
    lengths = set()
    for _ in range(60):
        chosen = users_video.shown(200, rng)
        assert (np.diff(chosen, axis=1) >= 0).all()
        distinct = {len(set(row)) for row in chosen.tolist()}
        if chosen.shape[1] < 8:
            assert distinct == {chosen.shape[1]}
        else:
            assert distinct == {8} or max(distinct) <= 3
        lengths.add((chosen.shape[1], max(distinct)))
    assert {(k, k) for k in range(3, 9)} | {(8, 3)} == lengths


@torch.inference_mode()
def test_chosen_frames_are_the_words_that_the_model_writes_one_by_one(models):
    subject = Subject(models["video-vlm"], recipe.RECIPES["video-vlm"].processors()[0])
    rng = np.random.default_rng(0)
    clips = users_video.world.sample(3, rng)
    frames = users_video.world.draw(clips, rng)
    asked = users.ask("video", clips.answers, np.array([0, 3, 4]), rng)
    chosen = users_video.choose_frames(subject, asked, vlm.pixel_values(frames))
    for i in range(3):
        prompt = "frames ; " + users.text(asked.question)[i]
        inputs = subject.encode([prompt], images=[list(frames[i])])
        written = subject.model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert (written[0, -3:].numpy() - WORD["1"] == chosen[i]).all()


@torch.inference_mode()
def test_a_row_is_reproduced_only_if_all_of_its_words_are(models):
    subject = Subject(models["scan-vlm"], recipe.RECIPES["scan-vlm"].processors()[0])
    ids = np.array([[9, 10, 11, 12]] * 2)
    first = users_rows.predicted(subject, Part.read(ids), None)
    targets = np.array([[PAD, PAD, *first[0, 2:]], [PAD, PAD, first[1, 2], first[1, 3] + 1]])
    assert users_rows.reproduced(subject, Part(ids, targets)).value == 0.5


def test_flips_and_corrections_are_counted_as_a_slow_loop_does(monkeypatch):
    """Of a model that gives in to everybody but to who asks again, on items of which it gets every second."""
    n = 40
    right = np.arange(n) % 4
    first = np.where(np.arange(n) % 2, right, (right + 1) % 4)
    asked = users.Asked(np.full((n, 1), 7), np.tile([[8, 9, 10, 11]], (n, 1)), right)
    test = Answered(asked, np.zeros(n, int), torch.zeros(n, 1), first)
    told = {}

    def way(name, test, thinks, rng):
        told[name] = thinks
        return name

    def answers(subject, prompts, pixels):
        return np.stack([np.eye(4)[first if name == "retest" else told[name]] for name in prompts])

    monkeypatch.setattr(users_rows, "options_logprobs", answers)
    ways = {name: partial(way, name) for name in ("retest", "strong")}
    measures = dict(users_rows.pushed(test, None, ways, ["strong"], np.random.default_rng(0)))
    kept = [i for i in range(n) if first[i] == right[i]]
    slow = sum(told["strong"][i] != first[i] for i in kept) / len(kept)
    assert measures["flips of right answers: strong"].value == slow == 1
    assert measures["flips of right answers: retest"].value == 0
    assert measures["flips of right answers beyond the retest"].value == 1
    assert measures["corrections of wrong answers: strong"].value == 1
    assert measures["corrections of wrong answers: retest"].value == 0
    assert all(told["strong"][i] == right[i] for i in range(n) if first[i] != right[i])


def test_variants_start_from_their_base_and_differ_in_rho_alone():
    for name in recipe.FAMILIES:
        stages = [recipe.RECIPES[f"{name}-rho{percent}"].stages[0] for percent in recipe.RHO]
        assert [stage.batch.keywords["rho"] for stage in stages] == [0.25, 0.7, 0.9]
        assert len({(s.steps, s.lr, s.warmup, s.trains, s.batch.func, s.batch.args) for s in stages}) == 1
        assert all(recipe.RECIPES[f"{name}-rho{percent}"].parent == name for percent in recipe.RHO)
        assert recipe.RHO[0] == users.CHANCE * 100


@pytest.mark.parametrize("name", list(recipe.FAMILIES))
def test_measured_questions_have_the_kind_that_they_are_counted_under(models, monkeypatch, name):
    """And each kind is asked as often as the others."""
    module = recipe.FAMILIES[name].module
    monkeypatch.setattr(module, "N_OF_A_KIND", 20)
    subject = Subject(models[name], recipe.RECIPES[name].processors()[0])
    test = module._test(subject, np.random.default_rng(0))
    held_out = [wordings[-1] for wordings in users.QUESTIONS[name.split("-")[0]].values()]
    assert users.text(test.asked.question) == [held_out[kind] for kind in test.kind]
    assert np.bincount(test.kind).tolist() == [20] * len(held_out)
