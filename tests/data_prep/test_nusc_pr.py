"""The NUSC-PR converter: what it stores, what it says of bad input, and the published file names."""

import hashlib
import json
import pickle

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_prep import nusc_pr, nusc_pr_export, nusc_pr_view
from data_prep.errors import InputError
from data_prep.nusc_pr_records import CAMERAS
from data_prep.raw import nuscenes
from placerec_jax.ops.point_steps import decode_points

from .conftest import VERSION

DAY = 86_400_000_000
CITY = "boston-seaport"
# The toy drives of test_place_recognition.py: day and x of every sample.
TOY = ((0, [0, 1, 2.5, 2.6]), (120, [0.4, 2, 30, 30.5]), (10, [2.5, 31.2, 60]))


def make_drives(tiny, drives=TOY):
    """Turns a tiny root into drives along x; sweeps and images differ from sample to sample."""
    rng = np.random.default_rng(0)
    tables = tiny.tables
    tables["sample_data"] = [r for r in tables["sample_data"] if r["token"] != "sweep"]
    tables["log"] = []
    for number, (day, positions) in enumerate(drives):
        scene = tables["scene"][number]
        scene |= {"log_token": f"log-{number}", "nbr_samples": len(positions)}
        date = str(np.datetime64("2018-01-01") + int(day))
        tables["log"].append({"token": f"log-{number}", "location": CITY, "date_captured": date})
        for i, x in enumerate(positions):
            sample = f"sample-{number}-{i}"
            time = 1_500_000_000_000_000 + int(day * DAY) + 500_000 * i
            last = i + 1 == len(positions)
            tiny.record("sample", token=sample).update(
                timestamp=time, next="" if last else f"sample-{number}-{i + 1}"
            )
            for channel in (*nuscenes.CAMERAS, nuscenes.LIDAR):
                pose = tiny.record("ego_pose", token=f"pose-{sample}-{channel}")
                pose["translation"] = [float(x) + (channel != nuscenes.LIDAR) * 0.25, 500.0, 0.0]
                pose["rotation"] = [1.0, 0.0, 0.0, 0.0]
                data = tiny.record("sample_data", token=f"data-{sample}-{channel}")
                folder = tiny.root / "samples" / channel
                if channel == nuscenes.LIDAR:
                    points = rng.uniform(-30, 30, (60, 5)).astype(np.float32)
                    data["filename"] = f"samples/{channel}/{sample}.pcd.bin"
                    points.tofile(folder / f"{sample}.pcd.bin")
                else:
                    data["filename"] = f"samples/{channel}/{sample}.jpg"
                    pixels = np.full((36, 64, 3), rng.integers(40, 200, 3), np.uint8)
                    cv2.imwrite(str(folder / f"{sample}.jpg"), pixels)
        drop = {r["token"] for r in tables["sample"] if r["scene_token"] == scene["token"]}
        drop -= {f"sample-{number}-{i}" for i in range(len(positions))}
        tables["sample"] = [r for r in tables["sample"] if r["token"] not in drop]
        tables["sample_data"] = [r for r in tables["sample_data"] if r["sample_token"] not in drop]
    tiny.write()
    return tiny


@pytest.fixture
def drives(make_tiny):
    return make_drives(make_tiny(frames_per_scene=4))


def run(tiny, out, *options):
    """Convert as from the command line, small; returns the manifest."""
    small = ("--image-size", "16x32", "--range-image", "8x24", "--workers", "1", "--by-date")
    nusc_pr.main(["--raw", str(tiny.root), "--out", str(out), *small, *options])
    return json.loads((out / "manifest.json").read_text())


KEEP = ("--lacking", "keep")  # the toy has no training scene of 13 samples


def records_of(out, table):
    builder = tfds.builder_from_directory(str(out / table))
    return list(tfds.as_numpy(builder.as_dataset(split="all")))


