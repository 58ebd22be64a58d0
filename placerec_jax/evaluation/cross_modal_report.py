"""Sections of the cross-modal report: verdict, tables, recall curves, drives, queries with what they
retrieved."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.evaluation import cross_modal, cross_modal_pictures, retrieval_pictures
from placerec_jax.evaluation.cross_modal import ALL, ONE_PERCENT, SHOWN
from placerec_jax.evaluation.cross_modal_pictures import Retrieval, Submap
from placerec_jax.evaluation.inference import spread
from placerec_jax.evaluation.report import (
    Block,
    Paragraph,
    Picture,
    Row,
    Section,
    Table,
    Verdict,
    csv_file,
    percent,
    percent_with_interval,
)
from placerec_jax.evaluation.retrieval import NEVER
from placerec_jax.evaluation.retrieval_pictures import Curve
from placerec_jax.ops.point_steps import decode_points
from placerec_jax.ops.rigid import rigid_inverse

GROUPS = {"right": "Queries whose first entry is right", "wrong": "Queries whose first entry is wrong"}
DRAWN_POINTS = 40_000  # of a submap
ORDINALS = ("first", "second", "third")


# --- Tables -------------------------------------------------------------------------------------------------


def tables(scores: Mapping[str, Any], method: ModuleType) -> list[Table]:
    """One table a direction: every sequence, all together, chance beneath each; published figures beside."""
    return [direction_table(scores, direction, method) for direction in scores["directions"]]


def direction_table(scores: Mapping[str, Any], direction: str, method: ModuleType) -> Table:
    """Counts and recall in percent of one direction."""
    parts = scores["directions"][direction]
    keys = [str(k) for k in scores["rule"]["k"]] + [ONE_PERCENT]
    names = [name for name in parts if name != ALL]
    rows = []
    for name in [*names, ALL] if len(names) > 1 else names:
        part = parts[name]
        label = "all sequences" if name == ALL else name
        counts = [str(part[key]) for key in ("queries", "database", "without_positive")]
        cells = [
            _with_interval(part, key) if key == keys[0] else percent(part["recall"][key]) for key in keys
        ]
        rows.append(Row([label, *counts, *cells], "ours"))
        rows.append(Row(["chance", "", "", "", *(percent(part["chance"][key]) for key in keys)], "baseline"))
    figures = [f"{direction}_recall_at_{key}" for key in keys]
    published = [row for row in getattr(method, "PUBLISHED", ()) if not row.keys().isdisjoint(figures)]
    if published:
        rows.append(
            Row(
                [f"Published, not comparable with figures from other data: {method.PUBLISHED_PROTOCOL}"],
                "divider",
            )
        )
        for row in published:
            cells = [f"{row[figure]:.2f}" if figure in row else "–" for figure in figures]
            rows.append(Row([f"{row['table']}: {row['model']}", "", "", "", *cells], "published"))
    notes = [f"{row['model']}: {row['note']}." for row in published if row.get("note")]
    return Table(
        caption=f"Recall in percent, {words(direction)}",
        header=["", "queries", "database", "nothing right", *(f"R@{_heading(key)}" for key in keys)],
        rows=rows,
        note=" ".join([_rule_note(scores, direction), *notes]),
    )


def _rule_note(scores: Mapping[str, Any], direction: str) -> str:
    rule, interval = scores["rule"], scores["interval"]
    one_percent = ", ".join(f"{k} in {name}" for name, k in scores["k_of_1_percent"].items())
    found = [
        f"Right: at most {rule['radius_m']:g} m away on the ground plane, in the same sequence.",
        "Nothing right: queries without a right entry, which count as misses.",
        f"R@1 %: K is one percent of the database, at least 1 ({one_percent}).",
        "Chance: the expected recall of a random order of the same database; what a network retrieves lies "
        "together, so that at larger K it may fall below.",
        f"Brackets: 95 % {interval['method']}, {interval['resamples']} resamples of {interval['units']} "
        f"units, each a {interval['unit']}, seed {interval['seed']}.",
    ]
    if rule["queries_in_database"]:
        own = "its own frame left out" if cross_modal.searches_itself(direction) else "its own frame too"
        found.append(f"Every frame is in the database; a query may retrieve any, {own}.")
    return " ".join(found)


def words(direction: str) -> str:
    """What a direction is called on the page."""
    return direction.replace("_", " ")


def _heading(key: str) -> str:
    return "1 %" if key == ONE_PERCENT else key


def _with_interval(part: Mapping[str, Any], key: str) -> str:
    return percent_with_interval(part["recall"][key], part["interval_95"][key])


# --- Sections -----------------------------------------------------------------------------------------------


def sections(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
    prepared: PreparedFolder,
) -> list[Section]:
    """Everything the page shows; see `cross_modal.report`."""
    first = scores["rule"]["directions"][0]
    part = scores["directions"][first][ALL]
    names = list(scores["databases"])
    k = str(scores["rule"]["k"][0])
    ours, chance = percent(part["recall"][k]), percent(part["chance"][k])
    result: list[Block] = [
        Paragraph(
            f"{part['queries']} queries and {part['database']} database entries in {len(names)} "
            f"sequence{'s' * (len(names) > 1)} ({', '.join(names)}). {words(first).capitalize()}, R@{k}: "
            f"{ours} %, chance {chance} %."
        )
    ]
    if "target" in scores:
        result.append(Verdict(scores["target"]["passed"], cross_modal.verdict(scores)))
    result += tables(scores, method)
    found = [
        Section("Result", result),
        Section("Recall curves", [_curves(scores)]),
        Section("Where the queries are", _drives(scores, rows)),
    ]
    for group, (features, predictions) in examples.items():
        blocks = [
            _example(picture, features, predictions, rows, scores, prepared)
            for picture in range(len(features["index"]) // (1 + SHOWN))
        ]
        found.append(Section(GROUPS[group], blocks))
    return found


def _curves(scores: Mapping[str, Any]) -> Picture:
    directions = scores["directions"]
    first = scores["rule"]["directions"][0]
    panels = {
        "all sequences": [
            Curve(words(name), parts[ALL]["curve"], parts[ALL]["chance_curve"])
            for name, parts in directions.items()
        ]
    }
    names = list(scores["databases"])
    if len(names) > 1:
        panels[f"{words(first)}, by sequence"] = [
            Curve(name, directions[first][name]["curve"], directions[first][name]["chance_curve"])
            for name in names
        ]
    return Picture(
        retrieval_pictures.recall_curves(panels),
        "image/png",
        "Share of the queries with a right entry among the first K. Dotted: a random order of the same "
        "database.",
        "Recall against the number of retrieved entries, for every direction",
    )


def _drives(scores: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> list[Block]:
    shortlist = scores["rule"]["k"][min(1, len(scores["rule"]["k"]) - 1)]
    first = scores["rule"]["directions"][0]
    xy, name_of = np.asarray(rows["xy"]), np.asarray(rows["sequence_name"])
    blocks: list[Block] = []
    for name in scores["databases"]:
        query = np.flatnonzero(rows["retrieved/asked"] & (name_of == name))
        database = np.flatnonzero((name_of == name) & ~np.asarray(rows["is_query"], bool))
        candidate = rows["retrieved/candidate"][query, 0]
        # A query that retrieved nothing points at itself.
        target = np.where(candidate >= 0, candidate, query)
        start = xy[query].min(axis=0)
        picture = retrieval_pictures.drive_map(
            xy[database] - start,
            xy[query] - start,
            xy[target] - start,
            rows["retrieved/rank"][query],
            rows["retrieved/right"][query],
            f"sequence {name}, {words(first)}",
            shortlist,
        )
        blocks.append(
            Picture(
                picture,
                "image/png",
                "Grey: database. Coloured: queries, by whether a right entry came first. Lines lead from "
                "wrong queries to what came first.",
                f"Drive of sequence {name} with its queries, right and wrong",
            )
        )
    return blocks


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `cross_modal.choose_examples`: right and wrong queries from all over the drives."""
    count = int(cfg.eval.pictures)
    rank, right = rows["retrieved/rank"], rows["retrieved/right"]
    answered = rows["retrieved/asked"] & (rows["retrieved/candidate"][:, 0] >= 0)
    found = {}
    for group, which in {"right": rank == 0, "wrong": (rank > 0) & (right > 0)}.items():
        numbers = np.flatnonzero(answered & which)
        if not numbers.size or not count:
            continue
        chosen = numbers[spread(len(numbers), count)]
        candidate = rows["retrieved/candidate"][chosen]
        # Where a database has fewer entries, the first stands for the rest and is not drawn again.
        candidate = np.where(candidate >= 0, candidate, candidate[:, :1])
        found[group] = np.concatenate([chosen[:, None], candidate], axis=1).ravel()
    return found


