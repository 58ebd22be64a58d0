"""WGS84 ↔ the map frames of the datasets: four of nuScenes, two of Argoverse 1.

A nuScenes map frame starts at the south-west corner of its map, x east and y north, in metres. All four
corners are exact corners of zoom-21 slippy-map tiles, so the frames are spherical Mercator, scaled to true
metres at the corner:

    x = R·cos φ0·(λ − λ0),   y = R·cos φ0·(ψ(φ) − ψ(φ0)),   ψ(φ) = ln tan(π/4 + φ/2),   R = 6378137 m.

Unscaled Web Mercator (EPSG:3857) offsets would be 35 % too long in Boston, and UTM offsets are turned by its
grid convergence (1.4° there).

An Argoverse city frame is UTM zone 17N (on WGS84) with a constant taken away: easting = x + E0,
northing = y + N0 (appendix A.1 of the Argoverse paper, arXiv 1911.02620).
"""

import functools
from collections.abc import Sequence

import numpy as np
import pyproj

from data_prep.errors import InputError

EARTH_RADIUS = 6378137.0  # m, the sphere of Web Mercator

# South-west corners (latitude, longitude) in degrees.
ORIGINS: dict[str, tuple[float, float]] = {
    "boston-seaport": (42.336849169438615, -71.05785369873047),
    "singapore-onenorth": (1.2882100868743724, 103.78475189208984),
    "singapore-hollandvillage": (1.2993652317780957, 103.78217697143555),
    "singapore-queenstown": (1.2782562240223188, 103.76741409301758),
}

# Map sizes (x, y) in metres of the same.
SIZES: dict[str, tuple[float, float]] = {
    "boston-seaport": (2979.5, 2118.1),
    "singapore-onenorth": (1585.6, 2025.0),
    "singapore-hollandvillage": (2808.3, 2922.9),
    "singapore-queenstown": (3228.6, 3687.1),
}

# City origins (easting, northing) of Argoverse 1 in metres of UTM zone 17N: Miami and Pittsburgh.
UTM_ORIGINS: dict[str, tuple[float, float]] = {
    "MIA": (580560.0088, 2850959.9999),
    "PIT": (583710.0070, 4477259.9999),
}
UTM_ZONE_17N = "EPSG:32617"

# Mercator's y runs to infinity at the poles; beyond this latitude the input is no street map.
MAX_LATITUDE = 85.06


def check_location(location: str) -> str:
    """Return `location` if its map frame is known; InputError listing the known ones if not."""
    known = (*sorted(ORIGINS), *sorted(UTM_ORIGINS))
    if location not in known:
        raise InputError(
            f"unknown location {location!r}: the map frames known are {', '.join(known)}. "
            "Correct the name, or add the origin and size of its map to data_prep/geodesy.py."
        )
    return location


def wgs84_to_map(latlon: np.ndarray, location: str) -> np.ndarray:
    """(..., 2) latitude, longitude in degrees → (..., 2) float64 x, y in metres in the map frame of
    `location`. Infinite where a place is so far away (most of a hemisphere) that UTM has no value for it.

    Raises InputError for an unknown location and for coordinates that are not finite or not on a street map.
    """
    latlon = np.asarray(latlon, np.float64)
    # Written so that NaN fails too.
    valid = (np.abs(latlon[..., 0]) <= MAX_LATITUDE) & (np.abs(latlon[..., 1]) <= 180.0)
    if not np.all(valid):
        bad = latlon[~valid][0]
        raise InputError(
            f"coordinates out of range: latitude {bad[0]}, longitude {bad[1]} (degrees); expected "
            f"|latitude| <= {MAX_LATITUDE} and |longitude| <= 180. Are they swapped, or not WGS84 degrees?"
        )
    if check_location(location) in UTM_ORIGINS:
        utm = _utm_17n().transform(latlon[..., 0], latlon[..., 1], direction="INVERSE")
        return np.stack(utm, axis=-1) - UTM_ORIGINS[location]
    lat0, lon0 = ORIGINS[location]
    scale = EARTH_RADIUS * np.cos(np.radians(lat0))
    x = scale * np.radians(latlon[..., 1] - lon0)
    y = scale * (_mercator(np.radians(latlon[..., 0])) - _mercator(np.radians(lat0)))
    return np.stack([x, y], axis=-1)


