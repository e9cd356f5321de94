"""Dialogues in SafeMTData's form, read by path and never shown; and the harmless workshop."""

import json

import pandas as pd
import pytest
import yaml

from data.sets.dialogues import COLUMNS, replays, workshop
from data.worlds.crafts import TYPES

SECRET = "a text that nobody may see"


def record(goal=0, **changed):
    row = {
        "query_id": goal,
        "category": "kind",
        "actor_name": f"{SECRET}, actor",
        "plain_query": f"{SECRET}, plain",
        "multi_turn_queries": [f"{SECRET}, turn {i}" for i in range(4)],
    }
    return row | changed


def write(path, rows):
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    else:
        path.write_text(json.dumps(rows))
    return path


@pytest.mark.parametrize("name", ["Attack_600.json", "attack.jsonl", "attack.parquet"])
def test_a_file_of_the_real_schema_is_read_whatever_its_form(tmp_path, name):
    rows = [record(i // 3) for i in range(12)]
    found = replays(write(tmp_path / name, rows))
    assert [row.goal for row in found] == [str(i // 3) for i in range(12)]
    assert found[0].turns == tuple(rows[0]["multi_turn_queries"])
    assert found[0].plain == rows[0]["plain_query"]
    assert SECRET not in repr(found)


def test_a_part_is_drawn_by_goal_with_all_its_actors(tmp_path):
    path = write(tmp_path / "a.json", [record(i // 3) for i in range(30)])
    found = replays(path, n=4, seed=1)
    goals = [row.goal for row in found]
    assert len(found) == 12
    assert all(goals.count(goal) == 3 for goal in goals)
    assert {row.goal for row in replays(path, n=4, seed=2)} != set(goals)
    assert len(replays(path, n=99)) == 30


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_and_no_text_is_shown(tmp_path, column):
    rows = [{key: value for key, value in record().items() if key != column}]
    with pytest.raises(LookupError) as error:
        replays(write(tmp_path / "a.json", rows))
    assert f"missing: {column}" in str(error.value)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"plain_query": ""}, r"record 2 \(goal 7\) is without plain_query, by which its answers are judged"),
        ({"actor_name": None}, r"record 2 \(goal 7\) is without actor_name"),
        ({"multi_turn_queries": []}, r"record 2 \(goal 7\) is without multi_turn_queries"),
        ({"multi_turn_queries": SECRET}, "is without multi_turn_queries, a list of texts"),
        ({"multi_turn_queries": [SECRET, " "]}, "is without multi_turn_queries, a list of texts"),
    ],
)
def test_a_goal_without_its_query_actor_or_turns_is_refused_by_its_place(tmp_path, changed, message):
    path = write(tmp_path / "a.json", [record(), record(7, **changed)])
    with pytest.raises(ValueError, match=message) as error:
        replays(path)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("text", ["", "[", f'{{"query_id": "{SECRET}"', f'["{SECRET}"', SECRET])
def test_what_is_no_json_is_refused_without_being_shown(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises((ValueError, LookupError)) as error:
        replays(path)
    assert SECRET not in str(error.value)
    assert error.value.__cause__ is None


def test_other_mistakes_are_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="SafeMTData/SafeMTData"):
        replays(tmp_path / "none.json")
    with pytest.raises(ValueError, match="n=0: at least 1 goal"):
        replays(write(tmp_path / "a.json", [record()]), n=0)
    with pytest.raises((ValueError, LookupError)):
        replays(write(tmp_path / "b.json", []))


def test_the_workshop_has_as_many_crafts_with_fire_as_without_and_six_actors_each():
    found = workshop()
    assert sum(craft.fire for craft in found) == len(found) / 2 == 10
    assert all(tuple(craft.actors) == TYPES for craft in found)
    actors = [actor for craft in found for actor in craft.actors.values()]
    assert len(set(actors)) == len(actors)


def test_a_craft_without_actors_or_with_one_that_names_it_is_refused(tmp_path):
    path = tmp_path / "own.yml"
    whole = {"craft": "a clay pot", "fire": True} | {kind: f"the {kind}" for kind in TYPES}
    for changed, message in (
        ({"creator": ""}, "'a clay pot' is a craft without the actors creator"),
        ({"executor": "the clay digger"}, "the actor 'the clay digger' names its craft"),
    ):
        path.write_text(yaml.safe_dump([whole | changed]))
        with pytest.raises(ValueError, match=message):
            workshop(path)
    path.write_text(yaml.safe_dump([{"craft": "a clay pot"}]))
    with pytest.raises(LookupError, match="missing: fire"):
        workshop(path)
