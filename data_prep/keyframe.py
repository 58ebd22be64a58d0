"""One keyframe on one page: cameras, LiDAR, map, labels and a noisy patch, to see that all agree.

    python -m data_prep keyframe --raw ROOT --osm FILE [FILE ...] [--sample TOKEN] --out FILE.png

Drawn from the raw files by the converter's own functions. On the images lie the edges of the drivable area,
the roads and buildings of OpenStreetMap, all on the ground that the vehicle stands on, and the points of the
LiDAR: where calibration, pose and maps are right, the area's edges run along kerbs, and the points' depth
follows what is seen.
"""

import argparse
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_prep import datasets, maploc, rasterize, tables
from data_prep.errors import InputError
from data_prep.raw import osm
from data_prep.raw.frames import Camera, Frame
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import rigid_apply, rigid_inverse, se2_apply, se2_compose, se2_inverse

# MapLocNet's: a patch of the map about the noisy pose, and the ground that cameras see about the true one.
PATCH = Grid2D((-64.0, 64.0, -64.0, 64.0), 0.5)
BEV = Grid2D((-64.0, 64.0, -32.0, 32.0), 0.5)
NOISE = np.array([30.0, 30.0, np.radians(30.0)])  # m, m, rad: largest offset

LABELS = ("drivable", "building", "node")
_NEAREST = 1.0  # m in front of a camera, from which lines are drawn
_FURTHEST = 60.0  # m
_OUTLINES = {"drivable": "#39ff6a", "road": "#ffd400", "building": "#ff4fd8"}
_CHANNEL_COLOURS = {
    "drivable": (0.80, 0.86, 0.80),
    "road": (0.25, 0.25, 0.30),
    "building": (0.85, 0.45, 0.25),
    "node": (0.10, 0.35, 0.85),
}


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep keyframe", description="Draw one keyframe with its map and labels."
    )
    parser.add_argument("--raw", type=Path, required=True, help="dataset root")
    parser.add_argument(
        "--osm", type=Path, required=True, nargs="+", help="OpenStreetMap extracts, or folders that hold them"
    )
    parser.add_argument(
        "--dataset", choices=sorted(datasets.OPENERS), default="nuscenes", help="default: nuscenes"
    )
    parser.add_argument("--version", help="default: the only one in the root")
    parser.add_argument("--sample", help="token of the keyframe; default: the first")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default 0)")
    parser.add_argument(
        "--align", choices=maploc.ALIGN_MODES, default="report", help="as in `maploc` (default: report)"
    )
    parser.add_argument("--out", type=Path, required=True, help="the .png to write")
    options = parser.parse_args(argv)
    if options.out.suffix != ".png":
        raise InputError(f"--out {options.out}: expected a name ending in .png.")
    dataset = datasets.open_dataset(options.dataset, options.raw, options.version)
    frame = _choose(dataset, options.sample)
    dataset.check_files([frame])
    extracts = [osm.read_osm(path) for path in maploc.extracts_in(options.osm)]
    scene = read_scene(dataset, frame, extracts, options.seed, options.align)
    lines = scene.text()
    print("\n".join(lines))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_page(scene, lines, options.out)
    print(options.out)


def _choose(dataset: datasets.Dataset, token: str | None) -> Frame:
    if token is None:
        return dataset.frames[0]
    for frame in dataset.frames:
        if frame.token == token:
            return frame
    raise InputError(
        f"--sample {token}: expected the token of one of the {len(dataset.frames)} keyframes of "
        f"{dataset.name} {dataset.version}, e.g. {dataset.frames[0].token}; found none such."
    )


