"""Sections of the pose report: verdict, tables, charts, drives on the map, and single frames."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np

from placerec_jax.data.map_patch import LocationRaster
from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.data.records import as_text
from placerec_jax.evaluation import pose_pictures
from placerec_jax.evaluation.pose import ERRORS, estimates, pose_errors, verdict
from placerec_jax.evaluation.report import Block, Paragraph, Picture, Row, Section, Table, Verdict, csv_file
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.rigid import se2_compose, se2_inverse

PUBLISHED_THRESHOLDS = [1.0, 2.0, 5.0, 10.0]  # of the recalls in the tables of this field, m and degrees
DRAWN_CELL = 0.25  # metres; of the map under a frame's poses
ROUGH_INTERVAL = 10  # a bootstrap over fewer drives says little
ESTIMATE_NAMES = {
    "prediction": "this model",
    "coarse": "its coarse stage alone",
    "do_nothing": "doing nothing",
}
ROW_KINDS = {"prediction": "ours", "coarse": "", "do_nothing": "baseline"}


def error_table(scores: Mapping[str, Any]) -> Table:
    """Median with interval, mean and 90th percentile of every kind of error."""
    rows = []
    for name, kinds in scores["estimates"].items():
        cells = [ESTIMATE_NAMES[name]]
        for figures in kinds.values():
            low, high = figures["median_interval_95"]
            cells += [f"{figures['median']:.2f} [{low:.2f}, {high:.2f}]", f"{figures['mean']:.2f}"]
        rows.append(Row(cells, ROW_KINDS[name]))
    interval = scores["interval"]
    few = " So few make them rough." if interval["units"] < ROUGH_INTERVAL else ""
    return Table(
        caption=f"Errors over {scores['queries']} queries",
        header=["", *["median [95 %]", "mean"] * len(ERRORS)],
        rows=rows,
        groups=[("", 1), *((f"{kind}, {unit}", 2) for kind, unit in ERRORS.items())],
        note=(
            "Longitudinal and lateral errors are along and across the true heading. Intervals: "
            f"{interval['method']}, {interval['resamples']} resamples of {interval['units']} "
            f"{interval['unit']}s, seed {scores['seed']}.{few}"
        ),
    )


def recall_tables(scores: Mapping[str, Any], method: ModuleType) -> list[Table]:
    """Recalls, ours and the paper's: position with orientation, longitudinal with lateral."""
    return [
        _recall_table(scores, method, ("position", "orientation")),
        _recall_table(scores, method, ("longitudinal", "lateral")),
    ]


def _recall_table(scores: Mapping[str, Any], method: ModuleType, kinds: tuple[str, str]) -> Table:
    thresholds = scores["thresholds"]
    rows = []
    for name, figures in scores["estimates"].items():
        cells = [f"{value:.1f}" for kind in kinds for value in figures[kind]["recall"]]
        rows.append(Row([ESTIMATE_NAMES[name], *cells], ROW_KINDS[name]))
    note = f"{scores['queries']} queries."
    published = [row for row in getattr(method, "PUBLISHED", ()) if any(kind in row for kind in kinds)]
    if published and thresholds == PUBLISHED_THRESHOLDS:
        heading = (
            f"Published ({method.PUBLISHED_PROTOCOL}): not comparable with figures from other data or noise"
        )
        rows.append(Row([heading], "divider"))
        for row in published:
            cells = []
            for kind in kinds:
                cells += [f"{value:.1f}" for value in row[kind]] if kind in row else ["–"] * len(thresholds)
            cameras = row["cameras"]
            name = f"Table {row['table']}: {row['model']}, {cameras} camera{'s' * (cameras > 1)}"
            rows.append(Row([name, *cells], "published"))
    return Table(
        caption=f"Recall in percent: {kinds[0]} and {kinds[1]}",
        header=["", *[f"{threshold:g} {ERRORS[kind]}" for kind in kinds for threshold in thresholds]],
        rows=rows,
        groups=[("", 1), *((kind, len(thresholds)) for kind in kinds)],
        note=note,
    )


