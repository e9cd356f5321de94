"""Sets of images: files of the hub's form, read from a folder or from a hub that is not there."""

from pathlib import Path

import fake_hub
import pyarrow as pa
import pytest
from fake_hub import cell
from pyarrow import parquet as pq

from data.sets.images import IMAGE_SETS, images


def write(path: Path, values: range, image: str = "img", label: str = "fine_label") -> None:
    """A parquet file as the hub's."""
    pq.write_table(
        pa.table({image: [cell(value) for value in values], label: [value % 10 for value in values]}), path
    )


def test_images_come_with_their_own_labels_from_all_files_of_the_split(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", range(10))
    write(tmp_path / "train-00001-of-00002.parquet", range(10, 20))
    write(tmp_path / "test-00000-of-00001.parquet", range(100, 110))
    pictures, labels = images(str(tmp_path), "train", 100)
    values = [picture.getpixel((0, 0))[0] for picture in pictures]
    assert sorted(values) == list(range(20))
    assert [value % 10 for value in values] == labels.tolist()
    assert pictures[0].size == (5, 6)


def test_a_small_draw_is_random_repeatable_and_opens_no_more_files_than_it_takes(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.parquet", range(50), image="image", label="label")
    write(tmp_path / "train-00001-of-00002.parquet", range(50, 100), image="image", label="label")

    def draw(seed: int) -> list[int]:
        return [picture.getpixel((0, 0))[0] for picture in images(str(tmp_path), "train", 20, seed=seed)[0]]

    assert draw(0) == draw(0)
    assert any(draw(0) != draw(seed) for seed in range(1, 4))
    assert len({value // 50 for value in draw(0)}) == 1
    assert len(set(draw(0))) == 20


def test_the_hub_is_asked_for_pinned_revisions_and_the_files_that_exist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(tmp_path / "x.parquet", range(4))
    asked = fake_hub.answers(monkeypatch, tmp_path / "x.parquet")
    images("cifar100", "test", 3)
    known = IMAGE_SETS["cifar100"]
    assert asked == [(known.repository, "cifar100/test-00000-of-00001.parquet", "dataset", known.revision)]
    images("imagenet-1k", "train", 10)
    assert len(asked) == 1 + 3  # files of four images each
    assert all(len(known.revision) == 40 for known in IMAGE_SETS.values())


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub.silent(monkeypatch)
    with pytest.raises(ConnectionError, match=r"cifar100.*give a folder"):
        images("cifar100", "train", 3)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"no images 'cifar1000'.*cifar100, imagenette"):
        images("cifar1000", "train", 3)
    with pytest.raises(LookupError, match="split='dev'"):
        images("cifar100", "dev", 3)
    with pytest.raises(FileNotFoundError, match=r"has no train\*\.parquet"):
        images(str(tmp_path), "train", 3)
    write(tmp_path / "train.parquet", range(3), image="photo")
    with pytest.raises(LookupError, match=r"columns photo, fine_label; needed: image"):
        images(str(tmp_path), "train", 3)
