"""Real data sets by name: of the hub at a pinned revision, or in a local folder in their official form.

images, labels = images("cifar100", "test", 1000)
questions = pope("adversarial", n=500)  # is there a ... in the image?
questions = science_qa("test", n=500)  # multiple choice
photographs = coco("~/coco", n=500)  # with the objects in them and five captions each
mentioned("Two dogs and a fire hydrant.", object_words(photographs))
drives = sweeps("~/av2/sensor/val", n=10)  # lidar, with the flow of every point
"""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError
from jaxtyping import Bool, Float, Int
from PIL import Image
from scipy.spatial.transform import Rotation


class ImageSet(NamedTuple):
    """Where the parquet files of a data set are. Its public held-out part, whatever its name, is `test`."""

    repository: str
    revision: str
    train: tuple[str, int]
    """How the files' names begin, and how many there are."""
    test: tuple[str, int]


IMAGE_SETS = {
    "cifar10": ImageSet(
        "uoft-cs/cifar10",
        "0b2714987fa478483af9968de7c934580d0bb9a2",
        train=("plain_text/train", 1),
        test=("plain_text/test", 1),
    ),
    "cifar100": ImageSet(
        "uoft-cs/cifar100",
        "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
        train=("cifar100/train", 1),
        test=("cifar100/test", 1),
    ),
    "imagenette": ImageSet(
        "frgfm/imagenette",
        "4b23ffb92a8029db9958bdfdbd6978427d09b1a0",
        train=("160px/train", 1),
        test=("160px/validation", 1),
    ),
    "imagenet-1k": ImageSet(
        "ILSVRC/imagenet-1k",
        "49e2ee26f3810fb5a7536bbf732a7b07389a47b5",
        train=("data/train", 294),
        test=("data/validation", 14),
    ),
}
COLUMNS = (("image", "img"), ("label", "fine_label"))
"""What the data sets call the image (its file's `bytes`) and the class."""


def images(
    name: str, split: str, n: int, *, seed: int = 0
) -> tuple[list[Image.Image], Int[np.ndarray, " image"]]:
    """At most `n` images drawn at random, with their labels. No more files are fetched than it takes.

    Args:
        name: one of `IMAGE_SETS`, or a folder with `train*.parquet` and `test*.parquet` in the same form.
        split: "train" or "test".
        n: how many at most.
        seed: of the draw.

    Raises:
        LookupError: the name, the split or a column is unknown.
        FileNotFoundError: the folder has no such files.
        ConnectionError: the hub cannot be reached, and the file is not in the local cache.
        PermissionError: the hub wants an accepted licence or a login for this data set.
        ImportError: pyarrow is not installed.
    """
    pyarrow = _pyarrow(name)
    if split not in ("train", "test"):
        raise LookupError(f"split={split!r}: there are 'train' and 'test'")
    rng = np.random.default_rng(seed)
    tables: list[Any] = []
    for path in _files(name, split, rng):
        table = pyarrow.parquet.read_table(path)
        try:
            picked = [next(c for c in choice if c in table.column_names) for choice in COLUMNS]
        except StopIteration:
            raise LookupError(
                f"{path} has the columns {', '.join(table.column_names)}; needed: image (or img) and label"
            ) from None
        tables.append(table.select(picked).rename_columns(["image", "label"]))
        if sum(map(len, tables)) >= n:
            break
    table = pyarrow.concat_tables(tables)
    table = table.take(rng.permutation(len(table))[:n])
    pictures: list[Image.Image] = [
        Image.open(io.BytesIO(cell["bytes"])) for cell in table["image"].to_pylist()
    ]
    return pictures, table["label"].to_numpy().copy()


