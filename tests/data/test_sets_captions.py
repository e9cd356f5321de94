"""COCO's photographs, and the objects that captions name."""

import json
from pathlib import Path

import pytest

from data.sets.captions import coco, object_words
from data.sets.hallucination import find_mentions


def test_cocos_photographs_come_with_their_objects_and_captions(tmp_path: Path) -> None:
    (tmp_path / "annotations").mkdir()
    pictures = [{"id": 10 * i, "file_name": f"COCO_val2014_{10 * i:012}.jpg"} for i in range(4)]
    instances = {
        "images": pictures,
        "categories": [
            {"id": 1, "name": "person", "supercategory": "person"},
            {"id": 18, "name": "dog", "supercategory": "animal"},
            {"id": 58, "name": "hot dog", "supercategory": "food"},
        ],
        "annotations": [
            {"image_id": 0, "category_id": 1},
            {"image_id": 0, "category_id": 1},
            {"image_id": 10, "category_id": 58},
            {"image_id": 0, "category_id": 18},
        ],
    }
    with pytest.raises(
        FileNotFoundError, match=r"instances_val2014\.json; it is in annotations_trainval2014"
    ):
        coco(tmp_path)
    (tmp_path / "annotations/instances_val2014.json").write_text(json.dumps(instances))
    captions = [{"image_id": 10 * (i % 4), "id": i, "caption": f"caption {i} \n"} for i in range(8)]
    (tmp_path / "annotations/captions_val2014.json").write_text(
        json.dumps({"images": pictures, "annotations": captions})
    )
    found, categories = coco(tmp_path)
    assert categories == ("person", "dog", "hot dog")
    assert [photograph.objects for photograph in found] == [{"person", "dog"}, {"hot dog"}, set(), set()]
    assert found[1].captions == ("caption 1", "caption 5")
    assert found[1].file == tmp_path / "val2014" / "COCO_val2014_000000000010.jpg"
    few, categories = coco(tmp_path, n=2)
    assert len(few) == 2
    assert set(few) < set(found)
    assert len(categories) == 3


def mentioned(text: str, words: dict[str, str]) -> list[str]:
    return [mention.name for mention in find_mentions(text, words)]


def test_the_longest_name_of_an_object_wins_and_plurals_count(tmp_path: Path) -> None:
    words = object_words(["dog", "hot dog", "bus", "person"])
    assert mentioned("Two Dogs eat a hot dog; the doghouse is no dog.", words) == ["dog", "hot dog", "dog"]
    assert mentioned("Buses, and people.", words) == ["bus", "person"]
    (tmp_path / "synonyms.txt").write_text("\ufeffperson, people, girl\ndog, puppy\n\n")
    words = object_words(["dog", "hot dog", "bus", "person"], tmp_path / "synonyms.txt")
    assert mentioned("A girl and her puppies; people watch a puppy.", words) == [
        "person",
        "dog",
        "person",
        "dog",
    ]
    assert mentioned("anything", {}) == []
    with pytest.raises(FileNotFoundError, match="no file"):
        object_words([], tmp_path / "none.txt")