def sections(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
    prepared: PreparedFolder,
) -> list[Section]:
    """Everything the page shows; see `pose.report`."""
    errors = {name: pose_errors(pose, rows["true_pose"]) for name, pose in estimates(rows).items()}
    rasters = _rasters(prepared)
    queries, scenes = scores["queries"], len(np.unique(rows["scene"]))
    offsets = scores["largest_offset"]
    result: list[Block] = [
        Paragraph(
            f"{queries} queries from {scenes} scenes. Each starts from a noisy pose, off by up to "
            f"{offsets['longitudinal']:.1f} m along, {offsets['lateral']:.1f} m across and "
            f"{offsets['orientation']:.1f}° (the largest drawn; evaluation seed {scores['seed']}). "
            "Doing nothing keeps that pose and is scored by the same code."
        )
    ]
    if "target" in scores:
        result.append(Verdict(scores["target"]["passed"], verdict(scores)))
    result += [error_table(scores), *recall_tables(scores, method)]
    charts = [
        Picture(
            pose_pictures.histograms(errors, ERRORS),
            "image/png",
            f"Errors of {queries} queries; dashed lines are medians, the last bin holds everything beyond.",
            "Histograms of position, longitudinal, lateral and orientation errors",
        ),
        Picture(
            pose_pictures.recall_curves(errors, scores["thresholds"]),
            "image/png",
            "Share of the queries within a threshold; dotted lines are the thresholds of the tables.",
            "Recall against threshold for position and orientation",
        ),
        Picture(
            pose_pictures.before_after(errors),
            "image/png",
            "One point a query: its error before (the noisy pose) and after. Below the orange line is better "
            "than before; points on the upper edge lie beyond it.",
            "Scatter of errors before and after",
        ),
    ]
    found = [
        Section("Result", result),
        Section("Errors", charts),
        _drives(rows, errors, rasters, method, prepared),
    ]
    for group, (features, predictions) in examples.items():
        found.append(
            Section(
                f"{group} frames".capitalize(),
                [
                    _frame_block(cfg, i, features, predictions, rows, errors, rasters, method)
                    for i in range(len(features["index"]))
                ],
            )
        )
    return found


def _rasters(prepared: PreparedFolder) -> dict[str, LocationRaster]:
    maps = prepared.table("maps")
    records = [maps[i] for i in range(len(maps))]
    return {
        as_text(record["location"]): LocationRaster(record["raster"], record["origin"], float(record["cell"]))
        for record in records
    }


def _drives(
    rows: Mapping[str, np.ndarray],
    errors: Mapping[str, Mapping[str, np.ndarray]],
    rasters: Mapping[str, LocationRaster],
    method: ModuleType,
    prepared: PreparedFolder,
) -> Section:
    position = errors["prediction"]["position"]
    limit = float(np.median(errors["do_nothing"]["position"]))
    blocks: list[Block] = []
    for location in np.unique(rows["location"]):
        here = rows["location"] == location
        map_raster = rasters[str(location)]
        picture = pose_pictures.drive_map(
            map_raster.raster,
            map_raster.origin,
            map_raster.cell,
            method.RASTER_CHANNELS,
            rows["map_pose_ego"][here],
            position[here],
            limit,
            f"{location}: {here.sum()} queries, median {np.median(position[here]):.2f} m",
        )
        caption = (
            "Each arrow is a query at its true pose, coloured by the position error of the prediction. The "
            f"colours end at {limit:.1f} m, the median of doing nothing. North is up."
        )
        blocks.append(Picture(picture, "image/png", caption, f"Map of {location} with the test drives"))
    blocks += [
        Paragraph(f"{location}: {fit['statement']}")
        for location, fit in prepared.manifest.get("alignment", {}).items()
        if location in rows["location"]
    ]
    attribution = prepared.manifest.get("source", {}).get("osm_attribution")
    if attribution:
        blocks.append(Paragraph(f"Map data: {attribution}"))
    return Section("Where the errors are", blocks)