def _files(name: str, split: str, rng: np.random.Generator) -> Iterator[Path]:
    """The files of a split in random order, each fetched when it is asked for."""
    if name not in IMAGE_SETS:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise LookupError(f"no images {name!r}: no such folder, and none of {', '.join(IMAGE_SETS)}")
        if not (paths := sorted(folder.glob(f"{split}*.parquet"))):
            raise FileNotFoundError(f"{folder} has no {split}*.parquet")
        yield from rng.permutation(np.array(paths))
        return
    known = IMAGE_SETS[name]
    begins, count = known.train if split == "train" else known.test
    for number in rng.permutation(count):
        file = f"{begins}-{number:05}-of-{count:05}.parquet"
        yield _fetch(name, known.repository, file, known.revision)


def _pyarrow(name: str) -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{name}: parquet files need pyarrow; install it: pip install pyarrow") from None
    return pyarrow


def _fetch(name: str, repository: str, file: str, revision: str) -> Path:
    """A file of a data set of the hub, from the local cache if it is there."""
    try:
        return Path(hf_hub_download(repository, file, repo_type="dataset", revision=revision))
    except GatedRepoError:
        url = f"https://huggingface.co/datasets/{repository}"
        raise PermissionError(f"{name}: accept its licence at {url} and log in with: hf auth login") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConnectionError(
            f"{name}: {file} is not in the local cache, and the hub does not answer"
            f" ({type(error).__name__}); connect, or give a folder with its files instead"
        ) from None


# Questions about images


class YesNo(NamedTuple):
    """A question that is answered by yes or no."""

    image: Image.Image
    question: str
    answer: bool
    file: str
    """Name of the image."""


class MultipleChoice(NamedTuple):
    """A question of which one choice is right."""

    image: Image.Image
    question: str
    choices: tuple[str, ...]
    answer: int
    """Which of the choices is right."""
    hint: str
    """What is said beside the question; may be empty."""
    category: str


POPE = ("lmms-lab/POPE", "4db1276663dfa5eb8ad16a52d24c31a09e470896")
SCIENCE_QA = ("derek-thomas/ScienceQA", "f18b0a70359ebfb41f658fd564208d0355b013f4")
SCIENCE_QA_FILES = {
    "train": "data/train-00000-of-00001-1028f23e353fbe3e.parquet",
    "val": "data/validation-00000-of-00001-6c7328ff6c84284c.parquet",
    "test": "data/test-00000-of-00001-f0e719df791966ff.parquet",
}
MM_STAR = ("Lin-Chen/MMStar", "bc98d668301da7b14f648724866e57302778ab27")


def pope(split: str, *, n: int | None = None, seed: int = 0, folder: str | Path | None = None) -> list[YesNo]:
    """POPE's questions whether an object is in a photograph of COCO (Li et al. 2023); half are to be denied.

    The absent objects are drawn at random, are the most frequent ones ("popular"), or those that most often
    accompany what is there ("adversarial").

    Args:
        split: "random", "popular" or "adversarial".
        n: at most so many, drawn at random; None for all 3,000, in their order.
        seed: of the draw.
        folder: with the authors' `coco_pope_<split>.json`, and the photographs in it or in its `val2014`.
            None for the copy on the hub.

    Raises:
        LookupError: there is no such split, or the file is of another form.
        FileNotFoundError: the folder lacks a file.
        ConnectionError, PermissionError, ImportError: as `images`.
    """
    if split not in ("random", "popular", "adversarial"):
        raise LookupError(f"split={split!r}: POPE has 'random', 'popular' and 'adversarial'")
    if folder is None:
        path = _fetch("POPE", POPE[0], f"Full/{split}-00000-of-00001.parquet", POPE[1])
        rows = _rows("POPE", path, ["image", "question", "answer", "image_source"], n, seed)
        return [
            YesNo(_image(row["image"]), row["question"], _yes(row["answer"]), row["image_source"])
            for row in rows
        ]
    folder = Path(folder).expanduser()
    lines = _read(folder / f"coco_pope_{split}.json").splitlines()
    records = _drawn([json.loads(line) for line in lines if line.strip()], n, seed)
    _check(records, {"image", "text", "label"}, folder)
    places = [folder, folder / "val2014"]
    return [
        YesNo(_open(record["image"], places), record["text"], _yes(record["label"]), record["image"])
        for record in records
    ]


