"""Medical images: options of a question and defects of a benchmark are what they are said to be."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_hub import cell, png
from pyarrow import parquet as pq

from data.sets.medical import (
    BENCHMARK_COLUMNS,
    UNSURE,
    benchmark,
    benchmark_table,
    defects,
    medical,
)
from data.sets.questions import four_options

RNG = np.random.default_rng
PLACES = ["liver", "Lung", "heart", "lung", "spleen"]


def vqa(folder: Path) -> Path:
    """Of VQA-RAD's and PathVQA's form: five questions for a place, four for yes or no, one that is alone."""
    questions = [(f"where is finding {i}?", place) for i, place in enumerate(PLACES)]
    questions += [(f"is there a finding in {i}?", "Yes" if i % 2 else "no") for i in range(4)]
    questions += [("how many findings?", "two")]
    rows = {
        "image": [cell(i) for i in range(10)],
        "question": [q for q, _ in questions],
        "answer": [a for _, a in questions],
    }
    (folder / "data").mkdir()
    pq.write_table(pa.table(rows), folder / "data" / "test-00000-of-00001.parquet")
    return folder


def test_wrong_options_are_answers_of_the_same_kind_and_none_is_there_twice(tmp_path: Path) -> None:
    items = medical(vqa(tmp_path))
    assert len(items) == 9  # a kind of question with one answer cannot make an item
    for item in items:
        folded = [option.casefold() for option in item.choices]
        assert len(set(folded)) == 4
        kind = {"yes", "no", *UNSURE} if item.category == "yes/no" else {p.casefold() for p in PLACES}
        assert set(folded) <= kind
    assert [item.choices[item.answer] for item in items[:5]] == PLACES
    assert [item.image.getpixel((0, 0))[0] for item in items] == list(range(9))


def test_the_right_option_is_in_any_place() -> None:
    rng = RNG(0)
    places = [four_options("a", "abcdef", rng)[1] for _ in range(400)]
    assert np.bincount(places).min() > 70
    options, right = four_options(" A ", ["a", "b", "B", "c", "d"], rng)
    assert options[right] == "A"
    assert sorted(option.casefold() for option in options) == ["a", "b", "c", "d"]


def test_slake_is_read_in_one_language_and_a_missing_image_is_named(tmp_path: Path) -> None:
    rows = [
        {"img_name": f"xmlab{i}/source.jpg", "question": "Which organ?", "answer": place, "q_lang": language,
         "modality": "MRI", "location": "x", "answer_type": "OPEN", "content_type": "Organ", "qid": i}
        for language in ("en", "zh") for i, place in enumerate(["liver", "lung", "heart", "spleen"])
    ]  # fmt: skip
    (tmp_path / "test.json").write_text(json.dumps(rows))
    for i in range(4):
        (tmp_path / "imgs" / f"xmlab{i}").mkdir(parents=True)
        (tmp_path / "imgs" / f"xmlab{i}" / "source.jpg").write_bytes(png(i))
    items = medical(tmp_path)
    assert [item.choices[item.answer] for item in items] == ["liver", "lung", "heart", "spleen"]
    assert {item.category for item in items} == {"Organ"}
    assert len(medical(tmp_path, n=2, seed=1)) == 2
    (tmp_path / "imgs" / "xmlab2" / "source.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image .*xmlab2.*the question's record names it"):
        medical(tmp_path)
    del rows[0]["q_lang"]
    (tmp_path / "test.json").write_text(json.dumps(rows))
    with pytest.raises(LookupError, match=r"a record has .*; missing: q_lang"):
        medical(tmp_path)


def test_bad_input_is_said_in_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither test\.json \(SLAKE\) nor parquet files of 'test'"):
        medical(tmp_path)
    with pytest.raises(ValueError, match=r"answer 'a': 3 distinct options up to case \(a, [bB], c\)"):
        four_options("a", ["A", "b", "B", "c"], RNG(0))
    with pytest.raises(ValueError, match="an item's answer is empty"):
        four_options(" ", "abcd", RNG(0))
    rows = {"image": [cell(0), None], "question": ["where?"] * 2, "answer": ["a", "b"]}
    pq.write_table(pa.table(rows), tmp_path / "test.parquet")
    with pytest.raises(FileNotFoundError, match=r"1 questions have no image; the first is number 1"):
        medical(tmp_path)
    pq.write_table(pa.table({name: of[:1] for name, of in rows.items()}), tmp_path / "test.parquet")
    with pytest.raises(LookupError, match="no kind of question in 'test' has four distinct answers"):
        medical(tmp_path)


def row(options: str, label: str, answer: str) -> dict[str, str]:
    cells = dict(zip((f"option_{letter}" for letter in "abcd"), options.split("|"), strict=True))
    other = dict.fromkeys(BENCHMARK_COLUMNS, "x") | {"image_path": "i.jpg"}
    return other | cells | {"correct_label": label, "correct_answer": answer}


def test_the_defects_of_a_benchmark_are_counted_and_its_whole_rows_read(tmp_path: Path) -> None:
    rows = [
        row("liver|lung|heart|spleen", "B", "lung"),
        row("Yes|yes|no|lung", "A", "Yes"),  # the right text twice
        row("Lung|lung|no|yes", "C", "no"),  # two equal, the right one once
        row("yes|lung|heart|liver", "A", "yes"),  # no is not offered
        row("nan|lung|heart|liver", "A", ""),
        row("liver|lung|heart|spleen", "A", "lung"),  # the answer is another option
        row("lung|Lung|lung|LUNG", "D", "lung"),
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "b.csv", index=False)
    table = benchmark_table(tmp_path / "b.csv")
    assert defects(table) == {
        "rows": 7,
        "answered by yes or no": 3,
        "two options equal up to case": 3,
        "the right text twice": 2,
        "no wrong option": 1,
        "empty answer": 1,
        "the answer is not the option of its letter": 1,
        "answered by yes or no, and the other is not offered": 1,
    }
    (tmp_path / "i.jpg").write_bytes(png(7))
    (item,) = benchmark(table, tmp_path)
    assert item.choices == ("liver", "lung", "heart", "spleen")
    assert item.answer == 1
    assert item.image.getpixel((0, 0)) == (7, 7, 7)
    for number, told in ((4, "empty answer"), (5, "the answer is not the option of its letter"),
                         (6, "no wrong option")):  # fmt: skip
        with pytest.raises(ValueError, match=f"row 0 of the benchmark .*{told}"):
            benchmark(table.iloc[[number]], tmp_path, clean=False)
    with pytest.raises(ValueError, match="all 1 rows of the benchmark have a defect"):
        benchmark(table.iloc[[1]], tmp_path)
    (tmp_path / "i.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no image .*i\.jpg"):
        benchmark(table, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file .*none\.csv"):
        benchmark_table(tmp_path / "none.csv")
    table.drop(columns="correct_label").to_csv(tmp_path / "c.csv", index=False)
    with pytest.raises(LookupError, match="missing: correct_label"):
        benchmark_table(tmp_path / "c.csv")
