"""Pictures of SE(2) localization: error charts, drives coloured by error, and single frames drawn on the map.

Everything is drawn on `matplotlib.figure.Figure` objects, so no global backend or style is touched. Ego
pictures have forward up and left on the left; location pictures have north up.
"""

import dataclasses
import io
from collections.abc import Mapping, Sequence

import matplotlib.colors
import matplotlib.patheffects
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_apply

# Distinguishable with the common colour-vision deficiencies (Okabe and Ito).
PREDICTION, COARSE, NOTHING, TRUE = "#0072B2", "#56B4E9", "#E69F00", "#009E73"
POSTERIOR = "#CC79A7"
NAMES = {"prediction": "prediction", "coarse": "coarse stage alone", "do_nothing": "doing nothing"}
COLORS = {"prediction": PREDICTION, "coarse": COARSE, "do_nothing": NOTHING}

# Painted in this order, later over earlier.
MAP_COLORS = {
    "drivable": (0.87, 0.88, 0.90),
    "road": (0.60, 0.63, 0.68),
    "building": (0.86, 0.76, 0.63),
    "node": (0.75, 0.15, 0.20),
}
MAP_GROUND = (0.97, 0.97, 0.95)

# Where the cameras of a known rig are shown, (row, column): nuScenes' and Argoverse 1's.
SURROUND = {
    "CAM_FRONT_LEFT": (0, 0),
    "CAM_FRONT": (0, 1),
    "CAM_FRONT_RIGHT": (0, 2),
    "CAM_BACK_LEFT": (1, 0),
    "CAM_BACK": (1, 1),
    "CAM_BACK_RIGHT": (1, 2),
}
RING = {
    "ring_front_left": (0, 0),
    "ring_front_center": (0, 1),
    "ring_front_right": (0, 2),
    "ring_side_left": (1, 0),
    "ring_side_right": (1, 2),
    "ring_rear_left": (2, 0),
    "ring_rear_right": (2, 2),
}

STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a3",
    "axes.labelcolor": "#3a4350",
    "xtick.color": "#5b6675",
    "ytick.color": "#5b6675",
    "axes.grid": True,
    "grid.color": "#e6e9ee",
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True)
class Frame:
    """One query as drawn: grids and arrays without batch axis.

    `map_layers` {name in MAP_COLORS: (H, W) in 0..1} over the extent of `map_grid`; `poses` {prediction,
    true}: (3,) in the noisy ego frame, which is the frame of `map_grid`; `images` {camera name: (h, w, 3)
    uint8}; `bev` and `map` {class: (probability, label)}; `posterior`, where the model gives one: the
    probability of the ego's place and the grid it lies on, in the noisy ego frame.
    """

    title: str
    map_grid: Grid2D
    bev_grid: Grid2D
    map_layers: Mapping[str, np.ndarray]
    poses: Mapping[str, np.ndarray]
    images: Mapping[str, np.ndarray]
    bev: Mapping[str, tuple[np.ndarray, np.ndarray]]
    map: Mapping[str, tuple[np.ndarray, np.ndarray]]
    posterior: tuple[np.ndarray, Grid2D] | None = None


def ego_to_picture(xy: np.ndarray) -> np.ndarray:
    """(..., 2) ego points (x forward, y left) → (right, up) on a picture with forward up, metres."""
    return np.stack([-xy[..., 1], xy[..., 0]], axis=-1)


def ego_picture(cells: np.ndarray) -> np.ndarray:
    """(rows, columns, ...) cells of an ego grid → the same as a picture: forward up, left on the left."""
    return cells[::-1, ::-1]


