"""A scene seen from above, with all sensors drawn in.

    python -m data_prep view --raw ROOT [--osm FILE ...] [--scene NAME] [--keyframe N] --out FILE.png

Drawn from the raw files: the drivable area, OpenStreetMap's buildings and roads where extracts are given, the
path of the scene, the vehicle, what each camera sees of the ground with its image beside, the LiDAR's points
by height, and the annotated boxes. The vehicle looks up the page; the arrow says where north is.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch, Polygon
from matplotlib.path import Path as Outline
from matplotlib.transforms import Affine2D

from data_prep import datasets, geodesy
from data_prep.errors import InputError
from data_prep.raw import nuscenes, osm
from data_prep.raw.frames import Camera, Frame
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import quaternion_to_matrix

EGO_OUTLINE = np.array([[3.5, 0.0], [2.9, 0.95], [-1.0, 0.95], [-1.0, -0.95], [2.9, -0.95]])  # m, ego frame
_COLOURS = {  # distinguishable with the common colour-vision deficiencies (Okabe and Ito)
    "vehicle.car": "#0072B2",
    "vehicle.truck": "#56B4E9",
    "vehicle.bus": "#CC79A7",
    "human": "#D55E00",
    "other": "#7a5c00",
}
_CAMERA_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#D6C400", "#0072B2", "#D55E00", "#CC79A7")
_HEIGHTS = (-1.0, 6.0)  # m above the vehicle's ground, the ends of the points' colours


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One box of a keyframe, in the map frame."""

    category: str
    attributes: tuple[str, ...]
    size: tuple[float, float, float]  # width, length, height, as nuScenes has it
    map_T_box: np.ndarray  # (4, 4)


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep view", description="Draw a scene from above with all sensors."
    )
    parser.add_argument("--raw", type=Path, required=True, help="dataset root")
    parser.add_argument("--osm", type=Path, nargs="*", default=[], help="OpenStreetMap extracts")
    parser.add_argument(
        "--dataset", choices=sorted(datasets.OPENERS), default="nuscenes", help="default: nuscenes"
    )
    parser.add_argument("--version", help="default: the only one in the root")
    parser.add_argument("--scene", help="default: the first")
    parser.add_argument("--keyframe", type=int, default=0, help="number within the scene, from 0")
    parser.add_argument("--radius", type=float, default=55.0, help="metres to each side; default 55")
    parser.add_argument("--out", type=Path, required=True, help="a .png file")
    options = parser.parse_args(argv)
    if options.radius <= 0:
        parser.error(f"--radius must be positive, it is {options.radius}")
    dataset = datasets.open_dataset(options.dataset, options.raw, options.version)
    frames = scene_frames(dataset.frames, options.scene)
    if not 0 <= options.keyframe < len(frames):
        raise InputError(
            f"--keyframe: expected a number from 0 to {len(frames) - 1} in {frames[0].scene}, found "
            f"{options.keyframe}."
        )
    frame = frames[options.keyframe]
    dataset.check_files([frame])
    boxes = []
    if dataset.name == "nuscenes":
        boxes = read_annotations(options.raw / dataset.version, frame.token)
    extracts = [osm.read_osm(path) for path in options.osm]
    figure = draw_view(dataset, frames, options.keyframe, boxes, extracts, options.radius)
    save_whole(figure, options.out)
    print(f"{options.out}: {frame.scene}, keyframe {options.keyframe} of {len(frames)}, {len(boxes)} boxes")


def scene_frames(frames: Sequence[Frame], scene: str | None) -> list[Frame]:
    """The frames of one scene, by default the first, in the order of time; InputError if there is none."""
    names = sorted({frame.scene for frame in frames})
    if scene is not None and scene not in names:
        shown = ", ".join(names[:5]) + (f" … {names[-1]}" if len(names) > 5 else "")
        raise InputError(f"--scene: expected one of the {len(names)} scenes {shown}; found {scene!r}.")
    own = [frame for frame in frames if frame.scene == (scene or names[0])]
    return sorted(own, key=lambda frame: frame.timestamp)


