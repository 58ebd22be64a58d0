"""The fit of OpenStreetMap to the drivable area, and its pictures."""

import json

import cv2
import numpy as np
import pytest

from data_prep import align, alignment, datasets, geodesy, maploc, rasterize
from data_prep.errors import InputError
from data_prep.raw import osm
from placerec_jax.ops.grid import Grid2D

from .conftest import LOCATION, osm_xml

GRID = Grid2D((0.0, 900.0, 0.0, 700.0), alignment.CELL)


def town(seed: int = 0) -> tuple[list[np.ndarray], np.ndarray]:
    """Streets with bends, and the ground within 4 to 7 m of their centre lines."""
    rng = np.random.default_rng(seed)
    streets, ground = [], np.zeros(GRID.shape, np.uint8)
    for axis in (0, 1):
        length, breadth = (900, 700) if axis == 0 else (700, 900)
        for offset in np.arange(60, breadth - 40, 110):
            along = np.arange(0, length + 1, 60.0)
            street = np.stack([along, offset + np.cumsum(rng.normal(0, 5, len(along)))], axis=-1)
            streets.append(street if axis == 0 else street[:, ::-1])
            ground |= rasterize.draw_polylines(streets[-1:], GRID, rng.uniform(8, 14) / GRID.cell)
    return streets, ground


def undo(moves: np.ndarray, center: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """The inverse of `alignment.transform`, worked out by solving the linear system."""
    linear = np.stack([alignment.transform(moves, np.zeros(2), e) - moves[:2] for e in np.eye(2)], axis=-1)
    return np.linalg.solve(linear, (xy - center - moves[:2]).T).T + center


@pytest.mark.parametrize(
    "moves",
    [
        (0.0, 0.0, 0.0, 1.0, 1.0),
        (7.0, -11.0, 0.0, 1.0, 1.0),
        (-14.0, 5.0, np.radians(0.4), 1.003, 1.003),
        (3.0, 2.0, np.radians(-0.3), 1.0, 0.994),
    ],
)
def test_a_known_move_is_found(moves):
    streets, ground = town()
    moves = np.array(moves)
    center = np.array([430.0, 360.0])
    fit = alignment.fit_alignment([undo(moves, center, street) for street in streets], ground, GRID)
    assert fit.problem is None
    # Wherever a street was moved from, the fit puts it back: that is what counts, whatever the parameters.
    for street in streets:
        error = fit.apply(undo(moves, center, street)) - street
        assert np.abs(error).max() < 0.7
    assert fit.after > 0.99
    assert fit.after >= fit.before
    np.testing.assert_allclose(fit.moves[2], moves[2], atol=np.radians(0.06))
    np.testing.assert_allclose(fit.moves[3:], moves[3:], atol=1e-3)
    # In the field that is stored, the same as a matrix.
    points = np.concatenate(streets)
    np.testing.assert_allclose(
        np.column_stack([points, np.ones(len(points))]) @ fit.affine().T, fit.apply(points), atol=1e-6
    )
    if moves[3] == moves[4]:
        np.testing.assert_allclose(fit.similarity[3], moves[3], atol=1e-3)
        assert fit.after_similarity > 0.99


def test_the_score_map_is_the_share_inside():
    """Counted sample by sample, at a shift of the grid, against the raster itself."""
    streets, ground = town(1)
    fit = alignment.fit_alignment(streets, ground, GRID)
    reach = alignment.REACH + alignment.MAX_SCALE * 900
    samples = alignment.sample_roads(streets)
    inner = (samples > reach) & (samples < np.array([900, 700]) - reach)
    samples = samples[inner.all(axis=1)]
    assert fit.samples == len(samples)
    i, j = 4, 13
    row, column = np.floor((samples + fit.shifts[[i, j]]) / GRID.cell).astype(int).T
    # Between the centres of cells the edge is straight, in the raster it has steps.
    assert fit.scores[i, j] == pytest.approx(ground[row, column].mean(), abs=0.02)
    assert fit.scores.max() == fit.scores[tuple((fit.best_shift() / alignment.STEP + 10).astype(int))]
    again = alignment.fit_alignment(streets, ground, GRID)
    np.testing.assert_array_equal(fit.moves, again.moves)


def test_samples_are_evenly_spaced():
    road = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 14.0]])
    samples = alignment.sample_roads([road, road[:1]], spacing=2.0)
    assert len(samples) == 7  # 15 m: at 1, 3, ... 13 m
    np.testing.assert_allclose(samples[0], [0.6, 0.8])
    np.testing.assert_allclose(samples[-1], [3.0, 12.0])
    assert alignment.sample_roads([]).shape == (0, 2)


def test_a_straight_road_does_not_drift_along_itself():
    """Nothing says where along the road: it stays, while the shift across it is found."""
    grid = Grid2D((0.0, 1500.0, 0.0, 300.0), alignment.CELL)
    road = np.array([[0.0, 150.0], [1500.0, 150.0]])
    ground = rasterize.draw_polylines([road], grid, 10.0)
    fit = alignment.fit_alignment([road + np.array([0.0, 9.0])], ground, grid)
    # The middle of ten cells is a plateau of one cell.
    assert fit.moves[1] == pytest.approx(-9, abs=0.6)
    assert abs(fit.moves[0]) < 1
    assert abs(fit.moves[3] - 1) < 2e-3


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("no roads", "0 m of OSM roads"),
        ("too few", "220 m of OSM roads.* 400 m are needed"),
        ("elsewhere", "0 m of OSM roads"),
        ("another town", "do not follow the drivable area.*at best.*both maps of this place"),
        ("no area", "no drivable area"),
        ("all area", "no edge"),
    ],
)
def test_degenerate_input_is_said_and_moves_nothing(case, expected):
    streets, ground = town()
    roads = {
        "no roads": [],
        "too few": [np.array([[300.0, 300.0], [520.0, 300.0]])],
        "elsewhere": [street + 1e5 for street in streets],
        "another town": [
            np.array([[450.0, 350.0], [450 + 300 * np.cos(a), 350 + 300 * np.sin(a)]])
            for a in np.linspace(0.2, 6.0, 9)
        ],
    }.get(case, streets)
    area = {"no area": np.zeros_like(ground), "all area": np.ones_like(ground)}.get(case, ground)
    fit = alignment.fit_alignment(roads, area, GRID)
    with pytest.raises(AssertionError, match=expected):
        raise AssertionError(fit.statement())
    assert np.isnan([fit.before, fit.after]).all()
    assert fit.gain == 0
    np.testing.assert_array_equal(fit.apply([[5.0, 7.0]]), [[5.0, 7.0]])
    json.dumps(fit.summary(), allow_nan=False)