def science_qa(
    split: str, *, n: int | None = None, seed: int = 0, folder: str | Path | None = None
) -> list[MultipleChoice]:
    """Those questions of ScienceQA (Lu et al. 2022) that come with an image.

    Not for commercial use: the authors' licence is CC BY-NC-SA 4.0 (as the script says with which they are
    loaded; the hub's card has been quoted as CC BY-SA 4.0, so check before other use).

    Args:
        split: "train", "val" or "test".
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.
        folder: with the authors' `problems.json`, `pid_splits.json` and `<split>/<id>/image.png`, these also
            below `images`. None for the copy on the hub.

    Raises:
        LookupError: there is no such split, or the files are of another form.
        FileNotFoundError: the folder lacks a file.
        ConnectionError, PermissionError, ImportError: as `images`.
    """
    if split not in SCIENCE_QA_FILES:
        raise LookupError(f"split={split!r}: ScienceQA has {', '.join(map(repr, SCIENCE_QA_FILES))}")
    needed = ["image", "question", "choices", "answer", "hint", "category"]
    if folder is None:
        path = _fetch("ScienceQA", SCIENCE_QA[0], SCIENCE_QA_FILES[split], SCIENCE_QA[1])
        rows = _rows("ScienceQA", path, needed, n, seed)
        pictures = [_image(row["image"]) for row in rows]
    else:
        folder = Path(folder).expanduser()
        problems = json.loads(_read(folder / "problems.json"))
        ids = json.loads(_read(folder / "pid_splits.json"))[split]
        rows = _drawn([problems[i] | {"id": i} for i in ids if problems[i].get("image")], n, seed)
        _check(rows, set(needed), folder)
        pictures = [
            _open(row["image"], [folder / "images" / split / row["id"], folder / split / row["id"]])
            for row in rows
        ]
    return [
        MultipleChoice(
            picture, row["question"], tuple(row["choices"]), row["answer"], row["hint"], row["category"]
        )
        for picture, row in zip(pictures, rows, strict=True)
    ]


def mm_star(*, n: int | None = None, seed: int = 0, folder: str | Path | None = None) -> list[MultipleChoice]:
    """The 1,500 questions of MMStar (Chen et al. 2024), which cannot be answered without the image.

    Args:
        n: at most so many, drawn at random; None for all, in their order.
        seed: of the draw.
        folder: with `mmstar.parquet`, or another file of that form; None for the hub.

    Returns:
        The choices stand in the question itself, and are here called by their letters, A to D.

    Raises:
        LookupError: the file is of another form.
        FileNotFoundError: the folder has no such file.
        ConnectionError, PermissionError, ImportError: as `images`.
    """
    if folder is None:
        path = _fetch("MMStar", MM_STAR[0], "mmstar.parquet", MM_STAR[1])
    else:
        found = sorted(Path(folder).expanduser().glob("*.parquet"))
        if not found:
            raise FileNotFoundError(f"{folder} has no *.parquet")
        path = found[0]
    rows = _rows("MMStar", path, ["image", "question", "answer", "category", "l2_category"], n, seed)
    return [
        MultipleChoice(
            _image(row["image"]),
            row["question"],
            tuple("ABCD"),
            "ABCD".index(row["answer"].strip()),
            "",
            f"{row['category']}: {row['l2_category']}",
        )
        for row in rows
    ]


# Photographs and the objects in them


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
        json.loads(_read(folder / "annotations" / f"{kind}_{split}.json", source))
        for kind in ("instances", "captions")
    )
    _check([instances], {"images", "annotations", "categories"}, folder)
    names = {category["id"]: category["name"] for category in instances["categories"]}
    chosen = _drawn(instances["images"], n, seed)
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
    for line in _read(Path(synonyms).expanduser()).splitlines() if synonyms else ():
        name, *others = (word.strip().lower() for word in line.split(","))
        words |= {word: name for word in (name, *others) if word}
    return words


