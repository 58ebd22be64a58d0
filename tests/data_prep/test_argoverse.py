"""The Argoverse reader on a root written by hand: geometry by other means, and every kind of damage."""

import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from configs import maplocnet
from data_prep import check
from data_prep.errors import InputError
from data_prep.raw import argoverse
from placerec_jax.ops.grid import Grid2D

START = 315_970_000_000_000_000  # ns
CAMERAS = argoverse.RING_CAMERAS
PLY_FIELDS = [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("intensity", "u1"), ("laser_number", "u1")]
# A camera that looks forward: its x is the vehicle's right, its y down.
FORWARD = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])


@dataclasses.dataclass
class Root:
    """A root under construction; logs have sweeps at 10 Hz and images at 30 Hz."""

    path: Path

    def log(self, folder: str, name: str, city: str = "PIT", sweeps: int = 12) -> Path:
        log = self.path / "argoverse-tracking" / folder / name
        for sub in ("poses", "lidar", *CAMERAS):
            (log / sub).mkdir(parents=True)
        write_json(log / "city_info.json", {"city_name": city})
        write_json(log / "vehicle_calibration_info.json", {"camera_data_": [calibrated(c) for c in CAMERAS]})
        for i in range(sweeps):
            time = START + i * 100_000_000
            write_pose(log, time)
            write_ply(log / "lidar" / f"PC_{time}.ply")
        for number, camera in enumerate(CAMERAS):
            for i in range(3 * sweeps):
                time = START + i * 33_333_333 + number * 1_000_003
                write_pose(log, time)
                (log / camera / f"{camera}_{time}.jpg").write_bytes(b"any")
        return log

    def maps(self, city: str, cells: np.ndarray, registration: np.ndarray) -> None:
        paths = argoverse.drivable_files(self.path, city)
        paths[0].parent.mkdir(exist_ok=True)
        for path, array in zip(paths, (cells, registration), strict=True):
            np.save(path, array)


def write_json(path: Path, content) -> None:
    path.write_text(json.dumps(content))