@dataclasses.dataclass(frozen=True)
class Scene:
    """A keyframe and the map about it. `offset` (3,) is T of p = p'·T: noisy pose p' to true pose p."""

    dataset: datasets.Dataset
    frame: Frame
    source: maploc.MapSource
    raster: np.ndarray
    classes: np.ndarray
    offset: np.ndarray
    seed: int
    align: str

    @property
    def true_pose(self) -> np.ndarray:
        """(3,) x, y, yaw in the map frame."""
        return self.frame.map_pose_ego

    @property
    def noisy_pose(self) -> np.ndarray:
        """(3,) x, y, yaw in the map frame."""
        return se2_compose(self.true_pose, se2_inverse(self.offset))

    def patch(self, grid: Grid2D, pose: np.ndarray, channels: Sequence[str]) -> np.ndarray:
        """(*grid.shape, len(channels)) uint8 of the raster about a pose; row i is ahead, column j left."""
        picked = self.raster[..., [maploc.MAP_CHANNELS.index(name) for name in channels]]
        return sample_nearest(picked, self.source.grid, grid, pose)

    def text(self) -> list[str]:
        """What is on the page, in words and numbers."""

        def pose(values: np.ndarray) -> str:
            return f"x {values[0]:.2f} m, y {values[1]:.2f} m, yaw {np.degrees(values[2]):+.2f}°"

        attribution = "built-in city" if self.dataset.built_in_city else maploc.OSM_ATTRIBUTION
        return [
            f"{self.dataset.name} {self.dataset.version}, {self.frame.scene}, sample {self.frame.token}, "
            f"{self.frame.location}",
            f"true pose: {pose(self.true_pose)}",
            f"noisy pose (seed {self.seed}): {pose(self.noisy_pose)}",
            f"offset to be found, in the noisy frame: {pose(self.offset)}",
            f"{self.source.fit.statement()}; {'applied' if self.align == 'apply' else 'not applied'}",
            f"map: {attribution}",
        ]


def read_scene(
    dataset: datasets.Dataset, frame: Frame, extracts: Sequence[osm.OsmData], seed: int, align: str
) -> Scene:
    """Gather and draw what lies about a frame; the noise is drawn from `seed`."""
    source = maploc.map_source(dataset.place(frame.location), frame.map_pose_ego[None, :2], extracts, align)
    offset = np.random.default_rng(seed).uniform(-1, 1, 3) * NOISE
    return Scene(
        dataset, frame, source, maploc.draw_raster(source), maploc.draw_classes(source), offset, seed, align
    )


def sample_nearest(raster: np.ndarray, raster_grid: Grid2D, grid: Grid2D, pose: np.ndarray) -> np.ndarray:
    """(rows, columns, C) raster on its grid → (*grid.shape, C) under the centres of `grid` at a pose."""
    map_xy = se2_apply(pose, grid.centers().astype(np.float64))
    row, column = np.moveaxis(
        np.floor((map_xy - np.array(raster_grid.lower)) / raster_grid.cell).astype(np.int64), -1, 0
    )
    inside = (row >= 0) & (row < raster.shape[0]) & (column >= 0) & (column < raster.shape[1])
    values = raster[np.where(inside, row, 0), np.where(inside, column, 0)]
    return values * inside[..., None].astype(raster.dtype)


