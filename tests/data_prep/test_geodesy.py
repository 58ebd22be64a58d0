"""The four map frames against independent projections."""

import numpy as np
import pytest

from data_prep import geodesy
from data_prep.errors import InputError

pyproj = pytest.importorskip("pyproj")

LOCATIONS = sorted(geodesy.ORIGINS)
SINGAPORE = [location for location in LOCATIONS if location.startswith("singapore")]


def web_mercator(latlon: np.ndarray) -> np.ndarray:
    """(N, 2) degrees → (N, 2) EPSG:3857 metres by pyproj."""
    x, y = pyproj.Transformer.from_crs(4326, 3857, always_xy=True).transform(latlon[:, 1], latlon[:, 0])
    return np.stack([x, y], axis=-1)


@pytest.mark.parametrize("location", LOCATIONS)
def test_origin_is_zero(location):
    assert np.array_equal(geodesy.wgs84_to_map(geodesy.ORIGINS[location], location), [0.0, 0.0])


@pytest.mark.parametrize("location", LOCATIONS)
def test_origins_are_corners_of_slippy_tiles(location):
    """A wrong digit in the table would miss the corner of a 19 m tile."""
    lat, lon = np.radians(geodesy.ORIGINS[location])
    tiles = 2**21 * np.array([(lon / np.pi + 1) / 2, (1 - np.arcsinh(np.tan(lat)) / np.pi) / 2])
    assert np.abs(tiles - tiles.round()).max() < 1e-5


@pytest.mark.parametrize("location", LOCATIONS)
def test_is_web_mercator_scaled_at_the_origin(location):
    rng = np.random.default_rng(0)
    origin = np.array(geodesy.ORIGINS[location])
    latlon = origin + rng.uniform(-0.02, 0.04, (200, 2))
    expected = (web_mercator(latlon) - web_mercator(origin[None])) * np.cos(np.radians(origin[0]))
    np.testing.assert_allclose(geodesy.wgs84_to_map(latlon, location), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("location", LOCATIONS)
def test_round_trip(location):
    xy = np.random.default_rng(1).uniform(-500, 4500, (1000, 2))
    np.testing.assert_allclose(
        geodesy.wgs84_to_map(geodesy.map_to_wgs84(xy, location), location), xy, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("location", "bound"), [("boston-seaport", 5.0), *((s, 15.0) for s in SINGAPORE)])
def test_near_the_ellipsoidal_tangent_plane(location, bound):
    """The sphere is off by metres, north; unscaled Web Mercator in Boston would be off by hundreds."""
    lat0, lon0 = geodesy.ORIGINS[location]
    enu = pyproj.Transformer.from_pipeline(
        f"+proj=pipeline +step +proj=cart +ellps=WGS84 +step +proj=topocentric +ellps=WGS84 +lat_0={lat0} "
        f"+lon_0={lon0}"
    )
    lat, lon = geodesy.map_to_wgs84([2000.0, 1500.0], location)
    east, north, _ = enu.transform(lon, lat, 0.0)
    assert np.hypot(east - 2000, north - 1500) < bound


def test_sphere_points_keep_distances():
    """Two places 500 m apart on one map are 500 m apart between maps, however each is written."""
    xy = np.array([[1000.0, 400.0], [1300.0, 800.0]])
    first, second = geodesy.sphere_points(geodesy.map_to_wgs84(xy, "singapore-onenorth"))
    assert np.linalg.norm(first - second) == pytest.approx(500, abs=0.1)
    again = geodesy.wgs84_to_map(geodesy.map_to_wgs84(xy[1], "singapore-onenorth"), "singapore-queenstown")
    other = geodesy.sphere_points(geodesy.map_to_wgs84(again, "singapore-queenstown"))
    assert np.linalg.norm(first - other) == pytest.approx(500, abs=0.1)


def test_download_boxes():
    """The boxes with a margin of 300 m, worked out independently."""
    assert np.allclose(
        geodesy.wgs84_box("boston-seaport", 300), (42.33415, -71.06150, 42.35857, -71.01800), atol=6e-6
    )
    assert np.allclose(
        geodesy.wgs84_box("singapore-queenstown", 300), (1.27556, 103.76472, 1.31407, 103.79912), atol=6e-6
    )


def test_unknown_location_lists_the_known():
    with pytest.raises(InputError, match=r"'atlantis'.*boston-seaport.*singapore-onenorth"):
        geodesy.wgs84_to_map([0.0, 0.0], "atlantis")


@pytest.mark.parametrize("latlon", [(103.8, 1.3), (1.3, 181.0), (np.nan, 103.8), (1.3, np.inf)])
def test_coordinates_out_of_range(latlon):
    with pytest.raises(InputError, match="out of range"):
        geodesy.wgs84_to_map([(1.3, 103.8), latlon], "singapore-onenorth")
