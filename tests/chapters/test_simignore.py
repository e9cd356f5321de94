"""The method cells of notebooks/simignore.ipynb: the very code that the reader reads."""

import re

import hub_models
import numpy as np
import pytest
import torch
from families import PROMPTS, picture, subject
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from data.sets.questions import MultipleChoice
from data.worlds.scenes import CELL_OF_PATCH, OBJECTS
from lib import chapters, papers
from lib.hooks import capture, edit
from lib.models import Subject

m = chapters.method("simignore")
N = 16  # image tokens of the tiny model
OPTIONS = [["red", "blue", "star"], ["dog", "cat", "left"]]


@pytest.fixture(scope="module")
def llava() -> Subject:
    return subject("llava")


@pytest.fixture(scope="module")
def items() -> object:
    """Two questions of different length, so that the second is padded on the left."""
    return m.Items(
        [picture(0), picture(1)], PROMPTS, PROMPTS, OPTIONS, np.array([0, 2]), np.array(["a", "b"])
    )


@pytest.fixture(scope="module")
def prompts(llava: Subject, items: object) -> object:
    return m.read(llava, items)


@pytest.fixture(scope="module")
def ignored() -> torch.Tensor:
    """Seven tokens of each item."""
    return m.first(torch.rand(2, N, generator=torch.Generator().manual_seed(3)).argsort(1), 7)


# Questions


def test_the_answer_of_each_question_is_what_the_world_says() -> None:
    items, truth = m.scene_items(80, np.random.default_rng(0), split="test", pairs=(3, 3), distractors=6)
    assert list(items.kind) == ["which"] * 40 + ["right"] * 20 + ["left"] * 20
    for i, (prompt, options, question) in enumerate(
        zip(items.prompts, items.options, items.asked, strict=True)
    ):
        assert prompt == f"choose {' '.join(options)} : {question}"
        named = set(question.split()) & set(OBJECTS)
        assert not named & set(options), "the object that the question names is no option"
        assert len(named) == (items.kind[i] != "which")
        assert truth.decides[i].sum() == (4 if items.kind[i] == "which" else 8)
        assert not (truth.decides[i] & ~truth.filled[i]).any()


def test_patches_that_decide_are_those_of_the_answer_and_of_the_object_that_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    draw = m.scenes.draw
    monkeypatch.setattr(
        m.scenes, "draw", lambda scenes, *a, **k: drawn.append(scenes) or draw(scenes, *a, **k)
    )
    items, truth = m.scene_items(40, np.random.default_rng(1), split="test")
    cells = np.concatenate([scenes.objects for scenes in drawn])
    for i, on_board in enumerate(cells):
        answer = items.options[i][items.answer[i]]
        needed = {answer} | (set(items.asked[i].split()) & set(OBJECTS))
        expected = np.isin(on_board, [OBJECTS.index(name) for name in needed])
        np.testing.assert_array_equal(truth.decides[i], expected[CELL_OF_PATCH])
        if items.kind[i] == "which":
            assert [OBJECTS.index(name) in on_board for name in items.options[i]].count(True) == 1
        else:
            row, column = divmod(int(on_board.tolist().index(OBJECTS.index(answer))), 4)
            x_row, x_column = divmod(int(on_board.tolist().index(OBJECTS.index(*(needed - {answer})))), 4)
            assert row == x_row
            assert (column > x_column) == (items.kind[i] == "right")


def test_a_shift_changes_images_only_through_its_arguments() -> None:
    plain, _ = m.scene_items(20, np.random.default_rng(2), split="test")
    noisy, _ = m.scene_items(20, np.random.default_rng(2), split="test", noise=0.3)
    assert plain.prompts == noisy.prompts
    assert not np.array_equal(plain.images, noisy.images)
    cluttered, _ = m.scene_items(20, np.random.default_rng(2), split="test", pairs=(3, 3), distractors=6)
    assert cluttered.prompts != plain.prompts


@pytest.mark.parametrize(
    ("said", "index"),
    [
        ("B", 1), (" B", 1), ("B.", 1), ("B. Vermont", 1), ("(B)", 1), ("B)", 1), ("The answer is B.", 1),
        ("Vermont", 1), ("Maryland", 0), ("C", -1), ("Z", -1), ("Because", -1), ("", -1), ("b", -1),
        ("The answer is A. No. The answer is B.", -1),
    ],
)  # fmt: skip
def test_letters_and_texts_are_read_as_options_and_all_else_is_wrong(said: str, index: int) -> None:
    assert m.chosen_option(said, ["Maryland", "Vermont"]) == index


