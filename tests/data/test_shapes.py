"""Shapes on white: neither the target nor an answer is hidden by how the items are made."""

import numpy as np
import pytest

from data.worlds.shapes import PAINTS, SHAPE_TIERS, shape_conflicts


def test_the_target_is_seen_and_no_distractor_has_either_answer() -> None:
    items, colours = shape_conflicts(28, np.random.default_rng(0)), list(PAINTS)
    for i in range(28):
        seen, told = colours[items.seen[i]], colours[items.told[i]]
        share = (items.images[i] == PAINTS[seen][0]).all(-1).mean()
        assert share == pytest.approx(SHAPE_TIERS[items.visual_tier[i]][0], rel=0.75)
        assert not (items.images[i] == PAINTS[told][0]).all(-1).any()
        for k in np.nonzero(items.image == i)[0]:
            shape = items.questions[i].split()[4].rstrip("?")
            assert items.texts[k].startswith(f"The {shape}")
            assert shape not in items.unrelated_texts[k].removesuffix(items.questions[i])
            assert (told in items.texts[k]) == (items.text_tier[k] < 2)
    assert np.bincount(items.text_tier).tolist() == [28] * 3


def test_more_sentences_than_tiers_are_refused() -> None:
    with pytest.raises(ValueError, match="n_texts=4: the set 'shapes' has three textual tiers"):
        shape_conflicts(8, np.random.default_rng(0), n_texts=4)
