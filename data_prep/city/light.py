"""The light, the weather and the season of one drive, from its date and time of day."""

from dataclasses import dataclass

import numpy as np

from data_prep.city.classes import Label, number_of
from data_prep.city.mesh import Material, Mesh, select
from data_prep.city.sun import phase_of, season_of, sun_direction

EVERGREEN = 4  # every fourth tree keeps its leaves
SNOW_SHARE, RAIN_SHARE = 0.35, 0.18  # of the winter drives, of the others


@dataclass(frozen=True)
class Light:
    """Sun, sky and air of one drive, and how each camera exposes. Colours are linear RGB, (3,) float32."""

    phase: str  # day, dusk or night
    season: str  # winter, spring, summer or autumn
    sun: np.ndarray  # (3,) unit, towards the sun
    sun_colour: np.ndarray  # zero when it is below the horizon
    ambient: np.ndarray
    sky_top: np.ndarray
    sky_low: np.ndarray  # also the colour of the haze
    cloud_colour: np.ndarray
    clouds: float  # share of the sky
    haze: float  # 1/m
    lamps: float  # 0 off … 1: street lamps, headlights, lit rooms
    wet: float  # 0 dry … 1
    snow: float  # share of the ground that is white
    exposure: np.ndarray  # (cameras,)
    noise: float  # standard deviation in grey levels


def draw_light(location: str, date: str, seconds: float, rng: np.random.Generator, cameras: int = 6) -> Light:
    """The light of a drive that starts at a time (UTC seconds since 1970) on a local date."""
    sun = sun_direction(location, seconds)
    season = season_of(location, date)
    overcast = float(np.clip(rng.normal(0.35, 0.35), 0, 1))
    snow = wet = 0.0
    chance, amount = rng.random(), rng.uniform(0.6, 1.0)
    if season == "winter" and chance < SNOW_SHARE:
        snow = amount
    elif season != "winter" and chance < RAIN_SHARE:
        wet, overcast = amount, max(overcast, 0.85)
    phase = phase_of(location, seconds)
    tone = {"day": _day, "dusk": _dusk, "night": _night}[phase]
    colours = tone(float(np.degrees(np.arcsin(sun[2]))), overcast)
    brightness = rng.uniform(0.9, 1.1)
    return Light(
        phase=phase,
        season=season,
        sun=sun.astype(np.float32),
        clouds=max(float(rng.uniform(0.1, 0.7)), 0.8 * wet),
        haze=float(rng.uniform(1 / 1500, 1 / 400)) * (1 + wet),
        wet=wet,
        snow=snow,
        exposure=rng.uniform(0.85, 1.2, cameras).astype(np.float32) * np.float32(rng.uniform(0.9, 1.15)),
        noise=float(rng.uniform(1.5, 4.0)) * {"day": 1.0, "dusk": 1.3, "night": 1.7}[phase],
        lamps={"day": 0.0, "dusk": 0.5, "night": 1.0}[phase],
        sun_colour=colours["sun"].astype(np.float32),
        ambient=(colours["ambient"] * brightness).astype(np.float32),
        sky_top=colours["top"].astype(np.float32),
        sky_low=colours["low"].astype(np.float32),
        cloud_colour=colours["cloud"].astype(np.float32),
    )


def _mix(clear: tuple[float, ...], covered: tuple[float, ...], overcast: float) -> np.ndarray:
    return np.array(clear) * (1 - overcast) + np.array(covered) * overcast


def _day(elevation: float, overcast: float) -> dict[str, np.ndarray]:
    warm = np.clip((45 - elevation) / 45, 0, 1)
    return {
        "sun": np.array([2.5, 2.35 - 0.5 * warm, 2.1 - 0.9 * warm]) * (1 - 0.85 * overcast),
        "ambient": _mix((0.62, 0.70, 0.85), (1.15, 1.17, 1.2), overcast),
        "top": _mix((0.13, 0.28, 0.62), (0.50, 0.53, 0.58), overcast),
        "low": _mix((0.55, 0.68, 0.85), (0.72, 0.73, 0.75), overcast),
        "cloud": np.full(3, 0.9),
    }


def _dusk(elevation: float, overcast: float) -> dict[str, np.ndarray]:
    """The camera opens up: a low, warm sun, and after it has set a glow in the west."""
    above = np.clip(elevation / 6, 0, 1)
    return {
        "sun": np.array([1.9, 1.05, 0.5]) * above * (1 - 0.9 * overcast),
        "ambient": _mix((0.40, 0.40, 0.54), (0.52, 0.51, 0.56), overcast) * (0.8 + 0.3 * above),
        "top": _mix((0.10, 0.14, 0.34), (0.24, 0.25, 0.31), overcast),
        "low": _mix((0.78, 0.47, 0.30), (0.42, 0.39, 0.40), overcast),
        "cloud": _mix((0.85, 0.50, 0.42), (0.45, 0.43, 0.46), overcast),
    }


def _night(elevation: float, overcast: float) -> dict[str, np.ndarray]:
    """What is left is the town's own light, thrown back by the sky, and a long exposure."""
    return {
        "sun": np.zeros(3),
        "ambient": _mix((0.105, 0.115, 0.165), (0.15, 0.14, 0.14), overcast),
        "top": _mix((0.006, 0.009, 0.022), (0.03, 0.027, 0.026), overcast),
        "low": _mix((0.035, 0.035, 0.05), (0.06, 0.05, 0.045), overcast),
        "cloud": np.array([0.05, 0.045, 0.045]),
    }


_GRASS = {
    "spring": (1.05, 1.15, 0.9),
    "summer": (1.0, 1.0, 1.0),
    "autumn": (1.35, 0.95, 0.8),
    "winter": (1.45, 0.85, 0.9),
}
_AUTUMN = np.array([(0.38, 0.17, 0.03), (0.42, 0.29, 0.03), (0.26, 0.07, 0.02)])
_SNOW = np.array([0.74, 0.77, 0.82])
_SNOW_COVER = {
    Material.GRASS: 0.9,
    Material.GRAVEL: 0.85,
    Material.ROOF: 0.85,
    Material.PAVING: 0.55,
    Material.KERB: 0.4,
    Material.FOLIAGE: 0.4,
    Material.ASPHALT: 0.12,
}


def in_season(mesh: Mesh, light: Light) -> Mesh:
    """The town as it looks at that time of the year: leaves, grass and snow."""
    colour = mesh.colour.copy()
    foliage = mesh.material == Material.FOLIAGE
    tree = number_of(mesh.instance)
    leafy = foliage & (tree % EVERGREEN != 0)
    colour[mesh.material == Material.GRASS] *= np.array(_GRASS[light.season])
    if light.season == "spring":
        colour[leafy] *= np.array([1.35, 1.3, 1.0])
    if light.season == "autumn":
        turned = ((tree[leafy] * 37) % 100 / 100.0)[:, None]
        colour[leafy] += (0.35 + 0.65 * turned) * (_AUTUMN[tree[leafy] % len(_AUTUMN)] - colour[leafy])
    for material, cover in _SNOW_COVER.items():
        if light.snow > 0:
            index = mesh.material == material
            colour[index] += cover * light.snow * (_SNOW - colour[index])
    mesh = mesh._replace(colour=colour.astype(np.float32))
    bare = leafy & (mesh.semantic == Label.VEGETATION)
    return select(mesh, ~bare) if light.season == "winter" else mesh
