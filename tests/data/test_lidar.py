import numpy as np
import pytest
from scipy.spatial import KDTree

from data.worlds import lidar
from data.worlds.lidar import N_CARS, drive


@pytest.fixture(scope="module")
def world() -> lidar.Drive:
    return drive(1500, 4, np.random.default_rng(3))


def rigid(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Best rotation and translation from one set of points to another (Kabsch), by singular values."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, _, v = np.linalg.svd(a.T @ b)
    rotation = v.T @ np.diag([1, 1, np.linalg.det(v.T @ u.T)]) @ u.T
    return rotation, target.mean(0) - rotation @ source.mean(0)


def test_every_box_moves_rigidly_and_what_stands_still_moves_as_one(world: lidar.Drive) -> None:
    for cloud, flow, owners in zip(world.clouds, world.flows, world.owners, strict=False):
        cloud, flow = cloud.astype(np.float64), flow.astype(np.float64)
        parts = [owners >= N_CARS, *(owners == car for car in range(N_CARS))]
        for part in (part for part in parts if part.sum() >= 20):
            rotation, shift = rigid(cloud[part], (cloud + flow)[part])
            np.testing.assert_allclose(cloud[part] @ rotation.T + shift, (cloud + flow)[part], atol=2e-5)


def test_still_flow_is_the_sensors_own_motion_backwards() -> None:
    world = drive(400, 3, np.random.default_rng(0), ego_yaw=0.01)
    still = ~world.moving[1]
    cloud, flow = world.clouds[1][still].astype(np.float64), world.flows[1][still].astype(np.float64)
    # Between frames 0 and 1 of its path the sensor goes 0.8 m in the direction of half a turn.
    c, s = np.cos(0.01), np.sin(0.01)
    back = np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]])
    step = 0.8 * np.array([np.cos(0.005), np.sin(0.005), 0])
    np.testing.assert_allclose(cloud + flow, (cloud - step) @ back.T, atol=1e-5)


def test_warped_points_lie_on_the_next_sweeps_surfaces_and_unwarped_ones_do_not() -> None:
    world = drive(6000, 2, np.random.default_rng(1), noise=0.0)
    tree = KDTree(world.clouds[1])
    warped = np.median(tree.query(world.clouds[0] + world.flows[0])[0])
    unwarped = np.median(tree.query(world.clouds[0])[0])
    assert warped < 0.1
    assert unwarped > 2 * warped


def test_no_two_sweeps_hold_the_same_surface_point() -> None:
    world = drive(1500, 2, np.random.default_rng(2), noise=0.0)
    distance, _ = KDTree(world.clouds[1].astype(np.float64)).query(world.clouds[0] + world.flows[0])
    assert (distance < 1e-4).sum() == 0


def test_nothing_is_seen_through_something_else() -> None:
    """Along the way to each point no box is entered; checked box by box, in the box's frame."""
    rng = np.random.default_rng(5)
    frames = np.arange(3) - 1
    boxes = lidar._street(frames, rng, 1.0, 0.0, 30)
    sensor = lidar._path(np.zeros(2), 0.0, 0.8, 0.005, 0.0, frames)
    points, owners = lidar._sweep(300, sensor[1], boxes, 1, 0.0, rng)
    along = np.linspace(0.02, 0.999, 400)
    for point, owner in zip(points, owners, strict=True):
        way = along[:, None] * point
        for box in range(len(boxes.halves)):
            into = np.linalg.inv(boxes.poses[1, box]) @ sensor[1]
            local = np.concatenate(
                [way[:, :2] @ into[:2, :2].T + into[:2, 2], way[:, 2:] - boxes.heights[box]], 1
            )
            inside = (np.abs(local) < boxes.halves[box] - 1e-9).all(1)
            assert not inside.any(), (owner, box)
        into = np.linalg.inv(boxes.poses[1, owner]) @ sensor[1]
        local = np.append(into[:2, :2] @ point[:2] + into[:2, 2], point[2] - boxes.heights[owner])
        assert np.abs(np.abs(local) / boxes.halves[owner]).max() == pytest.approx(1, abs=1e-9)