QUESTION = MultipleChoice(picture(), "Which of these is highlighted?", ("Maryland", "Vermont"), 1, "", "geo")


def test_a_question_of_scienceqa_is_put_as_in_llavas_evaluation() -> None:
    items = m.science_items([QUESTION], vicuna=True)
    assert items.prompts == [
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful,"
        " detailed, and polite answers to the user's questions. USER: <image>\nContext: N/A\nQuestion:"
        " Which of these is highlighted?\nOptions: (A) Maryland (B) Vermont\nAnswer with the option's letter"
        " from the given choices directly. ASSISTANT:"
    ]
    assert items.chat is False
    (plain,) = m.science_items([QUESTION], vicuna=False).prompts
    assert plain.startswith("Context: N/A\n")
    assert plain.endswith("directly.")


def test_the_text_of_options_is_that_of_the_authors_runs() -> None:
    items = m.science_items([QUESTION], vicuna=True)
    assert m.source_text(items, "options") == ["Maryland Vermont"]
    assert m.source_text(items, "options", letters=True) == ["Options: (A) Maryland (B) Vermont"]
    assert m.source_text(items, "question_options") == ["Which of these is highlighted? Maryland Vermont"]
    assert m.source_text(items, "question") == ["Which of these is highlighted?"]
    assert m.source_text(items, "bos") == [""]
    with pytest.raises(ValueError, match=r"text_source='caption'.*options, question_options, question, bos"):
        m.source_text(items, "caption")


def test_the_null_text_is_of_any_other_question_and_may_hold_the_answer() -> None:
    items, _ = m.scene_items(400, np.random.default_rng(0), split="test")
    other = m.other_questions(400, 0)
    assert sorted(other) == list(range(400))
    assert (other != np.arange(400)).all()
    assert (other != m.other_questions(400, 1)).any()
    answers = [options[k] for options, k in zip(items.options, items.answer, strict=True)]
    held = np.mean([answer in items.options[j] for answer, j in zip(answers, other, strict=True)])
    assert held == pytest.approx(4 / 18, abs=0.06), "by chance: four of eighteen kinds of object"


@torch.no_grad()
def test_the_null_shows_an_effect_that_is_planted_in_it() -> None:
    """Image tokens that are the very words of another question's options: its text must find them."""
    model = subject("llava")
    words = [["red", "blue", "star"], ["dog", "cat", "left"]]
    items = m.Items([picture(0), picture(1)], PROMPTS, PROMPTS, words, np.array([0, 2]), np.array(["a", "b"]))
    prompts = m.read(model, items)
    positive = np.zeros((2, N), bool)
    positive[:, :3] = True
    texts = m.source_text(items, "options")
    planted, _ = m.embed_text(model, texts[::-1])
    where = prompts.image[:, :3, None].expand(-1, -1, planted.shape[2])
    prompts = prompts._replace(embeds=prompts.embeds.scatter(1, where, planted))
    best = m.pairs(model, prompts, texts[::-1]).amax(2).numpy()
    assert (m.auroc(best, positive, positive | True) == 1).all()


# What enters the model


def test_what_is_read_gives_the_models_own_logits_to_the_last_bit(
    llava: Subject, items: object, prompts: object
) -> None:
    inputs = llava.encode(items.prompts, items.images)
    inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        own = llava.model(**inputs, logits_to_keep=1).logits[:, -1]
    assert torch.equal(m.logits(llava, prompts), own)
    assert (prompts.written[1] == 0).any(), "the second prompt is padded"
    assert torch.equal(
        inputs["input_ids"].gather(1, prompts.image), torch.full((2, N), llava.image_token_ids[0])
    )


def test_models_and_prompts_without_image_tokens_are_refused(llava: Subject, items: object) -> None:
    with pytest.raises(ValueError, match=r"LlamaForCausalLM has no image tokens"):
        m.read(subject("llama"), items)
    with pytest.raises(ValueError, match=r"images with \[0, 16\] image tokens in one batch"):
        m.read(llava, items._replace(images=[picture(), None]))
    with pytest.raises(NotImplementedError, match=r"Qwen2VL\w+ has positions in two dimensions"):
        m.read(subject("qwen2_vl"), items)


