"""Sweeps of a lidar on a car that drives down a street, with the exact motion of every point.

The street has houses and poles at its sides, many small boxes in front of them (without irregular structure,
sliding along a wall is unobservable: the aperture problem) and a few cars that drive and turn on their own.
Everything is a box that stands on flat ground; the ground's own returns are left out, as the field does.

The sensor casts its rays afresh in every frame, in random directions. So no two sweeps hold the same surface
point: there are no correspondences. A ray returns the first surface that it meets: things hide one another
and themselves, and the density of points falls with the square of the distance.

Each sweep is in its own sensor frame, so the flow holds the motion of the sensor too. It is the rigid motion
of the thing that the point lies on, applied to the measured point, noise and all, as in the labels of real
data.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

EXTENT = np.array([14.0, 10.5])
"""Points farther than this from the sensor, along x (ahead) and y (left), are cropped; in metres."""
SENSOR_HEIGHT = 1.8
ELEVATION = (-0.3, 0.08)
"""Radians above the horizon within which rays are cast."""
N_CARS, N_HOUSES, N_POLES = 3, 8, 8
_RAYS = 4096
_MOST_RAYS = 200


class Drive(NamedTuple):
    """Consecutive sweeps and the truth about them. The scene is laid out around the last sweep but one."""

    clouds: Float[np.ndarray, "frame point 3"]
    """Metres, each sweep in its own sensor frame: x ahead, y left, z up."""
    flows: Float[np.ndarray, "frame-1 point 3"]
    """Where a point of a sweep is in the next one, minus where it is in its own."""
    moving: Bool[np.ndarray, "frame point"]
    """Whether a point lies on a car: on something that moves in the world, not just as seen by the sensor."""
    owners: Int[np.ndarray, "frame point"]
    """Which box a point lies on; the cars come first."""


class _Boxes(NamedTuple):
    """Boxes that stand on the ground, with the two-dimensional pose of each in every frame."""

    poses: Float[np.ndarray, "frame box 3 3"]
    """From the box's frame to the world's: homogeneous coordinates x, y, 1."""
    halves: Float[np.ndarray, "box 3"]
    heights: Float[np.ndarray, " box"]
    """Of the centres, above the sensor."""


def drive(
    n_points: int,
    n_frames: int,
    rng: np.random.Generator,
    *,
    speed: float = 1.0,
    ego_yaw: float = 0.005,
    acceleration: float = 0.0,
    noise: float = 0.01,
    n_clutter: int = 30,
) -> Drive:
    """Draw a street and let a car with a lidar drive through it.

    The same generator state gives the same street at every speed, number of points and number of frames.

    Args:
        n_points: of every sweep.
        n_frames: consecutive sweeps.
        rng: of the street, then of the rays and their noise.
        speed: multiplies all speeds and turn rates; 1 is 0.8 m a frame for the sensor, 0.5 to 1.5 for
            the cars.
        ego_yaw: radians that the sensor turns in a frame, at speed 1.
        acceleration: of each car, metres a frame squared, forwards or backwards at random.
        noise: standard deviation of a measured range, in metres.
        n_clutter: small boxes at the sides.

    Raises:
        ValueError: fewer than 1 point or 2 frames, a number that is not finite or is negative where it cannot
            be, or so few rays that return that the sweep cannot be filled.
    """
    numbers = {"speed": speed, "ego_yaw": ego_yaw, "acceleration": acceleration, "noise": noise}
    if bad := {name: value for name, value in numbers.items() if not np.isfinite(value)}:
        raise ValueError(f"a drive needs finite numbers, got {bad}")
    if n_points < 1 or n_frames < 2 or n_clutter < 0 or noise < 0:
        raise ValueError(
            f"n_points={n_points}, n_frames={n_frames}, n_clutter={n_clutter}, noise={noise}: a drive needs"
            " 1 point and 2 frames at least, and neither a negative number of boxes nor a negative noise"
        )
    frames = np.arange(n_frames) - (n_frames - 2)
    boxes = _street(frames, rng, speed, acceleration, n_clutter)
    sensor = _path(np.zeros(2), 0.0, 0.8 * speed, ego_yaw * speed, 0.0, frames)
    seen = [_sweep(n_points, sensor[i], boxes, i, noise, rng) for i in range(n_frames)]
    clouds, owners = (np.stack(part) for part in zip(*seen, strict=True))
    # From sensor to world to box at frame i, and back at frame i + 1.
    there = boxes.poses[1:] @ np.linalg.inv(boxes.poses[:-1]) @ sensor[:-1, None]
    motion = np.linalg.inv(sensor[1:, None]) @ there
    own = np.take_along_axis(motion, owners[:-1, :, None, None], 1)
    flat = np.concatenate([clouds[:-1, :, :2], np.ones_like(clouds[:-1, :, :1])], -1)
    flows = np.zeros_like(clouds[:-1])
    flows[..., :2] = np.einsum("fnij,fnj->fni", own, flat)[..., :2] - flat[..., :2]
    return Drive(clouds.astype(np.float32), flows.astype(np.float32), owners < N_CARS, owners)


def _path(
    start: Float[np.ndarray, "2"],
    heading: float,
    speed: float,
    turn: float,
    acceleration: float,
    frames: Int[np.ndarray, " frame"],
) -> Float[np.ndarray, "frame 3 3"]:
    """Poses along a curve that passes `start` at frame 0; the frames are consecutive and contain 0."""
    between = frames[:-1] + 0.5
    steps = (speed + acceleration * between)[:, None] * _direction(heading + turn * between)
    way = np.concatenate([np.zeros((1, 2)), steps.cumsum(0)])
    return _pose(start + way - way[frames == 0], heading + turn * frames)


def _direction(angle: Float[np.ndarray, "*n"]) -> Float[np.ndarray, "*n 2"]:
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _pose(
    position: Float[np.ndarray, "*n 2"], heading: Float[np.ndarray, "*n"]
) -> Float[np.ndarray, "*n 3 3"]:
    pose = np.zeros((*np.shape(heading), 3, 3))
    pose[..., :2, 0] = _direction(np.asarray(heading))
    pose[..., :2, 1] = _direction(np.asarray(heading) + np.pi / 2)
    pose[..., :2, 2] = position
    pose[..., 2, 2] = 1
    return pose


def _street(
    frames: Int[np.ndarray, " frame"],
    rng: np.random.Generator,
    speed: float,
    acceleration: float,
    n_clutter: int,
) -> _Boxes:
    """Cars on the road, then houses, poles and small boxes at both sides of it."""
    # Two cars before the sensor or two behind it, in different lanes, so that none stands in another.
    ahead, left = rng.choice([-1, 1]) * np.array([-1, 1, -1]), rng.choice([-1, 1]) * np.array([-1, 1, 1])
    place = np.stack([ahead * rng.uniform(4, 10, N_CARS), left * rng.uniform(2.4, 4.4, N_CARS)])
    heading = np.where(rng.random(N_CARS) < 0.5, 0, np.pi) + rng.uniform(-0.1, 0.1, N_CARS)
    speeds = speed * rng.uniform(0.5, 1.5, N_CARS)
    turns = speed * rng.uniform(-0.04, 0.04, N_CARS)
    changes = acceleration * rng.choice([-1, 1], N_CARS)
    moving = [_path(place[:, i], heading[i], speeds[i], turns[i], changes[i], frames) for i in range(N_CARS)]
    car_sizes = np.stack([rng.uniform(3, 4.5, N_CARS), np.full(N_CARS, 1.8), np.full(N_CARS, 1.5)], -1)

    n_static = N_HOUSES + N_POLES + n_clutter
    kind = np.repeat([0, 1, 2], [N_HOUSES, N_POLES, n_clutter])
    # As far as the sensor gets within any drive of a few frames.
    x = rng.uniform(-22, 22, n_static)
    near, far = np.array([[8.0, 5.5, 5.0], [10.0, 7.5, 9.0]])[:, kind]
    y = rng.choice([-1, 1], n_static) * rng.uniform(near, far)
    turned = rng.uniform(-1, 1, n_static) * np.array([0.15, np.pi, np.pi])[kind]
    low = np.array([[3, 1, 2], [0.2, 0.2, 2], [0.3, 0.3, 0.4]])[kind]
    high = np.array([[7, 2, 2.7], [0.3, 0.3, 2.6], [1.2, 1.0, 1.8]])[kind]
    sizes = np.concatenate([car_sizes, rng.uniform(low, high)])
    still = np.broadcast_to(_pose(np.stack([x, y], -1), turned), (len(frames), n_static, 3, 3))
    poses = np.concatenate([np.stack(moving, 1), still], 1)
    return _Boxes(poses, sizes / 2, sizes[:, 2] / 2 - SENSOR_HEIGHT)


def _sweep(
    n_points: int,
    sensor: Float[np.ndarray, "3 3"],
    boxes: _Boxes,
    frame: int,
    noise: float,
    rng: np.random.Generator,
) -> tuple[Float[np.ndarray, "point 3"], Int[np.ndarray, " point"]]:
    """Points and the boxes that they lie on: the first hits of random rays, in the sensor's frame."""
    into = np.linalg.inv(boxes.poses[frame]) @ sensor  # from the sensor's frame to each box's
    points, owners, found = [], [], 0
    for _ in range(_MOST_RAYS):
        azimuth, elevation = rng.uniform(-np.pi, np.pi, _RAYS), rng.uniform(*ELEVATION, _RAYS)
        rays = np.concatenate(
            [_direction(azimuth) * np.cos(elevation)[:, None], np.sin(elevation)[:, None]], -1
        )
        distance = _first_hits(rays, into, boxes)
        owner = distance.argmin(1)
        reach = distance[np.arange(_RAYS), owner]
        hit = np.isfinite(reach)
        reach = reach + noise * rng.standard_normal(_RAYS)
        cloud = rays[hit] * reach[hit, None]
        kept = (np.abs(cloud[:, :2]) < EXTENT).all(1)
        points.append(cloud[kept])
        owners.append(owner[hit][kept])
        found += kept.sum()
        if found >= n_points:
            return np.concatenate(points)[:n_points], np.concatenate(owners)[:n_points]
    raise ValueError(f"n_points={n_points}: {_MOST_RAYS * _RAYS} rays returned {found}; ask for fewer points")


def _first_hits(
    rays: Float[np.ndarray, "ray 3"], into: Float[np.ndarray, "box 3 3"], boxes: _Boxes
) -> Float[np.ndarray, "ray box"]:
    """Distance along each unit ray to each box, infinite where it misses: slabs (Kay and Kajiya 1986)."""
    enter, leave = np.full((len(rays), len(into)), -np.inf), np.full((len(rays), len(into)), np.inf)
    for axis in range(3):
        origin = into[:, axis, 2] if axis < 2 else -boxes.heights
        along = rays[:, :2] @ into[:, axis, :2].T if axis < 2 else rays[:, 2:]
        with np.errstate(divide="ignore"):
            inverse = 1 / along
        one, other = ((sign * boxes.halves[:, axis] - origin) * inverse for sign in (-1, 1))
        enter, leave = np.maximum(enter, np.minimum(one, other)), np.minimum(leave, np.maximum(one, other))
    return np.where((enter <= leave) & (enter > 0), enter, np.inf)
