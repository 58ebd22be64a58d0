"""The page of one keyframe: what is drawn on it is where it says."""

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_prep import datasets, keyframe, maploc
from data_prep.errors import InputError
from data_prep.raw import nuscenes, osm
from placerec_jax.data.map_patch import LocationRaster
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import rigid_apply, rigid_inverse, se2_apply, wrap_angle

from .conftest import LOCATION, TinyRoot


def scene_of(tiny: TinyRoot, seed: int = 0) -> keyframe.Scene:
    dataset = datasets.open_nuscenes(tiny.root, None)
    return keyframe.read_scene(dataset, dataset.frames[1], [osm.read_osm(tiny.osm)], seed, "report")


def test_the_offset_is_the_specs(tiny):
    """A landmark at q in the true ego frame is found at T·q in the noisy one, with |T| inside the noise."""
    scene = scene_of(tiny, seed=3)
    landmark = np.array([20.0, -7.0])
    in_map = se2_apply(scene.true_pose, landmark)
    np.testing.assert_allclose(
        se2_apply(scene.noisy_pose, se2_apply(scene.offset, landmark)), in_map, atol=1e-9
    )
    assert (np.abs(scene.offset) <= keyframe.NOISE).all()
    np.testing.assert_array_equal(scene.offset, scene_of(tiny, seed=3).offset)
    assert (scene.offset != scene_of(tiny, seed=4).offset).all()
    # The building, 15 m left of the street, in both patches.
    middle = np.array([315.0, 530.0])
    for pose in (scene.true_pose, scene.noisy_pose):
        ahead, left = Rotation.from_euler("z", -pose[2]).apply([*(middle - pose[:2]), 0])[:2]
        patch = scene.patch(keyframe.PATCH, pose, ["building"])[..., 0]
        assert patch[int((ahead + 64) / 0.5), int((left + 64) / 0.5)] == 1
        assert patch.sum() * 0.25 == pytest.approx(30 * 20, rel=0.05)


def test_patches_are_those_that_are_trained_on(tiny):
    """The library cuts its labels with code of its own: the page shows the same."""
    scene = scene_of(tiny)
    library = LocationRaster(scene.raster, np.array(scene.source.grid.lower), scene.source.grid.cell)
    for grid, pose in ((keyframe.PATCH, scene.noisy_pose), (keyframe.BEV, scene.true_pose)):
        expected = library.sample_nearest(grid, pose, (3, 1, 2))
        np.testing.assert_array_equal(scene.patch(grid, pose, keyframe.LABELS), expected)
        assert expected[..., 0].any()


def test_outlines_are_where_the_map_has_them(tiny):
    """Carried back into the map, every point lies on an edge of the area, the road or the wall."""
    scene = scene_of(tiny)
    names = set()
    for name, line in keyframe.outlines(scene):
        x, y = se2_apply(scene.true_pose, line).T
        names.add(name)
        if name == "road":
            assert np.abs(y - 500).max() < 0.02
        elif name == "building":
            on_wall = np.min(np.abs([x - 300, x - 330, y - 520, y - 540]), axis=0)
            assert on_wall.max() < 0.05
        else:
            # Two long edges; the hole in the area is out of reach.
            assert np.minimum(np.abs(y - 490), np.abs(y - 510)).max() < 0.25
    assert names == {"drivable", "road", "building"}


def test_the_ground_is_the_plane_under_the_wheels(tiny):
    """Points of the ego frame's own ground, seen in the level frame."""
    for record in tiny.tables["ego_pose"]:
        record["rotation"] = (
            Rotation.from_euler("ZYX", [0.7, 0.04, -0.06]).as_quat(scalar_first=True).tolist()
        )
    tiny.write()
    frame = nuscenes.read_frames(tiny.root, "v1.0-trainval")[0]
    ego_xyz = np.random.default_rng(0).uniform(-30, 30, (50, 3)) * [1, 1, 0]
    map_xyz = rigid_apply(frame.map_T_ego, ego_xyz)
    level_xyz = Rotation.from_euler("z", -0.7).apply(map_xyz - frame.map_T_ego[:3, 3])
    np.testing.assert_allclose(keyframe.on_the_ground(frame, level_xyz[:, :2]), level_xyz, atol=1e-9)
    assert np.abs(level_xyz[:, 2]).max() > 1


def test_projection_is_opencvs(tiny):
    rng = np.random.default_rng(1)
    points = rng.uniform(-20, 20, (200, 3))
    rotation = Rotation.from_rotvec([0.3, -0.2, 0.9])
    camera_T_points = np.eye(4)
    camera_T_points[:3, :3], camera_T_points[:3, 3] = rotation.as_matrix(), [0.5, -1.0, 2.0]
    intrinsics = np.array([[500.0, 0, 320], [0, 510, 180], [0, 0, 1]])
    pixels, depth = keyframe.project(camera_T_points, intrinsics, points)
    expected, _ = cv2.projectPoints(points, rotation.as_rotvec(), camera_T_points[:3, 3], intrinsics, None)
    ahead = depth > 0.5
    assert ahead.sum() > 50
    np.testing.assert_allclose(pixels[ahead], expected[ahead, 0], atol=1e-6)


