import numpy as np
import pytest
from sklearn.datasets import load_digits

from data.worlds.digits import SPLITS, canvases, digits


def test_splits_are_disjoint_and_together_are_scikit_learns_digits() -> None:
    ours = np.concatenate([digits(split).images for split in SPLITS])
    assert {split: len(digits(split).labels) for split in SPLITS} == SPLITS
    theirs = np.round(load_digits().images * 255 / 16).astype(np.uint8)
    assert sorted(image.tobytes() for image in ours) == sorted(image.tobytes() for image in theirs)


def test_every_split_has_the_classes_in_equal_shares() -> None:
    for split, size in SPLITS.items():
        counts = np.bincount(digits(split).labels, minlength=10)
        assert abs(counts / size - 0.1).max() < 0.01


@pytest.mark.parametrize("split", SPLITS)
def test_a_canvas_shows_its_four_digits_and_asks_for_the_one_that_the_marker_points_to(split: str) -> None:
    world, source = canvases(split, 50, np.random.default_rng(0)), digits(split)
    for image, label, cells, pointed, sources in zip(*world, strict=True):
        quarters = [image[:8, :8], image[:8, 8:], image[8:, :8], image[8:, 8:]]
        for quarter, digit, index in zip(quarters, cells, sources, strict=True):
            assert np.array_equal(quarter, source.images[index])
            assert digit == source.labels[index]
        assert pointed == 1 + cells[0] % 3
        assert label == cells[pointed]


def test_test_digits_never_occur_in_training_canvases() -> None:
    train = canvases("train", 3000, np.random.default_rng(0)).images.reshape(-1, 2, 8, 2, 8)
    seen = {cell.tobytes() for cell in train.transpose(0, 1, 3, 2, 4).reshape(-1, 8, 8)}
    assert len(seen) > 1000
    assert not seen & {image.tobytes() for image in digits("test").images}


def test_the_marker_alone_does_not_tell_the_answer_and_all_cells_are_asked_for() -> None:
    world = canvases("train", 5000, np.random.default_rng(1))
    shares = np.bincount(world.pointed, minlength=4)[1:] / 5000
    assert abs(shares - [0.4, 0.3, 0.3]).max() < 0.03  # 0, 3, 6 and 9 point to the first
    for marker in range(10):
        answers = np.bincount(world.labels[world.cells[:, 0] == marker], minlength=10)
        assert answers.max() < 0.2 * answers.sum()


def test_the_same_generator_gives_the_same_canvases() -> None:
    one, two = (canvases("test", 5, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one.images, two.images)


def test_an_unknown_split_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"split='dev'.*train, validation, test"):
        digits("dev")
