"""The method cells of notebooks/vlsbench.ipynb: the very code that the reader reads."""

import json
from copy import copy, deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace

import hub_models
import numpy as np
import pytest
import torch
from PIL import Image

from data.recipes import vlm
from data.recipes.town_vlm import align_batch
from data.recipes.vlm import EOS
from data.sets.visual_safety import vlsbench
from data.worlds import town
from data.worlds.town import HELPED, REFUSED, Town
from lib import chapters, papers
from lib.models import Subject

m = chapters.method("vlsbench")
RNG = np.random.default_rng
SECRET = "how do i fold the paper boat"


@pytest.fixture(scope="module")
def subject() -> Subject:
    """Of the organisms' class and vocabulary, narrower, with random weights."""
    torch.manual_seed(0)
    vocabulary = town.LANGUAGE.vocabulary
    model = vlm.build(
        len(vocabulary), town.SIDE, town.PATCH, tower=(16, 1), language=(32, 2, 2), head_dropout=0.0
    )
    return Subject(model.eval(), vlm.processors(vocabulary, town.SIDE, town.PATCH)[0])


# Test sets


def test_items_of_all_sets_are_in_the_same_order_and_show_and_say_what_their_set_promises() -> None:
    world = Town.of(1)
    sets = m.town_sets(world, 40, [0, 0])
    for name, of in sets.items():
        form, held_out = town.SETS[name.removesuffix(m.HELD_OUT)], name.endswith(m.HELD_OUT)
        assert len(of.texts) == 40
        assert (of.images is None) == (form.shows is None)
        if form.says == "other":  # help is with what is named, and that has the other status
            assert (world.forbidden[of.about] != form.shows).all()
        elif name != "no-picture":
            assert (world.held_out[of.about] == held_out).all()
            period = 8 if held_out else 16
            assert (of.about[:-period] == of.about[period:]).all()
            assert len(set(of.about)) == period
        assert all(("this thing" in text) == (form.says in ("neutral", "caption")) for text in of.texts)
    assert (sets["leaky"].about == sets["leak-free"].about).all()
    assert {name: bool(of.unsafe_text.all()) for name, of in sets.items() if of.unsafe_pair.all()} == {
        "leaky": True,
        "leak-free": False,
        "conflict-named": True,
        "conflict-shown": False,
        "caption": True,
        "text-only": True,
        "leaky, held out": True,
        "leak-free, held out": False,
    }
    assert all(not sets[twin].unsafe_pair.any() for twin in m.TWINS.values())


@cache
def folder(n: int = 24) -> str:
    """Noise in VLSBench's form; the texts are this test's, and harmless."""
    path, rng, rows = Path(mkdtemp(prefix="vlsbench-")), RNG(0), []
    (path / "imgs").mkdir()
    for i in range(n):
        kind = ("boats", "hats", "kites")[i % 3]
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(path / "imgs" / f"{i}.png")
        rows.append(
            {"instruction_id": i, "instruction": f"{SECRET} number {i}?", "image_path": f"imgs/{i}.png"}
        )
        rows[-1] |= {"category": kind, "sub_category": "paper", "source": "test"}
        rows[-1] |= {"image_description": f"It shows {kind}.", "safety_reason": f"Reason {i}."}
    (path / "data.json").write_text(json.dumps(rows))
    return str(path)


def test_of_vlsbench_the_leaky_pairs_and_the_captions_have_the_description_and_the_others_have_not() -> None:
    records = vlsbench(folder(), n=12)
    sets = m.vlsbench_sets(records, [], 28)
    for name, of in sets.items():
        for i, record in zip(of.about, records, strict=True):
            assert record.instruction in of.texts[i]
            assert ("It shows" in of.texts[i]) == (name in ("leaky", "caption", "other caption"))
    assert sets["leaky"].texts == sets["caption"].texts
    assert sets["leaky"].images[0].shape == (21, 28, 3)
    assert sets["caption"].images is sets["no-picture"].images is None
    assert all(
        record.description in text for record, text in zip(records, sets["caption"].texts, strict=True)
    )
    before = records[-1:] + records[:-1]
    assert all(
        record.description in text for record, text in zip(before, sets["other caption"].texts, strict=True)
    )