def _frame_block(
    cfg: ml_collections.ConfigDict,
    example: int,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    errors: Mapping[str, Mapping[str, np.ndarray]],
    rasters: Mapping[str, LocationRaster],
    method: ModuleType,
) -> Picture:
    record = int(features["index"][example])
    row = int(np.flatnonzero(rows["index"] == record)[0])
    before = {kind: values[row] for kind, values in errors["do_nothing"].items()}
    after = {kind: values[row] for kind, values in errors["prediction"].items()}
    moved = (
        f"position error {before['position']:.2f} m before, {after['position']:.2f} m after; "
        f"orientation error {before['orientation']:.1f}° before, {after['orientation']:.1f}° after"
    )
    frame = example_frame(cfg, example, row, moved, features, predictions, rows, rasters, method)
    return Picture(
        pose_pictures.frame_picture(frame),
        "image/jpeg",
        f"Frame {record} ({rows['token'][row]}) of {rows['scene'][row]} in {rows['location'][row]}: {moved}.",
        f"Frame {record} on the map with its cameras",
    )


def example_frame(
    cfg: ml_collections.ConfigDict,
    example: int,
    row: int,
    title: str,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    rasters: Mapping[str, LocationRaster],
    method: ModuleType,
) -> pose_pictures.Frame:
    """What is drawn of `example`, which is row `row`; the map is cut afresh, finer than the network's."""
    map_grid, bev_grid = method.map_grid(cfg), method.bev_grid(cfg)
    true_pose = rows["true_pose"][row].astype(np.float64)
    map_pose_noisy = se2_compose(rows["map_pose_ego"][row], se2_inverse(true_pose))
    drawn_grid = Grid2D(map_grid.extent, min(DRAWN_CELL, map_grid.cell))
    layers = rasters[str(rows["location"][row])].sample_bilinear(drawn_grid, map_pose_noisy)
    classes = method.SEGMENTATION_CLASSES
    posterior = None
    if "position_posterior" in predictions:
        posterior = (predictions["position_posterior"][example], method.posterior_grid(cfg))
    return pose_pictures.Frame(
        title=title,
        map_grid=map_grid,
        bev_grid=bev_grid,
        map_layers={name: layers[..., i] for i, name in enumerate(method.RASTER_CHANNELS)},
        poses={"true": true_pose, "prediction": rows["pose"][row].astype(np.float64)},
        images=dict(zip(cfg.data.cameras, features["images"][example], strict=True)),
        bev={
            name: (predictions["bev_probability"][example][..., i], features["bev_label"][example][..., i])
            for i, name in enumerate(classes)
        },
        map={
            name: (predictions["map_probability"][example][..., i], features["map_label"][example][0, ..., i])
            for i, name in enumerate(classes)
        },
        posterior=posterior,
    )


def queries_csv(rows: Mapping[str, np.ndarray]) -> bytes:
    """One line a query: offsets and errors, true and corrected pose in the location's map frame."""
    errors = pose_errors(rows["pose"], rows["true_pose"])
    true_pose, pose = rows["true_pose"].astype(np.float64), rows["pose"].astype(np.float64)
    # p̂ = p̌·T̂ with p̌ = p·T⁻¹.
    corrected = se2_compose(se2_compose(rows["map_pose_ego"], se2_inverse(true_pose)), pose)
    columns: dict[str, Any] = {name: rows[name] for name in ("index", "token", "scene", "location")}
    for name, triple in (
        ("offset", true_pose),
        ("predicted_offset", pose),
        ("map_pose", rows["map_pose_ego"]),
        ("corrected_map_pose", corrected),
    ):
        columns |= {f"{name}_x_m": triple[:, 0], f"{name}_y_m": triple[:, 1]}
        columns[f"{name}_yaw_deg"] = np.rad2deg(triple[:, 2])
    columns |= {f"{kind}_error_{unit}": errors[kind] for kind, unit in ERRORS.items()}
    if "position_spread" in rows:
        columns["position_spread_m"] = rows["position_spread"]
    return csv_file(columns, ".6f")
