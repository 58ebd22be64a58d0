"""The pictures of the city in docs/images, made from the city itself.

    python -m data_prep.city.gallery --out docs/images [--only city-times.png ...]

Takes about two minutes on two cores; the pictures are the same for the same version of the city.
"""

import argparse
import dataclasses
import io
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch, PathPatch
from matplotlib.path import Path as Outline
from PIL import Image

from data_prep import datasets, view
from data_prep.city import generate, recording
from data_prep.city.classes import COLOURS, Label, class_colours, instance_colours, name_of
from data_prep.city.drives import KEYFRAME_SECONDS, Log, Scene
from data_prep.city.light import Light, draw_light
from data_prep.city.mesh import Material, polygons
from data_prep.city.recording import Instruments
from data_prep.city.sensors import camera_rays
from data_prep.city.shading import Shader, develop
from data_prep.city.sun import start_second
from data_prep.city.world import World
from data_prep.city.write_nuscenes import TableWriter, make_folders, write_map
from data_prep.city.write_osm import write_osm
from data_prep.raw import osm

SIZE = "medium"
LOG, KEYFRAME = 1, 30  # where the pictures are taken: at a junction with signals, traffic and trees
VIEW_KEYFRAMES = 10  # of the scene that is seen from above
LARGEST = 400_000  # bytes of a picture
TILE = (400, 225)  # pixels of an image on a sheet
_ORDER = ("CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT")


@lru_cache(maxsize=1)
def _town() -> tuple[World, Log, Scene, Instruments]:
    world, logs = next(generate.plan(SIZE, 0))
    log = logs[LOG]
    return world, log, log.scenes[0], recording.instruments(world, log, SIZE, 0)