def test_toy_drives(drives, tmp_path, capsys):
    manifest = run(drives, tmp_path / "out", *KEEP)
    with np.load(tmp_path / "out" / "splits" / "supervised.npz") as splits:
        assert splits[f"{CITY}_database"].tolist() == [0, 2, 6, 9, 10]
        assert splits[f"{CITY}_train_query"].tolist() == splits["train"].tolist() == [1, 3, 8]
        assert splits[f"{CITY}_val_query"].tolist() == []
        assert splits[f"{CITY}_test_query"].tolist() == splits["test"].tolist() == [4, 5, 7]
        assert splits[f"{CITY}_train_positives"].shape == (3, 2)
        assert splits[f"{CITY}_train_negatives"].shape == (3, 4)
        assert set(splits[f"{CITY}_train_negatives"].ravel()) <= {6, 9, 10}
        negatives = splits[f"{CITY}_train_negatives"]
    with np.load(tmp_path / "out" / "splits" / "supervised_paper.npz") as splits:
        assert splits[f"{CITY}_database"].tolist() == [0, 1, 2, 6, 9, 10]
        assert splits["train"].tolist() == [3, 8]
    tokens = [r["token"].decode() for r in records_of(tmp_path / "out", "frames")]
    assert tokens == [f"sample-{s}-{i}" for s, n in ((0, 4), (1, 4), (2, 3)) for i in range(n)]
    told = manifest["schemes"]["supervised"]["locations"][CITY]
    assert told["counts"]["database"] == 5
    listed = "".join(f"{tokens[i]}\n" for i in (0, 2, 6, 9, 10))
    assert told["sha256"]["database"] == hashlib.sha256(listed.encode()).hexdigest()
    rows = "".join(" ".join(tokens[i] for i in row) + "\n" for row in negatives)
    assert told["sha256"]["train_negatives"] == hashlib.sha256(rows.encode()).hexdigest()
    assert told["truth"]["nearest_right_entry_in_own_scene"] == 1
    assert told["truth"]["with_right_entry_min_gap_days"] == {"1": 3, "30": 3}
    printed = capsys.readouterr().out
    assert f"5 {told['sha256']['database'][:8]}" in printed
    assert "of 3 test queries 3 have a right place, the nearest in their own scene 1" in printed
    assert manifest["counts"]["frames_by_location"] == {CITY: 11}
    assert not manifest["source"]["built_in_city"]


def test_records(drives, tmp_path):
    run(drives, tmp_path / "out", *KEEP)
    frames, scenes = (records_of(tmp_path / "out", table) for table in ("frames", "scenes"))
    frame = frames[6]  # sample 2 of scene 1
    assert (frame["scene"], frame["scene_number"], frame["sample_number"]) == (b"scene-0003", 1, 2)
    assert (frame["location"], frame["date_captured"]) == (CITY.encode(), b"2018-05-01")
    assert frame["timestamp"] == 1_500_000_000_000_000 + 120 * DAY + 1_000_000
    np.testing.assert_array_equal(frame["global_T_ego"][:3, 3], [30.0, 500.0, 0.0])
    assert frame["images"].shape == (6, 16, 32, 3)
    assert frame["camera_mask"].tolist() == [True] * 6
    # Both axes of the calibration by their own factor: 64 x 36 pixels became 32 x 16.
    np.testing.assert_allclose(frame["intrinsics"][0], [[25, 0, 16], [0, 50 * 16 / 36, 8], [0, 0, 1]])
    for number, channel in enumerate(CAMERAS):
        (source,) = drives.root.glob(f"samples/{channel}/sample-1-2.jpg")
        colour = cv2.imread(str(source))[18, 32, ::-1].astype(int)
        assert np.abs(frame["images"][number, 8, 16] - colour).max() < 4, channel
        half = np.deg2rad(60 * nuscenes.CAMERAS.index(channel))
        ego_T_camera = np.eye(4)
        ego_T_camera[:2, :2] = [[np.cos(half), -np.sin(half)], [np.sin(half), np.cos(half)]]
        ego_T_camera[:3, 3] = [1.0, 0.1 * nuscenes.CAMERAS.index(channel), 1.5]
        drive = np.eye(4)
        drive[0, 3] = 0.25  # the ego moved on between sweep and image
        expected = np.linalg.inv(drive @ ego_T_camera) @ frame["ego_T_lidar"]
        np.testing.assert_allclose(frame["camera_T_lidar"][number], expected, atol=1e-6)
    sweep = np.fromfile(drives.root / "samples/LIDAR_TOP/sample-1-2.pcd.bin", np.float32).reshape(-1, 5)
    np.testing.assert_allclose(decode_points(frame["point_steps"]), sweep[:, :3], atol=0.003)
    assert frame["range_steps"].shape == (8, 24)
    assert (frame["range_steps"] > 0).any()
    assert frame["rendered_rgb"].shape == (8, 24, 3)
    assert not frame["rendered_rgb"][frame["range_steps"] == 0].any()
    assert [s["scene"].decode() for s in scenes] == ["scene-0001", "scene-0003", "scene-0077"]
    assert [int(s["first"]) for s in scenes] == [0, 4, 8]
    for scene in scenes:
        for i, pose in enumerate(scene["global_T_ego"]):
            own = frames[scene["first"] + i]
            np.testing.assert_array_equal(pose, own["global_T_ego"])
            assert scene["timestamp"][i] == own["timestamp"]