def test_text_is_the_rows_of_the_embedding_table(llava: Subject) -> None:
    T, written = m.embed_text(llava, ["red blue", "star"], bos=True)
    table, ids = llava.model.get_input_embeddings().weight, llava.tokenizer.convert_tokens_to_ids
    assert written.tolist() == [[True, True, True], [True, True, False]]
    assert torch.equal(T[0], table[ids(["<s>", "red", "blue"])])
    assert torch.equal(T[1, :2], table[ids(["<s>", "star"])])
    with pytest.raises(ValueError, match="text 1 is empty"):
        m.embed_text(llava, ["red", ""])


# Similarity


def vectors(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 6, 5, generator=generator), 2 * torch.randn(3, 4, 5, generator=generator)


def test_similarities_equal_their_definitions() -> None:
    V, T = vectors()
    v, t = (x.double().numpy() for x in (V[:, :, None], T[:, None]))
    norm = np.linalg.norm
    expected = {
        "cosine": (v * t).sum(-1) / norm(v, axis=-1) / norm(t, axis=-1),
        "euclidean": -norm(v - t, axis=-1),
        "manhattan": -abs(v - t).sum(-1),
    }
    for measure, S in expected.items():
        np.testing.assert_allclose(m.similarity(V, T, measure), S, atol=1e-5)
    with pytest.raises(ValueError, match=r"similarity='l3'.*cosine, euclidean, manhattan"):
        m.similarity(V, T, "l3")


def test_on_normalised_vectors_euclidean_distance_ranks_as_cosine_does() -> None:
    V, T = vectors()
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (V, T)]
    euclidean, cosine = m.similarity(*unit, "euclidean"), m.similarity(V, T)
    assert torch.equal(euclidean.flatten(1).argsort(1), cosine.flatten(1).argsort(1))
    assert torch.equal(m.ranking(euclidean), m.ranking(cosine))
    raw = m.similarity(V, T, "euclidean")
    assert not torch.equal(raw.flatten(1).argsort(1), cosine.flatten(1).argsort(1))


def test_padding_of_text_is_never_the_best_pair(llava: Subject, prompts: object) -> None:
    S = m.pairs(llava, prompts, ["red blue star", "cat"])
    alone = m.pairs(llava, prompts, ["cat", "cat"])
    assert (S[1, :, 1:] == -torch.inf).all()
    torch.testing.assert_close(S[1].amax(1), alone[1, :, 0])


def slow_walk(S: np.ndarray, start_rank: int, stride: int) -> list[int]:
    """Pairs in descending order, collecting image tokens that have not been met; one after the other."""
    walk = sorted(np.ndindex(*S.shape), key=lambda pair: -S[pair])
    met: list[int] = []
    for place, (image, _) in enumerate(walk):
        if place >= start_rank and (place - start_rank) % stride == 0 and image not in met:
            met.append(image)
    return met + sorted(set(range(len(S))) - set(met), key=lambda image: -S[image].max())


@pytest.mark.parametrize(("start_rank", "stride"), [(0, 1), (1, 1), (0, 2), (3, 5), (20, 1)])
def test_the_ranking_equals_the_slow_walk(start_rank: int, stride: int) -> None:
    S = torch.rand(5, 9, 4, generator=torch.Generator().manual_seed(0))
    found = m.ranking(S, start_rank=start_rank, stride=stride)
    for row, own in zip(found, S, strict=True):
        assert row.tolist() == slow_walk(own.numpy(), start_rank, stride)


def test_a_walk_that_skips_pairs_may_end_before_it_has_met_all_tokens() -> None:
    S = torch.rand(5, 9, 2, generator=torch.Generator().manual_seed(0))
    met = m.met_at(S, stride=2) < 9
    for row, own in zip(met, S, strict=True):
        places = [image for image, _ in sorted(np.ndindex(9, 2), key=lambda pair: -own[pair])][::2]
        assert row.nonzero()[:, 0].tolist() == sorted(set(places))
    assert not met.all()
    assert (m.met_at(S) < 18).all()


def test_from_the_start_and_pair_by_pair_the_walk_keeps_the_top_of_the_best_pairs() -> None:
    S = torch.rand(5, 9, 4, generator=torch.Generator().manual_seed(1))
    for k in range(1, 10):
        kept = m.ranking(S)[:, :k]
        assert torch.equal(kept, S.amax(2).topk(k).indices)


