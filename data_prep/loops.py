"""How many loops a dataset has, from its poses alone.

    python -m data_prep loops --raw ROOT --format kitti|kitti360|bev [--distance 4] [--gap 50]

Frame i closes a loop when a frame that is more than `gap` frames earlier in the sequence lies nearer than
`distance` metres (3-D). It is a reverse one when the nearest such frame was passed with a heading more than
90° away. Scans need not be there: the poses and the calibration do.
"""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import scipy.spatial

from data_prep import option_types, scan_sources
from data_prep.raw.scans import ScanSequence

# What "more than `gap` frames apart" counts: places in the pose list, or the numbers in the files' names.
GAP_BY: dict[str, Callable[[ScanSequence], np.ndarray]] = {
    "position": lambda sequence: np.arange(len(sequence.scans)),
    "frame_id": lambda sequence: np.array([scan.frame_id for scan in sequence.scans], np.int64),
}


@dataclasses.dataclass(frozen=True)
class LoopRule:
    """Two frames are a loop when nearer than `distance` (m, 3-D) and more than `gap` frames apart."""

    distance: float = 4.0
    gap: int = 50
    gap_by: str = "position"


@dataclasses.dataclass(frozen=True)
class Loops:
    """All loops of one sequence; frames are numbered by their place in it.

    `pairs` (M, 2) int64 are (later, earlier), ascending; `separation` (M,) their distances in metres and
    `reverse` (M,) whether their headings differ by more than 90°.
    """

    frames: int
    pairs: np.ndarray
    separation: np.ndarray
    reverse: np.ndarray

    def positives(self) -> tuple[np.ndarray, np.ndarray]:
        """`offset` (frames + 1,) and `positive`: frame f's loops, both ways in time, are positive[offset[f] :
        offset[f + 1]], ascending."""
        both = np.concatenate([self.pairs, self.pairs[:, ::-1]])
        both = both[np.lexsort((both[:, 1], both[:, 0]))]
        offset = np.searchsorted(both[:, 0], np.arange(self.frames + 1))
        return offset.astype(np.int64), both[:, 1]

    def counts(self) -> dict[str, int]:
        """Frames, queries with an earlier loop, reverse ones among them, frames with any loop."""
        nearest_first = np.lexsort((self.separation, self.pairs[:, 0]))
        queries, first = np.unique(self.pairs[nearest_first, 0], return_index=True)
        return {
            "frames": self.frames,
            "queries_with_past_loop": len(queries),
            "reverse": int(self.reverse[nearest_first][first].sum()),
            "frames_with_any_loop": len(np.unique(self.pairs)),
        }


def find_loops(sequence: ScanSequence, rule: LoopRule) -> Loops:
    """Every pair of the sequence's frames that is a loop by `rule`."""
    map_T_lidar = np.array([scan.map_T_lidar for scan in sequence.scans]).reshape(-1, 4, 4)
    order = GAP_BY[rule.gap_by](sequence)
    xyz, heading = map_T_lidar[:, :3, 3], map_T_lidar[:, :3, 0]
    near = np.zeros((0, 2), np.int64)
    if len(xyz):
        near = scipy.spatial.KDTree(xyz).query_pairs(rule.distance, output_type="ndarray").astype(np.int64)
    near = np.sort(near, axis=1)[:, ::-1]
    separation = np.linalg.norm(xyz[near[:, 0]] - xyz[near[:, 1]], axis=1)
    is_loop = (separation < rule.distance) & (order[near[:, 0]] - order[near[:, 1]] > rule.gap)
    near, separation = near[is_loop], separation[is_loop]
    ascending = np.lexsort((near[:, 1], near[:, 0]))
    near, separation = near[ascending], separation[ascending]
    reverse = np.einsum("ni,ni->n", heading[near[:, 0]], heading[near[:, 1]]) < 0
    return Loops(len(xyz), near, separation, reverse)


def add_rule_options(parser: argparse.ArgumentParser, prefix: str) -> None:
    """The options of a LoopRule: --distance, --gap, --gap-by, or with a prefix before distance and gap."""
    default = LoopRule()
    parser.add_argument(
        f"--{prefix}distance",
        dest="loop_distance",
        type=option_types.positive_metres,
        default=default.distance,
        help=f"metres, 3-D, below which two frames are one place (default {default.distance:g})",
    )
    parser.add_argument(
        f"--{prefix}gap",
        dest="loop_gap",
        type=option_types.zero_or_more,
        default=default.gap,
        help=f"frames that must lie between them at least (default {default.gap})",
    )
    parser.add_argument(
        "--gap-by",
        choices=sorted(GAP_BY),
        default=default.gap_by,
        help="count the gap by place in the pose list, or by the ids in the files' names "
        f"(default {default.gap_by}, as LCDNet does)",
    )


def rule_of(options: argparse.Namespace) -> LoopRule:
    """The rule that the options of `add_rule_options` say."""
    return LoopRule(options.loop_distance, options.loop_gap, options.gap_by)


_COLUMNS = (
    ("frames", "frames"),
    ("queries_with_past_loop", "queries with a past loop"),
    ("reverse", "reverse (>90°)"),
    ("frames_with_any_loop", "frames with any loop"),
)


def table(rows: Sequence[tuple[str, Mapping[str, int], str]]) -> str:
    """(sequence, its counts, where its poses are from) as lines of text, with the sum over sequences."""
    if len(rows) > 1:
        total = {key: sum(count[key] for _, count, _ in rows) for key, _ in _COLUMNS}
        rows = [*rows, ("all", total, "")]
    width = max(len("sequence"), *(len(name) for name, _, _ in rows))
    lines = [f"{'sequence':<{width}}" + "".join(f"  {title}" for _, title in _COLUMNS) + "  poses"]
    for name, count, pose_source in rows:
        cells = "".join(f"  {count[key]:>{len(title)}}" for key, title in _COLUMNS)
        lines.append(f"{name:<{width}}{cells}  {pose_source}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """The command line: see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep loops", description="Count the loops of a dataset from its poses alone."
    )
    scan_sources.add_source_options(parser)
    add_rule_options(parser, "")
    options = parser.parse_args(argv)
    rule = rule_of(options)
    source = scan_sources.open_source(options, require_scans=False)
    print(table([(s.name, find_loops(s, rule).counts(), s.pose_source) for s in source.sequences]))
    print(
        f"loop: nearer than {rule.distance:g} m in 3-D and more than {rule.gap} frames apart, by "
        f"{rule.gap_by}; reverse: the nearest earlier frame's heading differs by more than 90°"
    )