def read_annotations(tables: Path, sample: str) -> list[Annotation]:
    """The boxes of one keyframe from the tables of a version; none where the tables are not there."""
    names = ("category", "attribute", "instance", "sample_annotation")
    paths = {name: tables / f"{name}.json" for name in names}
    if not all(path.is_file() for path in paths.values()):
        return []
    try:
        wanted = [r for r in nuscenes.read_records(paths["sample_annotation"]) if r["sample_token"] == sample]
        instances = {r["instance_token"] for r in wanted}
        category_of = {
            r["token"]: r["category_token"]
            for r in nuscenes.read_records(paths["instance"])
            if r["token"] in instances
        }
        category, attribute = (
            {r["token"]: str(r["name"]) for r in nuscenes.read_records(paths[name])} for name in names[:2]
        )
        return [_annotation(record, category_of, category, attribute) for record in wanted]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{tables}: expected annotations with category, size, rotation and translation, whose tokens are "
            f"in the other tables; found {error!r}. Unpack the version's metadata archive again."
        ) from None


def _annotation(
    record: dict, category_of: dict[str, str], category: dict[str, str], attribute: dict[str, str]
) -> Annotation:
    pose = np.eye(4)
    quaternion = np.array(record["rotation"], np.float64)
    size = tuple(float(value) for value in record["size"])
    if quaternion.shape != (4,) or len(size) != 3 or not np.linalg.norm(quaternion) > 0:
        raise ValueError(f"record {record['token']!r}: rotation {record['rotation']}, size {record['size']}")
    pose[:3, :3] = quaternion_to_matrix(quaternion / np.linalg.norm(quaternion))
    pose[:3, 3] = record["translation"]
    if not (np.isfinite(pose).all() and np.isfinite(size).all()):
        raise ValueError(f"record {record['token']!r} holds numbers that are not finite")
    names = tuple(attribute[token] for token in record["attribute_tokens"])
    return Annotation(category[category_of[record["instance_token"]]], names, size, pose)


def draw_view(
    dataset: datasets.Dataset,
    frames: Sequence[Frame],
    keyframe: int,
    boxes: Sequence[Annotation],
    extracts: Sequence[osm.OsmData],
    radius: float,
) -> Figure:
    """The page: the scene from above in the middle, the camera images above and below it."""
    frame = frames[keyframe]
    figure = Figure(figsize=(11.5, 14.0), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
    rows = _rows_of_cameras(frame.cameras)
    grid = figure.add_gridspec(3, 1, height_ratios=[1.0, 4.4, 1.0])
    for row, cameras in zip((0, 2), rows, strict=True):
        cells = grid[row].subgridspec(1, max(len(cameras), 1))
        for column, camera in enumerate(cameras):
            _draw_image(figure.add_subplot(cells[column]), camera, _camera_colour(frame, camera))
    axes = figure.add_subplot(grid[1])
    see = page_of(frame)
    _draw_map(axes, dataset, frame, extracts, see, radius)
    for camera in frame.cameras:
        _draw_frustum(axes, frame, camera, radius)
    _draw_points(axes, dataset, frame, see)
    _draw_boxes(axes, boxes, see, radius)
    path = see(np.array([other.map_T_ego[:2, 3] for other in frames]))
    axes.plot(*path.T, color="black", lw=1.2, marker=".", ms=3, zorder=6)
    outline = EGO_OUTLINE @ frame.map_T_ego[:2, :2].T + frame.map_T_ego[:2, 3]
    axes.add_patch(Polygon(see(outline), fc="black", ec="white", lw=0.8, zorder=9))
    _finish(axes, frame, boxes, radius)
    source = "the built-in city" if dataset.built_in_city else dataset.name
    axes.set_title(
        f"{source}, {frame.location}, {frame.scene}, keyframe {keyframe} of {len(frames)}", fontsize=11
    )
    return figure


def page_of(frame: Frame) -> Callable[[np.ndarray], np.ndarray]:
    """A function (N, 2) map frame → (N, 2) page: the vehicle at the origin, looking up."""
    forward = frame.map_T_ego[:2, 0] / np.hypot(*frame.map_T_ego[:2, 0])
    to_page = np.array([[forward[1], -forward[0]], [forward[0], forward[1]]])
    return lambda xy: (np.asarray(xy)[..., :2] - frame.map_T_ego[:2, 3]) @ to_page.T


def _yaw(camera: Camera) -> float:
    axis = camera.ego_T_camera[:3, 2]
    return float(np.degrees(np.arctan2(axis[1], axis[0])))


def _rows_of_cameras(cameras: Sequence[Camera]) -> tuple[list[Camera], list[Camera]]:
    """Those that look ahead, and the others; both from left to right as one sees them on the page."""
    ahead = sorted((c for c in cameras if abs(_yaw(c)) < 75), key=_yaw, reverse=True)
    return ahead, sorted((c for c in cameras if abs(_yaw(c)) >= 75), key=lambda c: _yaw(c) % 360)


def _camera_colour(frame: Frame, camera: Camera) -> str:
    channels = [other.channel for other in frame.cameras]
    return _CAMERA_COLOURS[channels.index(camera.channel) % len(_CAMERA_COLOURS)]


def _draw_image(axes: Axes, camera: Camera, colour: str) -> None:
    image = cv2.imread(str(camera.path))
    if image is None:
        raise InputError(f"{camera.path}: expected an image, found none that decodes. Unpack it again.")
    width = 480
    if image.shape[1] > width:
        image = cv2.resize(image, (width, round(image.shape[0] * width / image.shape[1])), cv2.INTER_AREA)
    axes.imshow(image[..., ::-1])
    axes.set(xticks=[], yticks=[])
    axes.set_title(camera.channel, fontsize=9, pad=3)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=3)


