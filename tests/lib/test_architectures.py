"""The table of architectures on the site is what the library does, and nothing that is offered is wrong."""

import json
import warnings

import architectures
import pytest
from architectures import TABLE, listed, measured, outcome

ROWS = {
    (kind, name): row
    for kind, rows in json.loads(TABLE.read_text(encoding="utf-8"))["kinds"].items()
    for name, row in rows.items()
}
LISTED = sorted({name for _, name in ROWS if listed(name)})


def same_as_the_table(names):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of models that are made for other sizes
        found = measured(names)
    for kind, rows in found.items():
        for name, row in rows.items():
            assert outcome(row) == outcome(ROWS[kind, name]), f"{name}: run python tests/architectures.py"
    assert {(kind, name) for kind, rows in found.items() for name in rows} == {
        key for key in ROWS if not names or key[1] in names
    }


def test_the_table_has_60_architectures_and_none_with_a_site_that_is_wrong():
    assert len({row["class"] for row in ROWS.values()}) >= 60
    for key, row in ROWS.items():
        for tower in ("text", "vision"):
            wrong = row.get(tower, {}).get("wrong", "")
            assert not wrong or wrong.startswith("not tried"), (key, tower)


@pytest.mark.parametrize("name", LISTED)
def test_listed_architectures_are_as_the_table_says(name):
    same_as_the_table([name])


@pytest.mark.weekly
def test_all_architectures_are_as_the_table_says():
    same_as_the_table([])


def test_every_row_of_the_librarys_table_is_tried():
    """Each model type that `lib.sites` lists is a row, or the text or vision part of one."""
    tried = {name for _, name in ROWS}
    parts = {"clip_vision_model": "clip", "siglip_vision_model": "siglip", "idefics3_vision": "idefics3"}
    for name in architectures.FAMILIES:
        whole = name.removesuffix("_text").removesuffix("_text_model")
        assert {name, whole, parts.get(name)} & tried, name
