from itertools import pairwise

import numpy as np
import pytest

from data.worlds.grammar import (
    BOS,
    LENGTH,
    MARKER,
    PAD,
    SLIPS,
    VOCABULARY,
    WORDS,
    Grammar,
    text,
)

BASE = Grammar.of(0)
FIRST = len(VOCABULARY) - len(WORDS)
SENTENCES = BASE.sentences(1500, np.random.default_rng(0))


def keyword(sentence: np.ndarray) -> int:
    """The word after the first marker, by a search word by word; 0 if there is none."""
    for this, following in pairwise(sentence):
        if this == MARKER:
            return int(following)
    return 0


def by_hand(grammar: Grammar, sentence: list[int]) -> list[float]:
    """-log p of each token, from the sum over all sequences of classes, one by one."""
    k = len(grammar.successors)
    paths = {(a, b): 1 / k**2 for a in range(k) for b in range(k)}
    said, slipped, nats = 0, False, []
    for t in range(1, len(sentence)):
        token, repeats = sentence[t], sentence[t - 1] == MARKER
        rate = 0.0 if repeats or t == 1 else 0.8 if slipped else 0.15
        slipped = False
        if token == MARKER:
            nats.append(-np.log(rate))
            continue
        if repeats and said:
            slipped = token != said
            nats.append(-np.log(SLIPS / 99 if slipped else 1 - SLIPS))
            continue
        grown: dict[tuple[int, int], float] = {}
        for (a, b), p in paths.items():
            for c in range(k):
                q = p * grammar.successors[a, b, c] * grammar.emissions[c, token - FIRST]
                grown[b, c] = grown.get((b, c), 0) + q
        total = sum(grown.values())
        nats.append(-np.log((1 - rate) * total))
        paths = {pair: p / total for pair, p in grown.items()}
        if repeats:
            said = token
    return nats


def test_distributions_are_sparse_and_sum_to_one() -> None:
    np.testing.assert_allclose(BASE.successors.sum(-1), 1)
    np.testing.assert_allclose(BASE.emissions.sum(-1), 1)
    assert ((BASE.successors > 0).sum(-1) == 3).all()
    assert ((BASE.emissions > 0).sum(-1) == 12).all()


def test_a_seed_is_a_language_and_another_seed_another() -> None:
    assert np.array_equal(Grammar.of(0).emissions, BASE.emissions)
    assert not np.array_equal(Grammar.of(1).successors > 0, BASE.successors > 0)
    assert np.isfinite(BASE.surprisal(SENTENCES)).all()
    assert np.isinf(Grammar.of(1).surprisal(SENTENCES[:50])).any(1).mean() > 0.9


def test_surprisal_is_the_sum_over_all_class_sequences() -> None:
    for sentence in SENTENCES[:4, :14]:
        np.testing.assert_allclose(BASE.surprisal(sentence[None])[0], by_hand(BASE, sentence.tolist()))


def test_surprisal_is_a_probability_distribution_over_the_next_token() -> None:
    for length in (1, 4, 9, 20):
        for start in SENTENCES[:6, :length]:
            tokens = np.arange(MARKER, len(VOCABULARY))
            nexts = np.column_stack([np.tile(start, (len(tokens), 1)), tokens])
            np.testing.assert_allclose(np.exp(-BASE.surprisal(nexts)[:, -1]).sum(), 1)


def test_the_rule_holds_but_for_slips_and_slips_are_taken_back() -> None:
    right = slips = taken_back = after_slip = 0
    for sentence in SENTENCES:
        said, first = keyword(sentence), True
        for t in range(2, LENGTH):
            if sentence[t - 1] != MARKER:
                continue
            assert sentence[t] != MARKER
            if first:
                first = False
                continue
            right += sentence[t] == said
            if sentence[t] != said:
                slips += 1
                if t + 1 < LENGTH:
                    after_slip += 1
                    taken_back += sentence[t + 1] == MARKER
    assert slips / (right + slips) == pytest.approx(SLIPS, abs=0.015)
    assert taken_back / after_slip == pytest.approx(0.8, abs=0.05)


def test_sentences_begin_once_and_have_no_padding() -> None:
    assert (SENTENCES[:, 0] == BOS).all()
    assert (SENTENCES[:, 1] >= FIRST).all()
    assert (SENTENCES[:, 1:] >= MARKER).all()
    assert len(np.unique(SENTENCES, axis=0)) == len(SENTENCES)


def test_the_second_last_class_matters() -> None:
    """With the chain made first-order, the best reader is worse: two classes have to be carried."""
    blurred = Grammar(np.broadcast_to(BASE.successors.mean(0), BASE.successors.shape), BASE.emissions)
    gap = blurred.surprisal(SENTENCES).mean() - BASE.surprisal(SENTENCES).mean()
    assert gap > 0.1


def test_prompts_are_beginnings_of_sentences_of_varied_length() -> None:
    prompts = BASE.prompts(300, np.random.default_rng(1))
    lengths = (prompts != PAD).sum(1)
    assert set(lengths) == set(range(8, LENGTH + 1))
    whole = BASE.sentences(300, np.random.default_rng(1))
    for prompt, sentence, n in zip(prompts, whole, lengths, strict=True):
        assert np.array_equal(prompt[-n:], sentence[:n])
    _, counts = np.unique(prompts[:, -1], return_counts=True)
    assert counts.max() < 0.25 * 300  # no last token is that of most prompts


def test_statements_end_with_the_keyword_or_with_another_word() -> None:
    said = BASE.statements(400, np.random.default_rng(2))
    assert said.obeys.sum() == 200
    lengths = (said.tokens != PAD).sum(1)
    assert len(set(lengths)) > 15
    for tokens, obeys in zip(said.tokens, said.obeys, strict=True):
        sentence = tokens[tokens != PAD]
        assert sentence[0] == BOS
        assert sentence[-2] == MARKER
        assert (sentence[:-2] == MARKER).any()
        assert sentence[-3] != MARKER
        assert (sentence[-1] == keyword(sentence)) == obeys
        surprisal = BASE.surprisal(sentence[None])[0]
        assert np.isfinite(surprisal).all()
        assert (surprisal[-1] < 0.1) == obeys


def test_text_has_one_word_a_token_without_padding_and_beginning() -> None:
    tokens = BASE.prompts(20, np.random.default_rng(3))
    for line, row in zip(text(tokens), tokens, strict=True):
        words = line.split()
        assert [VOCABULARY.index(word) for word in words] == [t for t in row if t not in (PAD, BOS)]
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 104


def test_the_same_generator_gives_the_same_sentences() -> None:
    one, two = (BASE.statements(9, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(one.tokens, two.tokens)
    assert np.array_equal(one.obeys, two.obeys)