def _example(
    picture: int,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    scores: Mapping[str, Any],
    prepared: PreparedFolder,
) -> Picture:
    """The picture of examples picture·(1 + SHOWN) and following."""
    drawn = retrieval_of(picture * (1 + SHOWN), features, predictions, rows, scores, prepared)
    coloured = ""
    if drawn.submaps[0].saliency is not None:
        coloured = " Points have the saliency of the nearest group, dark to bright in each submap."
    return Picture(
        cross_modal_pictures.retrieval_picture(drawn),
        "image/jpeg",
        f"{drawn.title}. Below, from above with forward up: the query's own submap, then what it retrieved; "
        f"green frames are right. Triangle: the vehicle; cross: where the query stood.{coloured}",
        f"{drawn.query_name} with its retrieved submaps",
    )


def retrieval_of(
    place: int,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    scores: Mapping[str, Any],
    prepared: PreparedFolder,
) -> Retrieval:
    """What is drawn of the query at `place` among the examples, and the entries after it.

    Submaps are drawn with the points of the prepared folder, of which the network saw a sample.
    """
    query = _row(rows, features, place)
    known = int((rows["retrieved/candidate"][query] >= 0).sum())
    rank, right = int(rows["retrieved/rank"][query]), int(rows["retrieved/right"][query])
    first = "none among the nearest" if rank == NEVER else f"the first at place {rank + 1}"
    own = "its own submap"
    if not scores["rule"]["queries_in_database"]:
        own += ", not in the database"
    submaps = [_submap(own, place, place, None, features, predictions, rows, prepared)]
    for number in range(known):
        apart = float(rows["retrieved/apart"][query][number])
        is_right = apart <= scores["rule"]["radius_m"]
        title = f"{ORDINALS[number]}: {apart:.1f} m away, {'right' if is_right else 'wrong'}"
        entry = place + 1 + number
        submaps.append(_submap(title, entry, place, is_right, features, predictions, rows, prepared))
    image = features["image"][place]
    saliency = predictions.get("image_saliency")
    return Retrieval(
        title=f"{right} of {int(rows['retrieved/gallery'][query])} entries are right, {first}",
        query_name=_frame_name(rows, query),
        image=image,
        saliency=None if saliency is None else cross_modal_pictures.patches(saliency[place], image.shape[:2]),
        submaps=submaps,
    )


