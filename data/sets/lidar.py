"""Lidar sweeps with scene flow: records of the authors' scripts, or sensor logs of Argoverse 2.

drives = sweeps("~/av2/sensor/val", n=10)
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation

from data.sets.files import check, draw, read_table


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
    """
    folder = Path(folder).expanduser()
    if records := sorted(folder.rglob("*.npz")):
        return [_record(path) for path in draw(records, n, seed)]
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
    return [_argoverse(log, times, reach) for log, times in draw(windows, n, seed)]


def _record(path: Path) -> Sweeps:
    with np.load(path, allow_pickle=False) as file:
        three = "pc3" in file
        names = ("pc1", "pc2", "pc3") if three else ("pc1", "pc2")
        flow, mask = ("flow23", "mask2_tracks_flow") if three else ("flow", "mask1_tracks_flow")
        check(file.files, (*names, flow), f"{path}: a record has")
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
    poses = _columns(log / "city_SE3_egovehicle.feather", ("timestamp_ns", *QUATERNION, *TRANSLATION))
    rows = {int(time): row for row, time in enumerate(poses["timestamp_ns"])}
    if missing := [time for time in times if time not in rows]:
        raise LookupError(f"{log}/city_SE3_egovehicle.feather has no pose for the sweep {missing[0]}")
    city = {time: _pose(poses, rows[time]) for time in times}
    clouds = []
    for time in times:
        columns = _columns(log / "sensors" / "lidar" / f"{time}.feather", SWEEP)
        cloud = np.stack([columns[name] for name in SWEEP], -1).astype(np.float64)
        near = (np.abs(cloud[:, :2]) <= reach).all(1) & (cloud[:, 2] <= 4)
        clouds.append(cloud[near & ~_is_ground(log / "map", _moved(city[time], cloud))])
    *_, source, target = times
    points = clouds[-2]
    rigid = _moved(np.linalg.inv(city[target]) @ city[source], points) - points
    flow, valid = rigid.copy(), np.ones(len(points), dtype=bool)
    boxes = _columns(
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
    check(to_image, ("R", "t", "s"), f"{maps[0]} has")
    xy = points[:, :2] @ np.reshape(to_image["R"], (2, 2)).T + np.reshape(to_image["t"], 2)
    column, row = (xy * to_image["s"]).astype(np.int64).T
    on_map = (row >= 0) & (row < height.shape[0]) & (column >= 0) & (column < height.shape[1])
    ground = np.full(len(points), np.nan)
    ground[on_map] = height[row[on_map], column[on_map]]
    return points[:, 2] - ground <= GROUND  # NaN, off the map, is no ground


def _columns(path: Path, columns: Iterable[str]) -> dict[str, np.ndarray]:
    table = read_table(path, columns, "logs of Argoverse 2's train and val splits")
    return {name: table[name].to_numpy() for name in columns}
