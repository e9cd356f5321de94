"""CHAIR and POPE: hand-made examples, the worlds' own counts, and plain loops."""

import numpy as np
import pytest

from data.sets import hallucination as h
from data.worlds import scene_words, scenes

WORDS = {
    "dog": "dog",
    "puppy": "dog",
    "hot dog": "hot dog",
    "person": "person",
    "man": "person",
    "bus": "bus",
}
TEXTS = ["A man walks two dogs, a puppy and a bus.", "Hot dogs on a plate", "nothing"]
PRESENT = [{"person", "dog", "hot dog"}, {"dog"}, {"bus"}]


def random_captions(n: int, rng: np.random.Generator) -> list[str]:
    return [" ".join(rng.choice([*scenes.OBJECTS, "red", "a1"], rng.integers(0, 9))) for _ in range(n)]


def slow_scores(texts: list[str], present: list[set[str]]) -> dict[str, float]:
    """CHAIR as its paper says it, word by word; for captions in which each word is one object or none."""
    captions_wrong = mentions = wrong = found = there = 0
    for text, objects in zip(texts, present, strict=True):
        own_wrong, right = 0, set()
        for word in text.split():
            if word in scenes.OBJECTS:
                mentions += 1
                if word in objects:
                    right.add(word)
                else:
                    own_wrong += 1
        captions_wrong += own_wrong > 0
        wrong += own_wrong
        found += len(right)
        there += len(objects)
    precision, recall = 1 - wrong / mentions, found / there
    return {
        "CHAIR_S (%)": 100 * captions_wrong / len(texts),
        "CHAIR_I (%)": 100 * wrong / mentions,
        "recall (%)": 100 * recall,
        "F1 (%)": 100 * 2 * precision * recall / (precision + recall),
        "objects a caption": mentions / len(texts),
    }


def test_mentions_stand_where_they_are_said_to() -> None:
    names = [["person", "dog", "dog", "bus"], ["hot dog"], []]
    for text, expected in zip(TEXTS, names, strict=True):
        found = h.find_mentions("İ " + text, WORDS)  # a letter that is two in lower case
        assert [mention.name for mention in found] == expected
        for mention in found:
            word = text[mention.start - 2 : mention.end - 2].lower()
            assert mention.name in (WORDS.get(word), WORDS.get(word.removesuffix("s")))
    assert h.find_mentions("a dog", {}) == []


COCO = {
    name: synonyms[0]
    for synonyms in (line.split(", ") for line in """
person, man, woman, child, baby, adult, passenger, policeman
airplane, plane, air plane, jet
motorcycle, motor bike
bicycle, bike
train
elephant
dog, puppy
sheep
bear
teddy bear
hot dog
knife
scarf
mouse
goose
chair, seat
toilet
tie
wine glass
traffic light, street light
bus
laptop, computer, laptop computer
sports ball
cell phone, phone
""".strip().splitlines()) for name in synonyms
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two men, three women and five children", ["person", "person", "person"]),
        ("policemen and people", ["person", "person"]),
        ("two knives, scarves, computer mice and geese", ["knife", "scarf", "laptop", "mouse", "goose"]),
        ("Puppies chase buses past wine glasses.", ["dog", "bus", "wine glass"]),
        ("sheep", ["sheep"]),
        ("a baby elephant and an adult dog", ["elephant", "dog"]),
        ("adult elephants, baby  sheep", ["elephant", "sheep"]),
        ("a baby with an elephant", ["person", "elephant"]),
        ("a baby zebra, a bear cub, a baby animal", ["bear"]),
        ("a passenger jet over passenger trains", ["airplane", "train"]),
        ("a passenger on a train", ["person", "train"]),
        ("train tracks beside a train track", []),
        ("a player at home plate", []),
        ("two teddy  bears and a\nteddy bear", ["teddy bear", "teddy bear"]),
        ("a baby teddy bear", ["person", "teddy bear"]),
        ("a bow tie and a tie", ["tie", "tie"]),
        ("toilet seats", ["toilet"]),
        ("the seat of the toilet", ["toilet"]),
        ("seats on a bus", ["chair", "bus"]),
        ("a motor bike and a bike", ["motorcycle", "bicycle"]),
        ("a traffic signal, a stop light", []),
        ("street lights", ["traffic light"]),
        ("a laptop computer and a computer", ["laptop", "laptop"]),
        ("a mobile phone", []),
        ("a person-sized hot-dog", []),
        ("the dog's bus, a mandog", ["dog", "bus"]),
        ("HOT DOGS", ["hot dog"]),
    ],
)
def test_words_name_objects_by_chairs_rules(text: str, expected: list[str]) -> None:
    assert [mention.name for mention in h.find_mentions(text, COCO)] == expected


def test_an_image_in_which_everything_is_or_nothing_has_no_question() -> None:
    rng = np.random.default_rng(0)
    for bad in (True, False):
        present = np.array([[True, False], [bad, bad]])
        with pytest.raises(ValueError, match="in image 1 there is every object or none"):
            h.pope_questions(present, present, ["a", "b"], rng)


def test_counts_of_a_hand_made_example() -> None:
    table = h.caption_counts(TEXTS, PRESENT, WORDS, [{"bus"}, {"person"}, {"person"}])
    assert table.tolist() == [[1, 1, 4, 1, 1, 2, 3], [1, 1, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1]]
    assert len(h.CAPTION_COUNTS) == table.shape[1]
    total = table.sum(0)
    assert [of(total) for of in h.CHAIR.values()] == pytest.approx([200 / 3, 40, 40, 48, 5 / 3])
    assert h.tempting_share(total) == 50


