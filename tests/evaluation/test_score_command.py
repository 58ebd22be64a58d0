"""`python -m placerec_jax.score`: other people's descriptors and distances, with the eight frames by hand."""

import json
import types

import ml_collections
import numpy as np
import pytest

from placerec_jax import score
from placerec_jax.errors import ConfigError
from tests.evaluation import loop_frames
from tests.evaluation.loop_frames import poses

RULE = {"loop_distance": 4.0, "loop_gap": 1, "first_query": 2, "ap_policy": "standard", "protocol": "growing"}


@pytest.fixture
def prepared():
    """Two sequences: an unrelated one of three frames, then the eight."""
    records = [
        {"sequence": b"07", "first": 0, "frame_id": np.arange(3), "map_T_lidar": poses([0.0, 5.0, 10.0])},
        {
            "sequence": b"08",
            "first": 3,
            "frame_id": np.arange(8),
            "map_T_lidar": poses(loop_frames.X),
            "pose_source": b"poses/08.txt",
        },
    ]
    return types.SimpleNamespace(
        root="data/there",
        fingerprint="f" * 64,
        manifest={"source": {}},
        table=lambda name: [dict(record) for record in records],
    )


def run(prepared, tmp_path, values, kind, sequence="08"):
    path = tmp_path / "mine.npy"
    np.save(path, values)
    rule = ml_collections.ConfigDict(RULE)
    return score.run(prepared, sequence, [(kind, path)], rule, tmp_path / "report")


DESCRIPTORS = np.float32(loop_frames.DESCRIPTOR)[:, None]


@pytest.mark.parametrize(
    ("kind", "values"),
    [("descriptors", DESCRIPTORS), ("distances", np.abs(DESCRIPTORS - DESCRIPTORS.T))],
)
def test_both_kinds_of_input_give_the_figures_by_hand(prepared, tmp_path, capsys, kind, values):
    scores = run(prepared, tmp_path, values, kind)
    found = scores["estimates"]["mine"]["growing"]["all"]
    assert found["recall_at_1"] == pytest.approx(2 / 3)
    assert found["ap"]["standard"] == pytest.approx(1 / 2)
    assert found["ap"]["lcdnet_p1"] == pytest.approx(1 / 3)
    assert found["ap"]["pairs"] == pytest.approx(0.625)
    printed = capsys.readouterr().out
    assert "with a loop" in printed
    assert "0.625" in printed
    record = json.loads((tmp_path / "report" / "report.json").read_text())
    assert record["arrays"][0]["shape"] == list(values.shape)
    assert record["dataset"]["pose_source"] == "poses/08.txt"
    assert len((tmp_path / "report" / "queries.csv").read_text().splitlines()) == 7


def test_distances_to_what_is_never_compared_may_be_missing(prepared, tmp_path):
    values = np.abs(DESCRIPTORS - DESCRIPTORS.T)
    expected = run(prepared, tmp_path, values, "distances")
    values[np.triu_indices(8, -1)] = np.inf
    assert run(prepared, tmp_path, values, "distances") == expected


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        (DESCRIPTORS[:5], "descriptors", r"shape \(8, D\), .*8 frames.* found \(5, 1\)"),
        (DESCRIPTORS[:, 0], "descriptors", r"found \(8,\)"),
        (DESCRIPTORS[:, :0], "descriptors", r"found \(8, 0\)"),
        (np.zeros((8, 7)), "distances", r"expected distances of shape \(8, 8\), .* found \(8, 7\)"),
        (np.full((8, 2), np.nan), "descriptors", r"8 of 8 rows hold values that are not numbers"),
        (np.full((8, 8), np.nan), "distances", r"first is row 0"),
        (np.array(["a"] * 8)[:, None], "descriptors", r"expected \(8, D\) numbers, found <U1"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named_and_leave_nothing(prepared, tmp_path, values, kind, message):
    with pytest.raises(score.ArrayError, match=message):
        run(prepared, tmp_path, values, kind)
    assert not (tmp_path / "report").exists()


def test_what_is_no_array_is_named(tmp_path):
    path = tmp_path / "mine.npy"
    path.write_bytes(b"not an array")
    with pytest.raises(score.ArrayError, match=r"mine.npy: expected an array written by numpy.save"):
        score.read_array(path, "descriptors", 8, "08")
    with pytest.raises(score.ArrayError, match=r"absent.npy: expected an array"):
        score.read_array(tmp_path / "absent.npy", "descriptors", 8, "08")


def test_unknown_sequence_lists_those_there_are(prepared, tmp_path):
    with pytest.raises(ConfigError, match=r"--sequence=09: .* there are \['07', '08'\]"):
        run(prepared, tmp_path, DESCRIPTORS, "descriptors", sequence="09")


def test_several_files_are_scored_side_by_side(prepared, tmp_path):
    """Distances of the descriptors score as they do; the files' names tell them apart."""
    for name, values in (("mine", DESCRIPTORS), ("theirs", np.abs(DESCRIPTORS - DESCRIPTORS.T))):
        np.save(tmp_path / f"{name}.npy", values)
    arrays = [("descriptors", tmp_path / "mine.npy"), ("distances", tmp_path / "theirs.npy")]
    rule = ml_collections.ConfigDict(RULE)
    scores = score.run(prepared, "08", arrays, rule, tmp_path / "report")
    assert scores["estimates"]["mine"] == scores["estimates"]["theirs"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "mine" in page
    assert "theirs" in page
    with pytest.raises(score.ArrayError, match=r"mine.npy: expected names that tell the files apart"):
        score.run(prepared, "08", [arrays[0], ("distances", tmp_path / "more" / "mine.npy")], rule, tmp_path)


def test_command_without_an_array_is_refused_in_one_line(run_command, tmp_path):
    done = run_command("-m", "placerec_jax.score", "--prepared", tmp_path, "--sequence", "08", expect=1)
    assert done.stderr.strip().splitlines()[-1] == (
        "error: give --descriptors=X.npy, --distances=D.npy, or several of them"
    )