def test_start_and_stride_change_the_ranking_only_where_pairs_are_skipped() -> None:
    S = torch.tensor([[[0.9, 0.1], [0.8, 0.7], [0.6, 0.5]]])
    assert m.ranking(S).tolist() == [[0, 1, 2]]
    assert m.ranking(S, start_rank=1).tolist() == [[1, 2, 0]]  # token 0 is met again with its second pair
    assert m.ranking(S, stride=2).tolist() == [[0, 1, 2]]
    assert m.ranking(S, start_rank=4).tolist() == [[2, 0, 1]]


def test_padded_pairs_are_not_met() -> None:
    S = torch.rand(2, 6, 3, generator=torch.Generator().manual_seed(2))
    padded = torch.cat([S, torch.full((2, 6, 2), -torch.inf)], 2)
    for start_rank, stride in ((0, 1), (1, 1), (16, 3)):
        settings = {"start_rank": start_rank, "stride": stride}
        assert torch.equal(m.ranking(padded, **settings), m.ranking(S, **settings))


# Orders


def test_orderings_begin_where_they_say() -> None:
    ranked = torch.rand(3, 9, generator=torch.Generator().manual_seed(0)).argsort(1)
    orders = {name: m.ignoring_order(ranked, name) for name in m.ORDERINGS}
    for order in orders.values():
        assert torch.equal(order.sort(1).values, torch.arange(9).expand(3, 9))
    assert torch.equal(orders["least"], ranked.flip(1))
    assert torch.equal(orders["most"], ranked)
    middle = m.first(orders["middle"], 3)
    for row, own in zip(middle, ranked, strict=True):
        assert set(row.nonzero()[:, 0].tolist()) == set(own[3:6].tolist())
    assert torch.equal(orders["random"], m.ignoring_order(ranked, "random", seed=0))
    assert not torch.equal(orders["random"], m.ignoring_order(ranked, "random", seed=1))
    with pytest.raises(ValueError, match=r"ordering='worst'.*least, random, middle, most"):
        m.ignoring_order(ranked, "worst")


@pytest.mark.parametrize("n", [-1, 17])
def test_more_tokens_than_there_are_cannot_be_ignored(n: int) -> None:
    with pytest.raises(ValueError, match=rf"{n} image tokens are to be ignored, but there are 16"):
        m.first(torch.arange(16).expand(2, 16), n)


# Mask and removal


@torch.no_grad()
def test_ignoring_no_token_gives_the_base_models_logits_to_the_last_bit(
    llava: Subject, prompts: object
) -> None:
    nothing = torch.zeros(2, N, dtype=torch.bool)
    base = m.logits(llava, prompts)
    assert torch.equal(m.logits(llava, m.masked(prompts, nothing)), base)
    assert torch.equal(m.logits(llava, m.removed(prompts, nothing)), base)


@torch.no_grad()
@pytest.mark.parametrize("n", [1, 7, 15, 16])
def test_masked_and_removed_tokens_give_the_same_answers(llava: Subject, prompts: object, n: int) -> None:
    ignored = m.first(torch.rand(2, N).argsort(1), n)
    mask, removal = (m.logits(llava, change(prompts, ignored)) for change in (m.masked, m.removed))
    torch.testing.assert_close(mask, removal, atol=1e-5, rtol=1e-5)
    assert (mask - m.logits(llava, prompts)).abs().max() > 1e-3, "but they do matter"
    assert m.removed(prompts, ignored).embeds.shape[1] == prompts.embeds.shape[1] - n


def test_what_is_left_keeps_its_position_and_its_place(prompts: object, ignored: torch.Tensor) -> None:
    shorter = m.removed(prompts, ignored)
    for i in range(2):
        left = prompts.image[i][~ignored[i]]
        torch.testing.assert_close(shorter.embeds[i, shorter.image[i]], prompts.embeds[i, left])
        assert torch.equal(shorter.positions[i, shorter.image[i]], prompts.positions[i, left])
    assert torch.equal(shorter.positions[:, -1], prompts.positions[:, -1])


@torch.no_grad()
def test_positions_derived_from_the_mask_would_give_other_answers(
    llava: Subject, prompts: object, ignored: torch.Tensor
) -> None:
    holes = m.masked(prompts, ignored)
    shifted = holes._replace(positions=(holes.written.cumsum(1) - 1).clamp_min(0))
    assert (m.logits(llava, holes) - m.logits(llava, shifted)).abs().max() > 1e-3


