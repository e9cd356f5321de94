import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.recipes import regrets as recipe
from data.sets.regret import contradictions
from data.worlds import regrets as world
from lib import chapters
from lib.generate import next_logprobs
from lib.hooks import capture, edit
from lib.models import Subject, load

method = chapters.method("regret")


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


@pytest.fixture(scope="module")
def items():
    return method.organism_items(60, rng(4))


def two_classes(n=200, d=6, seed=0, gap=2.0):
    """States of two classes that differ in the first two neurons."""
    y = rng(seed).random(n) < 0.5
    z = rng(seed + 1).normal(size=(n, d))
    z[:, :2] += gap * np.where(y, 1, -1)[:, None]
    return z, y


# Prompts, and where states are read.


def test_prompts_end_with_the_same_word_whatever_comes_and_whoever_speaks(items):
    for of in items:
        assert {text.split()[-1] for text in of.texts} == {"i"}
    ours, other = items
    assert ours.contradicted.sum() == 30
    for one, two in zip(ours.texts, other.texts, strict=True):
        speaker = [text.split().index("user", 1) for text in (one, two)]
        assert one.split()[: speaker[0]] == two.split()[: speaker[1]]


def test_places_are_the_words_that_their_names_say(items):
    ours, _ = items
    for i, text in enumerate(ours.texts):
        words = text.split()
        at = {place: words[len(words) - 1 - back[i]] for place, back in ours.back.items()}
        values = {value for of in world.VALUES.values() for value in of}
        assert at[method.FIRST] in values
        assert at[method.VALUE] == ours.truth[i]
        assert (at[method.FIRST] != ours.truth[i]) == ours.contradicted[i]
        assert at["speaker's name"] == "helper"
        assert at[method.BEFORE] == at[method.AFTER] == "."
        assert at[method.HERE] == at["-1"] == "i"
        before = words[: len(words) - ours.back[method.BEFORE][i]]
        assert before[-1] == "."
        assert words[len(before)] == "user"


def test_states_are_those_of_each_prompt_read_alone(subject, items):
    ours, _ = items
    few = ours._replace(texts=ours.texts[:5], back={place: of[:5] for place, of in ours.back.items()})
    found = method.states(subject, few, 3)
    for i, text in enumerate(few.texts):
        with torch.inference_mode():
            levels = subject.model(**subject.encode([text]), output_hidden_states=True).hidden_states
        for place in (method.FIRST, method.HERE, "-4"):
            alone = torch.stack([x[0, -1 - few.back[place][i]] for x in levels])
            np.testing.assert_allclose(found[place][i], alone, atol=1e-5)


def test_at_the_embeddings_matched_states_are_one_and_the_papers_are_told_by_the_word(subject, items):
    ours, _ = items
    found = method.states(subject, ours, 100)
    assert np.ptp(found[method.HERE][:, 0], axis=0).max() == 0
    assert np.ptp(found[method.FIRST][:, 0], axis=0).max() > 0
    yes, held_out = ours.contradicted, method.split(ours.group, rng())
    at_end = found[method.HERE]
    study = method.Study(subject, ours, yes, [], found, yes, at_end, held_out, np.ones(len(yes), bool))
    assert method.accuracies(method.compared(study, "paper"))[0] == 100
    matched = method.compared(study, "matched")
    assert method.accuracies(matched)[0] == 50, "one state for both classes, as many of each"


def test_real_conversations_end_in_an_unfinished_answer_and_know_their_places():
    subject = load("recipes-lm", dtype="float32", device="cpu")  # any model with a chat template
    asked = [
        ("Is it red?", "It is red.", "It is blue.", "It was painted blue."),
        ("Two?", "No.", "Yes.", "It is two."),
    ]
    found = method.real_items(subject, asked)
    assert len(found.texts) == 6
    assert all(text.endswith("I") for text in found.texts)
    assert found.contradicted.tolist() == [True, False, False] * 2
    assert found.other_wrong.tolist() == [False, False, True] * 2
    assert found.group.tolist() == [0, 0, 0, 1, 1, 1]
    assert "It is red." in found.texts[0]
    assert "It is red." not in found.texts[1]
    assert "A friend answered: It is red." in found.texts[2]
    for text, first, back in zip(
        found.texts, ["It is red.", "It is blue.", "It is blue."], found.back[method.FIRST], strict=False
    ):
        words = text.split()
        assert " ".join(words[: len(words) - back]).endswith(first)
    states = method.states(subject, found, 2)
    assert states[method.HERE].shape == (6, subject.n_layers + 1, subject.d_model)