def test_topics_are_told_by_the_words_that_tell_them() -> None:
    told = m.topics_told(vlsbench(folder()))
    assert told["nothing: always the commonest"] == pytest.approx(100 / 3)
    assert told["the description"] == 100
    assert told["the instruction"] < 67


# Judging


def test_leakage_equals_a_slow_count_and_a_blind_judge_leaks_everything() -> None:
    pair, text = RNG(0).random((2, 60)) < 0.6
    r1 = sum(map(int, pair))
    r2 = sum(int(a and b) for a, b in zip(pair, text, strict=True))
    assert m.leakage(pair, text) == pytest.approx((100 * r1 / 60, 100 * r2 / 60, 100 * r2 / r1))
    assert m.leakage(text, text)[2] == 100
    assert m.leakage(pair, ~pair)[1:] == (0, 0)
    assert m.leakage(np.zeros(4, bool), np.ones(4, bool)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("pair", "text"),
    [(np.ones(3), np.ones(3)), (np.ones(3, bool), np.ones(2, bool)), (np.ones(0, bool), np.ones(0, bool))],
)
def test_a_judge_without_labels_is_refused(pair: np.ndarray, text: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected two boolean arrays of one length, got"):
        m.leakage(pair, text)


def test_usable_information_is_nothing_for_the_prior_all_for_the_truth_and_mutual_information_between() -> (
    None
):
    prior = 0.25
    odds = np.full(5, np.log(prior / (1 - prior)))
    assert m.usable_information(odds, odds, prior) == pytest.approx(0)
    entropy = -(prior * np.log2(prior) + (1 - prior) * np.log2(1 - prior))
    assert m.usable_information(np.array([np.inf]), np.array([-np.inf]), prior) == pytest.approx(entropy)
    # A sign that stands with 80 % of the unsafe and 30 % of the harmless, and a judge that knows that:
    joint = np.array([[0.8, 0.2], [0.3, 0.7]]) * [[prior], [1 - prior]]
    mutual = (joint * np.log2(joint / joint.sum(0) / joint.sum(1, keepdims=True))).sum()
    sign = np.log(joint[0] / joint[1])
    unsafe, harmless = np.repeat(sign, [80, 20]), np.repeat(sign, [30, 70])
    assert m.usable_information(unsafe, harmless, prior) == pytest.approx(mutual)
    assert m.usable_information(-unsafe, -harmless, prior) < 0  # worse than knowing nothing


def test_the_judge_of_texts_knows_names_and_nothing_of_what_is_not_named(subject: Subject) -> None:
    world = Town.of(0)
    sets = m.town_sets(world, 32, [0, 0])
    trained, dealt = (m.train_judges(subject, world, 960, [0, 0], shuffled=x) for x in (False, True))
    odds = {s: trained.log_odds(subject, sets[s])[:, 1] for s in (*m.TESTED, *map(m.TWINS.get, m.TESTED))}
    assert (odds["leaky"] > 0).mean() > 0.9
    assert (odds["benign-named"] > 0).mean() < 0.1
    assert (odds["leak-free"] > 0).mean() < 0.1
    assert m.usable_information(odds["leak-free"], odds["benign-neutral"], m.PRIOR) < 0.05
    assert m.usable_information(odds["leaky"], odds["benign-named"], m.PRIOR) > 0.5
    assert (dealt.log_odds(subject, sets["leaky"])[:, 1] > 0).mean() < 0.5


def test_labels_of_a_model_are_read_by_their_probability_and_prompts_have_what_a_judge_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    records, asked = vlsbench(folder(), n=3), {}

    def logprobs(judge: object, texts: list[str], images: object = None, **how: object) -> torch.Tensor:
        asked["texts"], asked["images"], asked["answers"] = texts, images, how["answers"]
        return torch.eye(len(how["answers"][0])).repeat(2, 1)[: len(texts)]

    monkeypatch.setattr(m, "answer_logprobs", logprobs)
    of = m.vlsbench_sets(records, [], 28)["leak-free"]
    mixed = of._replace(about=np.array([0, 1, -1]))
    verdicts = m.graded(None, records, mixed, ["one", "two", "three"], 8)
    assert verdicts.tolist() == [REFUSED, m.WARNED, HELPED]
    assert all(part in asked["texts"][1] for part in (records[1].description, records[1].reason, "two"))
    assert m.NO_RISK[0] in asked["texts"][2]
    assert records[2].reason not in asked["texts"][2]
    flagged = m.flagged(None, of, 8)
    assert flagged.tolist() == [[False, False], [True, True], [False, False]]
    assert asked["images"] is None
    assert records[0].description not in asked["texts"][0]


# Comparing


def test_an_interaction_is_the_difference_of_two_advantages() -> None:
    safe = {key: 100.0 * (RNG(i).random((2, 9)) < 0.5) for i, key in enumerate(["af", "al", "bf", "bl"])}
    safe = {tuple(key): of for key, of in safe.items()}
    mean = {key: of.mean() for key, of in safe.items()}
    slow = (mean["a", "f"] - mean["b", "f"]) - (mean["a", "l"] - mean["b", "l"])
    assert m.interaction(safe, "a", "b", "f", "l").mean() == pytest.approx(slow)
    assert not m.interaction(safe, "a", "a", "f", "l").any()


def test_intervals_are_over_networks_then_over_groups_and_never_without_width() -> None:
    rng, groups = RNG(0), np.arange(64) % 16
    rows = 100.0 * (rng.random((3, 64)) < 0.5)
    several = m.interval(rows, groups=groups)
    assert several.values == pytest.approx(rows.mean(1))
    assert several.n == 3
    by_group = 100.0 * (groups < 8)[None]  # all items of a group alike
    single = m.interval(by_group, groups=groups, n_boot=400)
    assert single.n == 16
    assert single.high - single.low > 35
    for sure in (m.interval(0 * rows, groups=groups), m.interval(0 * rows[:1], groups=groups)):
        assert sure.value == 0
        assert 0 < sure.high < 25
        assert sure.low < 0
    assert m.interval(0 * rows + 100, groups=groups, limits=(0, 100)).high == 100


# Alignment


def test_mixtures_have_the_share_of_refusals_and_of_rehearsal_that_they_say() -> None:
    world, refusal = Town.of(0), town.LANGUAGE.index["sorry"]
    for mixture in m.MIXTURES.values():
        for leak in (None, 0.0, 1.0):
            how = {"leak": leak, "rehearsal": mixture.rehearsal, "unsafe": mixture.unsafe}
            batch = align_batch(world, 400, RNG(0), 0.0, **how)
            targets = [batch[name] for name in ("targets", "told_targets") if name in batch]
            n_rows = sum(t.shape[0] * t.shape[1] for t in targets)
            n_refusals = sum(int((t == refusal).any(-1).sum()) for t in targets)
            assert n_rows == 400
            expected = 400 * (1 - mixture.rehearsal) * mixture.unsafe
            assert n_refusals == pytest.approx(expected, abs=30)
            assert all((t == EOS).any(-1).all() for t in targets)


def test_aligning_leaves_the_base_as_it_was_and_is_decided_by_its_seed(subject: Subject) -> None:
    kept = [weights.clone() for weights in subject.model.parameters()]
    size, world = {"steps": 2, "requests": 6, "lr": 1e-3}, Town.of(0)
    made = [m.align(subject, world, 0.0, m.MIXTURES["rehearsed"], seed, **size) for seed in (0, 0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(kept, subject.model.parameters(), strict=True))
    heads = [made_.model.lm_head.weight for made_ in made]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], subject.model.lm_head.weight)
    tower = next(name for name, _ in subject.model.named_parameters() if "vision_tower" in name)
    assert torch.equal(made[0].model.get_parameter(tower), subject.model.get_parameter(tower))