@pytest.mark.parametrize("change", ["masked", "removed"])
def test_ignored_tokens_have_exactly_zero_influence(
    llava: Subject, prompts: object, ignored: torch.Tensor, change: str
) -> None:
    embeds = prompts.embeds.clone().requires_grad_()
    m.logits(llava, getattr(m, change)(prompts._replace(embeds=embeds), ignored)).square().sum().backward()
    of_image = prompts._replace(embeds=embeds.grad).vectors
    assert (of_image[ignored] == 0).all()
    assert (of_image[~ignored].abs().amax(1) > 0).all()


@torch.no_grad()
def test_without_image_no_pixel_matters(llava: Subject, items: object, prompts: object) -> None:
    everything = torch.ones(2, N, dtype=torch.bool)
    blind = m.logits(llava, m.removed(prompts, everything))
    other = m.read(llava, items._replace(images=[picture(5), picture(6)]))
    assert torch.equal(blind, m.logits(llava, m.removed(other, everything)))


# FastV


def test_the_influence_rate_is_the_last_tokens_attention_averaged_over_heads(
    llava: Subject, prompts: object
) -> None:
    inputs = {
        "inputs_embeds": prompts.embeds,
        "attention_mask": prompts.written,
        "position_ids": prompts.positions,
    }
    own = llava.model.config._attn_implementation
    llava.model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = llava.model(**inputs, output_attentions=True).attentions
    llava.model.set_attn_implementation(own)
    with torch.no_grad(), capture(llava, "pattern", positions=-1) as pattern:
        m.logits(llava, prompts)
    for layer in range(llava.n_layers):
        expected = attentions[layer][:, :, -1].mean(1)
        for i in range(2):
            torch.testing.assert_close(
                m.influence_rate(pattern[layer], prompts.image)[i], expected[i, prompts.image[i]]
            )


@torch.no_grad()
@pytest.mark.parametrize("layer", [1, 2])
def test_fastv_does_the_same_whether_tokens_were_masked_or_taken_out_before(
    llava: Subject, prompts: object, ignored: torch.Tensor, layer: int
) -> None:
    base, found = m.logits(llava, prompts), []
    for start in (m.masked(prompts, ignored), m.removed(prompts, ignored)):
        with m.fastv(llava, start, layer=layer, keep=4):
            found.append(m.logits(llava, start))
        assert (found[-1] - m.logits(llava, start)).abs().max() > 1e-3, "both prune: 9 are left, 4 are kept"
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert torch.equal(m.logits(llava, prompts), base), "nothing is left behind in the model"


@torch.no_grad()
def test_fastv_that_keeps_all_tokens_changes_nothing(llava: Subject, prompts: object) -> None:
    with capture(llava, "pattern", layers=0):
        base = m.logits(llava, prompts)
    for keep in (N, N + 5):
        with m.fastv(llava, prompts, layer=1, keep=keep):
            assert torch.equal(m.logits(llava, prompts), base)


@torch.no_grad()
def test_fastv_drops_what_the_last_token_attends_to_least_from_its_layer_on(
    llava: Subject, prompts: object
) -> None:
    layer, keep = 1, 5
    with capture(llava, "pattern", layers=layer - 1, positions=-1) as pattern:
        m.logits(llava, prompts)
    rate = m.influence_rate(pattern[layer - 1], prompts.image)
    dropped = prompts.image.gather(1, rate.argsort(1)[:, : N - keep])
    kept = prompts.image.gather(1, rate.argsort(1)[:, N - keep :])

    def disturbed(places: torch.Tensor) -> torch.Tensor:
        """Logits under FastV, the output of the layer before it changed at some places."""

        def noise(x: torch.Tensor) -> torch.Tensor:
            return x.scatter_add(
                1, places[..., None].expand(-1, -1, x.shape[2]), torch.ones(2, 16, x.shape[2])
            )

        with (
            edit(llava, "resid_post", layer=layer - 1, fn=noise),
            m.fastv(llava, prompts, layer=layer, keep=keep),
        ):
            return m.logits(llava, prompts)

    with m.fastv(llava, prompts, layer=layer, keep=keep):
        base = m.logits(llava, prompts)
    assert torch.equal(disturbed(dropped), base)
    assert (disturbed(kept) - base).abs().max() > 1e-3


@pytest.mark.parametrize("layer", [0, 3])
def test_fastv_needs_a_layer_behind_another(llava: Subject, prompts: object, layer: int) -> None:
    with (
        pytest.raises(ValueError, match=rf"fastv_layer={layer}: expected 1 to 2"),
        m.fastv(llava, prompts, layer=layer, keep=4),
    ):
        pass


# Measures


