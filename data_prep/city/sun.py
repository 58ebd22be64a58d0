"""Where the sun stands over a town, and at which times of the day and of the year it is driven."""

import numpy as np

from data_prep.geodesy import map_to_wgs84

# Latitude and longitude of the towns of KITTI and KITTI-360, whose map frames have no place on the globe.
_KARLSRUHE = (49.01, 8.40)

# Times of the day of a district's drives, in turn: 70 % by day, 20 % at dusk, 10 % at night.
PHASES = ("day", "dusk", "day", "day", "night", "day", "day", "dusk", "day", "day")
# Of the sun above the horizon, in degrees.
ELEVATIONS = {"day": (12.0, 90.0), "dusk": (-3.0, 6.0), "night": (-90.0, -9.0)}
_HOURS = {"day": (8.0, 18.0), "dusk": (12.0, 24.0), "night": (17.0, 23.5)}  # local solar time


def sun_direction(location: str, seconds: float | np.ndarray) -> np.ndarray:
    """(...) UTC seconds since 1970 → (..., 3) unit vector east, north, up towards the sun.

    Declination and equation of time by their usual approximations in the day of the year (half a degree).
    """
    latitude, longitude = np.radians(_place(location))
    days = np.asarray(seconds, np.float64) / 86400.0
    day = days % 365.2425 + 1.0  # of the year, 1 on New Year's
    turn = 2 * np.pi / 365.2425
    season = turn * (day - 173.0) + np.radians(1.914) * np.sin(turn * (day - 2.0))  # since the solstice
    declination = np.arcsin(np.sin(np.radians(23.45)) * np.cos(season))
    orbit = 2 * np.pi * ((days - 80.0) % 365.2425) / 365.2425  # since the spring equinox
    equation_of_time = 9.87 * np.sin(2 * orbit) - 7.53 * np.cos(orbit) - 1.5 * np.sin(orbit)  # minutes
    hour_angle = 2 * np.pi * ((days + equation_of_time / 1440.0) % 1.0 - 0.5) + longitude
    east = -np.cos(declination) * np.sin(hour_angle)
    north = np.cos(latitude) * np.sin(declination)
    north = north - np.sin(latitude) * np.cos(declination) * np.cos(hour_angle)
    up = np.sin(latitude) * np.sin(declination)
    up = up + np.cos(latitude) * np.cos(declination) * np.cos(hour_angle)
    return np.stack([east, north, up], axis=-1)


def start_second(location: str, date: np.datetime64, order: int, rng: np.random.Generator) -> int:
    """UTC seconds since 1970 at which drive `order` of a district starts, on a local date.

    The turn in PHASES decides between day, dusk and night, and chance between the minutes of that date at
    which the sun stands accordingly.
    """
    phase = PHASES[order % len(PHASES)]
    midnight = date.astype("datetime64[D]").astype("datetime64[s]").astype(np.int64)
    midnight = midnight - _place(location)[1] / 360.0 * 86400.0  # of the local solar time
    minutes = midnight + 60.0 * np.arange(_HOURS[phase][0] * 60, _HOURS[phase][1] * 60)
    elevation = np.degrees(np.arcsin(sun_direction(location, minutes)[:, 2]))
    low, high = ELEVATIONS[phase]
    fitting = minutes[(elevation >= low) & (elevation <= high)]
    return int(fitting[rng.integers(len(fitting))]) + int(rng.integers(60))


def phase_of(location: str, seconds: float) -> str:
    """day, dusk or night, by the sun's elevation; what lies between is called dusk."""
    elevation = np.degrees(np.arcsin(sun_direction(location, seconds)[2]))
    if elevation >= ELEVATIONS["day"][0]:
        return "day"
    return "night" if elevation <= ELEVATIONS["night"][1] else "dusk"


def season_of(location: str, date: str) -> str:
    """winter, spring, summer or autumn; near the equator it is always summer."""
    if abs(_place(location)[0]) < 23.0:
        return "summer"
    month = int(date[5:7])
    return ("winter", "spring", "summer", "autumn")[month % 12 // 3]


def _place(location: str) -> np.ndarray:
    """(2,) latitude and longitude in degrees of a town."""
    if location.startswith("karlsruhe"):
        return np.array(_KARLSRUHE)
    return map_to_wgs84(np.zeros(2), location)