def test_scores_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    world = scenes.sample(60, rng)
    present = [{scenes.OBJECTS[k] for k in np.nonzero(row)[0]} for row in world.present]
    texts = random_captions(60, rng)
    total = h.caption_counts(texts, present, {name: name for name in scenes.OBJECTS}).sum(0)
    assert {name: of(total) for name, of in h.CHAIR.items()} == pytest.approx(slow_scores(texts, present))


def test_counts_are_those_of_the_world() -> None:
    rng = np.random.default_rng(1)
    world, names = scenes.sample(50, rng, rate=0), np.array(scenes.OBJECTS)
    texts = random_captions(50, rng)
    sets = [[set(names[row]) for row in rows] for rows in (world.present, world.missing)]
    found = h.caption_counts(texts, sets[0], dict(zip(names, names, strict=True)), sets[1])
    assert found.tolist() == h.count_table(*scene_words.chair(texts, world)).tolist()


def test_silence_has_no_hallucination_and_no_recall() -> None:
    total = h.caption_counts([""], [{"dog"}], WORDS).sum(0)
    assert [of(total) for of in h.CHAIR.values()] == [0, 0, 0, 0, 0]


def test_one_entry_an_image_is_asked_for() -> None:
    with pytest.raises(ValueError, match="2 captions, objects of 1 images"):
        h.caption_counts(["a", "b"], [{"dog"}], WORDS)
    with pytest.raises(ValueError, match=r"tables of \[2, 3\] images"):
        h.over_images(lambda a, b: a, np.ones((2, 7)), np.ones((3, 7)))


def test_adversarial_objects_are_the_missing_partners_and_no_absent_object_is_there() -> None:
    rng = np.random.default_rng(0)
    world, seen = scenes.sample(300, rng, pairs=(2, 3), rate=0), scenes.sample(2000, rng)
    absent = h.absent_objects(world.present, seen.present, rng)
    row = np.arange(300)
    assert all(not world.present[row, about].any() for about in absent.values())
    assert world.missing[row, absent["adversarial"]].all()
    assert world.missing[row, absent["random"]].mean() < 0.4
    frequency = seen.present.sum(0)
    assert frequency[absent["popular"]].tolist() == [frequency[~there].max() for there in world.present]
    assert len(np.unique(absent["random"])) == len(scenes.OBJECTS)


def test_question_sets_have_popes_format_and_true_labels() -> None:
    rng = np.random.default_rng(0)
    world = scenes.sample(20, rng)
    sets = h.pope_questions(world.present, world.present, scenes.OBJECTS, rng)
    assert list(sets) == ["random", "popular", "adversarial"]
    for records in sets.values():
        assert [r["question_id"] for r in records] == list(range(40))
        for r in records:
            assert set(r) == {"question_id", "image", "text", "label"}
            name = r["text"].removeprefix("is there a ")
            assert (r["label"] == "yes") == world.present[r["image"], scenes.OBJECTS.index(name)]
    yes = [[r["text"] for r in records if r["label"] == "yes"] for records in sets.values()]
    assert yes[0] == yes[1] == yes[2]


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("No, there is no dog.", False),
        ("There isn't one", False),
        ("It is not there", False),
        ("Yes. There is no cat, though", True),
        ("A notebook is on the table", True),
        ("nothing", True),
    ],
)
def test_answers_are_read_as_pope_reads_them(answer: str, yes: bool) -> None:
    assert h.says_yes(answer) is yes


def test_scores_of_answers_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    labels, said = rng.choice(["yes", "no"], 90), rng.choice(["yes", "no"], 90, p=[0.7, 0.3])
    records = [{"image": f"{i % 7}.jpg", "label": label} for i, label in enumerate(labels)]
    table = h.confusion(records, said)
    assert table.shape == (7, 4)
    pairs = list(zip(labels, said, strict=True))
    tp, fp, fn, tn = (pairs.count(p) for p in (("yes", "yes"), ("no", "yes"), ("yes", "no"), ("no", "no")))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    expected = (
        (tp + tn) / 90,
        precision,
        recall,
        2 * precision * recall / (precision + recall),
        (tp + fp) / 90,
    )
    total = table.sum(0)
    assert [of(total) for of in h.POPE.values()] == pytest.approx([100 * x for x in expected])
    images = [f"{i}.jpg" for i in range(7, -1, -1)]
    assert h.confusion(records, said, images)[1:].tolist() == table[::-1].tolist()


def test_a_bootstrap_draw_is_the_score_of_the_drawn_images() -> None:
    rng = np.random.default_rng(0)
    table = h.count_table(*rng.integers(0, 5, (5, 40)))
    draws = rng.integers(0, 40, (3, 40))
    fast = h.chair_i(h.times_drawn(draws, 40) @ table)
    assert fast.tolist() == pytest.approx([h.chair_i(table[draw].sum(0)) for draw in draws])
    found = h.over_images(h.chair_i, table)
    assert found.value == pytest.approx(h.chair_i(table.sum(0)))
    assert found.low < found.value < found.high
    assert found.n == 40
    assert h.over_images(lambda a, b: h.f1(a) - h.f1(b), table, table).value == 0
