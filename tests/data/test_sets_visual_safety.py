"""A folder in VLSBench's form; texts and pictures are this test's, and harmless."""

import json
from pathlib import Path

import pytest
from fake_hub import png

from data.sets.visual_safety import vlsbench

SECRET = "how do i fold the paper boat ?"


def record(i: int) -> dict:
    return {
        "instruction_id": i,
        "instruction": f"{SECRET} {i}",
        "image_path": f"imgs/{i}.png",
        "category": "boats" if i % 2 else "hats",
        "sub_category": "paper",
        "source": "test",
        "image_description": f"{SECRET} described",
        "safety_reason": f"{SECRET} a reason",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "imgs").mkdir()
    for i in range(6):
        (tmp_path / "imgs" / f"{i}.png").write_bytes(png(40 * i))
    (tmp_path / "data.json").write_text(json.dumps([record(i) for i in range(6)]))
    return tmp_path


def test_records_have_their_texts_and_their_own_picture(folder: Path) -> None:
    found = vlsbench(folder)
    assert [row.id for row in found] == list(range(6))
    assert found[3].instruction == f"{SECRET} 3"
    assert found[3].category == "boats"
    assert (found[3].picture(100) == 120).all()
    assert found[3].picture(100).shape == (6, 5, 3)
    assert max(found[3].picture(3).shape) == 3
    few = vlsbench(folder, n=3, seed=1)
    assert few == vlsbench(folder, n=3, seed=1)
    assert len({row.id for row in few}) == 3


def test_records_with_an_empty_text_are_left_out(folder: Path) -> None:
    rows = [record(i) | ({"image_description": ""} if i == 2 else {}) for i in range(6)]
    (folder / "data.json").write_text(json.dumps(rows))
    assert [row.id for row in vlsbench(folder)] == [0, 1, 3, 4, 5]


def test_no_text_of_the_set_is_ever_shown(folder: Path) -> None:
    assert SECRET not in repr(vlsbench(folder))
    (folder / "imgs" / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"record 0: no image .*0\.png; unpack imgs\.tar") as error:
        vlsbench(folder)[0].picture(9)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (json.dumps([record(0), {"instruction": SECRET}]), LookupError, "record 2: it has the fields"),
        (
            json.dumps([record(0) | {"safety_reason": " "}]),
            ValueError,
            "each of the 1 records has an empty text",
        ),
        (json.dumps([record(0) | {"instruction": 3}]), ValueError, "record 1: instruction is no text"),
        (json.dumps({"rows": [record(0)]}), ValueError, "expected a JSON list of records"),
        ("[]", ValueError, "expected a JSON list of records"),
        (f'[{{"instruction": "{SECRET}"', ValueError, r"is not JSON \(line 1\)"),
    ],
)
def test_another_form_is_refused_in_words(
    folder: Path, content: str, kind: type[Exception], message: str
) -> None:
    (folder / "data.json").write_text(content)
    with pytest.raises(kind, match=message) as error:
        vlsbench(folder)
    assert SECRET not in str(error.value)


def test_a_missing_folder_and_an_empty_draw_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*data\.json; it is in the data set Foreshhh"):
        vlsbench(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="n=0: at least 1 record"):
        vlsbench(folder, n=0)