def map_to_wgs84(xy: np.ndarray, location: str) -> np.ndarray:
    """(..., 2) metres in the map frame of `location` → (..., 2) float64 latitude, longitude in degrees."""
    xy = np.asarray(xy, np.float64)
    if check_location(location) in UTM_ORIGINS:
        utm = xy + UTM_ORIGINS[location]
        return np.stack(_utm_17n().transform(utm[..., 0], utm[..., 1]), axis=-1)
    lat0, lon0 = ORIGINS[location]
    scale = EARTH_RADIUS * np.cos(np.radians(lat0))
    lon = lon0 + np.degrees(xy[..., 0] / scale)
    lat = np.degrees(_inverse_mercator(_mercator(np.radians(lat0)) + xy[..., 1] / scale))
    return np.stack([lat, lon], axis=-1)


def wgs84_box(location: str, margin: float) -> tuple[float, float, float, float]:
    """The nuScenes map of `location` grown by `margin` metres: (south, west, north, east) in degrees."""
    width, height = SIZES[check_location(location)]
    return wgs84_bounds((0.0, width, 0.0, height), location, margin)


def wgs84_bounds(
    extent: tuple[float, float, float, float], location: str, margin: float
) -> tuple[float, float, float, float]:
    """(south, west, north, east) in degrees of x_min, x_max, y_min, y_max in the map frame of `location`,
    grown by `margin` metres."""
    x_min, x_max, y_min, y_max = np.asarray(extent) + margin * np.array([-1, 1, -1, 1])
    # All four corners: UTM is turned against north.
    corners = map_to_wgs84([(x, y) for x in (x_min, x_max) for y in (y_min, y_max)], location)
    (south, west), (north, east) = corners.min(axis=0), corners.max(axis=0)
    return float(south), float(west), float(north), float(east)


def shapes_near(
    shapes: Sequence[Sequence[np.ndarray]],
    location: str,
    extent: tuple[float, float, float, float],
    reach: float,
) -> list[list[np.ndarray]]:
    """Shapes, each a list of point rows (N, 2) in degrees → those whose boxes come within `reach` (m) of
    x_min, x_max, y_min, y_max in the map frame of `location`, in metres there."""
    if not shapes:
        return []
    # One call for all points: an extract of a country has millions of ways.
    rows = [row for shape in shapes for row in shape]
    ends = np.cumsum([len(row) for row in rows])
    xy = wgs84_to_map(np.concatenate(rows), location)
    starts = np.concatenate([[0], ends[:-1]])
    of_shape = np.concatenate([[0], np.cumsum([len(shape) for shape in shapes])])
    lower = np.minimum.reduceat(np.minimum.reduceat(xy, starts), of_shape[:-1])
    upper = np.maximum.reduceat(np.maximum.reduceat(xy, starts), of_shape[:-1])
    x_min, x_max, y_min, y_max = extent
    near = ((lower < [x_max + reach, y_max + reach]) & (upper > [x_min - reach, y_min - reach])).all(axis=1)
    return [
        [xy[starts[row] : ends[row]] for row in range(of_shape[shape], of_shape[shape + 1])]
        for shape in np.flatnonzero(near)
    ]


def sphere_points(latlon: np.ndarray) -> np.ndarray:
    """(..., 2) latitude, longitude in degrees → (..., 3) float64 metres from the Earth's centre.

    In these, places of different map frames have distances from each other.
    """
    lat, lon = np.moveaxis(np.radians(latlon), -1, 0)
    directions = [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
    return EARTH_RADIUS * np.stack(directions, axis=-1)


@functools.cache
def _utm_17n() -> pyproj.Transformer:
    """Easting, northing → latitude, longitude in degrees."""
    return pyproj.Transformer.from_crs(UTM_ZONE_17N, "EPSG:4326")


def _mercator(latitude: np.ndarray) -> np.ndarray:
    """ψ(φ) = ln tan(π/4 + φ/2), written so that it keeps full precision near the equator."""
    return np.arctanh(np.sin(latitude))


def _inverse_mercator(y: np.ndarray) -> np.ndarray:
    return np.arcsin(np.tanh(y))