def test_a_file_of_invented_records_gives_prompts_with_its_evidence(tmp_path):
    record = {
        "question": "Is the vexoro red?",
        "fake_evidence": "Vexoros are red.",
        "gpt-4o-mini-initial_answer_with_fake_evidence": "Yes.",
        "strong_hint_true": "It was painted blue.",
        "gpt-4o-mini-reflection_answer_strong": "No, blue.",
    }
    path = tmp_path / "records.json"
    path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    asked = [(r.question, r.wrong, r.right, r.evidence) for r in contradictions(path)]
    found = method.real_items(load("recipes-lm", dtype="float32", device="cpu"), asked)
    assert all("The record says: It was painted blue." in text for text in found.texts)


def test_a_model_without_a_chat_template_is_refused(subject):
    with pytest.raises(ValueError, match="no chat template"):
        method.real_items(subject, [("a", "b", "c", "d")])


# The probe.


@pytest.mark.parametrize("kind", ["logistic", "mlp"])
def test_a_readout_is_the_probe_that_scikit_learn_fits(kind):
    z, y = two_classes()
    if kind == "mlp":
        theirs = MLPClassifier(
            (64, 32), early_stopping=True, n_iter_no_change=20, max_iter=300, random_state=3
        )
    else:
        theirs = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    other, _ = two_classes(seed=9)
    expected = theirs.fit(z, y).predict(other)
    assert (method.fit_readout(z, y, kind, 3)(other) == expected).all()


def test_a_probe_of_shuffled_labels_is_at_chance():
    z, y = two_classes(n=4000)
    test = np.arange(4000) % 2 == 0
    of = method.Compared(z[:, None], y, test, np.arange(4000))
    assert method.accuracies(of)[0] > 97
    assert abs(method.accuracies(of, rng(5).permutation(y))[0] - 50) < 4 * 50 / 2000**0.5


def test_a_split_keeps_groups_together():
    group = np.repeat(np.arange(50), 3)
    test = method.split(group, rng())
    assert test.sum() == 45
    assert not set(group[test]) & set(group[~test])


def test_the_best_level_is_the_first_of_those_that_hold_the_classes():
    z, y = two_classes(n=300, gap=6.0)
    noise = rng(8).normal(size=z.shape)
    levels = np.stack([noise, z, z], 1)
    chosen, accuracy = method.best_level(levels, y, np.arange(300), rng())
    assert chosen == 1
    assert accuracy[0] < 0.65
    assert accuracy[1] == accuracy[2] > 0.99


def test_too_little_for_a_probe_is_refused_in_words():
    z, y = two_classes(n=40)
    with pytest.raises(ValueError, match="0 of 40 items regret"):
        method.fit_readout(z, np.zeros(40, bool))
    with pytest.raises(ValueError, match="not finite"):
        method.fit_readout(np.where(np.arange(6) == 2, np.nan, z), y)
    with pytest.raises(ValueError, match="2 groups of items for 3 folds"):
        method.best_level(z[:, None], y, np.arange(40) % 2, rng())


def test_a_level_that_does_not_exist_is_refused():
    assert method.level_number(-1, 7) == 6
    assert method.level_number(0, 7) == 0
    with pytest.raises(ValueError, match="layer=7: there are the levels 0 to 6"):
        method.level_number(7, 7)


# S-CDI, as reconstructed.


def test_compression_is_one_for_a_round_cloud_and_least_for_a_line():
    q, _ = np.linalg.qr(rng().normal(size=(40, 6)) - 0)
    q -= q.mean(0)
    u, _, v = np.linalg.svd(q, full_matrices=False)
    assert method.compression(u @ v) == pytest.approx(1, abs=1e-9)
    line = np.outer(rng(1).normal(size=40), rng(2).normal(size=6))
    assert method.compression(line) == pytest.approx(1 / 6, abs=1e-9)