def mentioned(text: str, words: Mapping[str, str]) -> list[str]:
    """The categories that a text names, in order and with repetitions; plurals with -s and -es count.

    The longest name wins: "hot dog" is no dog.
    """
    longest = sorted(words, key=len, reverse=True)
    pattern = "|".join(map(re.escape, longest))
    found = re.findall(rf"(?<!\w)({pattern})(?:e?s)?(?!\w)", text.lower()) if longest else []
    return [words[word] for word in found]


# Lidar sweeps with scene flow


class Sweeps(NamedTuple):
    """Consecutive lidar sweeps without ground, and the flow of the last but one into the last."""

    name: str
    clouds: tuple[Float[np.ndarray, "point 3"], ...]
    """Metres, oldest first, each in its own sensor frame."""
    flow: Float[np.ndarray, "point 3"]
    """Metres; of the points of the last sweep but one, the sensor's own motion included."""
    moving: Bool[np.ndarray, " point"] | None
    """Which of these points lie on something that moves; None where nobody marked it."""


SWEEP = ("x", "y", "z")
QUATERNION, TRANSLATION = ("qx", "qy", "qz", "qw"), ("tx_m", "ty_m", "tz_m")
CUBOID = ("length_m", "width_m", "height_m")
MARGIN = np.array([0.2, 0.2, 0.0])
"""By which Argoverse 2's labels widen the boxes; they are a little too tight."""
DYNAMIC = 0.05
"""Metres a frame, without the sensor's motion, from which Argoverse 2 calls a point dynamic."""
GROUND = 0.3
"""Metres above the map's ground that still count as ground."""


def sweeps(
    folder: str | Path, *, n: int | None = None, n_frames: int = 3, reach: float = 50.0, seed: int = 0
) -> list[Sweeps]:
    """Recorded scenes with scene flow, from either of two kinds of folder.

    Records are `.npz` files, in the folder or below it, as the scripts of NSFP, FNSF and the multi-frame
    paper write them from Argoverse 1 and the Waymo Open Dataset: `pc1`, `pc2`, `pc3` and `flow23` (points of
    `pc2`), or `pc1`, `pc2` and `flow`; `mask2_tracks_flow` or `mask1_tracks_flow`, where they exist, hold
    the indices of the points on tracked objects, which here count as moving. (The Waymo script stores time
    reversed, flow included.)

    Argoverse 2 (Wilson et al. 2021) is read from sensor logs as they are downloaded:
    `sensors/lidar/<ns>.feather`, `city_SE3_egovehicle.feather`, `annotations.feather` and the ground raster
    in `map`; the folder is a log or holds logs. Labels follow the official API: the sensor's motion, and
    inside boxes the motion of the box. Points of a box that ends with the sweep have no flow and are left
    out; so are the ground (by the map), what is higher than 4 m above the sensor's frame, and what is
    farther than `reach` along x or y.

    Args:
        folder: of records, or of logs.
        n: at most so many scenes, drawn at random; None for all.
        n_frames: sweeps of a scene from an Argoverse 2 log; a record has its own number.
        reach: metres, for Argoverse 2; records are cropped already.
        seed: of the draw.

    Raises:
        FileNotFoundError: the folder has neither, or a log lacks a file.
        LookupError: a file lacks a field or a column; the message says which it has.
        ValueError: a log has fewer than `n_frames` sweeps, or flow and cloud differ in length.
        ImportError: pyarrow is not installed, for Argoverse 2.
    """
    folder = Path(folder).expanduser()
    if records := sorted(folder.rglob("*.npz")):
        return [_record(path) for path in _drawn(records, n, seed)]
    logs = sorted({path.parents[2] for path in folder.rglob("sensors/lidar/*.feather")})
    if not logs:
        raise FileNotFoundError(
            f"{folder} has neither .npz records nor Argoverse 2 logs (<log>/sensors/lidar/*.feather),"
            " nor has any folder below it"
        )
    windows = []
    for log in logs:
        times = sorted(int(path.stem) for path in (log / "sensors" / "lidar").glob("*.feather"))
        if len(times) < n_frames:
            raise ValueError(f"{log} has {len(times)} sweeps; n_frames={n_frames} needs as many")
        windows += [(log, times[i : i + n_frames]) for i in range(len(times) - n_frames + 1)]
    return [_argoverse(log, times, reach) for log, times in _drawn(windows, n, seed)]


