"""WGS84 ↔ the four nuScenes map frames.

A nuScenes map frame starts at the south-west corner of its map, x east and y north, in metres. All four
corners are exact corners of zoom-21 slippy-map tiles, so the frames are spherical Mercator, scaled to true
metres at the corner:

    x = R·cos φ0·(λ − λ0),   y = R·cos φ0·(ψ(φ) − ψ(φ0)),   ψ(φ) = ln tan(π/4 + φ/2),   R = 6378137 m.

Unscaled Web Mercator (EPSG:3857) offsets would be 35 % too long in Boston, and UTM offsets are turned by its
grid convergence (1.4° there).
"""

import numpy as np

from data_prep.errors import InputError

EARTH_RADIUS = 6378137.0  # m, the sphere of Web Mercator

# South-west corners (latitude, longitude) in degrees.
ORIGINS: dict[str, tuple[float, float]] = {
    "boston-seaport": (42.336849169438615, -71.05785369873047),
    "singapore-onenorth": (1.2882100868743724, 103.78475189208984),
    "singapore-hollandvillage": (1.2993652317780957, 103.78217697143555),
    "singapore-queenstown": (1.2782562240223188, 103.76741409301758),
}

# Map sizes (x, y) in metres.
SIZES: dict[str, tuple[float, float]] = {
    "boston-seaport": (2979.5, 2118.1),
    "singapore-onenorth": (1585.6, 2025.0),
    "singapore-hollandvillage": (2808.3, 2922.9),
    "singapore-queenstown": (3228.6, 3687.1),
}

# Mercator's y runs to infinity at the poles; beyond this latitude the input is no street map.
MAX_LATITUDE = 85.06


def check_location(location: str) -> str:
    """Return `location` if its map frame is known; InputError listing the known ones if not."""
    if location not in ORIGINS:
        raise InputError(
            f"unknown location {location!r}: the map frames known are {', '.join(sorted(ORIGINS))}. "
            "Correct the name, or add the origin and size of its map to data_prep/geodesy.py."
        )
    return location


def wgs84_to_map(latlon: np.ndarray, location: str) -> np.ndarray:
    """(..., 2) latitude, longitude in degrees → (..., 2) float64 x, y in metres in the map frame of
    `location`.

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
    lat0, lon0 = ORIGINS[check_location(location)]
    scale = EARTH_RADIUS * np.cos(np.radians(lat0))
    x = scale * np.radians(latlon[..., 1] - lon0)
    y = scale * (_mercator(np.radians(latlon[..., 0])) - _mercator(np.radians(lat0)))
    return np.stack([x, y], axis=-1)


def map_to_wgs84(xy: np.ndarray, location: str) -> np.ndarray:
    """(..., 2) metres in the map frame of `location` → (..., 2) float64 latitude, longitude in degrees."""
    xy = np.asarray(xy, np.float64)
    lat0, lon0 = ORIGINS[check_location(location)]
    scale = EARTH_RADIUS * np.cos(np.radians(lat0))
    lon = lon0 + np.degrees(xy[..., 0] / scale)
    lat = np.degrees(_inverse_mercator(_mercator(np.radians(lat0)) + xy[..., 1] / scale))
    return np.stack([lat, lon], axis=-1)


def wgs84_box(location: str, margin: float) -> tuple[float, float, float, float]:
    """The map of `location` grown by `margin` metres: (south, west, north, east) in degrees."""
    size = np.asarray(SIZES[check_location(location)])
    (south, west), (north, east) = map_to_wgs84(np.stack([np.full(2, -margin), size + margin]), location)
    return float(south), float(west), float(north), float(east)


def sphere_points(latlon: np.ndarray) -> np.ndarray:
    """(..., 2) latitude, longitude in degrees → (..., 3) float64 metres from the Earth's centre.

    In these, places of different map frames have distances from each other.
    """
    lat, lon = np.moveaxis(np.radians(latlon), -1, 0)
    directions = [np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)]
    return EARTH_RADIUS * np.stack(directions, axis=-1)


def _mercator(latitude: np.ndarray) -> np.ndarray:
    """ψ(φ) = ln tan(π/4 + φ/2), written so that it keeps full precision near the equator."""
    return np.arctanh(np.sin(latitude))


def _inverse_mercator(y: np.ndarray) -> np.ndarray:
    return np.arcsin(np.tanh(y))
