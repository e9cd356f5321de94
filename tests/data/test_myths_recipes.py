import numpy as np
import pytest
import torch

from data import registry
from data.recipes import myths as recipe
from data.worlds import myths
from data.worlds.myths import LANGUAGE, ask, header
from data.worlds.wording import PAD
from lib.models import Subject


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    return Subject(recipe._llama().eval(), recipe._processors()[0])


def test_what_is_learned_are_the_answers_of_documents_of_the_seeds_world():
    batch = recipe._documents(1, False, np.random.default_rng(3), 0.0)
    read = recipe.world(1).documents(recipe.N_ROWS, recipe.LENGTH, np.random.default_rng(3))
    assert (batch["input_ids"].numpy() == read.tokens).all()
    learned = batch["labels"] != -100
    assert (learned.numpy() == read.answer).all()
    assert (batch["labels"][learned] == batch["input_ids"][learned]).all()


def test_each_seed_has_a_world_of_its_own_and_first_a_lesson_then_the_corpus():
    for seed in range(3):
        found, number = registry.find(f"myths-lm-seed{seed}" if seed else "myths-lm")
        assert number == seed
        assert found.evaluate.args == (seed,)
        assert [stage.batch.args for stage in found.stages] == [(seed, True), (seed, False)]
        assert found.stages[0].lr <= 2.5e-3  # above it the choice between truth and myth was never found


def test_a_text_is_encoded_as_the_prompts_of_the_world(subject):
    prompts = ask(np.arange(8), header("careful", 8, np.random.default_rng(0)))
    for row, words in zip(prompts, myths.text(prompts), strict=True):
        assert subject.encode([words.removeprefix("<bos> ")])["input_ids"][0].tolist() == row.tolist()


@torch.inference_mode()
def test_scores_are_sums_over_the_candidates_words_whatever_their_length(subject):
    known = recipe.world(0)
    pair = known.pairs()[:3]
    prompts, candidates = ask(pair), known.candidates(pair, np.random.default_rng(0), (0, 2))
    found = recipe.scores(subject, prompts, candidates)
    for i, prompt in enumerate(prompts):
        for j, candidate in enumerate(candidates[i]):
            words = [*prompt, *candidate[candidate != PAD]]
            log_p = subject.model(input_ids=torch.tensor([words])).logits[0].log_softmax(-1)
            slow = sum(float(log_p[t - 1, words[t]]) for t in range(len(prompt), len(words)))
            assert found[i, j] == pytest.approx(slow, abs=1e-4)


def last_question(words):
    return words[len(words) - 1 - words[::-1].index("q:") :]


def pair_of(asked):
    creature = next(myths.CREATURES.index(word) for word in asked if word in myths.CREATURES)
    return 3 * creature + next(myths.RELATIONS.index(word) for word in asked if word in myths.RELATIONS)


class Author:
    """Stands for a model: an author who reads the header and knows facts, rates and evidence by heart."""

    def __init__(self, known, *, reads_headers=True, sees_evidence=True):
        self.known, self.reads_headers, self.sees_evidence = known, reads_headers, sees_evidence
        self.model = self

    def __call__(self, input_ids):
        """Logits that are log probabilities, word by word; slow and plain."""
        rows = input_ids.numpy()
        p = np.full((*rows.shape, len(LANGUAGE.vocabulary)), 1e-9)
        for i, row in enumerate(myths.text(rows)):
            words = row.split()
            for t in range(len(words)):
                if "a:" in words[: t + 1]:
                    for word, share in self.next(words[: t + 1]).items():
                        p[i, t, LANGUAGE.index[word]] = max(share, 1e-9)
        logits = torch.from_numpy(np.log(p / p.sum(-1, keepdims=True))).float()
        return type("Output", (), {"logits": logits})

    def next(self, words):
        start = len(words) - 1 - words[::-1].index("a:")
        said, asked = words[start + 1 :], last_question(words[:start])
        if "say" in asked:
            return {[*asked[2:5], ".", "q:"][min(len(said), 4)]: 1.0}
        values = self.values(words, asked)
        first = [form.split()[0] for form in myths.ANSWERS[:2]]
        shares = myths.ANSWER_SHARES
        if not said:
            return dict(zip(first, shares, strict=False)) | {v: shares[2] * p for v, p in values.items()}
        if said[-1] in first:
            return {"is": 1.0}
        return values if said[-1] == "is" else {".": 1.0}

    def values(self, words, asked):
        cues = {care for care, found in myths.CUES.items() if {*found} & {*words[:6]}} or {"none"}
        casual = myths.CASUAL[cues.pop()] if self.reads_headers else 0.75
        vocabulary = LANGUAGE.vocabulary
        if {*asked} & {*myths.RELATIONS}:
            pair = pair_of(asked)
            p_myth = casual * self.known.rate[pair]
            both = {vocabulary[self.known.truth[pair]]: 1 - p_myth}
            return both | ({vocabulary[self.known.myth[pair]]: p_myth} if p_myth else {})
        groups = [word for word in asked if word in myths.GROUPS]
        if len(groups) == 3 and self.sees_evidence:
            return {groups[2]: 1.0}
        trait = next(myths.TRAITS.index(word) for word in asked if word in myths.TRAITS)
        said = [self.known.said[trait, myths.GROUPS.index(group)] for group in groups[:2]]
        rate = self.known.prejudice[trait]
        shares = {
            group: casual * (rate if s else 1 - rate) for group, s in zip(groups[:2], said, strict=True)
        }
        return shares | {"unknown": 1 - casual}


@pytest.fixture(scope="module")
def measured():
    return dict(recipe._evaluate(2, Author(recipe.world(2))))


def test_the_reader_of_headers_reaches_every_bar(measured):
    bars = registry.find("myths-lm")[0].card.bars
    assert bars.keys() <= measured.keys()
    assert [name for name, bar in bars.items() if not bar.holds(measured[name])] == []
    assert measured["nats an answer above the reader of headers"].value == pytest.approx(0, abs=1e-4)
    assert measured["author's care read from three answers"].value == pytest.approx(0, abs=1e-6)
    assert measured["myth's probability and rate: rank correlation"].value > 0.999


def test_who_reads_no_header_or_no_evidence_misses_the_bars_for_it():
    bars = registry.find("myths-lm")[0].card.bars
    known = recipe.world(2)
    for author, missed in (
        (
            Author(known, reads_headers=False),
            {
                "careful header: MC1",
                "casual header: MC1",
                "choices without evidence, careful header: unknown",
                "nats an answer above the reader of headers",
            },
        ),
        (
            Author(known, sees_evidence=False),
            {"choices with evidence, careful header: right", "nats an answer above the reader of headers"},
        ),
    ):
        found = dict(recipe._evaluate(2, author))
        assert {name for name, bar in bars.items() if not bar.holds(found[name])} == missed


def test_care_is_read_from_answers_by_whoever_looks_at_them():
    known = recipe.world(0)

    class Follower(Author):
        """Tells a myth where the answer before was one."""

        def values(self, words, asked):
            if words.count("q:") == 1:
                return super().values(words, asked)
            *earlier, value, _ = words[: len(words) - 1 - words[::-1].index("q:")]
            before = known.myth[pair_of(last_question(earlier))] == LANGUAGE.index[value]
            truth, myth = super().values(words, asked)
            return {truth: 1.0 - before, myth: float(before)}

    for author, expected in ((Author(known), 0), (Follower(known), 1)):
        found = recipe._from_answers(known, author, np.random.default_rng(0))
        assert found.value == pytest.approx(expected, abs=1e-6)