def ego_extent(grid: Grid2D) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of `ego_picture` in the coordinates of `ego_to_picture`."""
    x_min, x_max, y_min, y_max = grid.extent
    return -y_max, -y_min, x_min, x_max


def north_picture(cells: np.ndarray) -> np.ndarray:
    """(rows, columns, ...) cells of a location raster (row east, column north) → a picture with north up."""
    return np.swapaxes(cells, 0, 1)[::-1]


def paint_map(layers: Mapping[str, np.ndarray]) -> np.ndarray:
    """{name in MAP_COLORS: (rows, columns) coverage in 0..1} → (rows, columns, 3) colours in 0..1."""
    shape = next(iter(layers.values())).shape
    picture = np.broadcast_to(np.array(MAP_GROUND), (*shape, 3)).copy()
    for name, color in MAP_COLORS.items():
        if name in layers:
            cover = np.clip(layers[name].astype(np.float64), 0, 1)[..., None]
            picture = (1 - cover) * picture + cover * np.array(color)
    return picture


def encode(figure: Figure, kind: str = "png", dpi: int = 110) -> bytes:
    """A figure as PNG (charts) or JPEG (photographs) bytes."""
    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    options = {"pil_kwargs": {"quality": 86, "optimize": True}} if kind == "jpeg" else {}
    figure.savefig(buffer, format=kind, dpi=dpi, facecolor="white", **options)
    return buffer.getvalue()


def histograms(errors: Mapping[str, Mapping[str, np.ndarray]], units: Mapping[str, str]) -> bytes:
    """{estimate: {error: (N,)}} → PNG: one histogram an error, doing nothing as outline, medians as lines."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 6.2), layout="constrained")
        for axes, (kind, unit) in zip(figure.subplots(2, 2).flat, units.items(), strict=True):
            ours, nothing = errors["prediction"][kind], errors["do_nothing"][kind]
            bins = np.linspace(0, max(np.percentile(ours, 99), nothing.max(), 1e-3), 41)
            # The last bin holds everything beyond, so that no query disappears from the picture.
            axes.hist(np.minimum(ours, bins[-1]), bins, color=PREDICTION, alpha=0.85, label="prediction")
            axes.hist(
                np.minimum(nothing, bins[-1]),
                bins,
                histtype="step",
                color=NOTHING,
                lw=1.8,
                label="doing nothing",
            )
            for values, color in ((ours, PREDICTION), (nothing, NOTHING)):
                axes.axvline(np.median(values), color=color, ls="--", lw=1.3)
            axes.set_title(
                f"{kind}, median {np.median(ours):.2f} {unit} (doing nothing {np.median(nothing):.2f})"
            )
            axes.set_xlabel(f"error, {unit}")
            axes.set_ylabel("queries")
        figure.axes[0].legend()
        return encode(figure)


def recall_curves(errors: Mapping[str, Mapping[str, np.ndarray]], thresholds: Sequence[float]) -> bytes:
    """{estimate: {error: (N,)}} → PNG: share of queries within a threshold, position and orientation."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 3.8), layout="constrained")
        for axes, (kind, unit) in zip(
            figure.subplots(1, 2), {"position": "m", "orientation": "deg"}.items(), strict=True
        ):
            shown = max(np.percentile(found[kind], 98) for found in errors.values())
            limit = max(shown, thresholds[-1])
            for name, found in errors.items():
                values = np.sort(found[kind])
                share = 100 * np.arange(1, len(values) + 1) / len(values)
                axes.step(
                    np.concatenate([[0], values, [max(limit, values[-1])]]),
                    np.concatenate([[0], share, [100]]),
                    where="post",
                    color=COLORS[name],
                    lw=2.2 if name == "prediction" else 1.5,
                    label=NAMES[name],
                )
            for threshold in thresholds:
                axes.axvline(threshold, color="#b6bec9", lw=0.8, ls=":")
            axes.set(
                xlim=(0, limit), ylim=(0, 100), xlabel=f"threshold, {unit}", ylabel="recall, %", title=kind
            )
        figure.axes[0].legend(loc="lower right")
        return encode(figure)


def before_after(errors: Mapping[str, Mapping[str, np.ndarray]]) -> bytes:
    """{estimate: {error: (N,)}} → PNG: each query's error without and with the prediction."""
    with rc_context(STYLE):
        figure = Figure(figsize=(10.5, 4.6), layout="constrained")
        for axes, (kind, unit) in zip(
            figure.subplots(1, 2), {"position": "m", "orientation": "deg"}.items(), strict=True
        ):
            before, after = errors["do_nothing"][kind], errors["prediction"][kind]
            limit = 1.03 * max(before.max(), np.percentile(after, 99), 1e-3)
            axes.scatter(
                before, np.minimum(after, limit), s=9, color=PREDICTION, alpha=0.45, lw=0, clip_on=False
            )
            axes.plot([0, limit], [0, limit], color=NOTHING, lw=1.4, label="no change")
            axes.plot([0, limit], [0, limit / 2], color="#8a94a3", lw=1.1, ls="--", label="half the error")
            better = 100 * np.mean(after < before)
            axes.set_title(f"{kind}: {better:.0f} % of the queries are better than before")
            axes.set(
                xlim=(0, limit),
                ylim=(0, limit),
                xlabel=f"before, {unit}",
                ylabel=f"after, {unit}",
                aspect="equal",
            )
        figure.axes[0].legend(loc="upper left")
        return encode(figure)