def _row(rows: Mapping[str, np.ndarray], features: Mapping[str, np.ndarray], place: int) -> int:
    return int(np.flatnonzero(rows["index"] == features["index"][place])[0])


def _submap(
    title: str,
    place: int,
    query_place: int,
    right: bool | None,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    prepared: PreparedFolder,
) -> Submap:
    """The submap of the example at `place`, with the query at `query_place` in its frame."""
    record = prepared.table("frames").read(int(features["index"][place]), images=False)
    points = decode_points(record["point_steps"])
    points = points[:: 1 + len(points) // DRAWN_POINTS]
    saliency = None
    if "cloud_saliency" in predictions and len(points):
        saliency = cross_modal_pictures.spread_saliency(
            points,
            predictions["cloud_centres"][place],
            predictions["cloud_saliency"][place],
            predictions["cloud_token_mask"][place],
        )
    map_T_submap, map_T_query = (rows["map_T_lidar"][_row(rows, features, p)] for p in (place, query_place))
    submap_T_query = rigid_inverse(map_T_submap) @ map_T_query
    return Submap(title, points, saliency, right, submap_T_query[:2, 3])


def _frame_name(rows: Mapping[str, np.ndarray], row: int) -> str:
    return f"{rows['sequence_name'][row]} frame {int(rows['frame_id'][row])}"


def queries_csv(rows: Mapping[str, np.ndarray]) -> bytes:
    """One line a query, first direction: what came first and how far away it is, and the rank of the first
    right entry (1 is best, empty where none was retrieved)."""
    asked = np.flatnonzero(rows["retrieved/asked"])
    candidate = rows["retrieved/candidate"][asked, 0]
    rank = rows["retrieved/rank"][asked]
    reached = candidate >= 0
    columns: dict[str, Any] = {
        "sequence": np.asarray(rows["sequence_name"])[asked],
        "frame": rows["frame_id"][asked],
        "x_m": rows["xy"][asked, 0],
        "y_m": rows["xy"][asked, 1],
        "first_frame": np.where(reached, rows["frame_id"][np.maximum(candidate, 0)], -1),
        "first_distance_m": rows["retrieved/apart"][asked, 0],
        "descriptor_distance": rows["retrieved/distance"][asked, 0],
        "rank_of_right": [str(value + 1) if value != NEVER else "" for value in rank.tolist()],
        "right_entries": rows["retrieved/right"][asked],
        "entries": rows["retrieved/gallery"][asked],
    }
    return csv_file(columns)