class TestCommand:
    def arguments(self, tiny, out, *more):
        return ["--raw", str(tiny.root), "--osm", str(tiny.osm), "--out", str(out), *more]

    def test_draws_and_prints_the_poses(self, tiny, tmp_path, capsys):
        out = tmp_path / "pages" / "page.png"
        keyframe.main(self.arguments(tiny, out, "--sample", "sample-0-1"))
        printed = capsys.readouterr().out
        assert "true pose: x 302.00 m, y 500.00 m, yaw +17.76°" in printed
        assert "noisy pose (seed 0)" in printed
        assert maploc.OSM_ATTRIBUTION in printed
        assert cv2.imread(str(out)).shape[1] == 2400

    def test_an_unknown_sample(self, tiny, tmp_path):
        with pytest.raises(InputError, match=r"--sample x: expected.* 6 keyframes.*e\.g\. sample-0-0"):
            keyframe.main(self.arguments(tiny, tmp_path / "a.png", "--sample", "x"))

    def test_a_damaged_image_leaves_no_page(self, tiny, tmp_path):
        next((tiny.root / "samples/CAM_BACK").iterdir()).write_bytes(b"none")
        with pytest.raises(InputError, match=r"CAM_BACK/image\.jpg: expected a JPEG"):
            keyframe.main(self.arguments(tiny, tmp_path / "a.png"))
        assert not (tmp_path / "a.png").exists()

    def test_another_suffix(self, tiny, tmp_path):
        with pytest.raises(InputError, match=r"ending in \.png"):
            keyframe.main(self.arguments(tiny, tmp_path / "page.html"))


@pytest.mark.real_data
class TestRealKeyframe:
    def test_the_edges_of_the_drivable_area_fall_on_the_kerbs(self, real_data):
        """The LiDAR's points rise by a kerb's height where the map's drivable area ends, to half a metre.

        That holds only if the pose, the LiDAR's calibration and the map expansion agree.
        """
        dataset = datasets.open_nuscenes(real_data / "nuscenes", None)
        frame = dataset.frames[0]
        points = dataset.read_sweep(frame.lidar.path).astype(np.float64)
        ego_xyz = rigid_apply(frame.lidar.ego_T_lidar, points)
        map_xyz = rigid_apply(frame.map_T_ego, ego_xyz)
        near = (np.hypot(*ego_xyz[:, :2].T) < 20) & (np.abs(ego_xyz[:, 2]) < 0.6)
        x, y = np.round(frame.map_pose_ego[:2])
        grid = Grid2D((x - 40, x + 40, y - 40, y + 40), 0.1)
        area = dataset.place(LOCATION).drivable.draw(grid)
        row, column = np.floor((map_xyz[near, :2] - np.array(grid.lower)) / grid.cell).astype(int).T
        depth = cv2.distanceTransform(area, cv2.DIST_L2, 5)[row, column] * grid.cell
        beyond = cv2.distanceTransform(1 - area, cv2.DIST_L2, 5)[row, column] * grid.cell
        height = ego_xyz[near, 2]
        inside = height[(depth > 0.25) & (depth < 1.5)]
        outside = height[(beyond > 0.5) & (beyond < 1.5)]
        assert len(inside) > 1000
        assert len(outside) > 300
        assert abs(np.median(inside)) < 0.03
        assert 0.1 < np.median(outside) - np.median(inside) < 0.3

    def test_cameras_move_between_image_and_sweep(self, real_data):
        """40 cm for the first camera: what `camera_in_level_frame` takes into account."""
        frame = datasets.open_nuscenes(real_data / "nuscenes", None).frames[0]
        camera = frame.cameras[0]
        moved = np.linalg.norm((rigid_inverse(frame.map_T_ego) @ camera.map_T_ego)[:3, 3])
        assert 0.3 < moved < 0.5
        level_T_camera = maploc.camera_in_level_frame(frame, camera)
        # Heading left and ahead, and level but for the road's slope.
        axis = level_T_camera[:3, 2]
        assert abs(wrap_angle(np.arctan2(axis[1], axis[0]) - np.radians(55))) < np.radians(3)
        assert abs(axis[2]) < 0.05

    def test_the_page(self, real_data, tmp_path, capsys):
        keyframe.main(
            [
                *("--raw", str(real_data / "nuscenes"), "--out", str(tmp_path / "page.png")),
                *("--osm", str(real_data / "osm/singapore-onenorth.osm")),
            ]
        )
        assert "true pose: x 411.30 m, y 1180.89 m, yaw -110.22°" in capsys.readouterr().out
        assert (tmp_path / "page.png").stat().st_size > 500_000
