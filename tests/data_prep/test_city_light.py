"""Day, dusk, night, seasons and weather: the sun stands where it stands, and the pictures follow."""

import dataclasses

import numpy as np
import pytest

from data_prep.city import generate, light, recording, sun
from data_prep.city.classes import Label, number_of
from data_prep.city.light import Light, draw_light
from data_prep.city.mesh import Material
from data_prep.city.shading import Shader, develop

BOSTON, SINGAPORE = "boston-seaport", "singapore-onenorth"


def utc(text: str) -> float:
    return float(np.datetime64(text, "s").astype(np.int64))


def test_the_sun_stands_where_almanacs_say():
    """Solstices and solar noons of Boston and Singapore, from latitude and the tilt of the earth's axis."""
    for date, noon, elevation in (
        ("2018-06-21", "16:46", 90 - 42.34 + 23.44),
        ("2018-12-21", "16:42", 90 - 42.34 - 23.44),
        ("2018-03-20", "16:52", 90 - 42.34),
    ):
        east, north, up = sun.sun_direction(BOSTON, utc(f"{date}T{noon}"))
        assert np.degrees(np.arcsin(up)) == pytest.approx(elevation, abs=0.6)
        assert north < 0
        assert abs(east) < 0.02
    # Sunset on the equinox: due west, about six hours after noon.
    east, north, up = sun.sun_direction(SINGAPORE, utc("2018-03-20T11:15"))
    assert east < -0.99
    assert abs(up) < 0.03
    assert abs(north) < 0.03


def test_starts_fit_their_phase_on_every_date():
    for location in (BOSTON, SINGAPORE):
        for day in range(0, 365, 13):
            date = np.datetime64("2018-01-01") + day
            for order, phase in enumerate(sun.PHASES[:5]):
                start = sun.start_second(location, date, order, np.random.default_rng(day))
                assert sun.phase_of(location, start) == phase
                local = start + sun._place(location)[1] / 360 * 86400
                assert np.datetime64(int(local), "s").astype("datetime64[D]") == date


def test_most_drives_are_by_day_and_all_times_are_trained_on():
    phases, train = [], []
    for _, logs in generate.plan("small", 0):
        for log in logs:
            own = recording.log_light(log, 0)
            assert own.phase == sun.phase_of(log.location, log.start / 1e6)
            phases.append(own.phase)
            train += [own.phase] * (log.district == "train")
    assert 0.5 <= phases.count("day") / len(phases) <= 0.8
    assert 0 < phases.count("night") / len(phases) <= 0.2
    assert set(train) == {"day", "dusk", "night"}


def draw(phase: str, **changes) -> Light:
    hour = {"day": "17:00", "dusk": "23:45", "night": "03:30"}[phase]
    start = utc(f"2018-06-21T{hour}")
    own = draw_light(BOSTON, "2018-06-21", start, np.random.default_rng(4))
    own = dataclasses.replace(own, sun=sun.sun_direction(BOSTON, start).astype(np.float32), **changes)
    assert own.phase == phase
    return own


@pytest.fixture(scope="module")
def place():
    world, logs = next(generate.plan("tiny", 0))
    log = logs[0]
    return world, log, recording.instruments(world, log, "tiny", 0)


def expose(place, own_light: Light) -> np.ndarray:
    """(6, H, W, 3) uint8: all cameras of one keyframe in a light."""
    world, log, own = place
    own = dataclasses.replace(own, light=own_light)
    scene = log.scenes[0]
    stage = recording.scene_stage(world, log, scene, own)
    shader = Shader(
        own_light, 1 / own.rig.cameras[1].intrinsics[0, 0], recording.scene_surroundings(world, log, scene)
    )
    times = recording.timestamps(log, scene, own.rig, 0)[2]
    poses = recording.map_poses(world, log, times, recording.NUSCENES.rig)
    images = []
    for index, camera in enumerate(own.rig.cameras):
        time = float((times[index + 1] - log.start) / 1e6)
        colour = recording.photograph(stage, shader, camera, camera.rays(), poses[index + 1], time)
        images.append(develop(colour, 1.0, own_light.noise, np.random.default_rng(0)))
    return np.array(images)


