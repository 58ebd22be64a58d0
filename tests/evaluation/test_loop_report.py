"""The loop-closure report: tables, curves, drives and matched scans of a drive checked by hand."""

import csv
import io
import types

import cv2
import numpy as np
import pytest

from placerec_jax.evaluation import loop_closure, loop_pictures, loop_report
from placerec_jax.evaluation.report import Picture, Table, Verdict, page, text_table
from placerec_jax.ops.grid import Grid2D
from tests.evaluation import loop_frames
from tests.evaluation.loop_frames import config, poses

GRID = Grid2D((-8.0, 8.0, -8.0, 8.0), 0.5)
METHOD = types.SimpleNamespace(bev_grid=lambda cfg: GRID)
KEYPOINTS = 6


@pytest.fixture
def rows():
    """Queries 3, 4 and 6 have a loop: 3 is verified with a right pose, 4 is not, 6 with a wrong pose."""
    rng = np.random.default_rng(0)
    found = loop_frames.rows(map_T_lidar=poses(loop_frames.X))
    found |= {
        "keypoint_xy": rng.uniform(-6, 6, (8, KEYPOINTS, 2)).astype(np.float32),
        "sequence_name": np.array(["08"] * 8),
        "frame_id": 10 * np.arange(8),
        "rotated/descriptor": found["descriptor"] + np.float32(0.5),
        "distances/m2dp/growing/08": rng.random((8, 8)).astype(np.float32),
    }
    found |= loop_closure.retrieved_rows(config(), found)
    found["match/candidate"] = found["retrieved/candidate"]
    found["match/inliers"] = np.array([0, 0, 0, 5, 1, 0, 4, 0])
    found["match/inlier_mask"] = np.arange(KEYPOINTS) < found["match/inliers"][:, None]
    found["match/partner"] = np.where(found["match/inlier_mask"], np.arange(KEYPOINTS)[::-1], -1)
    found["match/pose"] = loop_closure.true_poses(found)
    found["match/pose"][6, 1] += 7.0
    return found


@pytest.fixture
def cfg():
    target = {"figures": ("recall_at_1",), "references": ("m2dp",), "at_least": {"ap": 0.9}}
    return config(target=target, pictures=2)


def examples_of(cfg, rows):
    rng = np.random.default_rng(1)
    return {
        group: (
            {"index": rows["index"][numbers], "bev": rng.random((len(numbers), 1, *GRID.shape, 3)) ** 8},
            {},
        )
        for group, numbers in loop_closure.choose_examples(cfg, rows).items()
    }


def blocks(sections, kind):
    return [block for section in sections for block in section.blocks if isinstance(block, kind)]


def test_page_has_every_section_and_stands_alone(cfg, rows):
    scores = loop_closure.score(cfg, rows)
    sections = loop_closure.report(cfg, scores, rows, examples_of(cfg, rows), METHOD, None)
    assert [section.title for section in sections] == [
        "Result",
        "Precision and recall",
        "Where the loops are",
        "Loops it closed",
        "Loops it closed wrongly",
        "Loops it missed",
    ]
    assert len(blocks(sections, Verdict)) == 1
    for picture in blocks(sections, Picture):
        image = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.std() > 5, f"{picture.alt} is empty"
    html = page("title", "subtitle", {}, sections, ())
    assert "http" not in html.replace("http://www.w3.org", "")


def test_tables_hold_the_figures_of_the_scores(cfg, rows):
    scores = loop_closure.score(cfg, rows)
    text = "\n".join(text_table(table) for table in loop_closure.tables(scores, METHOD))
    assert "0.667" in text  # R@1 2/3
    assert "this model, queries turned" in text
    verification = loop_report.verification_table(scores["verification"])
    assert list(verification.rows[0].cells[:4]) == ["08", "2", "1", "0.500"]
    counts = loop_report.counts_table(scores)
    assert list(counts.rows[0].cells) == ["08", "6", "3", "0", "3", "0", "0"]
    kinds = loop_report.kinds_table(scores, "growing")
    assert kinds.rows[0].cells[1] == "0.667"
    assert kinds.rows[0].cells[5] == "–", "there is no reverse query"
    for table in blocks(loop_report.retrieval_sections(cfg, scores, rows), Table):
        assert all(len(row.cells) == len(table.header) or row.kind == "divider" for row in table.rows)


