import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import sets as data
from data.sets import IMAGE_SETS, coco, images, mentioned, mm_star, object_words, pope, science_qa, sweeps

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((6, 5, 3), value, dtype=np.uint8)).save(file, format="PNG")
    return file.getvalue()


def write(path: Path, values: range, image: str = "img", label: str = "fine_label") -> None:
    """A parquet file as the hub's: the image is a struct of its file's bytes and path."""
    cells = [{"bytes": png(value), "path": f"{value}.png"} for value in values]
    pq.write_table(pa.table({image: cells, label: [value % 10 for value in values]}), path)


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
    asked = []

    def download(repository: str, file: str, repo_type: str, revision: str) -> str:
        asked.append((repository, file, repo_type, revision))
        write(tmp_path / "x.parquet", range(4))
        return str(tmp_path / "x.parquet")

    monkeypatch.setattr("data.sets.hf_hub_download", download)
    images("cifar100", "test", 3)
    known = IMAGE_SETS["cifar100"]
    assert asked == [(known.repository, "cifar100/test-00000-of-00001.parquet", "dataset", known.revision)]
    images("imagenet-1k", "train", 10)
    assert len(asked) == 1 + 3  # files of four images each
    assert all(len(known.revision) == 40 for known in IMAGE_SETS.values())


def test_without_a_network_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("data.sets.hf_hub_download", offline)
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


# Questions about images, in the forms in which their authors and the hub have them


def hub(monkeypatch: pytest.MonkeyPatch, path: Path) -> list[tuple[str, ...]]:
    """Lets the hub answer with a file; what it is asked for."""
    asked: list[tuple[str, ...]] = []

    def download(repository: str, file: str, repo_type: str, revision: str) -> str:
        asked.append((repository, file, revision))
        return str(path)

    monkeypatch.setattr("data.sets.hf_hub_download", download)
    return asked


def cell(value: int) -> dict:
    return {"bytes": png(value), "path": f"{value}.png"}


def test_pope_is_read_from_the_hub_and_from_the_authors_files_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    questions = [(f"Is there a {thing} in the image?", i % 2 == 0) for i, thing in enumerate("abcdef")]
    rows = {
        "id": [str(i) for i in range(6)],
        "question_id": [str(i + 1) for i in range(6)],
        "question": [text for text, _ in questions],
        "answer": ["yes" if yes else "no" for _, yes in questions],
        "image_source": [f"COCO_val2014_{i:012}" for i in range(6)],
        "image": [cell(i) for i in range(6)],
        "category": ["popular"] * 6,
    }
    pq.write_table(pa.table(rows), tmp_path / "hub.parquet")
    asked = hub(monkeypatch, tmp_path / "hub.parquet")
    found = pope("popular")
    assert asked == [(data.POPE[0], "Full/popular-00000-of-00001.parquet", data.POPE[1])]
    assert [(record.question, record.answer) for record in found] == questions
    assert [record.image.getpixel((0, 0))[0] for record in found] == list(range(6))

    lines = [
        {
            "question_id": i + 1,
            "image": f"COCO_val2014_{i:012}.jpg",
            "text": text,
            "label": "yes" if yes else "no",
        }
        for i, (text, yes) in enumerate(questions)
    ]
    (tmp_path / "coco_pope_popular.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (tmp_path / "val2014").mkdir()
    for i in range(6):
        (tmp_path / "val2014" / f"COCO_val2014_{i:012}.jpg").write_bytes(png(i))
    local = pope("popular", folder=tmp_path)
    assert [record[1:3] for record in local] == [record[1:3] for record in found]
    assert [record.image.getpixel((0, 0)) for record in local] == [(i, i, i) for i in range(6)]
    few = pope("popular", n=3, folder=tmp_path)
    assert len(few) == 3
    assert few == pope("popular", n=3, folder=tmp_path)
    assert {record.question for record in few} < {text for text, _ in questions}

    with pytest.raises(LookupError, match="split='all': POPE has 'random', 'popular' and 'adversarial'"):
        pope("all")
    with pytest.raises(FileNotFoundError, match=r"no file .*coco_pope_random\.json"):
        pope("random", folder=tmp_path)
    (tmp_path / "val2014" / f"COCO_val2014_{5:012}.jpg").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no image COCO_val2014_000000000005\.jpg in .* or .*val2014"
    ):
        pope("popular", folder=tmp_path)
    (tmp_path / "coco_pope_random.json").write_text('{"image": "x.jpg", "question": "?", "label": "yes"}')
    with pytest.raises(LookupError, match="a record has image, question, label; missing: text"):
        pope("random", folder=tmp_path)


