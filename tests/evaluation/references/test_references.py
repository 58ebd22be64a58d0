"""What every training-free reference must do, found by their folder, and the reading of prepared folders."""

import types

import cv2
import numpy as np
import pytest

from placerec_jax.errors import ConfigError
from placerec_jax.evaluation import references
from placerec_jax.evaluation.reference_inputs import DescriptorError, turn
from placerec_jax.ops.point_steps import encode_points

NAMES = references.names()
OF_RANGES = [name for name in NAMES if references.load(name).NEEDS == "range_image"]
OF_POINTS = [name for name in NAMES if name not in OF_RANGES]


def a_scan(seed: int, count: int = 3000) -> np.ndarray:
    """(count, 3) float32 points of bare ground and a few walls around the sensor."""
    rng = np.random.default_rng(seed)
    ground = np.column_stack([rng.uniform(-40, 40, (count // 2, 2)), np.full(count // 2, -1.7)])
    start, end = rng.uniform(-35, 35, (2, 8, 2))
    wall = rng.integers(0, 8, count - len(ground))
    along = rng.uniform(0, 1, (len(wall), 1))
    walls = np.column_stack(
        [start[wall] + along * (end - start)[wall], rng.uniform(-1.7, 1 + wall / 2, len(wall))]
    )
    return np.concatenate([ground, walls]).astype(np.float32)


def range_image(points: np.ndarray) -> np.ndarray:
    """(N, 3) points → (32, 264) ranges, elevations from 10° to −30°; 0 where empty."""
    image = np.full((32, 264), np.inf)
    distance = np.linalg.norm(points, axis=1)
    elevation = np.rad2deg(np.arcsin(points[:, 2] / np.maximum(distance, 1e-9)))
    row = np.clip((10 - elevation) / 40 * 32, 0, 31).astype(int)
    column = np.clip((np.pi - np.arctan2(points[:, 1], points[:, 0])) / (2 * np.pi) * 264, 0, 263).astype(int)
    np.minimum.at(image, (row, column), distance)
    return np.where(np.isfinite(image), image, 0)


def needed(name: str, scan: np.ndarray) -> np.ndarray:
    """The scan as the reference takes it."""
    return range_image(scan) if references.load(name).NEEDS == "range_image" else scan


def describe_all(name: str, scans: list[np.ndarray]) -> dict[str, np.ndarray]:
    described = [references.load(name).describe(needed(name, scan)) for scan in scans]
    return {key: np.stack([one[key] for one in described]) for key in described[0]}


def test_those_of_the_specifications_are_there() -> None:
    assert {"scan_context", "m2dp", "pixels", "polar_fft"} <= set(OF_POINTS)
    assert {"range_fft", "range_rows"} <= set(OF_RANGES)


def test_unknown_reference_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"lidar_irish.*m2dp.*scan_context"):
        references.load("lidar_irish")


@pytest.mark.parametrize("name", NAMES)
def test_reference_keeps_the_contract(name: str) -> None:
    module = references.load(name)
    assert module.__doc__
    assert module.NEEDS in {"points", "bev", "range_image"}
    described = module.describe(needed(name, a_scan(0)))
    assert all(np.isfinite(value).all() and value.dtype == np.float32 for value in described.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_scan_is_nearest_to_itself_and_to_its_neighbour(name: str) -> None:
    scans = [a_scan(seed) for seed in range(6)]
    stack = describe_all(name, scans)
    moved = describe_all(name, [scan + np.float32([0.3, -0.2, 0]) for scan in scans])
    for queries in (stack, moved):
        found = references.load(name).distances(queries, stack)
        assert found.shape == (6, 6)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.argmin(axis=1), np.arange(6))
    np.testing.assert_allclose(np.diag(references.load(name).distances(stack, stack)), 0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_allowed_is_infinitely_far_and_nothing_else_changes(name: str) -> None:
    stack = describe_all(name, [a_scan(seed) for seed in range(5)])
    free = references.load(name).distances(stack, stack)
    allowed = np.tril(np.ones((5, 5), bool), -1)
    found = references.load(name).distances(stack, stack, allowed)
    np.testing.assert_array_equal(np.isinf(found), ~allowed)
    np.testing.assert_array_equal(found[allowed], free[allowed])


@pytest.mark.parametrize("name", NAMES)
def test_empty_scans_resemble_nothing_not_even_each_other(name: str) -> None:
    stack = describe_all(name, [a_scan(0), np.zeros((0, 3)), np.zeros((0, 3), np.float32)])
    found = references.load(name).distances(stack, stack)
    assert np.isfinite(found).all()
    empty = np.delete(found.ravel(), 0)
    assert (empty == empty[0]).all()
    assert empty[0] >= 1


@pytest.mark.parametrize("name", OF_POINTS)
@pytest.mark.parametrize(
    ("scan", "complaint"),
    [
        (np.zeros((5, 4)), r"\(N, 3\).*\(5, 4\)"),
        (np.zeros(3), r"\(N, 3\).*\(3,\)"),
        (np.array([[0, 0, 0], [np.nan, 1, 2]]), "1 of 2 are NaN or infinite"),
        (np.array([[0, 0, np.inf]]), "1 of 1 are NaN or infinite"),
    ],
)
def test_bad_scans_are_refused(name: str, scan: np.ndarray, complaint: str) -> None:
    with pytest.raises(DescriptorError, match=complaint):
        references.load(name).describe(scan)


@pytest.mark.parametrize("name", OF_RANGES)
@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        (np.zeros(5), r"\(H, W\).*\(5,\)"),
        (np.zeros((4, 0)), r"\(H, W\).*\(4, 0\)"),
        (np.full((4, 6), -1.0), "finite values from 0 up"),
        (np.full((4, 6), np.nan), "finite values from 0 up"),
    ],
)
def test_bad_range_images_are_refused(name: str, image: np.ndarray, complaint: str) -> None:
    with pytest.raises(DescriptorError, match=complaint):
        references.load(name).describe(image)


@pytest.mark.parametrize("name", OF_RANGES)
def test_range_images_may_be_turned_and_be_of_any_unit(name: str) -> None:
    """Turning rolls the columns. What stands where must count all the same, for the FFT alone."""
    image = range_image(a_scan(0))
    still = references.load(name).describe(image)["descriptor"]
    for same in (np.roll(image, 101, axis=1), 500 * image):
        np.testing.assert_allclose(references.load(name).describe(same)["descriptor"], still, atol=1e-5)
    mixed = image[:, np.random.default_rng(0).permutation(image.shape[1])]
    apart = np.abs(references.load(name).describe(mixed)["descriptor"] - still).max()
    assert (apart > 0.01) == (name == "range_fft")


def test_a_wave_around_the_sensor_is_its_frequency() -> None:
    """Five waves a turn, 4 + 3 cos: a mean of 4 and an amplitude of 3, each half of it at its frequency."""
    from placerec_jax.evaluation.references import range_fft

    azimuth = 2 * np.pi * np.arange(90) / 90
    found = range_fft.spectrum(np.stack([4 + 3 * np.cos(5 * azimuth + 0.3), np.zeros(90)])) / 90
    expected = np.zeros((2, range_fft.FREQUENCIES))
    expected[0, [0, 5]] = 2, 1.5
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_rows_are_shares_of_the_azimuth() -> None:
    """A row that is half empty and half 9 (root 3), beside one that is all 1."""
    row = np.repeat([0.0, 9.0], 50)
    found = references.load("range_rows").describe(np.stack([row, np.ones(100)]))["descriptor"]
    expected = np.array([0.0] * 5 + [3.0] * 5 + [1.0] * 10)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_bad_stacks_are_refused(name: str) -> None:
    module = references.load(name)
    stack = describe_all(name, [a_scan(0), a_scan(1)])
    key = next(iter(stack))
    with pytest.raises(DescriptorError, match=r"queries.*found \['else'\]"):
        module.distances({"else": np.zeros((2, 3))}, stack)
    with pytest.raises(DescriptorError, match="stack of one"):
        module.distances(stack, {name: value[0].ravel() for name, value in stack.items()})
    with pytest.raises(DescriptorError, match="same settings"):
        module.distances(stack, {**stack, key: stack[key][..., :-1]})
    with pytest.raises(DescriptorError, match=r"\(Q, D\) = \(2, 2\), found \(2, 3\)"):
        module.distances(stack, stack, np.ones((2, 3), bool))


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_queries_change_nothing(name: str) -> None:
    stack = describe_all(name, [a_scan(seed) for seed in range(7)])
    allowed = np.random.default_rng(0).random((7, 7)) < 0.7
    whole = references.load(name).distances(stack, stack, allowed)
    blocks = references.distances(name, stack, stack, allowed, block=3, progress=False)
    np.testing.assert_allclose(blocks, whole, atol=1e-6)
    none = {key: value[:0] for key, value in stack.items()}
    assert references.distances(name, none, stack, progress=False).shape == (0, 7)
    assert references.distances(name, stack, none, progress=False).shape == (7, 0)


# --- Prepared folders ---------------------------------------------------------------------------------------


def prepared_with(records: list[dict]) -> types.SimpleNamespace:
    """What describe_split asks of a prepared folder; images come as bytes unless they are asked for."""

    def read(index: int, *, images: bool = True) -> dict:
        record = dict(records[index])
        if not images and "bev" in record:
            record["bev"] = b"png"
        return record

    table = types.SimpleNamespace(read=read)
    return types.SimpleNamespace(root="prepared", table=lambda name: {"frames": table}[name])


def scan_record(points: np.ndarray) -> dict:
    return {"point_steps": encode_points(points), "reflectance": np.zeros(len(points), np.uint8)}


@pytest.mark.parametrize("name", OF_POINTS)
def test_a_split_is_described_in_the_order_asked_for(name: str) -> None:
    scans = [a_scan(seed) for seed in range(4)]
    prepared = prepared_with([scan_record(scan) for scan in scans])
    found = references.describe_split(prepared, name, np.array([3, 1]), progress=False)
    stored = [np.rint(scans[i] / 0.005).astype(np.float32) * np.float32(0.005) for i in (3, 1)]
    for key, value in describe_all(name, stored).items():
        np.testing.assert_array_equal(found[key], value)


@pytest.mark.parametrize("name", OF_POINTS)
def test_scans_of_a_split_can_be_turned_first(name: str) -> None:
    scan = np.rint(a_scan(0) / 0.005).astype(np.float32) * np.float32(0.005)
    prepared = prepared_with([scan_record(scan)] * 2)
    found = references.describe_split(prepared, name, [0, 1], yaw=np.array([0.0, 1.2]), progress=False)
    for key, value in describe_all(name, [scan, turn(scan, 1.2)]).items():
        np.testing.assert_array_equal(found[key], value)


def test_folders_of_pictures_serve_the_references_that_take_pictures() -> None:
    image = np.random.default_rng(0).integers(0, 255, (31, 31, 1)).astype(np.uint8)
    prepared = prepared_with([{"bev": image}])
    for name in ("pixels", "polar_fft"):
        found = references.describe_split(prepared, name, [0], progress=False)
        expected = references.load(name).describe(image[..., 0])["descriptor"]
        np.testing.assert_array_equal(found["descriptor"][0], expected)
    for name in ("scan_context", "m2dp"):
        with pytest.raises(ConfigError, match=rf"{name}.*needs point_steps, .*\['bev'\]"):
            references.describe_split(prepared, name, [0], progress=False)


@pytest.mark.parametrize("name", OF_RANGES)
def test_range_images_are_read_from_their_folder_and_from_no_other(name: str) -> None:
    images = [np.rint(500 * range_image(a_scan(seed))).astype(np.uint16) for seed in range(2)]
    prepared = prepared_with([{"range_steps": image, **scan_record(a_scan(0))} for image in images])
    found = references.describe_split(prepared, name, [1, 0], progress=False)["descriptor"]
    for row, image in zip(found, images[::-1], strict=True):
        np.testing.assert_array_equal(row, references.load(name).describe(image)["descriptor"])
    with pytest.raises(ConfigError, match=rf"{name}.*needs range_steps, .*point_steps"):
        references.describe_split(prepared_with([scan_record(a_scan(0))]), name, [0], progress=False)


def test_a_damaged_record_is_named() -> None:
    prepared = prepared_with([scan_record(a_scan(0)), {"bev": np.zeros((4, 5, 1), np.uint8)}])
    with pytest.raises(DescriptorError, match=r"record 1 of frames.*\(4, 5\)"):
        references.describe_split(prepared, "pixels", [0, 1], progress=False)
    with pytest.raises(ConfigError, match="no records"):
        references.describe_split(prepared, "pixels", [], progress=False)
    with pytest.raises(DescriptorError, match="each of 2 records, found 1"):
        references.describe_split(prepared, "pixels", [0, 0], yaw=np.zeros(1), progress=False)


# --- Real scans ---------------------------------------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.parametrize("name", OF_POINTS)
def test_real_neighbouring_scans_are_nearest(name: str, real_data) -> None:
    """KITTI 00: scans 94 and 95 follow each other, 0 and 198 are elsewhere."""
    folder = real_data / "kitti_odometry/dataset/sequences/00/velodyne"
    files = [folder / f"{i:06d}.bin" for i in (94, 95, 0, 198)]
    scans = [np.fromfile(file, "<f4").reshape(-1, 4)[:, :3] for file in files]
    database = describe_all(name, scans[1:])
    # M2DP's frame is fixed by the cloud itself and pixels know one direction only.
    angles = (0.0,) if name == "pixels" else (0.0, 0.7, np.pi, -2.0)
    for angle in angles:
        queries = describe_all(name, [turn(scans[0], angle)])
        found = references.load(name).distances(queries, database)[0]
        assert found[0] < 0.5 * found[1:].min(), (angle, found)


@pytest.fixture(scope="module")
def sequence_06(real_data) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Database frames 0-599 and query frames 800- of KITTI 06 as pictures, and who is within 5 m of whom."""
    folder = real_data / "kitti_bev/06"
    position = np.loadtxt(folder / "pose.txt").reshape(-1, 3, 4)[:, :, 3]
    files = sorted((folder / "imgs").glob("*.png"))
    numbers = [np.arange(600), np.arange(800, len(files))]
    # Stored with forward up and left left; here rows and columns increase with x and y.
    database, queries = (
        [cv2.imread(str(files[i]), cv2.IMREAD_UNCHANGED)[::-1, ::-1] for i in part] for part in numbers
    )
    apart = np.linalg.norm(position[numbers[1], None] - position[numbers[0]], axis=-1)
    return database, queries, apart < 5


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "published", "turned"), [("pixels", 0.974, None), ("polar_fft", 0.970, 0.970)]
)
def test_figures_of_real_pictures(name: str, published: float, turned: float | None, sequence_06) -> None:
    """The protocol and the training-free figures that came with the pictures, to one point."""
    database, queries, near = sequence_06
    asked = near.any(axis=1)
    assert asked.sum() == 270
    stack = describe_all(name, database)

    def recall(scans: list[np.ndarray]) -> float:
        found = references.load(name).distances(describe_all(name, scans), stack).argmin(axis=1)
        return near[np.arange(len(near)), found][asked].mean()

    assert recall(queries) >= published - 0.01
    if turned is not None:
        angles = np.random.default_rng(0).uniform(-np.pi, np.pi, len(queries))
        scans = [turn(scan, angle) for scan, angle in zip(queries, angles, strict=True)]
        assert recall(scans) >= turned - 0.01