def true_pose(time: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotation vector and translation of the vehicle: it drives 5 m/s and turns."""
    seconds = (time - START) / 1e9
    return np.array([0.01, -0.02, 0.3 + 0.1 * seconds]), np.array([1000 + 5 * seconds, 500.0, 12.0])


def write_pose(log: Path, time: int) -> None:
    vector, translation = true_pose(time)
    rotation = Rotation.from_rotvec(vector).as_quat(scalar_first=True)
    path = log / "poses" / f"city_SE3_egovehicle_{time}.json"
    write_json(path, {"rotation": rotation.tolist(), "translation": translation.tolist()})


def write_ply(path: Path, points: int = 3, kind: str = "float") -> None:
    header = (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {points}\n"
        + "".join(f"property {kind} {axis}\n" for axis in "xyz")
        + "property uchar intensity\nproperty uchar laser_number\nend_header\n"
    )
    fields = [(n, "<f8" if kind == "double" and n in "xyz" else t) for n, t in PLY_FIELDS]
    array = np.zeros(points, fields)
    array["x"], array["intensity"], array["laser_number"] = np.arange(points) + 0.5, 200, np.arange(points)
    path.write_bytes(header.encode() + array.tobytes())


def calibrated(camera: str) -> dict:
    yaw = 20.0 * CAMERAS.index(camera)
    rotation = Rotation.from_euler("z", yaw, degrees=True).as_matrix() @ FORWARD
    return {
        "key": f"image_raw_{camera}",
        "value": {
            "focal_length_x_px_": 1392.0,
            "focal_length_y_px_": 1391.0,
            "focal_center_x_px_": 960.5,
            "focal_center_y_px_": 603.25,
            "skew_": 0,
            "distortion_coefficients_": [-0.17, 0.12, -0.03],
            "vehicle_SE3_camera_": {
                "rotation": {
                    "coefficients": Rotation.from_matrix(rotation).as_quat(scalar_first=True).tolist()
                },
                "translation": [1.5, 0.2, 1.4],
            },
        },
    }


@pytest.fixture
def root(tmp_path) -> Root:
    return Root(tmp_path)


def test_every_frame_has_the_nearest_image_of_each_camera(root):
    log = root.log("train2", "log-a")
    recordings = argoverse.read_frames(root.path, rate=10)
    assert len(recordings.frames) == recordings.sweeps == 12
    assert recordings.sweeps_without_images == 0
    for i, frame in enumerate(recordings.frames):
        sweep = START + i * 100_000_000
        assert frame.token == f"log-a_{sweep}"
        assert (frame.scene, frame.location, frame.timestamp) == ("log-a", "PIT", sweep // 1000)
        assert tuple(camera.channel for camera in frame.cameras) == CAMERAS
        for camera in frame.cameras:
            times = [int(p.stem.rpartition("_")[2]) for p in (log / camera.channel).iterdir()]
            nearest = min(times, key=lambda time: abs(time - sweep))
            assert camera.path == log / camera.channel / f"{camera.channel}_{nearest}.jpg"
            assert camera.path.exists()


def test_poses_and_calibration_project_as_documented(root):
    """A point of the city, by way of quaternions and the pinhole formula alone."""
    root.log("val", "log-a")
    frame = argoverse.read_frames(root.path).frames[1]
    for camera in frame.cameras:
        index = CAMERAS.index(camera.channel)
        time = int(camera.path.stem.rpartition("_")[2])
        vector, translation = true_pose(time)
        yaw = np.radians(20.0 * index)
        # 10 m before the camera, 2 m to its right, 1 m below it.
        ahead, right = np.array([np.cos(yaw), np.sin(yaw), 0]), np.array([np.sin(yaw), -np.cos(yaw), 0])
        ego = np.array([1.5, 0.2, 1.4]) + 10 * ahead + 2 * right - np.array([0, 0, 1.0])
        city = Rotation.from_rotvec(vector).apply(ego) + translation
        in_ego = np.linalg.inv(camera.map_T_ego) @ np.append(city, 1)
        in_camera = (np.linalg.inv(camera.ego_T_camera) @ in_ego)[:3]
        np.testing.assert_allclose(in_camera, [2, 1, 10], atol=1e-9)
        u, v, w = camera.intrinsics @ in_camera
        np.testing.assert_allclose((u / w, v / w), (960.5 + 1392 * 0.2, 603.25 + 1391 * 0.1), atol=1e-6)
        assert (camera.width, camera.height) == (1920, 1200)


def test_pose_of_a_frame_is_that_of_its_sweep(root):
    root.log("test", "log-a")
    for frame in argoverse.read_frames(root.path).frames:
        vector, translation = true_pose(frame.timestamp * 1000)
        forward = Rotation.from_rotvec(vector).apply([1.0, 0, 0])
        expected = [*translation[:2], np.arctan2(forward[1], forward[0])]
        np.testing.assert_allclose(frame.map_pose_ego, expected, atol=1e-9)
        np.testing.assert_array_equal(frame.map_T_ego[:3, 3], translation)


def test_splits_are_those_of_the_folders(root):
    for folder, name in (("train1", "d"), ("train4", "a"), ("val", "c"), ("test", "b")):
        root.log(folder, name, sweeps=2)
    recordings = argoverse.read_frames(root.path)
    assert recordings.split_of_log == {"a": "train", "b": "test", "c": "val", "d": "train"}
    assert [frame.scene for frame in recordings.frames] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(("rate", "expected"), [(2.0, [0, 5, 10]), (10.0, list(range(12))), (1.0, [0, 10])])
def test_rate_thins_sweeps_evenly(root, rate, expected):
    root.log("train1", "log-a")
    frames = argoverse.read_frames(root.path, rate=rate).frames
    assert [round((f.timestamp * 1000 - START) / 1e8) for f in frames] == expected


def test_jitter_does_not_skip_a_sweep():
    times = START + np.arange(0, 101) * 100_000_000
    times = times + np.random.default_rng(0).integers(-3_000_000, 3_000_000, len(times))
    assert argoverse._spread(times, np.ones(len(times), bool), 2.0) == list(range(0, 101, 5))


def test_a_sweep_that_lacks_an_image_is_passed_over(root):
    """The next sweep serves; images without a pose and stray files count for nothing."""
    log = root.log("train1", "log-a")
    camera = CAMERAS[3]
    for path in (log / camera).iterdir():
        if abs(int(path.stem.rpartition("_")[2]) - START - 500_000_000) < 40_000_000:
            path.unlink()
    (log / camera / f"{camera}_{START + 500_000_001}.jpg").write_bytes(b"has no pose")
    (log / camera / "._ring_front_left_1.jpg").write_bytes(b"left behind by another system")
    recordings = argoverse.read_frames(root.path)
    assert recordings.sweeps_without_images == 1
    sweeps = [round((f.timestamp * 1000 - START) / 1e8) for f in recordings.frames]
    assert sweeps == [0, 6, 11]
    others = [c for c in CAMERAS if c != camera]
    assert argoverse.read_frames(root.path, others).sweeps_without_images == 0


def test_six_cameras_leave_the_smallest_gap():
    """By the headings and the field of view of the real cameras."""
    yaw = dict(zip(CAMERAS, (44.5, -0.6, -45.6, 99.6, -100.3, 149.9, -150.3), strict=True))
    half = np.degrees(np.arctan(960 / 1392))
    around = np.arange(-180, 180, 0.1)

    def unseen(cameras) -> float:
        seen = [np.abs((around - yaw[camera] + 180) % 360 - 180) < half for camera in cameras]
        return 0.1 * float(np.sum(~np.any(seen, axis=0)))

    assert unseen(CAMERAS) == 0
    gaps = {left_out: unseen([c for c in CAMERAS if c != left_out]) for left_out in CAMERAS}
    (left_out,) = set(CAMERAS) - set(argoverse.SIX_CAMERAS)
    assert min(gaps, key=gaps.get) == left_out
    assert gaps[left_out] == pytest.approx(21, abs=0.5)


@pytest.mark.parametrize(
    ("preset", "cameras"),
    [
        ("argoverse", CAMERAS),
        ("argoverse_six", argoverse.SIX_CAMERAS),
        ("argoverse_front", ("ring_front_center",)),
    ],
)
def test_presets_name_cameras_that_are_stored(preset, cameras):
    config = maplocnet.get_config(preset)
    assert tuple(config.data.cameras) == cameras
    assert config.model.num_cameras == len(cameras)


def test_drivable_area_is_looked_up_as_by_the_devkit(root):
    """On every cell of 0.5 m, with the devkit's steps written out point by point."""
    rng = np.random.default_rng(0)
    cells = (rng.random((30, 40)) < 0.5).astype(float)
    registration = np.array([[1.0, 0, -100], [0, 1, 12], [0, 0, 1]])
    root.maps("MIA", cells, registration)
    area = argoverse.read_drivable_area(root.path, "MIA")
    grid = Grid2D((95.0, 145.0, -20.0, 25.0), 0.5)
    drawn = area.draw(grid)
    expected = np.zeros(grid.shape)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            x, y = round(95 + (i + 0.5) / 2), round(-20 + (j + 0.5) / 2)
            column, row = int(x - 100), int(y + 12)
            if 0 <= column < 40 and 0 <= row < 30:
                expected[i, j] = cells[row, column]
    np.testing.assert_array_equal(drawn, expected)
    assert 0.2 < drawn.mean() < 0.6
    assert area.extent() == (99.5, 139.5, -12.5, 17.5)


def test_drivable_area_may_be_turned(root):
    cells = np.zeros((20, 20), np.uint8)
    cells[3, 15] = 1  # row, column
    turn = np.array([[0.0, 1, 2], [-1, 0, 10], [0, 0, 1]])  # column = y + 2, row = 10 - x
    root.maps("PIT", cells, turn)
    drawn = argoverse.read_drivable_area(root.path, "PIT").draw(Grid2D((0.0, 20.0, 0.0, 20.0), 0.5))
    np.testing.assert_array_equal(np.argwhere(drawn), [(i, j) for i in (13, 14) for j in (25, 26)])


@pytest.mark.parametrize("kind", ["float", "double"])
def test_sweep_is_read(tmp_path, kind):
    write_ply(tmp_path / "PC_1.ply", 5, kind)
    points = argoverse.read_sweep(tmp_path / "PC_1.ply")
    assert points.dtype == np.float32
    np.testing.assert_array_equal(points[:, 0], np.arange(5) + 0.5)
    np.testing.assert_array_equal(points[:, 3:], [[200, i] for i in range(5)])


def test_files_are_checked(root):
    log = root.log("train1", "log-a", sweeps=2)
    frames = argoverse.read_frames(root.path, CAMERAS[:1]).frames
    assert argoverse.check_files(frames) > 0
    sweep = frames[0].lidar.path
    whole = sweep.read_bytes()
    for content, message in (
        (whole[:-1], r"3 points in \d+ bytes, found \d+ bytes"),
        (whole + b"x", "3 points in"),
        (b"", "0 bytes"),
        (b"ply\n", "no such header"),
        (whole.replace(b"binary_little_endian", b"ascii"), "another format"),
        (whole.replace(b"vertex 3", b"vertex x"), "the elements"),
        (whole.replace(b"uchar", b"string"), "unknown type"),
        (whole.replace(b"laser_number", b"laser"), "the properties"),
    ):
        sweep.write_bytes(content)
        with pytest.raises(InputError, match=message) as error:
            argoverse.check_files(frames)
        assert str(sweep) in str(error.value)
    sweep.write_bytes(whole)
    frames[0].cameras[0].path.write_bytes(b"")
    with pytest.raises(InputError, match=rf"{CAMERAS[0]}.*0 bytes"):
        argoverse.check_files(frames)
    assert log.exists()


def damage_city(log: Path) -> None:
    write_json(log / "city_info.json", {"city_name": "NYC"})


def damage_pose(value: dict | str):
    def damage(log: Path) -> None:
        path = log / "poses" / f"city_SE3_egovehicle_{START}.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))

    return damage


def damage_calibration(name: str, value):
    def damage(log: Path) -> None:
        path = log / "vehicle_calibration_info.json"
        content = json.loads(path.read_text())
        if name == "camera_data_":
            content[name] = value
        else:
            content["camera_data_"][0]["value"][name] = value
        write_json(path, content)

    return damage


def remove(name: str):
    def damage(log: Path) -> None:
        path = log / name
        for file in path.iterdir() if path.is_dir() else ():
            file.unlink()
        if path.is_file():
            path.unlink()

    return damage


NOWHERE = [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_city, r"city_info.json: city_name: expected one of MIA, PIT, found 'NYC'"),
        (remove("city_info.json"), r"city_info.json: expected this file"),
        (remove("vehicle_calibration_info.json"), r"calibration_info.json: expected this file"),
        (remove("lidar"), r"lidar: expected sweeps PC_NANOSECONDS.ply, found none"),
        (remove("ring_side_left"), r"within 16.7 ms; found none among 2 sweeps.*0 of ring_side_left"),
        (remove("poses"), r"found none among 2 sweeps, 0 poses"),
        (damage_pose('{"rotation": [1, 0'), r"egovehicle_\d+.json: expected whole JSON, found damage"),
        (damage_pose({"rotation": [1, 0, 0, 0]}), r"expected the field 'translation', found rotation"),
        (damage_pose({"rotation": [1, 0, 0, 0], "translation": [0, float("nan"), 0]}), "3 finite numbers"),
        (damage_pose({"rotation": [2, 0, 0, 0], "translation": NOWHERE}), "unit length, found length 2"),
        (damage_pose({"rotation": "north", "translation": NOWHERE}), "expected 4 finite numbers"),
        (damage_pose("[1]"), "expected the field 'rotation', found list"),
        (damage_calibration("camera_data_", []), "missing: ring_front_left, ring_front_center"),
        (damage_calibration("camera_data_", {}), "expected a list of objects"),
        (damage_calibration("focal_length_x_px_", -3), "expected positive focal lengths, found -3"),
        (damage_calibration("focal_length_x_px_", None), "expected a finite number, found None"),
        (damage_calibration("focal_length_x_px_", 10**400), "expected a finite number, found 1000"),
        (damage_calibration("focal_length_x_px_", "1400"), "expected a finite number, found '1400'"),
        (damage_calibration("image_width_px_", 0), "image size of 1 or more, found"),
        (damage_pose('{"rotation": ' + "9" * 5000 + "}"), "expected whole JSON, found damage"),
        (damage_calibration("vehicle_SE3_camera_", 7), "expected the field 'rotation', found int"),
    ],
)
def test_damage_is_named(root, damage, message):
    damage(root.log("train1", "log-a", sweeps=2))
    with pytest.raises(InputError, match=message) as error:
        argoverse.read_frames(root.path)
    assert str(root.path) in str(error.value)


