"""The sizes of the built-in city, with what they cost.

A core here is one of a 2-core virtual machine. `tiny` and `small` were timed whole on an idle machine. The
others were measured in process time on scenes of each size, beside the city as it was before it had hills,
bends and traffic, whose times were taken on an idle machine: `medium` costs 1.22 times as much; `large` is
scaled by the same. Time goes with keyframes and pixels (0.75 µs of a core a pixel) and divides by the
workers; each of them also builds its towns, 2 to 7 s each.

| size   | towns | keyframes | images   | core time a keyframe | 2 free cores | disk   | memory a worker |
|--------|-------|-----------|----------|----------------------|--------------|--------|-----------------|
| tiny   | 1     | 24        | 160x90   | 0.07 s               | 5 s          | 12 MB  | 0.2 GB          |
| small  | 2     | 2,400     | 192x108  | 0.11 s               | 140 s        | 0.5 GB | 0.25 GB         |
| medium | 4     | 8,000     | 800x450  | 1.6 s                | 1.8 hours    | 8 GB   | 0.35 GB         |
| large  | 4     | 28,000    | 1600x900 | 7 s                  | 28 hours     | 76 GB  | 0.6 GB          |

`medium` and `large` are for machines with many cores: 16 of them make `medium` in about 14 minutes, `large`
in 3.5 hours.

For place recognition there are `revisited` (2 towns, 2,400 keyframes, images of 160x90, 32 x 360 rays,
0.65 GB) and `tiny_revisited` (72 keyframes, 80x45, 32 x 120, 11 s of a core): few streets, each driven four
times, on dates of their own. `revisited` took nine minutes on two cores that others used as well.

Of KITTI, `tiny` and `small` were measured in process time; the others follow from their pixels and rays.

| size   | towns | scans  | images   | rays a scan | core time a scan | 2 free cores | disk   |
|--------|-------|--------|----------|-------------|------------------|--------------|--------|
| tiny   | 1     | 450    | 138x42   | 64 x 120    | 0.02 s           | 6 s          | 57 MB  |
| small  | 1     | 4,900  | 414x125  | 64 x 400    | 0.06 s           | 3 min        | 2.3 GB |
| medium | 2     | 26,000 | 621x188  | 64 x 1000   | 0.13 s           | 30 min       | 33 GB  |
| large  | 2     | 54,000 | 1242x375 | 64 x 2000   | 0.45 s           | 3.5 hours    | 160 GB |

Of KITTI-360, with four images a scan, pieces of `tiny` and `small` were measured in process time, on a busy
machine; the others follow from their pixels.

| size   | towns | scans  | images              | rays a scan | core time a scan | 2 free cores | disk   |
|--------|-------|--------|---------------------|-------------|------------------|--------------|--------|
| tiny   | 1     | 450    | 156x42, 80x80       | 64 x 120    | 0.06 s           | 15 s         | 75 MB  |
| small  | 1     | 3,080  | 469x125, 192x192    | 64 x 400    | 0.15 s           | 4 min        | 2.2 GB |
| medium | 2     | 26,000 | 704x188, 700x700    | 64 x 1000   | 0.9 s            | 3.3 hours    | 75 GB  |
| large  | 2     | 54,000 | 1408x376, 1400x1400 | 64 x 2000   | 3.4 s            | 26 hours     | 0.5 TB |
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

from data_prep import geodesy

# The ground (x, y), in metres from the origin of a location's map frame, that its town may use. MIA and PIT
# are Argoverse's cities, whose frames have no edges, nor have those of KITTI's and KITTI-360's town.
CANVASES: dict[str, tuple[float, float]] = {
    **geodesy.SIZES,
    "MIA": (2400.0, 3200.0),
    "PIT": (3200.0, 2400.0),
    **{f"karlsruhe-{part}": (2400.0, 2000.0) for part in ("east", "west", "north", "south")},
}


@dataclass(frozen=True)
class DistrictSize:
    """One district of every town: its extent (along, across) in metres and its keyframes per town."""

    extent: tuple[float, float]
    keyframes: int


@dataclass(frozen=True)
class CitySize:
    """Everything that `--size` chooses."""

    locations: tuple[str, ...]  # of nuScenes
    districts: dict[str, DistrictSize]  # "train", "val", "test"
    block_area: float  # m²
    image_size: tuple[int, int]  # width, height
    lidar_azimuths: int  # per turn, times 32 beams
    scene_keyframes: int  # per scene, at 2 Hz
    fisheye_side: int = field(default=0, kw_only=True)  # pixels of the square images of fisheyes, if any
    repeats: ClassVar[tuple[str, ...]] = ()  # see RepeatedSize


@dataclass(frozen=True)
class RepeatedSize(CitySize):
    """As CitySize, of towns in which every drive is one scene and is driven again on other dates.

    `repeats`, of drives.REVISITS, says in which ways: each of them once for every first drive.
    """

    repeats: tuple[str, ...]  # type: ignore[misc]


@dataclass(frozen=True)
class LoopSize(CitySize):
    """As CitySize, of towns that are driven in sequences with a keyframe for each turn of the LiDAR."""

    sequences: dict[str, int]  # of each district of every town, which share its keyframes
    frame_seconds: float = 0.1
    new_streets: float = 0.34  # of the metres of a drive, wished for; the others are revisits
    span: float = 0.0  # m between the farthest two junctions of a drive, wished for


_ALL_TOWNS = ("boston-seaport", "singapore-onenorth", "singapore-hollandvillage", "singapore-queenstown")

SIZES: dict[str, CitySize] = {
    "tiny": CitySize(
        locations=("boston-seaport",),
        districts={
            "train": DistrictSize((170.0, 150.0), 12),
            "val": DistrictSize((120.0, 110.0), 6),
            "test": DistrictSize((120.0, 110.0), 6),
        },
        block_area=5500.0,
        image_size=(160, 90),
        lidar_azimuths=180,
        scene_keyframes=6,
    ),
    "small": CitySize(
        locations=("boston-seaport", "singapore-onenorth"),
        districts={
            "train": DistrictSize((560.0, 480.0), 920),
            "val": DistrictSize((190.0, 170.0), 80),
            "test": DistrictSize((300.0, 280.0), 200),
        },
        block_area=7500.0,
        image_size=(192, 108),
        lidar_azimuths=240,
        scene_keyframes=40,
    ),
    "tiny_revisited": RepeatedSize(
        locations=("boston-seaport",),
        districts={
            "train": DistrictSize((170.0, 150.0), 56),
            "val": DistrictSize((120.0, 110.0), 4),
            "test": DistrictSize((120.0, 110.0), 12),
        },
        block_area=5500.0,
        image_size=(80, 45),
        lidar_azimuths=120,
        scene_keyframes=14,
        repeats=("opposite", "lane", "same"),
    ),
    "revisited": RepeatedSize(
        locations=("boston-seaport", "singapore-onenorth"),
        districts={
            "train": DistrictSize((340.0, 300.0), 800),
            "val": DistrictSize((150.0, 130.0), 80),
            "test": DistrictSize((240.0, 210.0), 320),
        },
        block_area=6500.0,
        image_size=(160, 90),
        lidar_azimuths=360,
        scene_keyframes=40,
        repeats=("opposite", "lane", "same"),
    ),
    "medium": CitySize(
        locations=_ALL_TOWNS,
        districts={
            "train": DistrictSize((640.0, 560.0), 1440),
            "val": DistrictSize((280.0, 260.0), 200),
            "test": DistrictSize((380.0, 340.0), 360),
        },
        block_area=8000.0,
        image_size=(800, 450),
        lidar_azimuths=720,
        scene_keyframes=40,
    ),
    "large": CitySize(
        locations=_ALL_TOWNS,
        districts={
            "train": DistrictSize((960.0, 900.0), 5280),
            "val": DistrictSize((380.0, 300.0), 640),
            "test": DistrictSize((420.0, 420.0), 1080),
        },
        block_area=9000.0,
        image_size=(1600, 900),
        lidar_azimuths=1080,
        scene_keyframes=40,
    ),
}

# KITTI odometry. A third of its image width, 414 pixels, turns the crop of 1152x384 into 384x128.
KITTI_SIZES: dict[str, LoopSize] = {
    "tiny": LoopSize(
        locations=("karlsruhe-east",),
        districts={
            "train": DistrictSize((170.0, 150.0), 150),
            "val": DistrictSize((120.0, 110.0), 150),
            "test": DistrictSize((120.0, 110.0), 150),
        },
        block_area=2600.0,
        image_size=(138, 42),
        lidar_azimuths=120,
        scene_keyframes=75,
        sequences={"train": 1, "val": 1, "test": 1},
        frame_seconds=0.3,
    ),
    "small": LoopSize(
        locations=("karlsruhe-east",),
        districts={
            "train": DistrictSize((600.0, 460.0), 2000),
            "val": DistrictSize((400.0, 280.0), 500),
            "test": DistrictSize((600.0, 420.0), 2400),
        },
        block_area=4500.0,
        image_size=(414, 125),
        lidar_azimuths=400,
        scene_keyframes=100,
        sequences={"train": 4, "val": 1, "test": 3},
        frame_seconds=0.24,
        new_streets=0.5,
        span=400.0,
    ),
    "medium": LoopSize(
        locations=("karlsruhe-east", "karlsruhe-west"),
        districts={
            "train": DistrictSize((640.0, 560.0), 7500),
            "val": DistrictSize((300.0, 260.0), 1000),
            "test": DistrictSize((420.0, 360.0), 4500),
        },
        block_area=5000.0,
        image_size=(621, 188),
        lidar_azimuths=1000,
        scene_keyframes=100,
        sequences={"train": 5, "val": 1, "test": 3},
    ),
    "large": LoopSize(
        locations=("karlsruhe-east", "karlsruhe-west"),
        districts={
            "train": DistrictSize((960.0, 900.0), 16000),
            "val": DistrictSize((380.0, 340.0), 3000),
            "test": DistrictSize((460.0, 420.0), 8000),
        },
        block_area=7000.0,
        image_size=(1242, 375),
        lidar_azimuths=2000,
        scene_keyframes=100,
        sequences={"train": 5, "val": 1, "test": 3},
    ),
}

# KITTI-360: other towns. `small` is driven for variety: it sees most of its streets once, every 2 m.
KITTI360_SIZES: dict[str, LoopSize] = {
    "tiny": replace(
        KITTI_SIZES["tiny"], locations=("karlsruhe-north",), image_size=(156, 42), fisheye_side=80
    ),
    "small": LoopSize(
        locations=("karlsruhe-north",),
        districts={
            "train": DistrictSize((700.0, 600.0), 2000),
            "val": DistrictSize((400.0, 300.0), 320),
            "test": DistrictSize((520.0, 420.0), 760),
        },
        block_area=5500.0,
        image_size=(469, 125),
        fisheye_side=192,
        lidar_azimuths=400,
        scene_keyframes=80,
        sequences={"train": 8, "val": 1, "test": 1},
        frame_seconds=0.25,
        new_streets=0.9,
    ),
    "medium": replace(
        KITTI_SIZES["medium"],
        locations=("karlsruhe-north", "karlsruhe-south"),
        image_size=(704, 188),
        fisheye_side=700,
    ),
    "large": replace(
        KITTI_SIZES["large"],
        locations=("karlsruhe-north", "karlsruhe-south"),
        image_size=(1408, 376),
        fisheye_side=1400,
    ),
}

# By the name that a layout of recording.py says.
SIZE_TABLES: dict[str, Mapping[str, CitySize]] = {
    "keyframes": SIZES,
    "kitti": KITTI_SIZES,
    "kitti360": KITTI360_SIZES,
}