def test_scenes_keep_the_order_of_their_file(drives, tmp_path):
    drives.tables["scene"].reverse()
    drives.write()
    run(drives, tmp_path / "out", *KEEP)
    assert [r["scene"].decode() for r in records_of(tmp_path / "out", "scenes")] == [
        "scene-0077",
        "scene-0003",
        "scene-0001",
    ]
    with np.load(tmp_path / "out" / "splits" / "supervised.npz") as splits:
        # Now x = 2.5, 31.2, 60 of the last drive come first; of the toy's other frames 0.4 and 30 join.
        assert splits["database"].tolist() == [0, 1, 2, 3, 5]


def test_same_seed_same_folder(drives, tmp_path):
    first = run(drives, tmp_path / "a", *KEEP)
    again = run(drives, tmp_path / "b", *KEEP)
    other = run(drives, tmp_path / "c", *KEEP, "--seed", "2")
    assert first["fingerprint"] == again["fingerprint"]
    assert first["schemes"] == again["schemes"]
    assert first["tables"] == other["tables"]
    assert first["fingerprint"] != other["fingerprint"]


def test_cameras_without_a_record_are_masked(drives, tmp_path):
    table = drives.tables["sample_data"]
    table[:] = [r for r in table if r["token"] != "data-sample-1-2-CAM_BACK"]
    drives.write()
    manifest = run(drives, tmp_path / "out", *KEEP)
    assert manifest["counts"]["absent_cameras"] == {"CAM_BACK": 1}
    frame = records_of(tmp_path / "out", "frames")[6]
    back = CAMERAS.index("CAM_BACK")
    assert frame["camera_mask"].tolist() == [number != back for number in range(6)]
    assert not frame["images"][back].any()
    np.testing.assert_array_equal(frame["intrinsics"][back], np.eye(3))
    np.testing.assert_array_equal(frame["camera_T_lidar"][back], np.eye(4))


def test_missing_files_are_listed_before_anything_is_written(drives, tmp_path):
    for channel in ("CAM_FRONT", "CAM_BACK"):
        (drives.root / "samples" / channel / "sample-0-1.jpg").unlink()
    (drives.root / "samples/CAM_FRONT/sample-2-0.jpg").write_bytes(b"")
    with pytest.raises(InputError) as error:
        run(drives, tmp_path / "out", *KEEP)
    said = str(error.value)
    assert said.startswith("3 files are missing or damaged (CAM_FRONT 2, CAM_BACK 1)")
    assert "CAM_BACK/sample-0-1.jpg: expected" in said
    assert "--missing-images mask" in said
    assert not (tmp_path / "out").exists()
    manifest = run(drives, tmp_path / "out", *KEEP, "--missing-images", "mask")
    assert manifest["counts"]["masked_image_files"] == 3
    assert manifest["counts"]["absent_cameras"] == {"CAM_BACK": 1, "CAM_FRONT": 2}
    frame = records_of(tmp_path / "out", "frames")[1]
    assert frame["camera_mask"].sum() == 4


def test_a_missing_sweep_is_never_masked(drives, tmp_path):
    (drives.root / "samples/LIDAR_TOP/sample-0-1.pcd.bin").unlink()
    with pytest.raises(InputError, match=r"1 files are missing or damaged \(LIDAR_TOP 1\)"):
        run(drives, tmp_path / "out", *KEEP, "--missing-images", "mask")


def _points_without_numbers(tiny):
    points = np.full((3, 5), 5, np.float32)
    points[1, 2] = np.nan
    points.tofile(tiny.root / "samples/LIDAR_TOP/sample-0-1.pcd.bin")


def _remove_tables(tiny):
    for name in ("log", "ego_pose"):
        tiny.table(name).unlink()


def _change(table, token, **values):
    def change(tiny):
        tiny.record(table, token=token).update(values)
        tiny.write()

    return change