def _record(path: Path) -> Sweeps:
    with np.load(path, allow_pickle=False) as file:
        three = "pc3" in file
        names = ("pc1", "pc2", "pc3") if three else ("pc1", "pc2")
        flow, mask = ("flow23", "mask2_tracks_flow") if three else ("flow", "mask1_tracks_flow")
        _check([dict.fromkeys(file.files)], {*names, flow}, path)
        clouds = tuple(file[name].astype(np.float32) for name in names)
        vectors = file[flow].astype(np.float32)
        moving = None
        if mask in file:
            moving = np.zeros(len(clouds[-2]), dtype=bool)
            moving[file[mask].astype(int)] = True
    if len(vectors) != len(clouds[-2]):
        raise ValueError(
            f"{path}: {flow} has {len(vectors)} vectors for {len(clouds[-2])} points of {names[-2]}"
        )
    return Sweeps(path.stem, clouds, vectors, moving)


def _argoverse(log: Path, times: list[int], reach: float) -> Sweeps:
    poses = _feather(log / "city_SE3_egovehicle.feather", ("timestamp_ns", *QUATERNION, *TRANSLATION))
    rows = {int(time): row for row, time in enumerate(poses["timestamp_ns"])}
    if missing := [time for time in times if time not in rows]:
        raise LookupError(f"{log}/city_SE3_egovehicle.feather has no pose for the sweep {missing[0]}")
    city = {time: _pose(poses, rows[time]) for time in times}
    clouds = []
    for time in times:
        columns = _feather(log / "sensors" / "lidar" / f"{time}.feather", SWEEP)
        cloud = np.stack([columns[name] for name in SWEEP], -1).astype(np.float64)
        near = (np.abs(cloud[:, :2]) <= reach).all(1) & (cloud[:, 2] <= 4)
        clouds.append(cloud[near & ~_is_ground(log / "map", _moved(city[time], cloud))])
    *_, source, target = times
    points = clouds[-2]
    rigid = _moved(np.linalg.inv(city[target]) @ city[source], points) - points
    flow, valid = rigid.copy(), np.ones(len(points), dtype=bool)
    boxes = _feather(
        log / "annotations.feather", ("timestamp_ns", "track_uuid", *CUBOID, *QUATERNION, *TRANSLATION)
    )
    then, after = (
        {boxes["track_uuid"][row]: row for row in np.flatnonzero(boxes["timestamp_ns"] == time)}
        for time in (source, target)
    )
    for track, row in then.items():
        pose = _pose(boxes, row)
        half = (np.array([boxes[name][row] for name in CUBOID]) + MARGIN) / 2
        inside = (np.abs(_moved(np.linalg.inv(pose), points)) <= half).all(1)
        if track in after:
            motion = _pose(boxes, after[track]) @ np.linalg.inv(pose)
            flow[inside] = _moved(motion, points[inside]) - points[inside]
        valid[inside] = track in after
    moving = np.linalg.norm(flow - rigid, axis=1) >= DYNAMIC
    clouds[-2], flow, moving = points[valid], flow[valid], moving[valid]
    return Sweeps(
        f"{log.name}/{source}",
        tuple(cloud.astype(np.float32) for cloud in clouds),
        flow.astype(np.float32),
        moving,
    )


def _pose(table: dict[str, np.ndarray], row: int | np.integer) -> Float[np.ndarray, "4 4"]:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat([table[name][row] for name in QUATERNION]).as_matrix()
    pose[:3, 3] = [table[name][row] for name in TRANSLATION]
    return pose