def _draw_map(
    axes: Axes,
    dataset: datasets.Dataset,
    frame: Frame,
    extracts: Sequence[osm.OsmData],
    see: Callable[[np.ndarray], np.ndarray],
    radius: float,
) -> None:
    x, y = frame.map_T_ego[:2, 3]
    reach = 1.5 * radius
    extent = tuple(float(v) for v in (x - reach, x + reach, y - reach, y + reach))
    grid = Grid2D(extent, 0.25)
    drivable = dataset.place(frame.location).drivable.draw(grid)
    picture = np.where(drivable.T[..., None] > 0, np.uint8([214, 217, 222]), np.uint8([247, 246, 242]))
    origin, east, north = see(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    turn = Affine2D(_matrix(origin, east, north))
    axes.imshow(picture, origin="lower", extent=extent, transform=turn + axes.transData, zorder=0)
    for extract in extracts:
        for way in extract.roads:
            line = see(geodesy.wgs84_to_map(way, frame.location))
            axes.plot(*line.T, color="white", lw=1.0, zorder=1)
        for rings in extract.buildings:
            outlines = [see(geodesy.wgs84_to_map(ring, frame.location)) for ring in rings]
            if min(np.abs(ring).max(1).min() for ring in outlines) > 1.5 * radius:
                continue
            whole = Outline.make_compound_path(*[Outline(ring, closed=True) for ring in outlines])
            axes.add_patch(PathPatch(whole, fc="#dcc3a1", ec="#b59a73", lw=0.6, zorder=2))


def _matrix(origin: np.ndarray, east: np.ndarray, north: np.ndarray) -> np.ndarray:
    return np.array(
        [
            [east[0] - origin[0], north[0] - origin[0], origin[0]],
            [east[1] - origin[1], north[1] - origin[1], origin[1]],
            [0.0, 0.0, 1.0],
        ]
    )


def _draw_frustum(axes: Axes, frame: Frame, camera: Camera, radius: float) -> None:
    """The wedge of ground between the left and the right edge of the image."""
    columns = np.array([[0.0, camera.width], [camera.height / 2] * 2, [1.0, 1.0]])
    rays = camera.map_T_ego[:3, :3] @ camera.ego_T_camera[:3, :3] @ np.linalg.inv(camera.intrinsics) @ columns
    see = page_of(frame)
    place = (camera.map_T_ego @ camera.ego_T_camera)[:2, 3]
    ends = place + (rays[:2] / np.hypot(*rays[:2])).T * 0.55 * radius
    wedge = see(np.array([place, ends[0], ends[1]]))
    colour = _camera_colour(frame, camera)
    axes.add_patch(Polygon(wedge, fc=colour, ec="none", alpha=0.13, zorder=3))
    axes.plot(*wedge[[1, 0, 2]].T, color=colour, lw=1.4, zorder=7)


def _draw_points(
    axes: Axes, dataset: datasets.Dataset, frame: Frame, see: Callable[[np.ndarray], np.ndarray]
) -> None:
    points = np.asarray(dataset.read_sweep(frame.lidar.path), np.float64)[:, :3]
    pose = frame.lidar.map_T_ego @ frame.lidar.ego_T_lidar
    points = points[np.isfinite(points).all(1)] @ pose[:3, :3].T + pose[:3, 3]
    height = points[:, 2] - frame.map_T_ego[2, 3]
    order = np.argsort(height)
    drawn = axes.scatter(
        *see(points[order]).T, c=height[order], s=1.2, lw=0, cmap="viridis", clim=_HEIGHTS, zorder=5
    )
    bar = axes.figure.colorbar(drawn, ax=axes, shrink=0.4, pad=0.01, aspect=30)
    bar.set_label("LiDAR points: height above the vehicle's ground (m)", fontsize=9)


def _box_colour(category: str) -> str:
    return next((c for name, c in _COLOURS.items() if category.startswith(name)), _COLOURS["other"])


def _draw_boxes(
    axes: Axes, boxes: Sequence[Annotation], see: Callable[[np.ndarray], np.ndarray], radius: float
) -> None:
    for box in boxes:
        width, length, _ = box.size
        corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1], [1, 0], [1.6, 0]]) * [length / 2, width / 2]
        corners = see(corners @ box.map_T_box[:2, :2].T + box.map_T_box[:2, 3])
        if np.abs(corners).max() > radius:
            continue
        colour = _box_colour(box.category)
        parked = any(name.endswith(("parked", "standing", "stopped")) for name in box.attributes)
        axes.add_patch(
            Polygon(corners[:4], fc=(*_rgb(colour), 0.12 if parked else 0.5), ec=colour, lw=1.3, zorder=8)
        )
        if not parked:
            axes.plot(*corners[4:].T, color=colour, lw=1.6, zorder=8)


