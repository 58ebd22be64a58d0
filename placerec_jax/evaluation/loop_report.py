"""Sections of the loop-closure report: verdict, tables, precision-recall curves, drives, matched scans."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import ml_collections
import numpy as np

from placerec_jax.evaluation import loop_closure, loop_pictures
from placerec_jax.evaluation.loop_closure import ALL
from placerec_jax.evaluation.loop_pictures import DrawnCurve, MatchedPair
from placerec_jax.evaluation.loop_retrieval import KINDS
from placerec_jax.evaluation.precision_recall import (
    CURVES,
    POLICIES,
    Retrieved,
    average_precision_by,
    best_f1,
)
from placerec_jax.evaluation.report import Block, Paragraph, Picture, Row, Section, Table, Verdict, csv_file

PROTOCOLS = {"growing": "growing database", "fixed": "fixed database and queries"}
GROUPS = {
    "verified": "Loops it closed",
    "false": "Loops it closed wrongly",
    "missed": "Loops it missed",
}


# --- Tables -------------------------------------------------------------------------------------------------


def tables(scores: Mapping[str, Any]) -> list[Table]:
    """Counts, figures of every protocol, figures by kind of revisit, and verification."""
    found = [counts_table(scores)]
    for protocol in scores["counts"]:
        found += [figures_table(scores, protocol), kinds_table(scores, protocol)]
    found += sequence_tables(scores)
    if "verification" in scores:
        found.append(verification_table(scores["verification"]))
    return found


def counts_table(scores: Mapping[str, Any]) -> Table:
    """How many queries there are and how many loops they could find, by sequence."""
    rows = []
    for protocol, sequences in scores["counts"].items():
        if len(scores["counts"]) > 1:
            rows.append(Row([PROTOCOLS[protocol]], "divider"))
        for name, count in sequences.items():
            if name == ALL and len(sequences) == 2:
                continue
            keys = ("queries", "with_loop", "reverse_nearest", *KINDS)
            rows.append(Row([name, *(str(count[key]) for key in keys)]))
    rule = scores["rule"]
    return Table(
        caption="Queries and their loops",
        header=["sequence", "queries", "with a loop", "nearest reverse", *(_words(kind) for kind in KINDS)],
        rows=rows,
        note=(
            f"A loop: nearer than {rule['loop_distance_m']:g} m in 3-D, more than {rule['loop_gap']} frames "
            "back. Nearest reverse: the nearest loop was passed the other way (more than 90°). A query is of "
            "the first kind that any of its loops is: same lane, other lane "
            f"({rule['lane_offset_m']:g} m or more to a side), reverse."
        ),
    )


def figures_table(scores: Mapping[str, Any], protocol: str) -> Table:
    """R@1, average precision under every policy, largest F1, recall at full precision; sequences together."""
    rows = []
    for estimate, protocols in scores["estimates"].items():
        found = protocols[protocol][ALL]
        cells = [found["recall_at_1"], *(found["ap"][policy] for policy in POLICIES)]
        cells += [found["max_f1"], found["recall_at_full_precision"]]
        rows.append(Row([title(estimate), *map(_share, cells)], _kind(estimate)))
    chosen = scores["rule"]["ap_policy"]
    return Table(
        caption=f"Retrieval, {PROTOCOLS[protocol]}, all sequences",
        header=["", "R@1", *(f"AP {policy}" for policy in POLICIES), "max F1", "R at P=1"],
        rows=rows,
        note=(
            f"AP under three ways of counting; `ap` of the log is {chosen}. F1 and R at P=1 count as "
            "standard."
        ),
    )


def kinds_table(scores: Mapping[str, Any], protocol: str) -> Table:
    """R@1 and AP by kind of revisit."""
    counts = scores["counts"][protocol][ALL]
    rows = []
    for estimate, protocols in scores["estimates"].items():
        kinds = protocols[protocol][ALL]["kinds"]
        cells = [_share(kinds[kind][key]) for kind in KINDS for key in ("recall_at_1", "ap")]
        rows.append(Row([title(estimate), *cells], _kind(estimate)))
    return Table(
        caption=f"By kind of revisit, {PROTOCOLS[protocol]}",
        header=["", *["R@1", "AP"] * len(KINDS)],
        rows=rows,
        groups=[("", 1), *((f"{_words(kind)} ({counts[kind]})", 2) for kind in KINDS)],
        note="AP (standard) of a kind is over its queries and those without any loop.",
    )


def sequence_tables(scores: Mapping[str, Any]) -> list[Table]:
    """R@1 and AP of every sequence, where there are several."""
    found = []
    for protocol, counts in scores["counts"].items():
        names = [name for name in counts if name != ALL]
        if len(names) < 2:
            continue
        policy = scores["rule"]["ap_policy"]
        rows = []
        for estimate, protocols in scores["estimates"].items():
            parts = [protocols[protocol][name] for name in names]
            cells = [_share(value) for part in parts for value in (part["recall_at_1"], part["ap"][policy])]
            rows.append(Row([title(estimate), *cells], _kind(estimate)))
        found.append(
            Table(
                caption=f"By sequence, {PROTOCOLS[protocol]}",
                header=["", *["R@1", "AP"] * len(names)],
                rows=rows,
                groups=[("", 1), *((name, 2) for name in names)],
                note=f"AP: {policy}.",
            )
        )
    return found


def verification_table(verification: Mapping[str, Any]) -> Table:
    """Verified loops: how many, how many of them have the right pose, and how exact it is."""
    rows = []
    sequences = verification["sequences"]
    for name, part in sequences.items():
        if name == ALL and len(sequences) == 2:
            continue
        rows.append(
            Row(
                [
                    name,
                    str(part["verified"]),
                    str(part["true"]),
                    _share(part["precision"]),
                    _share(part["median_translation_m"]),
                    _share(part["median_rotation_deg"]),
                ]
            )
        )
    return Table(
        caption="Verified loops",
        header=["sequence", "verified", "true", "precision", "median error, m", "median error, °"],
        rows=rows,
        note=(
            f"Verified: {verification['min_inliers']} inlier matches or more between a query and what it "
            "retrieved from the growing database. True: the estimated relative pose is within "
            f"{verification['pose_tolerance_m']:g} m of the true one, on the ground plane. No recall is "
            "definable."
        ),
    )


def title(estimate: str) -> str:
    """What an estimate is called on the page."""
    if estimate == "model":
        return "this model"
    words = estimate.removesuffix("_rotated").removesuffix("_real_image")
    ours = {"model": "this model", "model_reranked": "this model, first few by inliers"}
    words = ours.get(words, _words(words))
    if estimate.endswith("_rotated"):
        return f"{words}, queries turned"
    return f"{words}, real images" if estimate.endswith("_real_image") else words


def _kind(estimate: str) -> str:
    return "ours" if estimate.startswith("model") else "baseline"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# --- Sections -----------------------------------------------------------------------------------------------


def sections(
    cfg: ml_collections.ConfigDict,
    scores: Mapping[str, Any],
    rows: Mapping[str, np.ndarray],
    examples: Mapping[str, tuple[dict[str, np.ndarray], dict[str, np.ndarray]]],
    method: ModuleType,
) -> list[Section]:
    """Everything the page shows; see `loop_closure.report`."""
    found = retrieval_sections(cfg, scores, rows)
    for group, (features, _) in examples.items():
        blocks = [
            _pair_block(cfg, group, features, pair, rows, method)
            for pair in range(len(features["index"]) // 2)
        ]
        found.append(Section(GROUPS[group], blocks))
    return found


def retrieval_sections(
    cfg: ml_collections.ConfigDict, scores: Mapping[str, Any], rows: Mapping[str, np.ndarray]
) -> list[Section]:
    """What needs no model: the result, the curves, the drives."""
    counts = scores["counts"]["growing"]
    names = [name for name in counts if name != ALL]
    result: list[Block] = [
        Paragraph(
            f"{scores['frames']} frames of {len(names)} sequence{'s' * (len(names) > 1)} "
            f"({', '.join(names)}), {counts[ALL]['queries']} queries, of which {counts[ALL]['with_loop']} "
            f"have a loop to find. Frame i, from {scores['rule']['first_query']} on, retrieves the nearest "
            f"descriptor among the frames before i − {scores['rule']['loop_gap']} of its sequence. "
            "Training-free references are scored by the same code."
        )
    ]
    if "target" in scores:
        result.append(Verdict(scores["target"]["passed"], loop_closure.verdict(scores)))
    result += tables(scores)
    return [
        Section("Result", result),
        Section("Precision and recall", _curves(cfg, scores, rows)),
        Section("Where the loops are", _drives(cfg, rows)),
    ]


def _curves(
    cfg: ml_collections.ConfigDict, scores: Mapping[str, Any], rows: Mapping[str, np.ndarray]
) -> list[Block]:
    policy = scores["rule"]["ap_policy"]
    drawn_as = policy if policy in CURVES else "standard"
    panels: dict[str, list[DrawnCurve]] = {}
    for estimate, protocols in loop_closure.outcomes(cfg, rows).items():
        for protocol, outcome in protocols.items():
            retrieved, _ = outcome.retrieved()
            if not retrieved.has_loop.any():
                continue
            turned = "queries turned" if estimate.endswith("_rotated") else "queries as driven"
            name = title(estimate).removesuffix(", queries turned")
            note = f"AP {average_precision_by(drawn_as, retrieved):.3f}"
            curve = CURVES[drawn_as](retrieved)
            panels.setdefault(f"{PROTOCOLS[protocol]}, {turned}", []).append(
                DrawnCurve(name, curve, note, estimate.startswith("model"))
            )
    if not panels:
        return [Paragraph("No query has a loop: there is no curve to draw.")]
    blocks: list[Block] = [
        Picture(
            loop_pictures.precision_recall(panels),
            "image/png",
            f"The threshold on the distance is swept; all sequences together, counted as {drawn_as}.",
            "Precision against recall of the model and the references",
        )
    ]
    counts = scores["counts"]["growing"][ALL]
    if any(counts[kind] for kind in KINDS):
        shares = {
            title(estimate): {
                kind: protocols["growing"][ALL]["kinds"][kind]["recall_at_1"] or 0.0 for kind in KINDS
            }
            for estimate, protocols in scores["estimates"].items()
        }
        blocks.append(
            Picture(
                loop_pictures.recall_by_kind(shares, {kind: counts[kind] for kind in KINDS}),
                "image/png",
                "Share of the queries with a loop whose nearest descriptor is one, growing database.",
                "R@1 by kind of revisit",
            )
        )
    return blocks


def _drives(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> list[Block]:
    state = closed(cfg, rows)
    checked = "match/pose" in rows
    names = ("loop closed", "closed wrongly", "missed")
    blocks: list[Block] = []
    for name, numbers in loop_closure.rows_by_sequence(rows).items():
        missed = state["missed"][numbers]
        picture = loop_pictures.drive_map(
            np.asarray(rows["map_T_lidar"])[numbers, :2, 3],
            _pairs(rows, numbers, state["verified"]),
            _pairs(rows, numbers, state["false"]),
            np.flatnonzero(missed),
            f"sequence {name}",
            names,
        )
        by = (
            "the estimated pose is within the tolerance, or not"
            if checked
            else "its candidate is a loop, or not; the threshold is that of the largest F1"
        )
        caption = (
            f"Green and orange: queries whose loop was closed, joined to what they retrieved; {by}. Yellow "
            "crosses: queries that have a loop and closed none."
        )
        blocks.append(Picture(picture, "image/png", caption, f"Drive of sequence {name} with its loops"))
    return blocks


def _pairs(rows: Mapping[str, np.ndarray], numbers: np.ndarray, which: np.ndarray) -> np.ndarray:
    """(M, 2) query and candidate where `which` (N,) is True, as places among the rows `numbers` (n,)."""
    place = np.full(len(which), -1)
    place[numbers] = np.arange(len(numbers))
    query = numbers[which[numbers]]
    return np.stack([place[query], place[rows["retrieved/candidate"][query]]], axis=-1)


def closed(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """{"verified", "false", "missed": (N,) bool} of the model's queries, growing database.

    Where matches were verified, a loop is closed by enough inliers and right by its pose; else it is closed
    below the distance of the largest F1, and right when the candidate is a loop.
    """
    has_loop = rows["retrieved/kind"] > 0
    if "match/pose" in rows:
        accepted = loop_closure.verified(cfg, rows)
        right = loop_closure.pose_errors(rows)[0] <= float(cfg.eval.pose_tolerance)
    else:
        asked, distance = rows["retrieved/asked"], rows["retrieved/distance"]
        retrieved = Retrieved(distance, rows["retrieved/correct"], has_loop).subset(asked)
        _, threshold = best_f1(CURVES["standard"](retrieved))
        accepted = np.zeros(len(distance), bool) if threshold is None else distance <= threshold
        right = rows["retrieved/correct"]
    return {
        "verified": accepted & right,
        "false": accepted & ~right,
        "missed": has_loop & ~accepted,
    }


def choose_examples(cfg: ml_collections.ConfigDict, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """See `loop_closure.choose_examples`: closed loops of the hardest kind first, the surest mistakes, and
    missed loops from all over the drive."""
    count = int(cfg.eval.pictures)
    candidate = rows["retrieved/candidate"]
    found = {}
    for group, which in closed(cfg, rows).items():
        numbers = np.flatnonzero(which & (candidate >= 0))
        if not numbers.size or not count:
            continue
        order = {
            "verified": np.lexsort((rows["retrieved/distance"][numbers], -rows["retrieved/kind"][numbers])),
            "false": np.argsort(rows["retrieved/distance"][numbers], kind="stable"),
            "missed": np.linspace(0, len(numbers) - 1, min(count, len(numbers))).astype(int),
        }[group]
        chosen = numbers[order[:count]]
        found[group] = np.stack([chosen, candidate[chosen]], axis=-1).ravel()
    return found


def _pair_block(
    cfg: ml_collections.ConfigDict,
    group: str,
    features: Mapping[str, np.ndarray],
    pair: int,
    rows: Mapping[str, np.ndarray],
    method: ModuleType,
) -> Picture:
    query, candidate = (
        int(np.flatnonzero(rows["index"] == features["index"][2 * pair + side])[0]) for side in (0, 1)
    )
    drawn = matched_pair(cfg, features, pair, query, candidate, rows, method)
    return Picture(
        loop_pictures.pair_picture(drawn),
        "image/jpeg",
        f"{drawn.title}. Lines: inlier matches of key points, coloured by their bearing in the query. Right: "
        "the retrieved scan in blue, the query in orange; dark where they agree.",
        f"{drawn.query_name} beside {drawn.candidate_name}",
    )


def matched_pair(
    cfg: ml_collections.ConfigDict,
    features: Mapping[str, np.ndarray],
    pair: int,
    query: int,
    candidate: int,
    rows: Mapping[str, np.ndarray],
    method: ModuleType,
) -> MatchedPair:
    """What is drawn of examples 2·pair and 2·pair + 1, which are rows `query` and `candidate`."""
    kind = int(rows["retrieved/kind"][query])
    words = [f"{_words(KINDS[kind - 1])} revisit" if kind else "no loop to find"]
    words.append(f"retrieved {_apart(rows, query, candidate):.1f} m away")
    words.append(f"descriptors {rows['retrieved/distance'][query]:.3f} apart")
    inliers, pose = np.zeros(0, np.int64), None
    if "match/pose" in rows:
        translation, rotation = (errors[query] for errors in loop_closure.pose_errors(rows))
        words.append(
            f"{int(rows['match/inliers'][query])} inliers, pose off by {translation:.2f} m and "
            f"{rotation:.1f}°"
        )
        pose = rows["match/pose"][query]
        inliers = np.flatnonzero(rows["match/inlier_mask"][query])
    partner = rows["match/partner"][query][inliers] if inliers.size else inliers
    xy = rows.get("keypoint_xy", np.zeros((len(rows["index"]), 0, 2)))
    return MatchedPair(
        title=", ".join(words),
        grid=method.bev_grid(cfg),
        query_bev=_ink(features["bev"][2 * pair]),
        candidate_bev=_ink(features["bev"][2 * pair + 1]),
        query_name=_frame_name(rows, query),
        candidate_name=_frame_name(rows, candidate),
        query_xy=np.asarray(xy[query][inliers], np.float64),
        candidate_xy=np.asarray(xy[candidate][partner], np.float64),
        candidate_T_query=pose,
    )


def _apart(rows: Mapping[str, np.ndarray], query: int, candidate: int) -> float:
    xyz = np.asarray(rows["map_T_lidar"])[[query, candidate], :3, 3]
    return float(np.linalg.norm(xyz[0] - xyz[1]))


def _ink(bev: np.ndarray) -> np.ndarray:
    """([1,] rows, columns, channels) → (rows, columns) in 0..1: the fullest channel, faint cells lifted."""
    strongest = np.abs(bev.reshape(*bev.shape[-3:]).astype(np.float64)).max(axis=-1)
    return np.sqrt(strongest / max(float(strongest.max()), 1e-9))


def _frame_name(rows: Mapping[str, np.ndarray], row: int) -> str:
    sequence = rows["sequence_name"][row] if "sequence_name" in rows else rows["sequence"][row]
    frame = rows["frame_id"][row] if "frame_id" in rows else rows["sequence_position"][row]
    return f"{sequence} frame {int(frame)}"


def queries_csv(rows: Mapping[str, np.ndarray]) -> bytes:
    """One line a query of the growing database: what it retrieved, whether that is a loop, and the match."""
    asked = np.flatnonzero(rows["retrieved/asked"])
    candidate = rows["retrieved/candidate"][asked]
    frame = rows["frame_id"] if "frame_id" in rows else rows["sequence_position"]
    sequence = rows["sequence_name"] if "sequence_name" in rows else rows["sequence"]
    columns: dict[str, Any] = {
        "sequence": sequence[asked],
        "frame": frame[asked],
        "candidate": np.where(candidate >= 0, frame[np.maximum(candidate, 0)], -1),
        "distance": rows["retrieved/distance"][asked],
        "correct": rows["retrieved/correct"][asked].astype(int),
        "kind": np.array(["", *KINDS])[rows["retrieved/kind"][asked]],
    }
    if "match/pose" in rows:
        pose, true_pose = rows["match/pose"][asked], loop_closure.true_poses(rows)[asked]
        columns["inliers"] = rows["match/inliers"][asked]
        for name, triple in (("pose", pose), ("true_pose", true_pose)):
            columns |= {f"{name}_x_m": triple[:, 0], f"{name}_y_m": triple[:, 1]}
            columns[f"{name}_yaw_deg"] = np.rad2deg(triple[:, 2])
    return csv_file(columns, ".6g")