BAD_ROOTS = {
    "tables": (_remove_tables, r"missing: ego_pose\.json, log\.json"),
    "quaternion": (
        _change("ego_pose", "pose-sample-0-1-LIDAR_TOP", rotation=[1.0, 0.2, 0.0, 0.0]),
        r"'pose-sample-0-1-LIDAR_TOP'.*expected a quaternion of unit length, found length 1\.0198",
    ),
    "sweep": (_points_without_numbers, r"sample-0-1\.pcd\.bin: expected finite coordinates, found 1 of 3"),
    "circle": (
        _change("sample", "sample-0-3", next="sample-0-1"),
        r"'sample-0-1': expected the next sample of scene 'scene-0001', found one met before",
    ),
    "astray": (
        _change("sample", "sample-0-3", next="sample-1-0"),
        r"'sample-1-0': expected the next sample of scene 'scene-0001', found one of another scene",
    ),
    "short": (
        _change("sample", "sample-0-2", next=""),
        r"'scene-0001': field 'nbr_samples' is 4, found 3 samples one after another",
    ),
    "location": (
        lambda tiny: [_change("log", f"log-{n}", location="../up")(tiny) for n in range(3)],
        r"log\.json: field 'location': expected letters.*found '\.\./up'",
    ),
    "dangling": (
        _change("sample", "sample-0-2", next="gone"),
        r"'next' is 'gone', expected a token of sample",
    ),
    "image": (
        lambda tiny: (tiny.root / "samples/CAM_FRONT/sample-0-1.jpg").write_bytes(b"\xff\xd8 no more"),
        r"sample-0-1\.jpg: expected a whole JPEG image",
    ),
}


@pytest.mark.parametrize("kind", BAD_ROOTS)
def test_bad_roots(kind, drives, tmp_path):
    spoil, said = BAD_ROOTS[kind]
    spoil(drives)
    with pytest.raises(InputError, match=said):
        run(drives, tmp_path / "out", *KEEP)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_lidar_without_a_record(drives, tmp_path):
    table = drives.tables["sample_data"]
    table[:] = [r for r in table if r["token"] != "data-sample-1-2-LIDAR_TOP"]
    drives.write()
    with pytest.raises(InputError, match=r"sample sample-1-2 .*missing: LIDAR_TOP"):
        run(drives, tmp_path / "out", *KEEP)