def test_chosen_examples_are_queries_each_with_what_it_retrieved(cfg, rows):
    chosen = loop_closure.choose_examples(cfg, rows)
    assert {group: numbers.tolist() for group, numbers in chosen.items()} == {
        "verified": [3, 0],
        "false": [6, 0],
        "missed": [4, 2],
    }


def test_without_pictures_none_are_chosen(rows):
    assert loop_closure.choose_examples(config(pictures=0), rows) == {}


def test_matches_are_drawn_between_partners(cfg, rows):
    features = {"bev": np.ones((2, 1, *GRID.shape, 1))}
    pair = loop_report.matched_pair(cfg, features, 0, 3, 0, rows, METHOD)
    np.testing.assert_array_equal(pair.query_xy, rows["keypoint_xy"][3, :5])
    np.testing.assert_array_equal(pair.candidate_xy, rows["keypoint_xy"][0, 5:0:-1])
    np.testing.assert_allclose(pair.candidate_T_query, [1.0, 0.0, 0.0], atol=1e-6)
    assert "retrieved 1.0 m away" in pair.title
    assert (pair.query_name, pair.candidate_name) == ("08 frame 30", "08 frame 0")


def test_a_scan_is_laid_where_the_pose_takes_it():
    """One cell ahead; a quarter turn to the left puts it to the left, then 2 m forward."""
    bev = np.zeros(GRID.shape)
    ahead = np.array([4.25, 0.25])
    bev[tuple(((ahead - GRID.lower) / GRID.cell).astype(int))] = 1.0
    moved = loop_pictures._moved(bev, GRID, np.array([2.0, 0.0, np.pi / 2]))
    ((row, column),) = np.argwhere(moved)
    np.testing.assert_allclose(GRID.centers()[row, column], [1.75, 4.25])


def test_without_verification_loops_close_below_the_distance_of_the_largest_f1(rows):
    bare = {name: values for name, values in rows.items() if not name.startswith("match/")}
    state = loop_report.closed(config(), bare)  # the largest F1 is at distance 8
    assert np.flatnonzero(state["verified"]).tolist() == [3, 6]
    assert np.flatnonzero(state["false"]).tolist() == [4, 5]
    assert not state["missed"].any()


def test_csv_has_a_line_for_every_query(rows):
    lines = list(csv.DictReader(io.StringIO(loop_closure.files(rows)["queries.csv"].decode())))
    assert [line["frame"] for line in lines] == ["20", "30", "40", "50", "60", "70"]
    assert [line["candidate"] for line in lines] == ["0", "0", "20", "10", "0", "50"]
    assert [line["correct"] for line in lines] == ["0", "1", "0", "0", "1", "0"]
    assert lines[1]["kind"] == "same_lane"
    assert float(lines[4]["pose_y_m"]) - float(lines[4]["true_pose_y_m"]) == pytest.approx(7.0)


def test_a_drive_without_loops_is_reported(cfg, rows):
    straight = poses(10.0 * np.arange(8))
    bare = {name: values for name, values in rows.items() if not name.startswith("match/")}
    bare = bare | {"map_T_lidar": straight}
    bare |= loop_closure.retrieved_rows(cfg, bare)
    scores = loop_closure.score(cfg, bare)
    sections = loop_closure.report(cfg, scores, bare, {}, METHOD, None)
    assert "no curve" in page("title", "subtitle", {}, sections, ())
    assert not scores["target"]["passed"]


def test_one_frame_can_be_drawn():
    none = np.zeros((0, 2), np.int64)
    data = loop_pictures.drive_map(np.zeros((1, 2)), none, none, none[:, 0], "one", ("a", "b", "c"))
    assert data.startswith(b"\x89PNG")