def _moved(
    pose: Float[np.ndarray, "4 4"], points: Float[np.ndarray, "point 3"]
) -> Float[np.ndarray, "point 3"]:
    return points @ pose[:3, :3].T + pose[:3, 3]


def _is_ground(folder: Path, points: Float[np.ndarray, "point 3"]) -> Bool[np.ndarray, " point"]:
    """Which points, in the city's frame, the raster of ground heights calls ground, or lie below it."""
    rasters, maps = (
        sorted(folder.glob(f"*{end}")) for end in ("_ground_height_surface____*.npy", "___img_Sim2_city.json")
    )
    if not (rasters and maps):
        raise FileNotFoundError(
            f"{folder} lacks *_ground_height_surface____*.npy or *___img_Sim2_city.json: without them the"
            " ground cannot be removed"
        )
    height, to_image = np.load(rasters[0]).astype(np.float64), json.loads(maps[0].read_text())
    _check([to_image], {"R", "t", "s"}, folder)
    xy = points[:, :2] @ np.reshape(to_image["R"], (2, 2)).T + np.reshape(to_image["t"], 2)
    column, row = (xy * to_image["s"]).astype(np.int64).T
    on_map = (row >= 0) & (row < height.shape[0]) & (column >= 0) & (column < height.shape[1])
    ground = np.full(len(points), np.nan)
    ground[on_map] = height[row[on_map], column[on_map]]
    return points[:, 2] - ground <= GROUND  # NaN, off the map, is no ground


def _feather(path: Path, columns: Iterable[str]) -> dict[str, np.ndarray]:
    _pyarrow(str(path))
    import pyarrow.feather

    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; logs of Argoverse 2's train and val splits have it")
    table = pyarrow.feather.read_table(path)
    if missing := [name for name in columns if name not in table.column_names]:
        raise LookupError(
            f"{path} has the columns {', '.join(table.column_names)}; missing: {', '.join(missing)}"
        )
    return {name: table[name].to_numpy() for name in columns}


# Reading


def _drawn(records: list[Any], n: int | None, seed: int) -> list[Any]:
    if n is None:
        return records
    return [records[i] for i in np.random.default_rng(seed).permutation(len(records))[:n]]


def _rows(name: str, path: Path, columns: list[str], n: int | None, seed: int) -> list[dict[str, Any]]:
    """Rows of a parquet file that have an image."""
    pyarrow = _pyarrow(name)
    table = pyarrow.parquet.read_table(path)
    if missing := [column for column in columns if column not in table.column_names]:
        raise LookupError(
            f"{path} has the columns {', '.join(table.column_names)}; missing: {', '.join(missing)}"
        )
    table = table.select(columns)
    shown = np.flatnonzero(table["image"].is_valid().to_numpy())
    return table.take(_drawn(list(shown), n, seed)).to_pylist()


def _image(cell: bytes | Mapping[str, Any]) -> Image.Image:
    """An image as the hub's parquet files hold it."""
    data = cell if isinstance(cell, bytes) else cell["bytes"]
    return Image.open(io.BytesIO(data)).convert("RGB")


def _open(name: str, folders: list[Path]) -> Image.Image:
    for folder in folders:
        if (folder / name).is_file():
            return Image.open(folder / name).convert("RGB")
    raise FileNotFoundError(f"no image {name} in {' or '.join(map(str, folders))}")


def _read(path: Path, source: str = "") -> str:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}" + (f"; it is in {source}" if source else ""))
    return path.read_text(encoding="utf-8")


def _check(records: list[Any], needed: set[str], folder: Path) -> None:
    if records and (missing := needed - records[0].keys()):
        raise LookupError(
            f"{folder}: a record has {', '.join(records[0])}; missing: {', '.join(sorted(missing))}"
        )


def _yes(answer: str) -> bool:
    if (word := answer.strip().lower()) not in ("yes", "no"):
        raise LookupError(f"answer {answer!r}: expected yes or no")
    return word == "yes"