def test_auroc_equals_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    score, positive, among = (
        rng.integers(6, size=(5, 30)),
        rng.random((5, 30)) < 0.4,
        rng.random((5, 30)) < 0.8,
    )
    found = m.auroc(score, positive, among)
    for i in range(5):
        assert found[i] == pytest.approx(roc_auc_score(positive[i][among[i]], score[i][among[i]]))
    assert np.isnan(m.auroc(score, positive | True, among)).all()


def test_spearman_equals_scipys() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(9, size=(4, 20)), rng.random((4, 20))
    expected = [spearmanr(x, y).statistic for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(m.spearman(a, b), expected)


def test_tokens_of_the_largest_cluster_are_found() -> None:
    V = np.random.default_rng(0).normal(size=(64, 3)) * 0.01
    V[40:] += 10 * np.repeat(np.eye(4, 3) + np.eye(4, 3, -1) * 2, 6, axis=0)
    np.testing.assert_array_equal(m.largest_cluster(V), np.arange(64) < 40)


# The whole way


def test_a_sweep_begins_with_the_model_and_ends_without_the_image(llava: Subject, items: object) -> None:
    ways = {"own": {"texts": m.source_text(items, "options")}}
    seen = m.look(llava, items, ways, start_rank=0, stride=1, batch_size=1, label="")
    swept = m.sweep(llava, items, seen.orders, {"own": [0, 5, N]}, batch_size=1, label="")
    np.testing.assert_array_equal(seen.right, swept["own", 0])
    for i in range(2):
        index = slice(i, i + 1)
        with torch.no_grad():
            prompts = m.read(llava, items, index)
            blind = m.logits(llava, m.removed(prompts, torch.ones(1, N, dtype=torch.bool)))
        np.testing.assert_array_equal(swept["own", N][index], m.is_right(llava, items, index, blind))
    least = seen.similar["own"].gather(1, seen.orders["own"])
    assert (least.diff(dim=1) >= 0).all(), "least similar first"
    assert seen.rate.shape == (2, llava.n_layers, N)
    assert seen.n_met["own"].tolist() == [N, N]


def test_a_forced_choice_compares_the_options_only_and_a_free_one_all_words(
    llava: Subject, items: object
) -> None:
    ids = llava.tokenizer.convert_tokens_to_ids
    said = torch.zeros(2, len(llava.tokenizer))
    said[0, ids("red")], said[1, ids("left")] = 1.0, 1.0
    said[:, ids("user")] = 5.0
    assert m.is_right(llava, items, slice(None), said).tolist() == [1, 1]
    free = items._replace(free=True)
    assert m.is_right(llava, free, slice(None), said).tolist() == [0, 0]
    said[:, ids("user")] = 0.0
    assert m.is_right(llava, free, slice(None), said).tolist() == [1, 1]


def test_a_question_of_scienceqa_goes_the_whole_way(llava: Subject) -> None:
    items = m.science_items([QUESTION, QUESTION], vicuna=True)
    prompts = m.read(llava, items)
    assert prompts.image.shape == (2, N)
    orders = {"any": torch.arange(N).expand(2, N)}
    assert m.sweep(llava, items, orders, {"any": [0]}, batch_size=2, label="")["any", 0].shape == (2,)


LISTED = papers.read("simignore").models
SMALLER = {"n_questions": 8, "n_validation": 8, "n_rounds": 5, "batch_size": 4, "shares": [0.5]}
SMALLER |= {"device": "cpu", "dtype": "float32", "quantization": ""}


@pytest.mark.parametrize(
    ("model", "preset", "depth"), hub_models.cases(LISTED, LISTED[0], depth=7, colab=LISTED[0])
)
def test_each_listed_model_reaches_the_end_and_what_it_cannot_do_is_said(
    model: str, preset: str, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights answer no question of ScienceQA: nothing that rests on answers is judged."""
    of = {"model": hub_models.folder(model, depth), "data": hub_models.science_folder()}
    run = hub_models.run_chapter("simignore", preset, monkeypatch, **SMALLER | of)
    assert run.names["N"] == 24 * 24
    run.check_task_not_done("simignore", (1, 4, 5, 6, 7, 9, 11, 14, 15, 16), "an accuracy of")
    assert run.records["simignore.12"].verdict != "not testable here"  # where vectors lie, not what is said
    said = " ".join(f"{row.note} {row.reason} {row.claim.statistic}" for row in run.records.values())
    assert not re.search("clutter|scenes|as in training", said)  # words of the organisms' world