def problem(i: int, image: object) -> dict:
    return {
        "image": image,
        "question": f"question {i}",
        "choices": ["a", "b", "c"][: 2 + i % 2],
        "answer": i % 2,
        "hint": "",
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "physics",
        "category": "Magnets",
        "skill": "Compare magnets",
        "lecture": "",
        "solution": "",
    }


def test_science_qa_keeps_the_questions_with_an_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [problem(i, cell(i) if i % 3 else None) for i in range(9)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "hub.parquet")
    asked = hub(monkeypatch, tmp_path / "hub.parquet")
    found = science_qa("val")
    assert asked == [(data.SCIENCE_QA[0], data.SCIENCE_QA_FILES["val"], data.SCIENCE_QA[1])]
    assert [record.question for record in found] == [f"question {i}" for i in (1, 2, 4, 5, 7, 8)]
    assert [record.image.getpixel((0, 0))[0] for record in found] == [1, 2, 4, 5, 7, 8]
    assert found[0].choices == ("a", "b", "c")
    assert found[1].choices == ("a", "b")
    assert [record.answer for record in found[:2]] == [1, 0]

    problems = {str(i): problem(i, "image.png" if i % 3 else None) for i in range(9)}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    splits = {"train": ["0", "1"], "val": [str(i) for i in range(9)], "test": []}
    (tmp_path / "pid_splits.json").write_text(json.dumps(splits))
    for i in (1, 2, 4, 5, 7, 8):
        place = tmp_path / ("images" if i < 5 else "") / "val" / str(i)
        place.mkdir(parents=True)
        (place / "image.png").write_bytes(png(i))
    local = science_qa("val", folder=tmp_path)
    assert [record[1:] for record in local] == [record[1:] for record in found]
    assert science_qa("test", folder=tmp_path) == []
    assert len(science_qa("val", n=2, folder=tmp_path)) == 2
    with pytest.raises(LookupError, match="split='validation': ScienceQA has 'train', 'val', 'test'"):
        science_qa("validation")


