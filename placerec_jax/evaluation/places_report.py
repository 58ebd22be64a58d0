"""Sections of the report on places: verdict, tables, recall curves, maps, queries beside what they found."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np

from placerec_jax.data.prepared import PreparedFolder
from placerec_jax.evaluation import places, places_pictures, retrieval_pictures
from placerec_jax.evaluation.inference import spread
from placerec_jax.evaluation.loop_retrieval import KINDS
from placerec_jax.evaluation.places import ALL, DAY, MODEL, MOVED, OTHER_DATES, OTHER_SCENES, PLAIN
from placerec_jax.evaluation.places_pictures import Place
from placerec_jax.evaluation.report import (
    MISSING,
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

GROUPS = {"right": "Queries whose first entry is right", "wrong": "Queries whose first entry is wrong"}


def words(condition: str, scores: Mapping[str, Any]) -> str:
    """What a condition is called on the page."""
    days = scores["rule"]["min_gap_days"]
    return {
        PLAIN: "as the protocol has it",
        OTHER_SCENES: "without the query's own scene",
        OTHER_DATES: f"at least {days:g} day{'s' * (days != 1)} from the query",
    }[condition]


def estimate_name(estimate: str) -> str:
    """What the model, a reference, or a kind of revisit is called on the page."""
    return "this model" if estimate == MODEL else estimate.replace("_", " ")


# --- Tables -------------------------------------------------------------------------------------------------


def tables(scores: Mapping[str, Any], method: ModuleType) -> list[Table]:
    """Recall under every condition, all locations side by side, what kinds of revisits are found, and how
    many queries could find their own scene."""
    conditions = scores["rule"]["conditions"]
    found = [recall_table(scores, condition, method) for condition in conditions]
    found.append(transfer_table(scores, method))
    found += [kinds_table(scores, condition) for condition in conditions]
    return [*found, own_scene_table(scores)]


def recall_table(scores: Mapping[str, Any], condition: str, method: ModuleType) -> Table:
    """AR@K in percent of one condition: the model, references and chance at every location."""
    keys = [str(k) for k in scores["rule"]["k"]]
    rows = []
    for location in _locations(scores):
        ours = scores["estimates"][MODEL][condition][location]
        database = scores["databases"]
        entries = sum(database.values()) if location == ALL else database[location]
        rows.append(
            Row(
                [
                    f"{_place(location)}: {ours['queries']} queries, {ours['without_right']} of them with "
                    f"nothing right to find; {entries} database entries"
                ],
                "divider",
            )
        )
        for estimate, parts in scores["estimates"].items():
            part = parts[condition][location]
            first = _with_interval(part, keys[0])
            cells = [first, *(percent(part["recall"][key]) for key in keys[1:])]
            other = part["recall_of_all" if scores["rule"]["drop_empty"] else "recall_without_empty"]
            rows.append(
                Row(
                    [estimate_name(estimate), *cells, percent(other[keys[0]])],
                    "ours" if estimate == MODEL else "baseline",
                )
            )
        chance = [percent(ours["chance"][key]) for key in keys]
        rows.append(Row(["chance", *chance, ""], "baseline"))
    if condition == PLAIN:
        rows += _published(method, [f"recall_at_{key}" for key in keys], ("I", "II"))
    return Table(
        caption=f"AR@K in percent, {words(condition, scores)}",
        header=[
            "",
            *(f"AR@{key}" for key in keys),
            f"AR@{keys[0]}, {'with' if scores['rule']['drop_empty'] else 'without'} empty",
        ],
        rows=rows,
        note=_note(scores, condition),
    )


def _published(method: ModuleType, figures: Sequence[str], wanted: Sequence[str]) -> list[Row]:
    """Rows of the paper's tables with these figures, in percent as printed."""
    known = [row for row in getattr(method, "PUBLISHED", ()) if row["table"] in wanted]
    known = [row for row in known if not row.keys().isdisjoint(figures)]
    if not known:
        return []
    heading = f"Published, not comparable with figures from other data: {method.PUBLISHED_PROTOCOL}"
    rows = [Row([heading], "divider")]
    for row in known:
        cells = [f"{row[figure]:.2f}" if figure in row else MISSING for figure in figures]
        sensors = f" ({row['sensors']})" if "sensors" in row else ""
        rows.append(Row([f"{row['table']}: {row['model']}{sensors}", *cells, ""], "published"))
    return rows