def drive_map(
    raster: np.ndarray,
    origin: np.ndarray,
    cell: float,
    layers: Sequence[str],
    map_poses: np.ndarray,
    errors: np.ndarray,
    limit: float,
    title: str,
) -> bytes:
    """PNG: a location's raster (rows, columns, layers) around (N, 3) map poses, coloured by (N,) errors.

    The colours end at a position error of `limit` metres.
    """
    window, extent = _window(raster.shape[:2], origin, cell, map_poses, margin=40.0)
    picture = paint_map({name: raster[..., i][window] for i, name in enumerate(layers)})
    width, height = extent[1] - extent[0], extent[3] - extent[2]
    scale = min(9.0 / width, 8.0 / height)
    with rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(
            figsize=(max(width * scale, 4.0) + 1.4, max(height * scale, 2.5) + 0.6), layout="constrained"
        )
        axes = figure.subplots()
        axes.imshow(north_picture(picture), extent=extent, interpolation="antialiased")
        heading = np.stack([np.cos(map_poses[:, 2]), np.sin(map_poses[:, 2])], axis=-1)
        shown = np.argsort(errors)  # the worst on top
        arrows = axes.quiver(
            *map_poses[shown, :2].T,
            *heading[shown].T,
            np.minimum(errors[shown], limit),
            cmap="plasma",
            clim=(0, limit),
            angles="xy",
            pivot="middle",
            scale=1 / 0.016,
            width=0.004,
            edgecolor="#1c2430",
            linewidth=0.4,
            headwidth=4.5,
        )
        figure.colorbar(
            arrows, ax=axes, shrink=0.75, pad=0.01, label="position error, m", extend="max", aspect=30
        )
        axes.set(title=title, xlim=extent[:2], ylim=extent[2:], xticks=[], yticks=[])
        _scale_bar(axes, _round_length(width / 5), extent)
        return encode(figure, dpi=120)