def test_a_root_without_logs(root):
    with pytest.raises(InputError, match=r"argoverse-tracking: expected logs in train1.*no such folder"):
        argoverse.read_frames(root.path)
    (root.path / "argoverse-tracking" / "val").mkdir(parents=True)
    with pytest.raises(InputError, match="no log in val"):
        argoverse.read_frames(root.path)


def test_a_log_in_two_folders(root):
    root.log("train1", "log-a", sweeps=1)
    root.log("val", "log-a", sweeps=1)
    with pytest.raises(InputError, match=r"every log once.*train1|every log once.*val"):
        argoverse.read_frames(root.path)


@pytest.mark.parametrize("cameras", [(), ("CAM_FRONT",), ("ring_side_left", "ring_side_left")])
def test_cameras_that_are_none(root, cameras):
    root.log("train1", "log-a", sweeps=1)
    with pytest.raises(InputError, match="expected one or more of ring_front_left"):
        argoverse.read_frames(root.path, cameras)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan")])
def test_rates_that_are_none(root, rate):
    root.log("train1", "log-a", sweeps=1)
    with pytest.raises(InputError, match="more than 0 frames a second"):
        argoverse.read_frames(root.path, rate=rate)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("cells", "registration", "message"),
    [
        (np.full((3, 3), 2), EYE, "matrix of 0 and 1, found shape .* values from 2 to 2"),
        (np.full((3, 3), np.nan), EYE, "matrix of 0 and 1"),
        (np.zeros(3), EYE, "matrix of 0 and 1"),
        (np.zeros((0, 3)), EYE, "matrix of 0 and 1"),
        (np.array([["a"]]), EYE, "matrix of 0 and 1"),
        (np.zeros((3, 3)), np.zeros((2, 2)), "3 x 3 rotation"),
        (np.zeros((3, 3)), 2 * EYE, "3 x 3 rotation"),
        (np.zeros((3, 3)), EYE + np.array([[0, 0, np.inf], [0, 0, 0], [0, 0, 0]]), "3 x 3 rotation"),
    ],
)
def test_damaged_maps(root, cells, registration, message):
    root.maps("MIA", cells, registration)
    with pytest.raises(InputError, match=message):
        argoverse.read_drivable_area(root.path, "MIA")