def _note(scores: Mapping[str, Any], condition: str) -> str:
    rule, interval = scores["rule"], scores["interval"]
    left_out = {
        PLAIN: "The database may hold frames of the query's own scene.",
        OTHER_SCENES: "Entries of the query's own scene are neither retrieved nor right.",
        OTHER_DATES: f"Entries less than {rule['min_gap_days']:g} days from the query are neither retrieved "
        "nor right.",
    }[condition]
    empty = (
        "Queries with nothing right to find are dropped; the last column counts them as misses."
        if rule["drop_empty"]
        else "Queries with nothing right to find are misses; the last column drops them."
    )
    return (
        f"Right: at most {rule['radius_m']:g} m away on the ground plane, at the same location. {left_out} "
        f"{empty} Chance: the expected recall of a random order of the same entries. Brackets: 95 % "
        f"{interval['method']}, {interval['resamples']} resamples of whole scenes ({interval['units']} in "
        f"all), seed {interval['seed']}."
    )


def transfer_table(scores: Mapping[str, Any], method: ModuleType) -> Table:
    """AR@1 at every location in one row, as the paper's Table III has it for transfer."""
    key = str(scores["rule"]["k"][0])
    locations = list(scores["databases"])
    rows = []
    for condition in scores["rule"]["conditions"]:
        rows.append(Row([words(condition, scores)], "divider"))
        for estimate, parts in scores["estimates"].items():
            cells = [percent(parts[condition][location]["recall"][key]) for location in locations]
            rows.append(Row([estimate_name(estimate), *cells], "ours" if estimate == MODEL else "baseline"))
        model = scores["estimates"][MODEL][condition]
        rows.append(
            Row(["chance", *(percent(model[place]["chance"][key]) for place in locations)], "baseline")
        )
    known = [row for row in getattr(method, "PUBLISHED", ()) if "recall_at_1_by_location" in row]
    if known and key == "1":
        rows.append(Row(["Published, Table III: trained at boston-seaport"], "divider"))
        for row in known:
            found = row["recall_at_1_by_location"]
            cells = [f"{found[place]:.2f}" if place in found else MISSING for place in locations]
            rows.append(Row([f"{row['table']}: {row['model']}", *cells], "published"))
    return Table(
        caption=f"AR@{key} in percent, location by location",
        header=["", *locations],
        rows=rows,
        note="Transfer, where training saw other locations: config.data.locations says which it saw.",
    )


def kinds_table(scores: Mapping[str, Any], condition: str) -> Table:
    """Recall of all locations together by the best that a query could find under a condition."""
    keys = [str(k) for k in scores["rule"]["k"]]
    names = {
        KINDS[0]: "its own lane, same direction",
        KINDS[1]: "other lanes alone, same direction",
        KINDS[2]: "the other direction alone",
        MOVED: "another lane or direction alone",
    }
    rows = []
    for kind, name in names.items():
        ours = scores["estimates"][MODEL][condition][ALL]["kinds"][kind]
        rows.append(Row([f"{name}: {ours['counted']} queries"], "divider"))
        if not ours["counted"]:
            continue
        for estimate, parts in scores["estimates"].items():
            part = parts[condition][ALL]["kinds"][kind]
            cells = [_with_interval(part, keys[0]), *(percent(part["recall"][key]) for key in keys[1:])]
            rows.append(Row([estimate_name(estimate), *cells], "ours" if estimate == MODEL else "baseline"))
        rows.append(Row(["chance", *(percent(ours["chance"][key]) for key in keys)], "baseline"))
    lane = scores["rule"]["lane_offset_m"]
    return Table(
        caption=f"AR@K in percent by where right entries are, {words(condition, scores)}",
        header=["", *(f"AR@{key}" for key in keys)],
        rows=rows,
        note="A query belongs where the best of its right entries is. Another lane: "
        f"{lane:g} m or more to the side. Another direction: headings more than 90° apart.",
    )