@pytest.mark.parametrize("form", ["struct", "bytes"])
def test_mm_stars_choices_stand_in_the_question(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    rows = [
        {
            "index": i,
            "question": f"Which is it?\nOptions: A: {i}, B: b, C: c, D: d",
            "image": cell(i) if form == "struct" else png(i),
            "answer": "ABCD"[i % 4],
            "category": "math",
            "l2_category": "geometry",
            "meta_info": {"source": "MathVista", "split": "testmini", "image_path": f"images/{i}.jpg"},
        }
        for i in range(6)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "mmstar.parquet")
    asked = hub(monkeypatch, tmp_path / "mmstar.parquet")
    found = mm_star()
    assert asked == [(data.MM_STAR[0], "mmstar.parquet", data.MM_STAR[1])]
    assert [record.answer for record in found] == [0, 1, 2, 3, 0, 1]
    assert found[2].choices == ("A", "B", "C", "D")
    assert found[2].question == rows[2]["question"]
    assert found[2].category == "math: geometry"
    assert mm_star(folder=tmp_path) == found
    with pytest.raises(FileNotFoundError, match=r"has no \*\.parquet"):
        mm_star(folder=tmp_path / "nowhere")
    pq.write_table(pa.table({"question": ["?"]}), tmp_path / "mmstar.parquet")
    with pytest.raises(LookupError, match="columns question; missing: image, answer, category, l2_category"):
        mm_star(folder=tmp_path)


def test_revisions_are_whole_commits_and_being_offline_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(len(revision) == 40 for _, revision in (data.POPE, data.SCIENCE_QA, data.MM_STAR))

    def offline(*args: object, **kwargs: object) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr("data.sets.hf_hub_download", offline)
    for load, name in (
        (lambda: pope("random"), "POPE"),
        (lambda: science_qa("test"), "ScienceQA"),
        (mm_star, "MMStar"),
    ):
        with pytest.raises(ConnectionError, match=f"{name}: .* the hub does not answer.*give a folder"):
            load()


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


def test_the_longest_name_of_an_object_wins_and_plurals_count(tmp_path: Path) -> None:
    words = object_words(["dog", "hot dog", "bus", "person"])
    assert mentioned("Two Dogs eat a hot dog; the doghouse is no dog.", words) == ["dog", "hot dog", "dog"]
    assert mentioned("Buses, and people.", words) == ["bus"]
    (tmp_path / "synonyms.txt").write_text("person, people, girl\ndog, puppy\n\n")
    words = object_words(["dog", "hot dog", "bus", "person"], tmp_path / "synonyms.txt")
    assert mentioned("A girl and her puppies; people watch a puppy.", words) == ["person", "person", "dog"]
    assert mentioned("anything", {}) == []
    with pytest.raises(FileNotFoundError, match="no file"):
        object_words([], tmp_path / "none.txt")


# Lidar sweeps: files of the schemas that the authors' scripts write and that Argoverse 2 is downloaded in


def write_records(folder: Path) -> np.ndarray:
    """A three-frame record (Argoverse 1: with masks), and a two-frame one below it without; returns pc2."""
    rng = np.random.default_rng(0)
    pc1, pc2, pc3 = (rng.normal(size=(n, 3)).astype(np.float32) for n in (7, 5, 6))
    flow12, flow23 = pc1 + 1, pc2 + 2
    np.savez_compressed(
        folder / "1_2_3.npz",
        pc1=pc1,
        pc2=pc2,
        pc3=pc3,
        flow12=flow12,
        flow23=flow23,
        mask1_tracks_flow=np.array([0]),
        mask2_tracks_flow=np.array([1, 4]),
        mask3_tracks_flow=np.array([2]),
    )
    (folder / "log").mkdir()
    np.savez_compressed(folder / "log" / "4_5.npz", pc1=pc1, pc2=pc2, flow=flow12)
    return pc2


def test_records_give_the_flow_of_the_last_sweep_but_one(tmp_path: Path) -> None:
    pc2 = write_records(tmp_path)
    three, two = sorted(sweeps(tmp_path), key=lambda scene: -len(scene.clouds))
    assert [len(cloud) for cloud in three.clouds] == [7, 5, 6]
    assert [len(cloud) for cloud in two.clouds] == [7, 5]
    np.testing.assert_array_equal(three.clouds[1], pc2)
    np.testing.assert_array_equal(three.flow, pc2 + 2)
    np.testing.assert_array_equal(two.flow, two.clouds[0] + 1)
    assert three.moving is not None
    assert three.moving.tolist() == [False, True, False, False, True]
    assert two.moving is None
    assert len(sweeps(tmp_path, n=1)) == 1


def test_broken_records_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither \.npz records nor Argoverse 2 logs"):
        sweeps(tmp_path)
    np.savez(tmp_path / "a.npz", pc1=np.zeros((2, 3)), pc2=np.zeros((2, 3)))
    with pytest.raises(LookupError, match=r"a\.npz: a record has pc1, pc2; missing: flow"):
        sweeps(tmp_path)
    np.savez(tmp_path / "a.npz", pc1=np.zeros((2, 3)), pc2=np.zeros((2, 3)), flow=np.zeros((3, 3)))
    with pytest.raises(ValueError, match="flow has 3 vectors for 2 points of pc1"):
        sweeps(tmp_path)


TIMES = (315967376019741000, 315967376119847000, 315967376219853000)
CAR, PARKED, GONE = "car", "parked", "gone"


def turn(angle: float) -> dict[str, float]:
    return {"qw": np.cos(angle / 2), "qx": 0.0, "qy": 0.0, "qz": np.sin(angle / 2)}


def write_log(folder: Path) -> dict[str, np.ndarray]:
    """A log of Argoverse 2 with three sweeps: the sensor drives 1 m along x and turns, a car 2 m along y.

    The points of the second sweep are one on the car, one on a parked car, one on a car that ends with the
    sweep, one on a house, then one on the ground, one below it, one too far and one too high.
    """
    import pyarrow.feather as feather

    log = folder / "0c6e62d7-bdfa-3061-8d3d-03b13aa21f68"
    (log / "sensors" / "lidar").mkdir(parents=True)
    (log / "map").mkdir()
    city = [
        {"timestamp_ns": t, **turn(0.1 * i), "tx_m": 100.0 + i, "ty_m": 50.0, "tz_m": 2.0}
        for i, t in enumerate(TIMES)
    ]
    # Poses come more often than sweeps.
    city.insert(1, {**city[0], "timestamp_ns": TIMES[0] + 5})
    feather.write_feather(pa.Table.from_pylist(city), log / "city_SE3_egovehicle.feather")
    spots = [
        [10, 5, 1],
        [12, -5, 1],
        [-8, 4, 1],
        [0, 9, 1],
        [5, 0, -1.8],
        [6, 0, -5],
        [70, 0, 1],
        [3, 3, 4.5],
    ]
    for time in TIMES:
        x, y, z = np.array(spots, dtype=np.float16).T
        table = {
            "x": x,
            "y": y,
            "z": z,
            "intensity": np.zeros(8, np.uint8),
            "laser_number": np.zeros(8, np.uint8),
        }
        feather.write_feather(
            pa.table({**table, "offset_ns": np.zeros(8, np.int32)}),
            log / "sensors" / "lidar" / f"{time}.feather",
        )
    # Where the boxes of the second sweep are in its own frame, then in the third's: the car turns.
    boxes = [
        (TIMES[1], CAR, 10.0, 5.0, 0.0),
        (TIMES[1], PARKED, 12.0, -5.0, 0.3),
        (TIMES[1], GONE, -8.0, 4.0, 0.0),
        (TIMES[2], CAR, 9.0, 7.0, 0.2),
        (TIMES[2], PARKED, *parked_then(), 0.2),
    ]
    rows = [
        {"timestamp_ns": t, "track_uuid": track, "category": "REGULAR_VEHICLE"}
        | {"length_m": 4.0, "width_m": 2.0, "height_m": 2.0, **turn(angle)}
        | {"tx_m": x, "ty_m": y, "tz_m": 1.0, "num_interior_pts": 1}
        for t, track, x, y, angle in boxes
    ]
    feather.write_feather(pa.Table.from_pylist(rows), log / "annotations.feather")
    np.save(
        log / "map" / f"{log.name}_ground_height_surface____PIT.npy",
        np.full((400, 600), 0.1, dtype=np.float16),
    )
    similarity = {"R": [1.0, 0.0, 0.0, 1.0], "t": [0.0, 0.0], "s": 1 / 0.3}
    (log / "map" / f"{log.name}___img_Sim2_city.json").write_text(json.dumps(similarity))
    return {"spots": np.array(spots, dtype=float), "log": log}


def into_next(points: np.ndarray) -> np.ndarray:
    """From the second sweep's frame to the third's, for what stands still."""
    first, second = 0.1, 0.2
    rotation = [np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]) for a in (first, second)]
    world = points[..., :2] @ rotation[0].T + [101.0, 50.0]
    flat = (world - [102.0, 50.0]) @ rotation[1]
    return np.concatenate([flat, points[..., 2:]], -1)


