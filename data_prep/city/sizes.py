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
"""

from dataclasses import dataclass

from data_prep import geodesy

# The ground (x, y), in metres from the origin of a location's map frame, that its town may use. MIA and PIT
# are Argoverse's cities, whose frames have no edges.
CANVASES: dict[str, tuple[float, float]] = {
    **geodesy.SIZES,
    "MIA": (2400.0, 3200.0),
    "PIT": (3200.0, 2400.0),
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