def frame_picture(frame: Frame) -> bytes:
    """JPEG: the map with true, noisy and predicted pose, the cameras beside, probabilities above labels."""
    places = _camera_places(frame.images)
    rows, columns = (1 + max(place[axis] for place in places.values()) for axis in (0, 1))
    image_height, image_width = next(iter(frame.images.values())).shape[:2]
    # Heights that fill the right side without gaps; a single camera does not fill it.
    cameras_height = rows * (_RIGHT / max(columns, 3) * image_height / image_width + 0.2)
    ratios = [_aspect(frame.bev_grid)] * len(frame.bev) + [_aspect(frame.map_grid)] * len(frame.map)
    segmentation_height = 2 * (_RIGHT / sum(ratios)) + 0.4
    height = cameras_height + segmentation_height
    with rc_context({**STYLE, "axes.grid": False, "axes.spines.top": True, "axes.spines.right": True}):
        figure = Figure(figsize=(_LEFT + _RIGHT, height + 0.4), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.01, hspace=0.01)
        outer = figure.add_gridspec(1, 2, width_ratios=(_LEFT, _RIGHT))
        left = GridSpecFromSubplotSpec(2, 1, outer[0], height_ratios=(1.45, 1.0))
        right = GridSpecFromSubplotSpec(
            2, 1, outer[1], height_ratios=(cameras_height, segmentation_height), hspace=0.02
        )
        painted = ego_picture(paint_map(frame.map_layers))

        whole = figure.add_subplot(left[0])
        _map_panel(whole, painted, frame, arrow=0.07 * _span(frame.map_grid))
        whole.set_title("map, the noisy pose looks up", fontsize=9, pad=3)
        _scale_bar(whole, 20.0, ego_extent(frame.map_grid))
        _legend(whole, frame)

        closer = figure.add_subplot(left[1])
        reach = _reach(frame.poses)
        _map_panel(closer, painted, frame, arrow=0.35 * reach)
        closer.set(xlim=(-1.7 * reach, 1.7 * reach), ylim=(-reach, reach))
        _scale_bar(closer, 5.0, (-1.7 * reach, 1.7 * reach, -reach, reach))

        cameras = GridSpecFromSubplotSpec(rows, max(columns, 3), right[0])
        for name, image in frame.images.items():
            axes = figure.add_subplot(cameras[places[name]])
            axes.imshow(image)
            title = name.removeprefix("CAM_").removeprefix("ring_").replace("_", " ").lower()
            axes.set_title(title, fontsize=8, pad=2)
            axes.axis("off")
        segmentation = GridSpecFromSubplotSpec(2, len(ratios), right[1], width_ratios=ratios)
        _segmentation(figure, segmentation, frame)
        figure.suptitle(frame.title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        return encode(figure, "jpeg", dpi=105)


_LEFT, _RIGHT = 4.9, 9.4  # inches: map, cameras with segmentation


def _reach(poses: Mapping[str, np.ndarray]) -> float:
    """Half the height of a view around the noisy pose that holds every pose, metres."""
    return 4.0 + max(float(np.abs(pose[:2]).max()) for pose in poses.values())


def _span(grid: Grid2D) -> float:
    return grid.extent[1] - grid.extent[0]


def _aspect(grid: Grid2D) -> float:
    rows, columns = grid.shape
    return columns / rows


def _camera_places(images: Mapping[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    """(row, column) of every camera: around the car for a known rig, else in rows of four."""
    for places in (SURROUND, RING):
        if len(images) > 1 and set(images) <= set(places):
            return {name: places[name] for name in images}
    return {name: divmod(i, 4) for i, name in enumerate(images)}


def _map_panel(axes: Axes, painted: np.ndarray, frame: Frame, arrow: float) -> None:
    axes.imshow(painted, extent=ego_extent(frame.map_grid), interpolation="bilinear")
    for pose, color in ((frame.poses["true"], TRUE), (frame.poses["prediction"], PREDICTION)):
        corners = se2_apply(pose[None], _outline(frame.bev_grid))
        axes.plot(*ego_to_picture(corners).T, color=color, lw=1.0, ls="--", alpha=0.9)
    _seen_edges(axes, frame)
    _posterior(axes, frame)
    # The noisy pose is drawn wider, to be seen under a prediction that changed little.
    for pose, color, width in (
        (np.zeros(3), NOTHING, 4.5),
        (frame.poses["true"], TRUE, 2.0),
        (frame.poses["prediction"], PREDICTION, 2.0),
    ):
        _arrow(axes, pose, color, arrow, width)
    left, right, bottom, top = ego_extent(frame.map_grid)
    axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], aspect="equal")


def _seen_edges(axes: Axes, frame: Frame) -> None:
    """The edge of the drivable area as the cameras saw it, put on the map by the predicted pose."""
    if "drivable" not in frame.bev:
        return
    probability = frame.bev["drivable"][0]
    if probability.min() >= 0.5 or probability.max() <= 0.5:
        return  # no edge to draw
    centers = frame.bev_grid.centers().astype(np.float64)
    placed = ego_to_picture(se2_apply(frame.poses["prediction"][None, None], centers))
    axes.contour(
        placed[..., 0], placed[..., 1], probability, levels=[0.5], colors=[PREDICTION], linewidths=1.1
    )


def _posterior(axes: Axes, frame: Frame) -> None:
    """Where the model believes the ego to be, the deeper the likelier."""
    if frame.posterior is None:
        return
    probability, grid = frame.posterior
    share = ego_picture(probability / max(float(probability.max()), 1e-12))
    color = np.broadcast_to(np.array(matplotlib.colors.to_rgb(POSTERIOR)), (*share.shape, 3))
    picture = np.concatenate([color, 0.75 * np.sqrt(share)[..., None]], axis=-1)
    axes.imshow(picture, extent=ego_extent(grid), interpolation="nearest", zorder=1.5)


def _outline(grid: Grid2D) -> np.ndarray:
    """(5, 2) closed rectangle around a grid, in its frame."""
    x_min, x_max, y_min, y_max = grid.extent
    return np.array([[x_min, y_min], [x_max, y_min], [x_max, y_max], [x_min, y_max], [x_min, y_min]])


def _arrow(axes: Axes, pose: np.ndarray, color: str, length: float, width: float) -> None:
    tail, tip = ego_to_picture(se2_apply(np.asarray(pose)[None], np.array([[0.0, 0.0], [length, 0.0]])))
    halo = [matplotlib.patheffects.withStroke(linewidth=width + 2.0, foreground="white")]
    style = {
        "arrowstyle": "-|>",
        "color": color,
        "lw": width,
        "shrinkA": 0,
        "shrinkB": 0,
        "path_effects": halo,
    }
    axes.annotate("", xy=tip, xytext=tail, arrowprops=style, annotation_clip=True)
    axes.plot(*tail, "o", color=color, ms=3.5 + width, mec="white", mew=1.0)


def _legend(axes: Axes, frame: Frame) -> None:
    entries = [
        Line2D([], [], color=color, marker="o", lw=2, mec="white", label=label)
        for color, label in ((TRUE, "true"), (NOTHING, "noisy"), (PREDICTION, "predicted"))
    ]
    entries.append(Line2D([], [], color="#5b6675", ls="--", lw=1, label="seen area"))
    if frame.posterior is not None:
        entries.append(Patch(color=POSTERIOR, label="posterior"))
    if "drivable" in frame.bev:
        entries.append(Line2D([], [], color=PREDICTION, lw=1.1, label="seen edge"))
    entries += [
        Patch(color=color, label=name) for name, color in MAP_COLORS.items() if name in frame.map_layers
    ]
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, handlelength=1.6)