class _Camera:
    """Takes pictures at one keyframe, in any light."""

    def __init__(self, light: Light):
        world, log, scene, own = _town()
        self.own = dataclasses.replace(own, light=light)
        self.stage = recording.scene_stage(world, log, scene, self.own)
        surroundings = recording.scene_surroundings(world, log, scene)
        self.shader = Shader(self.own.light, 1 / own.rig.cameras[1].intrinsics[0, 0], surroundings)
        times = recording.timestamps(log, scene, own.rig, 0)[KEYFRAME]
        self.poses = recording.map_poses(world, log, times, recording.NUSCENES.rig)[1:]
        self.times = (times[1:] - log.start) / 1e6

    def photograph(self, channel: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        index, camera = self._find(channel)
        time = float(self.times[index])
        colour = recording.photograph(self.stage, self.shader, camera, camera.rays(), self.poses[index], time)
        return _shrink(develop(colour, 1.0, self.own.light.noise, np.random.default_rng(index)))

    def labels(self, channel: str) -> tuple[np.ndarray, np.ndarray]:
        """(H, W) classes and instances of the pixels; the sky's instance is -1."""
        index, camera = self._find(channel)
        rays = camera.rays()
        origins, directions = camera_rays(camera, self.poses[index], rays, self.stage.mesh.centre)
        seen = recording.camera_view(self.stage, camera, rays, self.poses[index], float(self.times[index]))
        hits = seen.cast(origins, directions)
        width, height = camera.size
        solid = hits.triangle >= 0
        semantic = np.where(solid, self.stage.mesh.semantic[hits.triangle], Label.SKY).reshape(height, width)
        instance = np.where(solid, self.stage.mesh.instance[hits.triangle], -1).reshape(height, width)
        return semantic, instance

    def _find(self, channel: str):
        cameras = self.own.rig.cameras
        return next((k, camera) for k, camera in enumerate(cameras) if camera.channel == channel)


def _shrink(image: np.ndarray, method: int = cv2.INTER_AREA) -> np.ndarray:
    return cv2.resize(image, TILE, interpolation=method)


def _sheet(rows: Sequence[Sequence[np.ndarray]], gap: int = 4) -> np.ndarray:
    """Images of one size side by side and below each other, on white."""
    height, width = rows[0][0].shape[:2]
    sheet = np.full((len(rows) * (height + gap) - gap, len(rows[0]) * (width + gap) - gap, 3), 255, np.uint8)
    for r, row in enumerate(rows):
        for c, image in enumerate(row):
            sheet[r * (height + gap) : r * (height + gap) + height, c * (width + gap) :][:, :width] = image
    return sheet


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    image = image.copy()
    cv2.rectangle(image, (0, 0), (12 + 9 * len(title), 20), (255, 255, 255), -1)
    cv2.putText(image, title, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.47, (20, 20, 20), 1, cv2.LINE_AA)
    return image


def draw_cameras() -> np.ndarray:
    """All six cameras of one keyframe."""
    camera = _Camera(_light("2018-06-20", 0))
    images = [camera.photograph(channel) for channel in _ORDER]
    return _sheet([images[:3], images[3:]])


def _light(date: str, order: int, **changes: float) -> Light:
    world = _town()[0]
    start = start_second(world.location, np.datetime64(date), order, np.random.default_rng(3))
    own = draw_light(world.location, date, start, np.random.default_rng(5))
    return dataclasses.replace(own, **{"wet": 0.0, "snow": 0.0, "clouds": 0.35, **changes})


def draw_times() -> np.ndarray:
    """One place by day, at dusk and at night, in rain, and in four seasons."""
    lights = {
        "day": _light("2018-06-20", 0),
        "dusk": _light("2018-06-20", 1),
        "night": _light("2018-06-20", 4),
        "night, rain": _light("2018-06-20", 4, wet=1.0),
        "spring": _light("2018-04-20", 0),
        "day, rain": _light("2018-07-20", 0, wet=1.0, clouds=0.9),
        "autumn": _light("2018-10-20", 0),
        "winter, snow": _light("2018-01-20", 0, snow=0.9),
    }
    images = [_titled(_Camera(light).photograph("CAM_FRONT"), title) for title, light in lights.items()]
    return _sheet([images[:4], images[4:]])


def draw_semantics() -> np.ndarray:
    """Two cameras: image, classes, instances; with the colours of the classes that are seen."""
    camera = _Camera(_light("2018-06-20", 0))
    rows, seen = [], set()
    for channel in ("CAM_FRONT", "CAM_BACK"):
        semantic, instance = camera.labels(channel)
        seen |= set(np.unique(semantic).tolist())
        rows.append(
            [
                camera.photograph(channel),
                _shrink(class_colours(semantic), cv2.INTER_NEAREST),
                _shrink(instance_colours(instance), cv2.INTER_NEAREST),
            ]
        )
    sheet = _sheet(rows)
    figure = Figure(figsize=(sheet.shape[1] / 100, (sheet.shape[0] + 58) / 100), dpi=100)
    axes = figure.add_axes((0, 58 / (sheet.shape[0] + 58), 1, sheet.shape[0] / (sheet.shape[0] + 58)))
    axes.imshow(sheet)
    axes.set_axis_off()
    handles = [
        Patch(color=np.array(COLOURS[Label(number)]) / 255, label=f"{number} {name_of(Label(number))}")
        for number in sorted(seen)
    ]
    figure.legend(handles=handles, loc="lower center", ncols=8, fontsize=8.5, frameon=False)
    return _pixels(figure)


def draw_view() -> np.ndarray:
    """The picture of `python -m data_prep view` on a scene."""
    world, log, scene, own = _town()
    before = VIEW_KEYFRAMES // 2
    scene = dataclasses.replace(scene, first=scene.first + KEYFRAME - before, keyframes=VIEW_KEYFRAMES)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_folders(root)
        boxes = recording.record_scene(root, log, scene, SIZE, 0)
        tables = TableWriter()
        write_map(root, world)
        tables.add_location(world.location, [log])
        tables.add_log(log, own.rig)
        tables.add_scene(world, log, scene, own.rig, own.light, boxes, 0)
        tables.write(root)
        write_osm(root / "town.osm", world)
        (root / generate.MARKER).write_text("{}")
        dataset = datasets.open_dataset("nuscenes", root, None)
        frames = view.scene_frames(dataset.frames, None)
        annotations = view.read_annotations(root / dataset.version, frames[before].token)
        extract = osm.read_osm(root / "town.osm")
        return _pixels(view.draw_view(dataset, frames, before, annotations, [extract], 50.0), 80)


_SURFACES = {Material.GRASS: "#b7d29a", Material.PAVING: "#e5ddd3", Material.GRAVEL: "#dbc7a2"}
_DISTRICTS = {"train": "#1a66d6", "val": "#e0962a", "test": "#d81b73"}


def draw_map() -> np.ndarray:
    """The town of size small from above, with its heights and the drives of its districts."""
    world, logs = next(generate.plan("small", 0))
    low, high = world.graph.nodes.min(0) - 110, world.graph.nodes.max(0) + 110
    span = high - low
    figure = Figure(figsize=(10, 10 * span[1] / span[0]), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_facecolor("#dfe8d6")
    x, y = np.linspace(low[0], high[0], 200), np.linspace(low[1], high[1], 200)
    heights = world.terrain.height(np.stack(np.meshgrid(x, y), -1))
    lines = axes.contour(x, y, heights, levels=np.arange(-40, 41, 1.0), colors="#8aa07a", linewidths=0.5)
    axes.clabel(lines, lines.levels[::3], fmt="%d m", fontsize=6)
    _fill(axes, world.river, "#9cc3de", 2)
    for block in world.blocks:
        _fill(axes, block.polygon, _SURFACES[block.surface], 2)
    _fill(axes, world.sidewalk, "#cfc9c1", 3)
    _fill(axes, world.road, "#6c7079", 3)
    _fill(axes, shapely.MultiPolygon([b.footprint for b in world.buildings]), "#b0614b", 4)
    trees = np.array([tree.xy for tree in world.furniture.trees])
    axes.scatter(*trees.T, s=1.2, color="#4f7d3a", lw=0, zorder=5)
    for district, colour in _DISTRICTS.items():
        own = [log for log in logs if log.district == district]
        for log in own:
            seconds = sum(scene.keyframes for scene in log.scenes) * KEYFRAME_SECONDS
            axes.plot(
                *log.trajectory.pose(np.arange(0, seconds, 0.5))[:, :2].T, color=colour, lw=1.3, zorder=6
            )
        top = np.concatenate([log.trajectory.xy for log in own])
        axes.text(
            top[:, 0].mean(),
            top[:, 1].max() + 45,
            district,
            color=colour,
            fontsize=13,
            weight="bold",
            ha="center",
        )
    axes.plot([low[0] + 30, low[0] + 230], [low[1] + 30] * 2, color="black", lw=2.5)
    axes.text(low[0] + 130, low[1] + 38, "200 m", ha="center", fontsize=9)
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xticks=[], yticks=[])
    return _pixels(figure)


def _fill(axes: Axes, geometry: shapely.Geometry, colour: str, zorder: int) -> None:
    rings = [
        Outline(shapely.get_coordinates(ring), closed=True)
        for polygon in polygons(shapely.orient_polygons(geometry))
        for ring in (polygon.exterior, *polygon.interiors)
    ]
    if rings:
        axes.add_patch(PathPatch(Outline.make_compound_path(*rings), fc=colour, ec="none", zorder=zorder))


def _pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


PICTURES: dict[str, Callable[[], np.ndarray]] = {
    "city-cameras.png": draw_cameras,
    "city-map.png": draw_map,
    "city-times.png": draw_times,
    "city-semantics.png": draw_semantics,
    "city-view.png": draw_view,
}


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.city.gallery", description="Draw the pictures of the city."
    )
    parser.add_argument("--out", type=Path, required=True, help="folder, e.g. docs/images")
    parser.add_argument("--only", nargs="+", choices=sorted(PICTURES), default=sorted(PICTURES))
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        image = Image.fromarray(PICTURES[name]())
        content = _png(image)
        if len(content) > LARGEST:  # 256 colours of the picture's own keep it small
            content = _png(image.quantize(256, dither=Image.Dither.NONE))
        (options.out / name).write_bytes(content)
        print(f"{options.out / name}: {image.width} x {image.height}, {len(content) / 1000:.0f} kB")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
