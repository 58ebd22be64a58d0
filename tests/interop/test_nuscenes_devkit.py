"""The official nuscenes-devkit opens the built-in city and finds its sensors, maps and splits consistent."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import shapely

from data_prep.city import generate, recording, sensors
from data_prep.city.official_scenes import official_scenes

pytestmark = [pytest.mark.interop, pytest.mark.slow]

PROBE = Path(__file__).with_name("nuscenes_probe.py")


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("city")
    generate.main(["--out", str(out), "--size", "tiny", "--formats", "nuscenes", "--workers", "1"])
    return out / "nuscenes"


@pytest.fixture(scope="module")
def probed(city, interop_python, tmp_path_factory) -> tuple[dict, dict[str, np.ndarray]]:
    """What the devkit says, and per image file the (3, N) pixels and depths of the projected LiDAR points."""
    folder = tmp_path_factory.mktemp("probe")
    answers, points = folder / "answers.json", folder / "points.npz"
    subprocess.run([interop_python, PROBE, city, answers, points], check=True, cwd=folder, timeout=600)
    with np.load(points) as file:
        return json.loads(answers.read_text()), dict(file)


def test_every_table_is_read(probed):
    counts = probed[0]["counts"]
    assert counts["sample"] == 24
    assert counts["sample_data"] == counts["ego_pose"] == 24 * 7
    assert counts["calibrated_sensor"] == counts["log"] * 7
    assert counts["visibility"] == 4
    assert counts["sample_annotation"] > 0
    assert counts["map"] == 1


def test_projected_lidar_falls_on_what_the_camera_sees(probed):
    """The depth of a projected point is the depth of the world along the ray through its pixel.

    Some points are rightly hidden from the camera, which sits lower and farther forward than the LiDAR; 95
    % must agree to 0.3 m in every camera. A pose, a time, an axis or an intrinsic that is wrong leaves far
    fewer.
    """
    projected = probed[1]
    agreed: dict[str, list[np.ndarray]] = {}
    for world, logs in generate.plan("tiny", 0):
        for log in logs:
            own = recording.instruments(world, log, "tiny", 0)
            for scene in log.scenes:
                stage = recording.scene_stage(world, log, scene, own)
                for times in recording.timestamps(log, scene, own.rig, 0):
                    for camera, time in zip(own.rig.cameras, times[1:], strict=True):
                        name = Path(recording.file_name(log, camera.channel, time)).name
                        u, v, depth = projected[name]
                        rays = np.stack([u, v, np.ones_like(u)], 1) @ np.linalg.inv(camera.intrinsics).T
                        map_T_ego = recording.map_poses(world, log, time, recording.NUSCENES.rig)
                        map_T_camera = map_T_ego @ camera.ego_T_camera
                        view = stage.at(float((time - log.start) / 1e6), map_T_camera[:3, 3])
                        length = np.linalg.norm(rays, axis=1)
                        directions = (rays / length[:, None]) @ map_T_camera[:3, :3].T
                        origin = map_T_camera[:3, 3] - np.append(world.centre, 0.0)
                        hits = view.cast(
                            np.broadcast_to(origin, directions.shape).astype(np.float32),
                            directions.astype(np.float32),
                        )
                        seen = hits.distance / length  # distance along the ray → depth along the optical axis
                        agreed.setdefault(camera.channel, []).append(np.abs(seen - depth) < 0.3)
    assert set(agreed) == set(sensors.CAMERAS)
    for channel, frames in agreed.items():
        pixels = np.concatenate(frames)
        assert len(pixels) > 2000, channel
        assert pixels.mean() > 0.95, f"{channel}: {pixels.mean():.3f} of {len(pixels)} points agree"


def test_boxes_hold_their_points(probed):
    """Bumpers and noise reach out of the boxes a little: the devkit counts with boxes grown by 10 %."""
    counted, stated = np.array(probed[0]["boxes"]).T
    assert stated.max() > 5
    assert np.all(counted >= 0.8 * stated - 1)


def test_the_devkit_knows_the_moving_from_the_parked(probed):
    """Its categories, attributes and velocities (by position) of all annotations."""
    velocities = probed[0]["velocities"]
    assert len(velocities) == probed[0]["counts"]["sample_annotation"]
    speeds: dict[str, list[float]] = {}
    for category, attribute, speed in velocities:
        assert category.split(".")[0] == ("human" if attribute.startswith("pedestrian") else "vehicle")
        if np.isfinite(speed):
            speeds.setdefault(attribute, []).append(speed)
    assert max(speeds["vehicle.parked"]) == 0
    assert np.median(speeds["vehicle.moving"]) > 3
    assert max(speeds["vehicle.moving"]) < 12
    assert 0.5 < np.median(speeds["pedestrian.moving"]) < 2


def test_the_devkit_draws_keyframes_with_boxes(probed):
    for name in probed[0]["rendered"]:
        assert Path(name).stat().st_size > 20_000


def test_maps_answer_at_the_driven_positions(probed):
    for answer in probed[0]["maps"].values():
        assert all(answer["drivable"])
        assert all(answer["mask"])
        assert all(0.02 < share < 0.9 for share in answer["raster_shares"])
        assert answer["nearby_lanes"] > 0
        for layer in (
            "drivable_area",
            "road_segment",
            "road_block",
            "lane",
            "ped_crossing",
            "walkway",
            "stop_line",
        ):
            assert answer["layers"][layer] > 0, layer


def test_lanes_that_the_devkit_draws_follow_the_curved_streets(probed):
    """Its own reading of the arcs stays on the road, at a constant distance from the centre line."""
    for world, _ in generate.plan("tiny", 0):
        centres = shapely.STRtree([world.graph.line(street) for street in world.graph.streets])
        shapely.prepare(world.road)
        drawn = probed[0]["maps"][world.location]["lane_lines"]
        turns = []
        for line in drawn.values():
            x, y, yaw = np.array(line).T
            assert shapely.contains_xy(world.road, x, y).all()
            points = shapely.points(x, y)
            street = centres.geometries[centres.nearest(points[len(points) // 2])]
            assert np.ptp(shapely.distance(street, points)) < 0.15
            turns.append(np.ptp(np.unwrap(yaw)))
        assert len(drawn) > 20
        assert max(turns) > 0.2


def test_the_official_split_is_the_district_split(probed):
    answers = probed[0]
    for name in ("train", "val", "test"):
        assert official_scenes(name) == sorted(answers["official"][name])
    for scene, splits in answers["splits"].items():
        assert len(splits) == 1
        assert f"{splits[0]} district" in answers["descriptions"][scene]