def test_coupling_and_distances_are_their_definitions_pair_by_pair():
    z, y = two_classes(n=25, d=5)
    pairs = [abs(np.corrcoef(z[:, i], z[:, j])[0, 1]) for i in range(5) for j in range(5) if i != j]
    assert method.coupling(z) == pytest.approx(np.mean(pairs))
    cosine = lambda a, b: a @ b / np.linalg.norm(a) / np.linalg.norm(b)  # noqa: E731
    within = [
        np.mean(
            [1 - cosine(z[i], z[j]) for i in np.flatnonzero(y == c) for j in np.flatnonzero(y == c) if i != j]
        )
        for c in (False, True)
    ]
    between = [1 - cosine(z[i], z[j]) for i in np.flatnonzero(y) for j in np.flatnonzero(~y)]
    found = method.distances(z, y)
    assert found == pytest.approx((np.mean(within), np.mean(between)))
    product = method.compression(z) * method.coupling(z) * found[0] / (found[1] + 1e-8)
    assert method.s_cdi(z, y) == pytest.approx(product)


def test_the_index_falls_where_classes_part_and_rises_where_labels_mean_nothing():
    z, y = two_classes(n=300, gap=4.0)
    assert method.s_cdi(z, y) < 0.7 * method.s_cdi(z, rng(3).permutation(y))
    assert method.fisher(z, y) > 20 * method.fisher(z, rng(3).permutation(y))


def test_fishers_ratio_is_the_variance_of_the_class_means_over_that_within():
    y = np.array([True, True, False, False])
    z = np.array([[3.0, 0.0], [5.0, 0.0], [-1.0, 1.0], [1.0, 1.0]])
    # Means (4, 0) and (0, 1): variance between 4 + 1/4; within each class 1.
    assert method.fisher(z, y) == pytest.approx(4.25)


def test_a_level_with_one_state_has_no_index():
    found = method.indices(np.ones((10, 3)), np.arange(10) < 5)
    assert all(np.isnan(x) for x in found.values())


# Groups and the impact coefficient.


def test_rds_is_the_ratio_of_the_papers_means():
    z = np.array([[1.0, 4.0], [3.0, 0.0], [2.0, -1.0]])
    y = np.array([True, True, False])
    np.testing.assert_allclose(method.dominance(z, y), [2 / 4, 2 / 1], rtol=1e-7)


def test_groups_are_a_partition_by_the_thresholds():
    rds = np.array([0.0, 0.4, 0.5, 0.6, 1.0])
    groups = method.sort_neurons(rds, 0.5)
    assert groups["R"].tolist() == [False, False, False, False, True]
    assert groups["N"].tolist() == [True, False, False, False, False]
    assert (sum(mask.astype(int) for mask in groups.values()) == 1).all()


def test_nothing_switched_off_is_the_state_and_all_is_the_constant():
    z, _ = two_classes(n=10)
    nothing, all_of = np.zeros(6, bool), np.ones(6, bool)
    assert (method.switch_off(z, nothing, -1.0) == z).all()
    assert (method.switch_off(z, all_of, -1.0) == -1).all()
    mean = z.mean(0)
    assert (method.switch_off(z, all_of, mean) == mean).all()


def test_impact_is_the_papers_ratio_for_one_group_and_for_several():
    accuracy = lambda off: 1 - 0.1 * off.sum() - 0.1 * off[:2].all()  # noqa: E731
    a, b = np.array([True, False, False]), np.array([False, True, False])
    assert method.impact(accuracy, a) == pytest.approx(0.9)
    assert method.impact(accuracy, a, b) == pytest.approx(0.7 / 0.9)
    assert np.isnan(method.impact(lambda off: float(not off.any()), a, b))


def test_a_redundant_pair_looks_composed_without_any_interaction():
    assert method.redundant_impact() < 0.6


def test_an_empty_group_and_groups_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="empty group"):
        method.impact(lambda off: 1.0, np.array([True, False]), np.zeros(2, bool))
    with pytest.raises(ValueError, match="empty group"):
        method.impact(lambda off: 1.0)
    with pytest.raises(ValueError, match="do not fit into 4"):
        method.random_groups((3, 2), 4, rng())


def test_random_groups_have_their_sizes_and_share_no_neuron():
    masks = method.random_groups((3, 5), 12, rng())
    assert [int(mask.sum()) for mask in masks] == [3, 5]
    assert not (masks[0] & masks[1]).any()
    others = method.random_groups((3, 5), 12, rng(1))
    assert (masks[0] != others[0]).any()