def test_the_density_of_points_on_a_wall_falls_as_the_projected_area_says() -> None:
    """A wall across the road: rays are uniform in the two angles, so equal angles get equal shares."""
    wall = lidar._Boxes(
        lidar._pose(np.array([[[8.0, 0.0]]]), np.zeros((1, 1))), np.array([[0.5, 6.0, 1.5]]), np.array([-0.3])
    )
    points, _ = lidar._sweep(20_000, np.eye(3), wall, 0, 0.0, np.random.default_rng(0))
    azimuth = np.arctan2(points[:, 1], points[:, 0])
    counts, _ = np.histogram(azimuth, bins=10, range=(-0.5, 0.5))
    assert counts.std() / counts.mean() < 0.08


def test_the_street_is_the_same_at_every_speed_and_number_of_frames() -> None:
    streets = [
        lidar._street(frames, np.random.default_rng(7), speed, 0.0, 30)
        for frames, speed in ((np.arange(2), 1.0), (np.arange(5) - 3, 1.0), (np.arange(3) - 1, 2.0))
    ]
    at_reference = [street.poses[i] for street, i in zip(streets, (0, 3, 1), strict=True)]
    for poses, street in zip(at_reference, streets, strict=True):
        np.testing.assert_allclose(poses, at_reference[0])
        np.testing.assert_array_equal(street.halves, streets[0].halves)


def test_speed_multiplies_the_motion() -> None:
    slow, fast = (lidar._path(np.zeros(2), 0.2, 0.8 * f, 0.0, 0.0, np.arange(2)) for f in (1, 2))
    np.testing.assert_allclose(2 * slow[1, :2, 2], fast[1, :2, 2])


def test_acceleration_changes_the_steps_and_only_those_of_cars() -> None:
    frames = np.arange(4) - 2
    steady, hurried = (
        lidar._street(frames, np.random.default_rng(1), 1.0, a, 30).poses[:, :, :2, 2] for a in (0.0, 0.3)
    )
    lengths = [np.linalg.norm(np.diff(poses[:, :N_CARS], axis=0), axis=-1) for poses in (steady, hurried)]
    assert np.ptp(lengths[0], axis=0).max() < 1e-9
    np.testing.assert_allclose(np.abs(np.diff(lengths[1], axis=0)), 0.3)
    np.testing.assert_array_equal(steady[:, N_CARS:], hurried[:, N_CARS:])


def test_cars_do_not_stand_in_one_another_and_move_in_the_world() -> None:
    for seed in range(20):
        street = lidar._street(np.arange(2), np.random.default_rng(seed), 1.0, 0.0, 30)
        xy = street.poses[0, :N_CARS, :2, 2]
        gaps = np.abs(xy[:, None] - xy[None])[np.triu_indices(N_CARS, 1)]
        assert ((gaps[:, 0] > 4.5) | (gaps[:, 1] > 2.2)).all()
    world = drive(2000, 2, np.random.default_rng(0))
    assert 0.05 < world.moving.mean() < 0.6


def test_the_same_generator_gives_the_same_drive() -> None:
    one, two = (drive(100, 3, np.random.default_rng(9)) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"n_points": 0}, "n_points=0"),
        ({"n_frames": 1}, "2 frames"),
        ({"speed": float("nan")}, "finite numbers.*speed"),
        ({"noise": -0.1}, "noise=-0.1"),
    ],
)
def test_impossible_drives_are_refused(given: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drive(**{"n_points": 10, "n_frames": 2, "rng": np.random.default_rng(0)} | given)


def test_an_empty_street_is_an_error_and_not_an_endless_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lidar, "_MOST_RAYS", 2)
    with pytest.raises(ValueError, match="rays returned"):
        drive(10**6, 2, np.random.default_rng(0))