def parked_then() -> list[float]:
    return into_next(np.array([12.0, -5.0, 1.0]))[:2].tolist()


def test_argoverse_2_logs_give_the_flow_of_the_official_labels(tmp_path: Path) -> None:
    spots = write_log(tmp_path)["spots"]
    (scene,) = sweeps(tmp_path)
    assert scene.name == f"0c6e62d7-bdfa-3061-8d3d-03b13aa21f68/{TIMES[1]}"
    kept = spots[[0, 1, 3]]  # the car that ends has no flow; ground, far and high points are cropped
    np.testing.assert_allclose(scene.clouds[1], kept, atol=1e-5)
    assert [len(cloud) for cloud in scene.clouds] == [4, 3, 4]
    expected = into_next(kept)
    expected[0] = [9, 7, 1]  # the car's own box says where its middle goes
    np.testing.assert_allclose(scene.clouds[1] + scene.flow, expected, atol=1e-4)
    assert scene.moving is not None
    assert scene.moving.tolist() == [True, False, False]


def test_boxes_of_argoverse_2_are_widened_by_20_cm_in_length_and_width_only(tmp_path: Path) -> None:
    import pyarrow.feather as feather

    log = write_log(tmp_path)["log"]
    x, y, z = np.array([[12.05, 5, 1], [12.15, 5, 1], [10, 6.05, 1], [10, 5, 2.05]]).T
    feather.write_feather(
        pa.table({"x": x, "y": y, "z": z}), log / "sensors" / "lidar" / f"{TIMES[1]}.feather"
    )
    (scene,) = sweeps(tmp_path)
    assert scene.moving is not None
    assert scene.moving.tolist() == [True, False, True, False]


def test_windows_of_a_log_are_consecutive_sweeps(tmp_path: Path) -> None:
    write_log(tmp_path)
    names = [scene.name.rpartition("/")[2] for scene in sweeps(tmp_path, n_frames=2)]
    assert names == [str(TIMES[0]), str(TIMES[1])]
    with pytest.raises(ValueError, match="has 3 sweeps; n_frames=4"):
        sweeps(tmp_path, n_frames=4)


def test_incomplete_logs_are_named(tmp_path: Path) -> None:
    import pyarrow.feather as feather

    log = write_log(tmp_path)["log"]
    sweep = log / "sensors" / "lidar" / f"{TIMES[0]}.feather"
    feather.write_feather(pa.table({"x": [1.0], "y": [1.0]}), sweep)
    with pytest.raises(LookupError, match=r"has the columns x, y; missing: z"):
        sweeps(tmp_path)
    feather.write_feather(pa.table({"x": [1.0], "y": [1.0], "z": [1.0]}), sweep)
    next((log / "map").glob("*.npy")).unlink()
    with pytest.raises(FileNotFoundError, match="the ground cannot be removed"):
        sweeps(tmp_path)
    (log / "city_SE3_egovehicle.feather").unlink()
    with pytest.raises(FileNotFoundError, match="city_SE3_egovehicle"):
        sweeps(tmp_path)