def test_maps_that_are_no_arrays(root):
    with pytest.raises(InputError, match=r"MIA_10316_driveable.*expected this file of the HD maps"):
        argoverse.read_drivable_area(root.path, "MIA")
    root.maps("MIA", np.zeros((4, 4)), EYE)
    path = argoverse.drivable_files(root.path, "MIA")[0]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match="found damage"):
        argoverse.read_drivable_area(root.path, "MIA")
    with path.open("wb") as file:
        np.savez(file, first=np.zeros(3), second=np.zeros(3))
    with pytest.raises(InputError, match="expected a NumPy array, found NpzFile"):
        argoverse.read_drivable_area(root.path, "MIA")
    np.save(path, np.array([{"code": 1}], object), allow_pickle=True)
    with pytest.raises(InputError, match="found damage"):
        argoverse.read_drivable_area(root.path, "MIA")


def jpeg(log: Path) -> None:
    """Real images, instead of files that are only named so, for every camera's first."""
    _, content = cv2.imencode(".jpg", np.full((1200, 1920, 3), 90, np.uint8))
    for camera in CAMERAS:
        min((log / camera).iterdir()).write_bytes(content.tobytes())


def findings(root: Root) -> dict[bool, str]:
    """Good and bad lines of `python -m data_prep check`, each joined."""
    version, lines = check.check_argoverse(root.path, None, workers=2, image_width=400)
    assert version == "v1.1"
    lines = list(lines)
    return {good: "\n".join(line for g, line in lines if g == good) for good in (True, False)}


