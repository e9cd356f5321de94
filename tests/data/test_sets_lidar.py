"""Lidar sweeps: files as the authors' scripts write them and as Argoverse 2 is downloaded."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather

from data.sets.lidar import sweeps


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
