"""The cross-modal report: tables, curves, drives and pictures of a drive with known answers."""

import csv
import io
import types

import cv2
import numpy as np
import pytest

from placerec_jax.evaluation import cross_modal, cross_modal_pictures
from placerec_jax.evaluation.cross_modal import SHOWN
from placerec_jax.evaluation.report import Picture, Table, Verdict, page, text_table
from placerec_jax.ops.point_steps import encode_points
from tests.evaluation.cross_modal_frames import config, rows

METHOD = types.SimpleNamespace(
    PUBLISHED_PROTOCOL="KITTI-360, urban",
    PUBLISHED=(
        {
            "table": "text",
            "model": "Panorama",
            "image_to_point_recall_at_1": 78.92,
            "image_to_point_recall_at_10": 97.59,
            "note": "one source says R@1 %",
        },
    ),
)
HEIGHT, WIDTH, PATCH, POINTS, GROUPS = 32, 64, 16, 500, 12


class Frames:
    """The table of submaps: 1 + index of them lie on the ground, the others 3 m above it."""

    def read(self, index, *, images):
        assert not images
        xyz = np.random.default_rng(index).uniform(-20, 20, (POINTS, 3))
        xyz[:, 2] = np.where(np.arange(POINTS) <= index, 0, 3)
        return {"point_steps": encode_points(xyz)}


PREPARED = types.SimpleNamespace(table={"frames": Frames()}.__getitem__)


@pytest.fixture
def known():
    """Rows of which some queries are right and some wrong."""
    found = rows(noise=0.3, dim=32)
    query = np.flatnonzero(found["is_query"])
    found["image_descriptor"][query[::2]] = found["image_descriptor"][query[::2] - 1]
    return cross_modal.second_stage(METHOD, config(), found)