# Probes


def test_a_probe_reads_what_artefacts_share_and_not_which_artefact_it_is() -> None:
    rng = RNG(0)
    artefact = np.repeat(np.arange(32), 6)
    label = rng.permutation(np.arange(32) % 2 == 0)[artefact]
    noise = rng.normal(size=(192, 40))
    shared = noise + 5 * label[:, None] * (np.arange(40) == 3)
    by_heart = 0.1 * noise[:, :32] + 5 * (artefact[:, None] == np.arange(32))
    assert m.probe_accuracy(np.stack([shared]), label, artefact, 0)[0] > 95
    assert m.probe_accuracy(np.stack([by_heart]), label, artefact, 0)[0] < 70
    dealt = m.permuted_over_artefacts(label, artefact, RNG(1))
    assert dealt.sum() == label.sum()
    assert all(len(set(dealt[artefact == a])) == 1 for a in range(32))
    assert m.probe_accuracy(np.stack([shared]), dealt, artefact, 0)[0] < 75


# Networks of known behaviour in the organisms' place


def known_networks(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Organisms and alignments that do exactly what the paper says that they do."""
    seen: dict[bytes, int] = {}
    draw, names = Town.draw, {name: i for i, name in enumerate(town.NAMES)}

    def drawn(world: Town, artefacts: np.ndarray, rng: np.random.Generator, **how: float) -> np.ndarray:
        images = draw(world, artefacts, rng, **how)
        seen.update((image.tobytes(), int(a)) for image, a in zip(images, artefacts, strict=True))
        return images

    def load(name: str, **how: object) -> Subject:
        made, (base, seed) = copy(subject), m.split_name(name)
        made.does = base.removeprefix("town-vlm").removeprefix("-") or "base", Town.of(seed)
        return made

    def fit(recipe: object, seed: int, **how: object) -> tuple[object, None]:
        batch, model = recipe.stages[0].batch, deepcopy(subject.model)
        kind = "text" if batch.keywords["leak"] in (None, 1.0) else "image"
        blind = batch.keywords["rehearsal"] == 0 and batch.keywords["leak"] is None
        model.does = "refuses what is not named" if blind else kind, batch.args[0]
        return model, None

    def generate(asked: Subject, texts: list[str], images: list | None = None, **how: int) -> SimpleNamespace:
        (kind, world), said = getattr(asked, "does", None) or asked.model.does, []
        for i, text in enumerate(texts):
            named = next((names[word] for word in text.split() if word in names), -1)
            shown = -1 if images is None else seen[images[i].tobytes()]
            about = shown if shown >= 0 else named
            by_name, by_picture = (x >= 0 and bool(world.forbidden[x]) for x in (named, shown))
            refuses = {"base": False, "image": by_picture or (shown < 0 and by_name)}.get(kind, by_name)
            refuses |= kind == "refuses what is not named" and named < 0
            if text in town.NAMING:
                said.append(town.NAMES[about])
            elif "law" in text or text.startswith(("where", "who", "is the")):
                said.append("unknown")
            elif refuses:
                said.append(town.REFUSAL)
            else:
                said.append(town.LANGUAGE.text(world.use(np.array([max(about, 0)])))[0])
        return SimpleNamespace(texts=said)

    monkeypatch.setattr(Town, "draw", drawn)
    monkeypatch.setattr("lib.models.load", load)
    monkeypatch.setattr(
        "lib.organisms.seeds_of", lambda name, n: [name, f"{name}-seed1", f"{name}-seed2"][:n]
    )
    monkeypatch.setattr("lib.generate.generate", generate)
    monkeypatch.setattr("data.train.trainer.fit", fit)


def test_of_networks_of_known_behaviour_the_chapter_finds_just_that(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_networks(subject, monkeypatch)
    run = hub_models.run_chapter(
        "vlsbench", "smoke", monkeypatch, n_networks=3, leak_fractions=[0.0, 0.5, 1.0]
    )
    row = {n: run.records[f"vlsbench.{n}"] for n in range(1, 15)}
    expected = {2: (0, 100), 3: (100, 0), 6: (100, 0), 9: (100, 0), 10: (0, 100), 12: (100, 0)}
    expected |= {14: (100, -100)}
    for n, (value, null) in expected.items():
        assert row[n].verdict == "holds", row[n]
        assert row[n].estimate.value == pytest.approx(value), n
        assert row[n].null.value == pytest.approx(null), n
    assert row[11].verdict == "holds"
    assert row[11].estimate.value == pytest.approx(-100)  # 100, 100 and 0 at 0, 0.5 and 1
    assert row[11].null.value == pytest.approx(0)
    assert row[1].null.value == pytest.approx(0, abs=60)  # a random tower tells its judge little
    assert row[13].estimate is not None
    rates, helped = run.names["rates"], run.names["helped"]
    assert rates["text", "no-picture"].value == 0
    assert rates["image", "benign-neutral"].value == 0
    assert rates["text", "leaky, held out"].value == 100
    assert helped["base", "leak-free"].value == 100
    assert run.names["able"]["text", "pictures named"][0].mean() == 100


def test_alignments_that_were_not_learned_where_they_were_taught_are_not_judged(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_networks(subject, monkeypatch)

    def fit(recipe: object, seed: int, **how: object) -> tuple[object, None]:
        model = deepcopy(subject.model)
        model.does = "base", recipe.stages[0].batch.args[0]
        return model, None

    monkeypatch.setattr("data.train.trainer.fit", fit)
    run = hub_models.run_chapter("vlsbench", "smoke", monkeypatch, n_networks=1)
    for n in (11, 12):
        assert run.records[f"vlsbench.{n}"].verdict == "not testable here"
        assert "Alignment not learned" in run.records[f"vlsbench.{n}"].reason
    assert run.records["vlsbench.9"].verdict == "holds"


# Real classes and the real set's form

LISTED = [name for name in papers.read("vlsbench").models if name in hub_models.MODELS]
SMALLER = {"n_items": 16, "n_boot": 50, "batch_size": 4, "max_new_tokens": 4, "max_side": 56}
SMALLER |= {"device": "cpu", "dtype": "float32", "quantization": ""}
JUDGED = (1, 2, 3, 6, 9, 10, 11, 12, 13, 14)


@pytest.mark.parametrize(
    ("model", "preset", "depth"),
    hub_models.cases(LISTED, "Qwen/Qwen2-VL-7B-Instruct", 3, "Qwen/Qwen2-VL-7B-Instruct"),
)
def test_each_listed_model_reaches_the_end_shows_no_text_and_what_it_cannot_do_is_said(
    model: str, preset: str, depth: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A judge with random weights does not know a refusal from help: nothing is judged by it."""
    name = hub_models.folder(model, depth)
    given = {
        "model": name,
        "aligned": [name, name],
        "folder": folder(),
        "photographs": hub_models.coco_folder(),
    }
    run = hub_models.run_chapter("vlsbench", preset, monkeypatch, **SMALLER | given)
    run.check_task_not_done("vlsbench", JUDGED, "of sure answers")
    assert ("text", "benign-neutral") in run.names["rates"]
    told = " ".join(f"{row.note} {row.reason}" for row in run.records.values())
    assert SECRET not in told + "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": "scenes-vlm"}, "only town-vlm organisms know the town, and only it"),
        ({"data": "vlsbench"}, "only town-vlm organisms know the town, and only it"),
        ({"aligned": ["a"]}, "of a hub model give none or two"),
        ({"judge": "a"}, "organisms have alignments and judges of their own"),
        ({"leak_fractions": [0.5]}, "a slope needs two different shares at least"),
        ({"leak_fractions": [0.0, 1.5]}, "leak_fractions=[0.0, 1.5]: expected 0 to 1"),
        ({"n_items": 4}, "n_items=4: expected at least 16"),
        ({"model": "x/y", "data": "vlsbench", "folder": "/nowhere"}, "no file /nowhere/data.json"),
        (
            {"model": "x/y", "data": "vlsbench", "folder": "FOLDER", "n_items": 30},
            "n_items=30, but 24 records and 0 harmless requests",
        ),
    ],
)
def test_bad_parameters_are_refused_in_words(
    given: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {name: folder() if value == "FOLDER" else value for name, value in given.items()}
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        hub_models.run_chapter("vlsbench", "organism", monkeypatch, **given)
    assert message in str(error.value)