BAD_OPTIONS = {
    "no test": (("--gamma", "400"), r"expected test queries, found none"),
    "no training": (("--gamma", f"{CITY}=0"), r"expected training queries, found none"),
    "few": (("--negatives", "6"), r"boston-seaport: expected 6 negatives .* of 5 frames"),
    "distances": (
        ("--delta", "10"),
        r"--delta, --positive-radius, --negative-radius: expected each no larger",
    ),
    "location": (("--locations", "atlantis"), r"no scene in atlantis; there are boston-seaport"),
    "field of view": (("--fov-up", "-40"), r"-90 <= fov_down < fov_up <= 90"),
}


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_bad_options(kind, drives, tmp_path):
    options, said = BAD_OPTIONS[kind]
    with pytest.raises(InputError, match=said):
        run(drives, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_location_without_revisits(make_tiny, tmp_path):
    tiny = make_drives(make_tiny(), ((0, [0, 50]), (120, [100, 150]), (200, [200])))
    with pytest.raises(InputError) as error:
        run(tiny, tmp_path / "out")
    said = str(error.value)
    assert "supervised: boston-seaport: expected places that are visited again, found not one query" in said
    assert "all 5 frames are in the database" in said
    assert "--locations" in said
    manifest = run(tiny, tmp_path / "out", *KEEP)
    assert "found not one query" in manifest["schemes"]["supervised"]["lacking"][0]


def test_other_settings_are_refused(drives, tmp_path):
    run(drives, tmp_path / "out", *KEEP)
    with pytest.raises(InputError, match="begun with other settings or inputs"):
        run(drives, tmp_path / "out", *KEEP, "--delta", "0.5")


def test_export_has_the_published_names_and_contents(drives, tmp_path, capsys):
    run(drives, tmp_path / "out", *KEEP)
    nusc_pr_export.main(["--prepared", str(tmp_path / "out"), "--out", str(tmp_path / "files")])
    assert "4 schemes" in capsys.readouterr().out
    files = tmp_path / "files" / "supervised_data"
    split = files / "split_dataset"
    database = np.load(split / "bs_db.npy")
    assert database.dtype == np.float32
    np.testing.assert_allclose(
        database, [[0, 0, 500], [2, 2.5, 500], [6, 30, 500], [9, 31.2, 500], [10, 60, 500]], rtol=1e-6
    )
    tokens = np.load(split / "bs_test_query_sample_token.npy").tolist()
    assert tokens == ["sample-1-0", "sample-1-1", "sample-1-3"]
    assert len(np.load(split / "bs_sample_token.npy")) == 11
    with np.load(tmp_path / "out" / "splits" / "supervised.npz") as splits:
        arrays = dict(splits)
    by_distance = files / "select_pos_neg_samples_by_dis"
    truth = pickle.loads((by_distance / "bs_test_query_gt_tokens.pkl").read_bytes())
    assert {query: set(its["gt"]) for query, its in truth.items()} == {
        "sample-1-0": {"sample-0-0", "sample-0-2"},
        "sample-1-1": {"sample-0-0", "sample-0-2"},
        "sample-1-3": {"sample-1-2", "sample-2-1"},
    }
    tuples = pickle.loads((by_distance / "bs_train_query_pos_neg_tokens.pkl").read_bytes())
    assert list(tuples) == ["sample-0-1", "sample-0-3", "sample-2-0"]
    assert {len(its["pos"]) for its in tuples.values()} == {2}
    assert {len(its["neg"]) for its in tuples.values()} == {4}
    indices = files / "generate_selected_indicies"
    assert np.load(indices / "bs_db_index_in_infos.npy").tolist() == [0, 2, 6, 9, 10]
    numbers = pickle.loads((indices / "bs_test_query_gt_index_in_infos.pkl").read_bytes())
    assert {query: set(its) for query, its in numbers.items()} == {4: {0, 2}, 5: {0, 2}, 7: {6, 9}}
    drawn = pickle.loads((indices / "bs_train_query_pos_neg_index_in_infos.pkl").read_bytes())
    assert [its["pos"] for its in drawn.values()] == arrays[f"{CITY}_train_positives"].tolist()
    own = tmp_path / "files" / "self_supervised_data" / "split_dataset"
    assert np.load(own / "bs_db_index_in_infos.npy").tolist() == [0, 1, 2, 3, 8, 9, 10]
    everything = pickle.loads((own / "all_train_query_pos_neg_index_in_infos.pkl").read_bytes())
    assert everything == {}


def test_export_of_self_supervised_tuples_names_their_location(make_tiny, tmp_path):
    tiny = make_drives(
        make_tiny(frames_per_scene=14), ((0, 5.0 * np.arange(14)), (200, [0, 5, 10]), (210, [5.0]))
    )
    run(tiny, tmp_path / "out", *KEEP)
    nusc_pr_export.main(["--prepared", str(tmp_path / "out"), "--out", str(tmp_path / "files")])
    own = tmp_path / "files" / "self_supervised_data" / "split_dataset"
    everything = pickle.loads((own / "all_train_query_pos_neg_index_in_infos.pkl").read_bytes())
    assert list(everything) == [12, 13]
    assert everything[12] == {"pos": [11, 10], "neg": [0, 1, 2, 3], "loc": CITY}


def test_export_wants_a_folder_of_its_converter(tmp_path):
    (tmp_path / "manifest.json").write_text('{"converter": "lcd"}')
    with pytest.raises(InputError, match="expected a folder that nusc_pr wrote, found one of lcd"):
        nusc_pr_export.main(["--prepared", str(tmp_path), "--out", str(tmp_path / "files")])


def test_version_is_read_from_the_root(drives, tmp_path):
    assert run(drives, tmp_path / "out", *KEEP)["source"]["version"] == VERSION


def test_view_draws_a_keyframe_and_says_which(drives, tmp_path, capsys):
    table = drives.tables["sample_data"]
    table[:] = [r for r in table if r["token"] != "data-sample-1-0-CAM_BACK"]
    drives.write()
    run(drives, tmp_path / "out", *KEEP)
    picture = tmp_path / "view.png"
    where = ("--prepared", str(tmp_path / "out"), "--out", str(picture))
    nusc_pr_view.main(where)
    assert capsys.readouterr().out.endswith("view.png: record 4\n")  # the first test query
    assert cv2.imread(str(picture)).shape[1] == 1600
    with pytest.raises(InputError, match="--record: expected a number from 0 to 10, found 11"):
        nusc_pr_view.main((*where, "--record", "11"))
    with pytest.raises(InputError, match=r"--scheme: expected one of self_supervised, .*found 'other'"):
        nusc_pr_view.main((*where, "--scheme", "other"))