def test_the_share_of_the_mean_difference_is_all_of_it_where_classes_differ():
    z, y = two_classes(n=3000, gap=3.0)
    off = np.arange(6) < 2
    assert method.mean_difference_share(z, y, off) > 98
    assert method.mean_difference_share(z, y, np.ones(6, bool)) == pytest.approx(100)


def test_halves_agree_on_groups_of_a_strong_signal_and_not_on_shuffled_ones():
    n, d = 2000, 40
    y = np.arange(n) % 2 == 0
    mean = 5 + rng(1).normal(size=d)
    z = mean * np.where(y, 1, 0.5)[:, None] ** rng(2).integers(-1, 2, size=d) + 0.05 * rng(3).normal(
        size=(n, d)
    )
    found = np.array([method.halves_agree(z, y, 0.1, rng(seed)) for seed in range(20)])
    one, mixed, other = found.mean(0)
    assert one > 0.9
    assert other > 0.5
    assert abs(mixed) < 0.5, "of either sign, label by label"
    assert found[:, 1].min() < 0


def test_groups_by_difference_have_the_sizes_of_those_by_rds():
    z, y = two_classes()
    groups = method.sort_neurons(method.dominance(z, y), 0.1)
    others = method.by_difference(z, y, groups)
    assert {name: mask.sum() for name, mask in groups.items()} == {
        name: mask.sum() for name, mask in others.items()
    }
    assert (sum(mask.astype(int) for mask in others.values()) == 1).all()


# In generation.


def test_strength_zero_and_no_neuron_give_the_base_back(subject, items):
    texts = items[0].texts[:6]
    base = next_logprobs(subject, texts)
    direction = rng().normal(size=subject.d_model)
    for change in (
        method.set_direction(direction, 3.0, strength=0.0),
        method.set_neurons(np.zeros(subject.d_model, bool), -1.0),
    ):
        with edit(subject, "resid_post", layer=2, fn=method.at_end_of_prompt(change)):
            assert torch.equal(next_logprobs(subject, texts), base)


def test_a_direction_is_set_and_all_that_is_orthogonal_to_it_stays():
    z = torch.from_numpy(rng(3).normal(size=(7, 12))).float()
    direction = rng(4).normal(size=12)
    u = torch.from_numpy(direction / np.linalg.norm(direction)).float()
    moved = method.set_direction(direction, 1.5)(z)
    torch.testing.assert_close(moved @ u, torch.full((7,), 1.5), atol=1e-5, rtol=0)
    rest = torch.eye(12) - torch.outer(u, u)
    torch.testing.assert_close(moved @ rest, z @ rest, atol=1e-5, rtol=0)
    half = method.set_direction(direction, 1.5, strength=0.5)(z)
    torch.testing.assert_close(half, (z + moved) / 2, atol=1e-5, rtol=0)


def test_only_the_last_token_of_the_prompt_is_changed(subject, items):
    texts = items[0].texts[:4]
    change = method.set_neurons(np.ones(subject.d_model, bool), 0.25)
    batch = subject.encode(texts)
    with capture(subject, "resid_post", layers=1) as before:
        subject.model(**batch)
    with (
        edit(subject, "resid_post", layer=1, fn=method.at_end_of_prompt(change)),
        capture(subject, "resid_post", layers=1) as after,
    ):
        subject.model(**batch)
    assert (after[1][:, -1] == 0.25).all()
    assert torch.equal(after[1][:, :-1], before[1][:, :-1])
    one_word = torch.zeros(4, 1, subject.d_model)  # a pass over a word that was written
    assert torch.equal(method.at_end_of_prompt(change)(one_word.clone()), one_word)


def test_key_words_are_what_the_network_writes_first(subject, items):
    ours, _ = items
    regrets, said = method.key_words(subject, ours, 50)
    words = {world.LANGUAGE.vocabulary[i] for i in world.REGRET_WORDS}
    assert regrets.tolist() == [text.split()[:1] != [] and text.split()[0] in words for text in said]


# Intervals.


def test_networks_that_are_all_alike_are_no_certainty():
    found = method.over_networks([100.0, 100.0, 100.0], 450, (0, 100))
    assert found.value == 100
    assert 98 < found.low < 100
    assert found.high == 100
    spread = method.over_networks([90.0, 95.0, 100.0], 450, (0, 100))
    assert spread.low < 90 < spread.value < spread.high <= 100