def test_check_says_what_is_there(root):
    for folder, city in (("train1", "PIT"), ("train2", "PIT"), ("val", "MIA")):
        jpeg(root.log(folder, f"log-{folder}", city))
    for city in ("PIT", "MIA"):
        root.maps(city, np.ones((20, 30), np.uint8), EYE)
    found = findings(root)
    assert found[False] == ""
    assert "3 logs (train 2, val 1; MIA 1, PIT 2)" in found[True]
    assert "9 keyframes, 2 a second; 0 of 36 sweeps" in found[True]
    assert "drivable area of PIT: 30 x 20 cells; the OpenStreetMap to fetch: latitude 40.43" in found[True]
    assert "`maploc` would take about" in found[True]
    assert "with 2 workers and write 0.00 GB (from 3 images" in found[True]


def test_check_says_what_is_missing(root, run_command):
    jpeg(root.log("train1", "log-a", "PIT"))
    done = run_command("-m", "data_prep", "check", root.path, "--dataset", "argoverse", expect=1)
    assert "MISSING" in done.stdout
    assert "PIT_10314_driveable_area_mat_2019_05_28.npy: expected this file of the HD maps" in done.stdout
    assert "Not all is there" in done.stdout
    assert "expected logs in train1" in findings(Root(root.path / "elsewhere"))[False]


def test_only_one_version_is_known(root):
    with pytest.raises(InputError, match=r"expected version v1.1 of Argoverse.*asked for v1.0-mini"):
        argoverse.check_version(root.path, "v1.0-mini")