def outlines(scene: Scene) -> Iterator[tuple[str, np.ndarray]]:
    """Lines of the map about the vehicle: name and (N, 2) points in the level ego frame, closely spaced.

    Edges of the drivable area, roads and outlines of buildings.
    """
    # Fine cells: an edge is to be seen against a kerb.
    grid = Grid2D((-_FURTHEST, _FURTHEST, -_FURTHEST, _FURTHEST), 0.1)
    lower = se2_apply(
        scene.true_pose, np.array([[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5]]) * _FURTHEST
    )
    about = rasterize.drive_grid(lower, 0.0, 0.1)
    area = sample_nearest(scene.source.place.drivable.draw(about)[..., None], about, grid, scene.true_pose)
    edges, _ = cv2.findContours(np.ascontiguousarray(area[..., 0]), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    # OpenCV's points are (column, row) of cells on the inner side of the edge.
    for edge in edges:
        xy = (edge[:, 0, ::-1] + 0.5) * grid.cell + np.array(grid.lower)
        for piece in _split(
            np.concatenate([xy, xy[:1]]), np.abs(np.concatenate([xy, xy[:1]])).max(axis=1) < _FURTHEST - 0.2
        ):
            yield "drivable", piece[::3]
    inverse = se2_inverse(scene.true_pose)
    for name, lines in (
        ("road", scene.source.ways["road"]),
        ("building", [ring for rings in scene.source.areas["building"] for ring in rings]),
    ):
        for line in lines:
            xy = se2_apply(inverse, _densify(line, 0.3))
            for piece in _split(xy, np.abs(xy).max(axis=1) < _FURTHEST):
                yield name, piece


def _split(points: np.ndarray, kept: np.ndarray) -> Iterator[np.ndarray]:
    """The runs (N >= 2, D) of consecutive kept points."""
    for run in np.split(np.arange(len(points)), np.flatnonzero(np.diff(kept.astype(int))) + 1):
        if len(run) >= 2 and kept[run[0]]:
            yield points[run]


def _densify(line: np.ndarray, spacing: float) -> np.ndarray:
    lengths = np.hypot(*np.diff(line, axis=0).T)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    along = np.linspace(0, ends[-1], max(2, int(np.ceil(ends[-1] / spacing)) + 1))
    return np.stack([np.interp(along, ends, line[:, axis]) for axis in (0, 1)], axis=-1)


def on_the_ground(frame: Frame, xy: np.ndarray) -> np.ndarray:
    """(N, 2) in the level ego frame → (N, 3) on the plane that the vehicle's wheels stand on."""
    cos, sin = np.cos(frame.map_pose_ego[2]), np.sin(frame.map_pose_ego[2])
    normal = frame.map_T_ego[:3, 2]
    nx, ny = cos * normal[0] + sin * normal[1], -sin * normal[0] + cos * normal[1]
    return np.column_stack([xy, -(xy @ [nx, ny]) / normal[2]])


def project(
    camera_T_points: np.ndarray, intrinsics: np.ndarray, xyz: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(N, 3) points → pixels (N, 2) and depths (N,) in metres; pixels of points behind are meaningless."""
    points = rigid_apply(camera_T_points, xyz)
    depth = points[:, 2]
    pixels = points @ intrinsics.T
    return pixels[:, :2] / np.where(depth > 0, depth, np.inf)[:, None], depth


def draw_page(scene: Scene, lines: Sequence[str], out: Path) -> None:
    """Write the page as PNG."""
    cameras = scene.frame.cameras
    columns = 3 if len(cameras) <= 6 else 4
    rows = -(-len(cameras) // columns)
    heights = (1.4, 5.6, 14.5 * rows / columns)
    figure = Figure(figsize=(24, sum(heights)), layout="constrained")
    head, plans, bottom = figure.subfigures(3, 1, height_ratios=heights)
    head.text(0.01, 0.95, "\n".join(lines), fontsize=12, va="top")
    _draw_plans(plans, scene)
    panels = bottom.subplots(rows, columns, squeeze=False).ravel()
    drawn = list(outlines(scene))
    points = scene.dataset.read_sweep(scene.frame.lidar.path)[:, :3].astype(np.float64)
    for panel, camera in zip(panels, cameras, strict=False):
        _draw_camera(panel, scene, camera, drawn, points)
    for panel in panels[len(cameras) :]:
        panel.axis("off")
    bottom.suptitle(
        "edges of the drivable area (green), OSM roads (yellow) and buildings (pink) on the ground plane; "
        "LiDAR by distance, red near to blue far",
        fontsize=12,
    )
    page = io.BytesIO()
    figure.savefig(page, format="png", dpi=100)
    tables.write_whole(out, page.getvalue())


def _draw_plans(figure: matplotlib.figure.SubFigure, scene: Scene) -> None:
    panels = figure.subplots(1, 5, width_ratios=(1, 1, 0.55, 1, 1.2))
    inputs = ("road", "building", "node")
    plans = (
        ("OSM patch at the true pose", PATCH, scene.true_pose, inputs),
        ("OSM patch at the noisy pose, vehicle where it is", PATCH, scene.noisy_pose, inputs),
        ("BEV labels, true frame", BEV, scene.true_pose, LABELS),
        ("map labels, noisy frame", PATCH, scene.noisy_pose, LABELS),
    )
    for panel, (title, grid, pose, channels) in zip(panels, plans, strict=False):
        _show(panel, _coloured(scene.patch(grid, pose, channels), channels), grid, title)
    _draw_vehicle(panels[0], np.zeros(3))
    _draw_vehicle(panels[1], scene.offset)
    _draw_vehicle(panels[2], np.zeros(3))
    _draw_vehicle(panels[3], scene.offset)
    planes = sample_nearest(scene.classes, scene.source.grid, PATCH, scene.noisy_pose)
    _draw_classes(panels[4], planes)


def _coloured(channels: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """(H, W, C) of 0 and 1 → (H, W, 3) RGB, later channels over earlier ones."""
    image = np.ones((*channels.shape[:2], 3))
    for index, name in enumerate(names):
        image[channels[..., index] > 0] = _CHANNEL_COLOURS[name]
    return image


def _show(panel: Axes, image: np.ndarray, grid: Grid2D, title: str) -> None:
    """Rows ahead are drawn up, columns to the left are drawn left."""
    x_min, x_max, y_min, y_max = grid.extent
    panel.imshow(image[::-1, ::-1], extent=(y_max, y_min, x_min, x_max), interpolation="nearest")
    panel.set(title=title, xlabel="y, left (m)", ylabel="x, ahead (m)")


def _draw_vehicle(panel: Axes, pose: np.ndarray) -> None:
    tip = se2_apply(pose, np.array([10.0, 0.0]))
    panel.annotate(
        "",
        xy=(tip[1], tip[0]),
        xytext=(pose[1], pose[0]),
        arrowprops={"color": "red", "width": 2, "headwidth": 8},
    )


def _draw_classes(panel: Axes, planes: np.ndarray) -> None:
    """Class indices: areas pale, ways and nodes over them, each with its name where it occurs."""
    image = np.ones((*planes.shape[:2], 3))
    handles = []
    for plane, names, colours, pale in (
        (0, maploc.OSM_CLASSES["areas"], matplotlib.colormaps["Set2"].colors, 0.5),
        (1, maploc.OSM_CLASSES["ways"], matplotlib.colormaps["tab10"].colors, 0.0),
        (2, maploc.OSM_CLASSES["nodes"], matplotlib.colormaps["tab20b"].colors, 0.0),
    ):
        for index in np.unique(planes[..., plane])[1:] if planes[..., plane].any() else ():
            colour = np.array(colours[(index - 1) % len(colours)]) * (1 - pale) + pale
            image[planes[..., plane] == index] = colour
            handles.append(matplotlib.patches.Patch(color=colour, label=names[index - 1]))
    _show(panel, image, PATCH, "OSM classes, noisy frame")
    if handles:
        panel.legend(handles=handles, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_camera(
    panel: Axes,
    scene: Scene,
    camera: Camera,
    drawn: Sequence[tuple[str, np.ndarray]],
    lidar_points: np.ndarray,
) -> None:
    image = cv2.imread(str(camera.path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise InputError(f"{camera.path}: expected a JPEG image, found damage. Unpack it again.")
    panel.imshow(image)
    camera_T_level = rigid_inverse(maploc.camera_in_level_frame(scene.frame, camera))
    lidar = scene.frame.lidar
    camera_T_lidar = (
        rigid_inverse(camera.map_T_ego @ camera.ego_T_camera) @ lidar.map_T_ego @ lidar.ego_T_lidar
    )
    pixels, depth = project(camera_T_lidar, camera.intrinsics, lidar_points)
    seen = (depth > _NEAREST) & _in_image(pixels, camera)
    panel.scatter(*pixels[seen].T, c=depth[seen], s=3.0, cmap="turbo_r", vmin=0, vmax=_FURTHEST, linewidths=0)
    for name, line in drawn:
        pixels, depth = project(camera_T_level, camera.intrinsics, on_the_ground(scene.frame, line))
        for piece in _split(pixels, (depth > _NEAREST) & _in_image(pixels, camera, beside=0.5)):
            panel.plot(*piece.T, color=_OUTLINES[name], linewidth=1.4)
    panel.set(title=camera.channel, xlim=(0, camera.width), ylim=(camera.height, 0))
    panel.axis("off")


def _in_image(pixels: np.ndarray, camera: Camera, beside: float = 0.0) -> np.ndarray:
    """Whether pixels (N, 2) are in the image, or at most that share of its size beside it."""
    size = np.array([camera.width, camera.height])
    return ((pixels >= -beside * size) & (pixels < (1 + beside) * size)).all(axis=1)
