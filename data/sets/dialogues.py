"""Dialogues that lead to a goal by way of what surrounds it: a published set by its path, and a harmless one.

    rows = replays("safemtdata/Attack_600.json", n=40)  # in the form of SafeMTData (Ren et al. 2024)
    crafts = workshop()

Of the published set nothing comes with this book, and its texts may be harmful: no error and no `repr` shows
any of them. It is fetched by `hf download SafeMTData/SafeMTData --repo-type dataset --local-dir safemtdata`.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import yaml

from data.sets.files import check, draw, read_table, read_text
from data.worlds.crafts import TYPES

COLUMNS = ("query_id", "category", "actor_name", "plain_query", "multi_turn_queries")


@dataclass(frozen=True)
class Replay:
    """A dialogue about one actor of a goal: what the user says, turn by turn."""

    goal: str
    """Its number in the set; several actors belong to a goal."""
    category: str
    actor: str = field(repr=False)
    plain: str = field(repr=False)
    """The goal in one direct request, by which answers are judged."""
    turns: tuple[str, ...] = field(repr=False)


def replays(path: str | Path, *, n: int | None = None, seed: int = 0) -> list[Replay]:
    """Dialogues of a file as SafeMTData's `Attack_600` has them.

    Args:
        path: of a JSON list, JSON lines, or a parquet file; each record has the fields of `COLUMNS`.
        n: those of at most so many goals, drawn at random; None for all, in their order.
        seed: of the draw.

    Raises:
        FileNotFoundError: there is no such file.
        LookupError: a column is missing.
        ValueError: it is none of these forms, has no record, a goal is without a plain query, actor or turn,
            or `n` is below 1.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: at least 1 goal")
    path = Path(path).expanduser()
    table = read_table(path) if path.suffix == ".parquet" else _json(path)
    check([str(name) for name in table.columns], COLUMNS, f"{path.name} has the columns")
    found = []
    for i, row in enumerate(table[list(COLUMNS)].to_dict("records"), 1):
        turns = row["multi_turn_queries"]
        listed = list(turns) if hasattr(turns, "__len__") and not isinstance(turns, str) else []
        lacks = {
            "plain_query, by which its answers are judged": not _is_text(row["plain_query"]),
            "actor_name": not _is_text(row["actor_name"]),
            "multi_turn_queries, a list of texts": not listed or not all(map(_is_text, listed)),
        }
        if missing := [name for name, is_missing in lacks.items() if is_missing]:
            raise ValueError(f"{path.name}, record {i} (goal {row['query_id']}) is without {missing[0]}")
        goal, category = str(row["query_id"]), str(row["category"])
        found.append(Replay(goal, category, row["actor_name"], row["plain_query"], tuple(listed)))
    if not found:
        raise ValueError(f"{path.name} has no record")
    chosen = set(draw(list(dict.fromkeys(row.goal for row in found)), n, seed))
    return [row for row in found if row.goal in chosen]


def _json(path: Path) -> pd.DataFrame:
    text = read_text(path, "the data set SafeMTData/SafeMTData of the hub")
    is_list = text.lstrip().startswith("[")
    try:
        return pd.read_json(io.StringIO(text), lines=not is_list, dtype=False)
    except (ValueError, AttributeError):  # whose messages may have the texts
        raise ValueError(f"{path.name} is neither a JSON list of records nor JSON lines") from None


def _is_text(cell: object) -> bool:
    return isinstance(cell, str) and bool(cell.strip())


@dataclass(frozen=True)
class Craft:
    """A craft of a workshop, and what is tied to it."""

    name: str
    fire: bool
    """Whether it needs fire, which a house may forbid."""
    actors: dict[str, str]
    """By type."""


def workshop(path: Path | None = None) -> list[Craft]:
    """Everyday crafts with six actors each, written for this book; or those of another file of its form.

    Raises:
        LookupError: a craft lacks a field.
        ValueError: a craft is without actors, or the name of one has a word of the craft's.
    """
    path = path or Path(__file__).with_name("workshop.yml")
    found = []
    for record in yaml.safe_load(path.read_text(encoding="utf-8")):
        check(record, ("craft", "fire"), f"{path.name}: a craft has the fields")
        name = record["craft"]
        if missing := [kind for kind in TYPES if not _is_text(record.get(kind))]:
            raise ValueError(f"{path.name}: {name!r} is a craft without the actors {', '.join(missing)}")
        actors = {kind: record[kind] for kind in TYPES}
        own = {word for word in name.split() if len(word) > 2}
        if told := [actor for actor in actors.values() if own & set(actor.split())]:
            raise ValueError(f"{path.name}: the actor {told[0]!r} names its craft, {name!r}")
        found.append(Craft(name, bool(record["fire"]), actors))
    return found