def test_night_is_darker_than_dusk_than_day_and_still_legible(place):
    images = {phase: expose(place, draw(phase)) for phase in ("day", "dusk", "night")}
    means = {phase: image.mean() for phase, image in images.items()}
    assert means["day"] > means["dusk"] + 10 > means["night"] + 20
    for image in images.values():
        for camera in image:
            assert camera.std() > 10
            assert np.mean(camera < 5) < 0.45
            assert np.mean(camera > 250) < 0.1
    # Edges seen by day are seen at night: gradients of the two pictures of one place go together.
    grey = {phase: image[:, :, :, 1].astype(float) for phase, image in images.items()}
    edges = {phase: np.abs(np.diff(image, axis=2)) for phase, image in grey.items()}
    strong = edges["day"] > np.quantile(edges["day"], 0.95)
    assert edges["night"][strong].mean() > 1.7 * edges["night"][~strong].mean()


def test_dusk_is_warmer_than_day(place):
    day, dusk = (expose(place, draw(phase)).reshape(-1, 3).mean(0) for phase in ("day", "dusk"))
    assert dusk[0] / dusk[2] > 1.08 * day[0] / day[2]


def test_lamps_light_the_ground_below_them(place):
    world, log, _ = place
    surroundings = recording.scene_surroundings(world, log, log.scenes[0])
    poles = [pole for pole in world.furniture.poles if pole.kind == "street_lamp"]
    lower, upper = recording.scene_extent(log, log.scenes[0])
    poles = [p for p in poles if np.all(lower + 5 < p.xy) and np.all(np.array(p.xy) < upper - 5)]
    assert poles
    xy = np.array([p.xy for p in poles]) - world.centre
    ahead = 1.7 * np.array([[np.cos(p.facing), np.sin(p.facing)] for p in poles])
    below = surroundings.lamplight((xy + ahead).astype(np.float32))
    assert np.all(below > 0.9)
    assert np.all(below > surroundings.lamplight((xy - 12 * ahead / 1.7).astype(np.float32)))
    ground = surroundings.ground(xy.astype(np.float32))
    np.testing.assert_allclose(ground, world.terrain.height(xy + world.centre), atol=0.35)


def test_seasons_change_leaves_grass_and_roofs(place):
    world, _, _ = place
    mesh = world.mesh
    dressed = {
        season: light.in_season(mesh, draw("day", season=season, snow=0.0, wet=0.0))
        for season in ("spring", "summer", "autumn", "winter")
    }
    np.testing.assert_array_equal(dressed["summer"].colour, mesh.colour)
    leaves = {season: (m.material == Material.FOLIAGE).sum() for season, m in dressed.items()}
    assert leaves["winter"] < 0.4 * leaves["summer"] == 0.4 * leaves["autumn"]
    bare = dressed["winter"]
    trees = np.unique(number_of(bare.instance[bare.semantic == Label.VEGETATION]))
    assert len(trees) == len(world.furniture.trees)  # trunks and branches stay
    crowns = np.unique(number_of(bare.instance[bare.material == Material.FOLIAGE]))
    assert np.all(crowns % light.EVERGREEN == 0)
    foliage = mesh.material == Material.FOLIAGE
    red = {s: dressed[s].colour[foliage].mean(0) for s in ("summer", "autumn")}
    assert red["autumn"][0] > 2 * red["summer"][0]
    snowy = light.in_season(mesh, draw("day", season="winter", snow=0.9, wet=0.0))
    for material in (Material.GRASS, Material.ROOF):
        assert snowy.colour[snowy.material == material].mean() > 0.5
    assert snowy.colour[snowy.material == Material.FACADE] == pytest.approx(
        mesh.colour[mesh.material == Material.FACADE]
    )


def test_near_the_equator_there_is_no_winter():
    assert {sun.season_of(SINGAPORE, f"2018-{month:02d}-15") for month in range(1, 13)} == {"summer"}
    assert [sun.season_of(BOSTON, f"2018-{month:02d}-15") for month in (1, 4, 7, 10)] == [
        "winter", "spring", "summer", "autumn",
    ]  # fmt: skip


def test_rain_darkens_the_road_and_makes_it_mirror(place):
    dry, wet = (expose(place, draw("day", wet=amount, snow=0.0)) for amount in (0.0, 1.0))
    assert wet[:, 60:].mean() < dry[:, 60:].mean()