def _segmentation(figure: Figure, grid: GridSpecFromSubplotSpec, frame: Frame) -> None:
    shown = [("cameras", *item, frame.bev_grid) for item in frame.bev.items()]
    shown += [("map", *item, frame.map_grid) for item in frame.map.items()]
    for column, (origin, name, (probability, label), cells) in enumerate(shown):
        for row, values in enumerate((probability, label)):
            axes = figure.add_subplot(grid[row, column])
            axes.imshow(ego_picture(values), cmap="magma", vmin=0, vmax=1, extent=ego_extent(cells))
            axes.set(xticks=[], yticks=[])
            if row == 0:
                axes.set_title(f"{origin}\n{name}", fontsize=8, pad=3)
            if column == 0:
                axes.set_ylabel(("probability", "label")[row], fontsize=8)


def _window(
    shape: tuple[int, int], origin: np.ndarray, cell: float, poses: np.ndarray, margin: float
) -> tuple[tuple[slice, slice], tuple[float, float, float, float]]:
    """Cells of a raster within `margin` of the poses, and their (west, east, south, north) in map metres."""
    low = np.floor((poses[:, :2].min(axis=0) - margin - origin) / cell).astype(int)
    high = np.ceil((poses[:, :2].max(axis=0) + margin - origin) / cell).astype(int)
    low, high = np.clip(low, 0, shape), np.clip(high, 0, shape)
    west, south = origin + low * cell
    east, north = origin + high * cell
    return (slice(low[0], high[0]), slice(low[1], high[1])), (west, east, south, north)


def _round_length(length: float) -> float:
    """The largest 1, 2 or 5 times a power of ten not above `length`."""
    power = 10.0 ** np.floor(np.log10(length))
    return float(max(step * power for step in (1, 2, 5) if step * power <= length))


def _scale_bar(axes: Axes, length: float, extent: Sequence[float]) -> None:
    left, right, bottom, top = extent
    x, y = left + 0.04 * (right - left), bottom + 0.04 * (top - bottom)
    halo = [matplotlib.patheffects.withStroke(linewidth=3.0, foreground="white")]
    axes.plot([x, x + length], [y, y], color="#1c2430", lw=2.5, solid_capstyle="butt", path_effects=halo)
    axes.annotate(
        f"{length:g} m",
        (x + length / 2, y),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color="#1c2430",
        path_effects=halo,
    )
