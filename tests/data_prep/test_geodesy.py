"""The map frames against independent projections."""

import numpy as np
import pyproj
import pytest

from data_prep import geodesy
from data_prep.errors import InputError

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


# The city origins as version 2 of Argoverse publishes them, in degrees.
AV2_ORIGINS = {"MIA": (25.77452579915163, -80.19656914449405), "PIT": (40.44177902989321, -80.01294377242584)}


@pytest.mark.parametrize("city", AV2_ORIGINS)
def test_argoverse_origins_are_those_of_version_2(city):
    assert np.abs(geodesy.wgs84_to_map(AV2_ORIGINS[city], city)).max() < 1e-3


@pytest.mark.parametrize("city", AV2_ORIGINS)
def test_argoverse_is_transverse_mercator(city):
    """UTM by its definition: central meridian 81° W, scale 0.9996, false easting 500 km, true to 10 µm."""
    xy = np.random.default_rng(2).uniform(-3000, 6000, (500, 2))
    latlon = geodesy.map_to_wgs84(xy, city)
    projection = pyproj.Proj("+proj=tmerc +lon_0=-81 +k=0.9996 +x_0=500000 +y_0=0 +ellps=WGS84")
    utm = np.stack(projection(latlon[:, 1], latlon[:, 0]), axis=-1)
    np.testing.assert_allclose(utm - geodesy.UTM_ORIGINS[city], xy, rtol=0, atol=1e-5)


@pytest.mark.parametrize("city", AV2_ORIGINS)
def test_argoverse_against_the_tangent_plane(city):
    """Ellipsoidal east and north at the origin, turned by the grid's convergence (λ - λ0)·sin φ and scaled by
    the point scale of UTM, within 2 cm at 2.5 km."""
    lat0, lon0 = AV2_ORIGINS[city]
    enu = pyproj.Transformer.from_pipeline(
        f"+proj=pipeline +step +proj=cart +ellps=WGS84 +step +proj=topocentric +ellps=WGS84 +lat_0={lat0} "
        f"+lon_0={lon0}"
    )
    lat, lon = geodesy.map_to_wgs84([2000.0, 1500.0], city)
    east, north, _ = enu.transform(lon, lat, 0.0)
    turn = np.radians(lon0 + 81) * np.sin(np.radians(lat0))
    scale = 0.9996 * (1 + ((geodesy.UTM_ORIGINS[city][0] - 500_000) / 0.9996) ** 2 / (2 * 6.371e6**2))
    x = scale * (np.cos(turn) * east + -np.sin(turn) * north)
    y = scale * (np.sin(turn) * east + np.cos(turn) * north)
    assert np.hypot(x - 2000, y - 1500) < 0.02
    assert np.hypot(east - 2000, north - 1500) > 10  # what leaving out the convergence would cost


@pytest.mark.parametrize("location", [*LOCATIONS, *AV2_ORIGINS])
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


def test_bounds_hold_a_turned_map():
    """The four corners of a map in UTM lie inside, and touch, its bounds in degrees."""
    south, west, north, east = geodesy.wgs84_bounds((0.0, 2000.0, -500.0, 3000.0), "PIT", 100.0)
    latlon = geodesy.map_to_wgs84([(-100, -600), (-100, 3100), (2100, -600), (2100, 3100)], "PIT")
    assert (latlon.min(axis=0).tolist(), latlon.max(axis=0).tolist()) == ([south, west], [north, east])
    # Two corners of the turned map would not do.
    assert latlon[0, 0] > south


def test_unknown_location_lists_the_known():
    with pytest.raises(InputError, match=r"'atlantis'.*boston-seaport.*singapore-onenorth.*MIA"):
        geodesy.wgs84_to_map([0.0, 0.0], "atlantis")


@pytest.mark.parametrize("latlon", [(103.8, 1.3), (1.3, 181.0), (np.nan, 103.8), (1.3, np.inf)])
def test_coordinates_out_of_range(latlon):
    with pytest.raises(InputError, match="out of range"):
        geodesy.wgs84_to_map([(1.3, 103.8), latlon], "singapore-onenorth")