def examples_of(cfg, known, saliency=True):
    rng = np.random.default_rng(0)
    found = {}
    for group, numbers in cross_modal.choose_examples(cfg, known).items():
        n = len(numbers)
        features = {
            "index": known["index"][numbers],
            "image": rng.integers(0, 255, (n, HEIGHT, WIDTH, 3), dtype=np.uint8),
        }
        predictions = {
            "image_saliency": rng.random((n, HEIGHT // PATCH * (WIDTH // PATCH))),
            "cloud_saliency": rng.random((n, GROUPS)),
            "cloud_centres": rng.uniform(-20, 20, (n, GROUPS, 3)),
            "cloud_token_mask": np.ones((n, GROUPS), bool),
        }
        found[group] = (features, predictions if saliency else {})
    return found


def report_of(cfg, known, **options):
    scores = cross_modal.score(cfg, known)
    return scores, cross_modal.report(
        cfg, scores, known, examples_of(cfg, known, **options), METHOD, PREPARED
    )


def blocks(sections, kind):
    return [block for section in sections for block in section.blocks if isinstance(block, kind)]


@pytest.mark.parametrize("saliency", [True, False])
def test_page_has_every_section_and_stands_alone(known, saliency):
    cfg = config(pictures=1, target={"times_chance": {"image_to_point_recall_at_1": 3.0}})
    _, sections = report_of(cfg, known, saliency=saliency)
    assert [section.title for section in sections] == [
        "Result",
        "Recall curves",
        "Where the queries are",
        "Queries whose first entry is right",
        "Queries whose first entry is wrong",
    ]
    assert len(blocks(sections, Verdict)) == 1
    pictures = blocks(sections, Picture)
    assert len(pictures) == 1 + 2 + 2 * 1
    for picture in pictures:
        image = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
        assert image.std() > 5, f"{picture.alt} is empty"
        if picture.media_type == "image/jpeg":
            assert ("the saliency of the nearest group" in picture.caption) == saliency
    written = page("t", "s", {}, sections, [])
    assert "://" not in written
    assert "all sequences" in written


def test_tables_show_counts_chance_and_published_figures(known):
    scores = cross_modal.score(config(), known)
    first, second, *_ = tables = cross_modal.tables(scores, METHOD)
    assert len(tables) == 4
    assert isinstance(first, Table)
    labels = ["00", "chance", "01", "chance", "all sequences", "chance"]
    assert [row.cells[0] for row in first.rows[:6]] == labels
    part = scores["directions"]["image_to_point"]["all"]
    low, high = part["interval_95"]["1"]
    assert list(first.rows[4].cells[1:5]) == [
        "35",
        "70",
        "0",
        f"{100 * part['recall']['1']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
    ]
    assert first.rows[5].cells[4] == f"{100 * part['chance']['1']:.1f}"
    assert [row.kind for row in first.rows[6:]] == ["divider", "published"]
    assert list(first.rows[7].cells) == ["text: Panorama", "", "", "", "78.92", "–", "97.59", "–"]
    assert "one source says R@1 %" in first.note
    assert [row.kind for row in second.rows] == ["ours", "baseline"] * 3
    for table in tables:
        lines = text_table(table).splitlines()
        assert all(len(row.cells) in (1, len(table.header)) for row in table.rows)
        assert len(lines) == 3 + len(table.rows)


def test_one_sequence_is_not_repeated_as_all():
    found = cross_modal.second_stage(METHOD, config(), rows(counts=(60,)))
    (table, *_) = cross_modal.tables(cross_modal.score(config(), found), types.SimpleNamespace())
    assert [row.cells[0] for row in table.rows] == ["00", "chance"]


def test_examples_are_queries_followed_by_what_they_retrieved(known):
    chosen = cross_modal.choose_examples(config(), known)
    assert set(chosen) == {"right", "wrong"}
    for group, numbers in chosen.items():
        blocks_of = numbers.reshape(-1, 1 + SHOWN)
        assert len(blocks_of) == 2
        for query, *candidates in blocks_of:
            assert known["is_query"][query]
            assert candidates == known["retrieved/candidate"][query].tolist()
            apart = np.abs(known["xy"][candidates[0], 0] - known["xy"][query, 0])
            same = known["sequence_name"][candidates[0]] == known["sequence_name"][query]
            assert (same and apart <= 20.0) == (group == "right")
    assert cross_modal.choose_examples(config(pictures=0), known) == {}


def test_small_databases_are_drawn_with_what_they_have():
    found = rows(counts=(4,))
    found["is_query"] = np.array([True, True, False, False])
    cfg = config()
    known = cross_modal.second_stage(METHOD, cfg, found)
    for numbers in cross_modal.choose_examples(cfg, known).values():
        assert (numbers >= 0).all()
    _, sections = report_of(cfg, known)
    assert blocks(sections, Picture)


def test_a_submap_shows_where_the_query_stood(known):
    """The query 10 m ahead of a submap stands at (10, 0) in its frame, whatever the heading of the map."""
    from placerec_jax.evaluation import cross_modal_report

    query = int(np.flatnonzero(known["is_query"])[0])
    turn = np.array([[0.0, -1, 0, 7], [1, 0, 0, 3], [0, 0, 1, 0], [0, 0, 0, 1]])
    moved = {**known, "map_T_lidar": turn @ known["map_T_lidar"]}
    cfg = config()
    features, predictions = examples_of(cfg, moved)["right"]
    features["index"][:2] = [moved["index"][query], moved["index"][query - 1]]
    moved["retrieved/candidate"][query] = [query - 1, -1, -1]
    moved["retrieved/apart"][query] = [10.0, np.inf, np.inf]
    scores = cross_modal.score(cfg, moved)
    drawn = cross_modal_report.retrieval_of(0, features, predictions, moved, scores, PREPARED)
    own, first = drawn.submaps
    np.testing.assert_allclose(own.query_xy, [0, 0], atol=1e-9)
    np.testing.assert_allclose(first.query_xy, [10, 0], atol=1e-9)
    assert (own.right, first.right) == (None, True)
    assert first.title == "first: 10.0 m away, right"
    for submap, index in ((own, query), (first, query - 1)):
        assert (submap.points[:, 2] == 0).sum() == 1 + index
        assert submap.saliency.shape == (POINTS,)


def test_saliency_goes_to_the_points_of_the_nearest_group():
    rng = np.random.default_rng(1)
    points, centres = rng.normal(size=(5000, 3)) + 100, rng.normal(size=(40, 3)) + 100
    saliency, mask = rng.random(40), np.arange(40) < 30
    expected = [saliency[np.argmin(np.linalg.norm(centres[:30] - point, axis=1))] for point in points]
    np.testing.assert_array_equal(
        cross_modal_pictures.spread_saliency(points, centres, saliency, mask), expected
    )
    assert cross_modal_pictures.spread_saliency(points, centres, saliency, np.zeros(40, bool)) is None


def test_patches_are_rows_of_squares():
    found = cross_modal_pictures.patches(np.arange(23 * 77), (368, 1232))
    assert found.shape == (23, 77)
    assert found[1, 0] == 77
    with pytest.raises(ValueError, match="7 patches do not tile an image of 32 x 64"):
        cross_modal_pictures.patches(np.arange(7), (32, 64))


def test_display_range_is_from_smallest_to_largest():
    np.testing.assert_allclose(cross_modal_pictures.to_unit(np.array([2.0, 3, 6])), [0, 0.25, 1])
    np.testing.assert_array_equal(cross_modal_pictures.to_unit(np.full(3, 0.5)), 0)


def test_every_query_is_a_line_of_the_table(known):
    (text,) = cross_modal.files(known).values()
    lines = list(csv.DictReader(io.StringIO(text.decode())))
    query = np.flatnonzero(known["is_query"])
    assert len(lines) == len(query)
    for line, row in zip(lines, query, strict=True):
        apart = float(line["first_distance_m"])
        assert (line["rank_of_right"] == "1") == (apart <= 20.0)
        assert int(line["frame"]) == known["frame_id"][row]
        first = known["retrieved/candidate"][row, 0]
        assert int(line["first_frame"]) == known["frame_id"][first]
        assert apart == pytest.approx(abs(known["xy"][first, 0] - known["xy"][row, 0]))