def _rgb(colour: str) -> tuple[float, float, float]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def _finish(axes: Axes, frame: Frame, boxes: Sequence[Annotation], radius: float) -> None:
    """Limits, north arrow, scale bar, legend."""
    axes.set(xlim=(-radius, radius), ylim=(-radius, radius), aspect="equal", xticks=[], yticks=[])
    see = page_of(frame)
    north = see(frame.map_T_ego[:2, 3] + np.array([0.0, 1.0]))
    foot = np.array([0.87, 0.87]) * radius
    half = 0.07 * radius * north
    axes.annotate(
        "", foot + half, foot - half, arrowprops={"arrowstyle": "-|>", "lw": 2, "color": "black"}, zorder=10
    )
    axes.text(*(foot + 1.55 * half), "N", ha="center", va="center", fontsize=11, weight="bold", zorder=10)
    length = next(metres for metres in (50, 20, 10, 5, 2, 1) if metres < 0.5 * radius or metres == 1)
    start = np.array([-0.95, -0.95]) * radius
    axes.plot([start[0], start[0] + length], [start[1]] * 2, color="black", lw=3, zorder=10)
    axes.text(
        start[0] + length / 2, start[1] + 0.012 * radius, f"{length} m", ha="center", va="bottom", zorder=10
    )
    found = dict.fromkeys(_box_key(box.category) for box in boxes)
    handles = [Line2D([], [], color=_COLOURS[key], lw=5, alpha=0.6, label=key) for key in found]
    handles += [
        Line2D([], [], color="black", lw=1.2, marker=".", label="path of the scene"),
        Line2D([], [], color="#d6d9de", lw=8, label="drivable area"),
    ]
    axes.legend(handles=handles, loc="upper left", fontsize=8, framealpha=0.9).set_zorder(11)


def _box_key(category: str) -> str:
    return next((name for name in _COLOURS if category.startswith(name)), "other")


def save_whole(figure: Figure, out: Path) -> None:
    """Write a PNG, renamed into place when whole."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    done, content = cv2.imencode(".png", pixels[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 9])
    if not done:
        raise OSError(f"{out}: the picture could not be encoded")
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.tobytes())
        Path(name).chmod(0o644)
        Path(name).rename(out)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