class TestCommand:
    def test_draws_one_picture_a_location(self, tiny, tmp_path, capsys):
        out = tmp_path / "pictures"
        align.main(["--raw", str(tiny.root), "--osm", str(tiny.osm), "--out", str(out)])
        assert "OSM roads inside the drivable area: " in capsys.readouterr().out
        picture = cv2.imread(str(out / f"{LOCATION}.png"))
        assert picture.shape[1] > 1000
        # Roads inside are blue, and the area is grey.
        assert (picture == [155, 94, 27]).all(axis=-1).sum() > 100

    def test_says_why_nothing_was_fitted(self, tiny, tmp_path, capsys):
        tiny.osm.write_text(
            osm_xml(
                {1: (300, 500), 2: (400, 500)},
                '<way id="1" version="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="residential"/></way>',
            )
        )
        align.main(["--raw", str(tiny.root), "--osm", str(tiny.osm), "--out", str(tmp_path / "a.png")])
        assert "alignment not fitted: 100 m of OSM roads" in capsys.readouterr().out
        assert (tmp_path / "a.png").exists()

    def test_one_name_for_two_locations(self, tmp_path):
        with pytest.raises(InputError, match=r"a\.png: expected a folder.*2 locations"):
            align._files(tmp_path / "a.png", ["boston-seaport", "singapore-onenorth"])


@pytest.mark.real_data
class TestOneNorth:
    """The real drivable area of one-north and OSM's real roads, classes primary to residential."""

    @pytest.fixture
    def place(self, real_data):
        return datasets.open_nuscenes(real_data / "nuscenes", None).place(LOCATION)

    @pytest.fixture
    def extract(self, real_data):
        return osm.read_osm(real_data / "osm/singapore-onenorth.osm")

    def test_roads_lie_on_the_drivable_area_and_nowhere_else(self, place, extract):
        """20.6 km of OSM's roads are inside the area, and 3.4 km after a shift of 60 m: six times less."""
        roads = alignment.streets([extract], place)
        # Wide enough that no road leaves the raster when it is shifted.
        grid = Grid2D((-300.0, 1900.0, -300.0, 2400.0), 0.5)
        drivable = place.drivable.draw(grid)
        samples = alignment.sample_roads(roads, spacing=1.0)

        def kilometres(shift: tuple[float, float]) -> float:
            row, column = np.floor((samples + shift - np.array(grid.lower)) / grid.cell).astype(int).T
            on = (row >= 0) & (row < grid.shape[0]) & (column >= 0) & (column < grid.shape[1])
            return drivable[row[on], column[on]].sum() / 1000

        here = kilometres((0.0, 0.0))
        directions = np.deg2rad(np.arange(0, 360, 45))
        away = [kilometres((60 * np.cos(a), 60 * np.sin(a))) for a in directions]
        assert here == pytest.approx(20.6, abs=0.2)
        assert np.mean(away) == pytest.approx(3.4, abs=0.3)
        assert here > 4 * max(away)

    def test_the_best_shift_is_small(self, place, extract):
        fit = alignment.fit_place(place, [extract])
        assert np.hypot(*fit.best_shift()) <= 4
        assert np.hypot(*fit.moves[:2]) <= 4
        assert fit.after > fit.before + 0.03
        assert abs(fit.moves[2]) < np.radians(0.2)

    def test_the_ground_is_an_ellipsoid(self, place, extract):
        """The map's metres are true ones: north is shorter than on Mercator's sphere, east is not.

        At 1.3° the ellipsoid's radius of curvature along the meridian is 0.9933 of the sphere's radius; the
        fit finds that to a quarter of the difference, and one scale for both axes is not enough.
        """
        fit = alignment.fit_place(place, [extract])
        latitude = np.radians(geodesy.ORIGINS[LOCATION][0])
        eccentricity = 0.0818191908
        meridian = (1 - eccentricity**2) / (1 - (eccentricity * np.sin(latitude)) ** 2) ** 1.5
        assert meridian == pytest.approx(0.9933, abs=1e-4)
        assert fit.moves[3] == pytest.approx(1.0, abs=0.0015)
        assert fit.moves[4] == pytest.approx(meridian, abs=0.0017)
        assert fit.after > fit.after_similarity + 0.01

    def test_the_converter_stores_and_applies_it(self, real_data, tmp_path):
        extracts = [real_data / "osm/singapore-onenorth.osm"]
        manifest = maploc.convert(
            real_data / "nuscenes", extracts, tmp_path / "out", None, 1, None, 400, align="apply"
        )
        fit = manifest["alignment"][LOCATION]
        assert fit["applied"] is True
        assert fit["advice"] is None
        assert fit["inside_after"] > fit["inside_before"] + 0.03
        assert manifest["source"]["osm_attribution"] == maploc.OSM_ATTRIBUTION