def own_scene_table(scores: Mapping[str, Any]) -> Table:
    """How many queries could find a frame of their own scene."""
    heads = {
        "nearest": "nearest right entry of own scene",
        "any": "some right entry of own scene",
        "only": "all right entries of own scene",
    }
    rows = [
        Row([_place(location), *(percent(scores["own_scene"][location][key]) for key in heads)])
        for location in _locations(scores)
    ]
    return Table(
        caption="Queries that could find their own scene, percent of those with something right to find",
        header=["", *heads.values()],
        rows=rows,
        note="Nearest on the ground.",
    )


def _locations(scores: Mapping[str, Any]) -> list[str]:
    names = list(scores["databases"])
    return [*names, ALL] if len(names) > 1 else names


def _place(location: str) -> str:
    return "all locations" if location == ALL else location


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
    """Everything the page shows; see `places.report`."""
    key = str(scores["rule"]["k"][0])
    model = scores["estimates"][MODEL]
    plain, other = model[PLAIN][ALL], model[OTHER_SCENES][ALL]
    locations = list(scores["databases"])
    own = scores["own_scene"][ALL]["nearest"]
    result: list[Block] = [
        Paragraph(
            f"{plain['queries']} queries and {sum(scores['databases'].values())} database entries at "
            f"{len(locations)} location{'s' * (len(locations) > 1)} ({', '.join(locations)}), scheme "
            f"{cfg.data.scheme}. {plain['without_right']} queries have nothing right to find. AR@{key}: "
            f"{percent(plain['recall'][key])} %, chance {percent(plain['chance'][key])} %; "
            f"{words(OTHER_SCENES, scores)} {percent(other['recall'][key])} %, chance "
            f"{percent(other['chance'][key])} %. The nearest right entry is of the query's own scene for "
            f"{percent(own)} % of the queries."
        )
    ]
    if "target" in scores:
        result.append(Verdict(scores["target"]["passed"], places.verdict(scores)))
    result += tables(scores, method)
    found = [
        Section("Result", result),
        Section("Recall curves", _curves(cfg, scores, prepared)),
        Section("Where the queries are", _maps(scores, rows)),
    ]
    for group, (features, predictions) in examples.items():
        pictures = range(len(features["index"]) // 2)
        blocks = [_pair(2 * p, features, predictions, rows, scores, method, prepared) for p in pictures]
        found.append(Section(GROUPS[group], blocks))
    return found


def _curves(
    cfg: ml_collections.ConfigDict, scores: Mapping[str, Any], prepared: PreparedFolder
) -> list[Block]:
    others, refused = compared(cfg, scores, prepared)
    panels = {}
    for condition in scores["rule"]["conditions"]:
        parts = {name: conditions[condition][ALL] for name, conditions in scores["estimates"].items()}
        if parts[MODEL]["curve"][0] is None:
            continue
        parts |= {name: conditions[condition][ALL] for name, conditions in others.items()}
        panels[words(condition, scores)] = [
            # Chance is everyone's; it is drawn with the model.
            Curve(estimate_name(name), part["curve"], part["chance_curve"] if name == MODEL else ())
            for name, part in parts.items()
        ]
    picture = Picture(
        retrieval_pictures.recall_curves(panels, "AR"),
        "image/png",
        "Share of the queries with a right entry among the first K. Dotted: a random order of the same "
        "entries.",
        "AR@K of the model, of training-free references and of other runs under every condition",
    )
    return [picture, *(Paragraph(f"Not drawn: {reason}.") for reason in refused)]


def compared(
    cfg: ml_collections.ConfigDict, scores: Mapping[str, Any], prepared: PreparedFolder
) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """{name: figures of the model, by condition} of the reports in `config.eval.compare`, and why others of
    them cannot be drawn beside this one: they are of other data, queries or rules.

    What is listed are folders of runs, or their folders `report`; a run is called after its folder.
    """
    found, refused = {}, []
    for folder in tuple(cfg.eval.get("compare", ())):
        try:
            record = _read_report(Path(folder))
            facts = {"fingerprint": record["dataset"]["fingerprint"], "scheme": record["dataset"]["scheme"]}
            facts |= {name: record["scores"][name] for name in ("rule", "queries", "databases")}
            model = record["scores"]["estimates"][MODEL]
        except (OSError, ValueError, KeyError, TypeError) as error:
            refused.append(f"{folder}, which is no report on places ({type(error).__name__}: {error})")
            continue
        ours = {"fingerprint": prepared.fingerprint, "scheme": cfg.data.scheme}
        ours |= {name: scores[name] for name in ("rule", "queries", "databases")}
        other = [key for key, value in ours.items() if facts[key] != value]
        if other:
            refused.append(f"{folder}, which has another {', another '.join(other)}")
        else:
            run = Path(folder).resolve()
            found[run.parent.name if run.name == "report" else run.name] = model
    return found, refused


def _read_report(folder: Path) -> Mapping[str, Any]:
    inside = folder / "report" / "report.json"
    return json.loads((inside if inside.is_file() else folder / "report.json").read_text())


def _maps(scores: Mapping[str, Any], rows: Mapping[str, np.ndarray]) -> list[Block]:
    shortlist = scores["rule"]["k"][min(1, len(scores["rule"]["k"]) - 1)]
    xy, location_of = _xy(rows), np.asarray(rows["location"])
    condition = _shown(rows)
    blocks: list[Block] = []
    for location in scores["databases"]:
        query = np.flatnonzero(rows["retrieved/asked"] & (location_of == location))
        database = np.flatnonzero((location_of == location) & ~np.asarray(rows["is_query"], bool))
        candidate = rows["retrieved/candidate"][query, 0]
        target = np.where(candidate >= 0, candidate, query)  # a query that retrieved nothing points at itself
        start = xy[query].min(axis=0)
        picture = retrieval_pictures.drive_map(
            xy[database] - start,
            xy[query] - start,
            xy[target] - start,
            rows["retrieved/rank"][query],
            rows["retrieved/right"][query],
            f"{location}, {words(condition, scores)}",
            shortlist,
        )
        blocks.append(
            Picture(
                picture,
                "image/png",
                "Grey: database. Coloured: queries, by whether a right entry came first. Lines lead from "
                "wrong queries to what came first.",
                f"Map of {location} with its queries, right and wrong",
            )
        )
    return blocks


def _xy(rows: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(rows["global_T_ego"], np.float64)[:, :2, 3]


def _shown(rows: Mapping[str, np.ndarray]) -> str:
    """The condition under which the rows say what was retrieved."""
    return OTHER_SCENES if rows["retrieved/own_scene_left_out"].all() else PLAIN


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `places.choose_examples`: right and wrong queries from all over the drives."""
    count = int(cfg.eval.pictures)
    rank, right = rows["retrieved/rank"], rows["retrieved/right"]
    first = rows["retrieved/candidate"][:, 0]
    answered = rows["retrieved/asked"] & (first >= 0)
    found = {}
    for group, which in {"right": rank == 0, "wrong": (rank > 0) & (right > 0)}.items():
        numbers = np.flatnonzero(answered & which)
        if not numbers.size or not count:
            continue
        chosen = numbers[spread(len(numbers), count)]
        found[group] = np.stack([chosen, first[chosen]], axis=1).ravel()
    return found


def _pair(
    place: int,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    scores: Mapping[str, Any],
    method: ModuleType,
    prepared: PreparedFolder,
) -> Picture:
    """The picture of the query at `place` among the examples and of what comes after it."""
    index = np.asarray(features["index"]).reshape(len(features["index"]))
    query, candidate = (int(np.flatnonzero(rows["index"] == index[p])[0]) for p in (place, place + 1))
    apart = float(rows["retrieved/apart"][query, 0])
    right = apart <= scores["rule"]["radius_m"]
    rank = int(rows["retrieved/rank"][query])
    first = "none among the nearest" if rank == NEVER else f"the first at place {rank + 1}"
    days = (int(rows["timestamp"][query]) - int(rows["timestamp"][candidate])) / DAY
    time = f"{abs(days):.1f} days {'later' if days < 0 else 'earlier'}"
    titles = (
        f"query: {_name(rows, query)}",
        f"retrieved, {apart:.1f} m away, {'right' if right else 'wrong'}: {_name(rows, candidate)}, {time}",
    )
    drawn = [
        _place_of(title, p, features, predictions, method, prepared, verdict)
        for title, p, verdict in zip(titles, (place, place + 1), (None, right), strict=True)
    ]
    heading = (
        f"{int(rows['retrieved/right'][query])} of {int(rows['retrieved/gallery'][query])} entries are "
        f"right, {first} ({words(_shown(rows), scores)})"
    )
    seen = "predicted depth, " if drawn[0].depth else ""
    return Picture(
        places_pictures.pair_picture(heading, *drawn),
        "image/jpeg",
        f"Left the query, right what came first: six images, {seen}range images around the sensor with the "
        "rear at both ends and ahead in the middle.",
        f"{titles[0]}; {titles[1]}",
    )


def _name(rows: Mapping[str, np.ndarray], row: int) -> str:
    return f"{rows['scene'][row]} frame {int(rows['sample_number'][row])}"


def _place_of(
    title: str,
    place: int,
    features: Mapping[str, np.ndarray],
    predictions: Mapping[str, np.ndarray],
    method: ModuleType,
    prepared: PreparedFolder,
    right: bool | None,
) -> Place:
    """What is drawn of the example at `place`: images and sweep as prepared, the rest as predicted."""
    record = prepared.table("frames").read(int(np.ravel(features["index"][place])[0]))
    stored = list(prepared.manifest["cameras"])
    images = {
        name: image
        for name, image, there in zip(stored, record["images"], record["camera_mask"], strict=True)
        if there
    }
    depth = {}
    if "depth" in predictions:
        cameras = getattr(method, "CAMERAS", stored)
        depth = dict(zip(cameras, predictions["depth"][place], strict=True))
        depth = {name: values for name, values in depth.items() if name in images}
    strips = {}
    if "camera_range" in predictions:
        strips["range image of the cameras, from predicted depth"] = predictions["camera_range"][place]
    unit = float(prepared.manifest["range_unit_m"])
    strips["range image of the sweep"] = record["range_steps"].astype(np.float32) * unit
    return Place(title, images, depth, strips, record["rendered_rgb"], right)


def queries_csv(rows: Mapping[str, np.ndarray]) -> bytes:
    """One line a query: what came first under the condition that the page's maps show, how far away it is,
    and the rank of the first right entry (1 is best, empty where none was retrieved)."""
    asked = np.flatnonzero(rows["retrieved/asked"])
    candidate = rows["retrieved/candidate"][asked, 0]
    reached, first = candidate >= 0, np.maximum(candidate, 0)
    rank = rows["retrieved/rank"][asked]
    xy = _xy(rows)
    columns: dict[str, Any] = {
        "location": np.asarray(rows["location"])[asked],
        "scene": np.asarray(rows["scene"])[asked],
        "sample": rows["sample_number"][asked],
        "date": np.asarray(rows["date_captured"])[asked],
        "x_m": xy[asked, 0],
        "y_m": xy[asked, 1],
        "first_scene": np.where(reached, np.asarray(rows["scene"])[first], ""),
        "first_sample": np.where(reached, rows["sample_number"][first], -1),
        "first_distance_m": rows["retrieved/apart"][asked, 0],
        "descriptor_distance": rows["retrieved/distance"][asked, 0],
        "rank_of_right": [str(value + 1) if value != NEVER else "" for value in rank.tolist()],
        "right_entries": rows["retrieved/right"][asked],
        "entries": rows["retrieved/gallery"][asked],
        "own_scene_left_out": rows["retrieved/own_scene_left_out"][asked].astype(int),
    }
    return csv_file(columns)
