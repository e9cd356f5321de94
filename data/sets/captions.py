"""Photographs of COCO with the objects in them and five captions each, and words that name objects.

photographs, categories = coco("~/coco", n=500)
find_mentions("Two dogs and a fire hydrant.", object_words(categories))  # of data.sets.hallucination
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from data.sets.files import check, draw, read_text


class Photograph(NamedTuple):
    """A photograph of COCO with what people marked and wrote."""

    file: Path
    objects: frozenset[str]
    """Names of the categories of which an instance is marked."""
    captions: tuple[str, ...]


def coco(
    folder: str | Path, split: str = "val2014", *, n: int | None = None, seed: int = 0
) -> tuple[list[Photograph], tuple[str, ...]]:
    """Photographs of COCO (Lin et al. 2014), as CHAIR (Rohrbach et al. 2018) needs them.

    Args:
        folder: with the folders `<split>` (photographs) and `annotations` (`instances_<split>.json` and
            `captions_<split>.json`).
        split: "val2014" for CHAIR.
        n: at most so many, drawn at random; None for all.
        seed: of the draw.

    Returns:
        The photographs, and the names of all (80) categories.

    Raises:
        FileNotFoundError: the folder lacks one of the files; the message says where they come from.
        LookupError: a file is of another form.
    """
    folder = Path(folder).expanduser()
    source = "annotations_trainval2014.zip and val2014.zip of https://cocodataset.org/#download"
    instances, captions = (
        json.loads(read_text(folder / "annotations" / f"{kind}_{split}.json", source))
        for kind in ("instances", "captions")
    )
    check(instances, ("images", "annotations", "categories"), f"{folder}: the instances have")
    names = {category["id"]: category["name"] for category in instances["categories"]}
    chosen = draw(instances["images"], n, seed)
    objects: dict[int, set[str]] = {image["id"]: set() for image in chosen}
    said: dict[int, list[str]] = {image["id"]: [] for image in chosen}
    for one in instances["annotations"]:
        if one["image_id"] in objects:
            objects[one["image_id"]].add(names[one["category_id"]])
    for one in captions["annotations"]:
        if one["image_id"] in said:
            said[one["image_id"]].append(one["caption"].strip())
    photographs = [
        Photograph(
            folder / split / image["file_name"], frozenset(objects[image["id"]]), tuple(said[image["id"]])
        )
        for image in chosen
    ]
    return photographs, tuple(names.values())


def object_words(categories: Iterable[str], synonyms: str | Path | None = None) -> dict[str, str]:
    """Words that name objects -> the name of the category.

    Args:
        categories: stand for themselves.
        synonyms: a file of CHAIR's form: a line for each category, its name first, synonyms after commas.
            Without it, an object that is called otherwise than its category is overlooked.

    Raises:
        FileNotFoundError: there is no such file.
    """
    words = {name: name for name in categories}
    for line in read_text(Path(synonyms).expanduser()).splitlines() if synonyms else ():
        name, *others = (word.strip().lower() for word in line.split(","))
        words |= {word: name for word in (name, *others) if word}
    return words
