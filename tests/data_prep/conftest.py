"""A nuScenes root of a few frames and an OSM extract about them, small enough to break in every way."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from data_prep import geodesy
from data_prep.raw import nuscenes

LOCATION = "singapore-onenorth"
VERSION = "v1.0-trainval"
IMAGE_SIZE = (64, 36)
# One scene of each official split, so far apart that the geographic splits keep some of each.
SCENES = ("scene-0001", "scene-0003", "scene-0077")


@dataclasses.dataclass
class TinyRoot:
    """A nuScenes root on disk, and its tables as lists of dicts to change and `write` again."""

    root: Path
    osm: Path
    tables: dict[str, list[dict[str, Any]]]
    drivable: dict[str, Any]

    def write(self) -> None:
        folder = self.root / VERSION
        folder.mkdir(parents=True, exist_ok=True)
        for name, records in self.tables.items():
            (folder / f"{name}.json").write_text(json.dumps(records, indent=0))
        expansion = nuscenes.map_expansion_file(self.root, LOCATION)
        expansion.parent.mkdir(parents=True, exist_ok=True)
        expansion.write_text(json.dumps(self.drivable))

    def table(self, name: str) -> Path:
        return self.root / VERSION / f"{name}.json"

    def record(self, table: str, **values: Any) -> dict[str, Any]:
        """The first record of a table with these values."""
        return next(r for r in self.tables[table] if all(r[k] == v for k, v in values.items()))


def osm_xml(nodes: dict[int, tuple[float, float]], body: str, location: str = LOCATION) -> str:
    """OSM XML with nodes given as identifier → map (x, y) in metres, then `body`."""
    lines = ['<osm version="0.6" timestamp="2024-05-06T00:00:00Z">']
    for identifier, xy in nodes.items():
        lat, lon = geodesy.map_to_wgs84(xy, location)
        lines.append(f'<node id="{identifier}" version="1" lat="{lat:.7f}" lon="{lon:.7f}"/>')
    return "\n".join([*lines, body, "</osm>"])


def make_root(folder: Path, frames_per_scene: int = 2, image_size: tuple[int, int] = IMAGE_SIZE) -> TinyRoot:
    """Scenes along a straight street, 300 m apart, one frame every 2 m."""
    rng = np.random.default_rng(0)
    root = folder / "raw"
    width, height = image_size
    tables: dict[str, list[dict[str, Any]]] = {name: [] for name in nuscenes.TABLES}
    tables["log"].append({"token": "log", "location": LOCATION, "date_captured": "2018-05-21"})
    for index, channel in enumerate((*nuscenes.CAMERAS, nuscenes.LIDAR, "RADAR_FRONT")):
        (root / "samples" / channel).mkdir(parents=True)
        camera = channel.startswith("CAM")
        half = np.deg2rad(60 * index) / 2
        tables["sensor"].append({"token": f"sensor-{channel}", "channel": channel})
        tables["calibrated_sensor"].append(
            {
                "token": f"calibrated-{channel}",
                "sensor_token": f"sensor-{channel}",
                "translation": [1.0, 0.1 * index, 1.5],
                "rotation": [np.cos(half), 0.0, 0.0, np.sin(half)],
                "camera_intrinsic": [[50.0, 0, width / 2], [0, 50.0, height / 2], [0, 0, 1]]
                if camera
                else [],
            }
        )
        if camera:
            pixels = cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), image_size)
            cv2.imwrite(str(root / "samples" / channel / "image.jpg"), pixels)
        else:
            (root / "samples" / channel / "sweep.pcd.bin").write_bytes(bytes(nuscenes.LIDAR_POINT_BYTES * 3))
    for number, scene in enumerate(SCENES):
        tables["scene"].append(
            {
                "token": scene,
                "name": scene,
                "log_token": "log",
                "nbr_samples": frames_per_scene,
                "first_sample_token": f"sample-{number}-0",
            }
        )
        for i in range(frames_per_scene):
            sample, time = f"sample-{number}-{i}", 1_000_000 * number + 1000 * i
            following = f"sample-{number}-{i + 1}" if i + 1 < frames_per_scene else ""
            tables["sample"].append(
                {"token": sample, "timestamp": time, "scene_token": scene, "next": following}
            )
            for record in tables["calibrated_sensor"]:
                channel = record["token"].removeprefix("calibrated-")
                camera = channel.startswith("CAM")
                name = f"{sample}-{channel}"
                # Each sensor has a pose of its own; the frame's is that of the LiDAR.
                offset = 0.0 if channel == nuscenes.LIDAR else 0.01
                yaw = 0.3 + 0.01 * i
                tables["ego_pose"].append(
                    {
                        "token": f"pose-{name}",
                        "timestamp": time,
                        "rotation": [np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)],
                        "translation": [300.0 + 300 * number + 2 * i + offset, 500.0, 0.0],
                    }
                )
                tables["sample_data"].append(
                    {
                        "token": f"data-{name}",
                        "sample_token": sample,
                        "ego_pose_token": f"pose-{name}",
                        "calibrated_sensor_token": record["token"],
                        "timestamp": time + 1,
                        "is_key_frame": True,
                        "width": width if camera else 0,
                        "height": height if camera else 0,
                        "filename": f"samples/{channel}/{'image.jpg' if camera else 'sweep.pcd.bin'}",
                    }
                )
    # A sweep between keyframes, with a pose and a file that nobody may ask for.
    tables["sample_data"].append(
        {**tables["sample_data"][0], "token": "sweep", "is_key_frame": False, "filename": "sweeps/x"}
    )
    drivable = {
        "version": "1.3",
        "node": [
            {"token": f"n{i}", "x": x, "y": y}
            for i, (x, y) in enumerate(
                [(200, 490), (1200, 490), (1200, 510), (200, 510), (400, 495), (420, 495), (420, 505)]
            )
        ],
        "polygon": [
            {
                "token": "p",
                "exterior_node_tokens": ["n0", "n1", "n2", "n3"],
                "holes": [{"node_tokens": ["n4", "n5", "n6"]}],
            }
        ],
        "drivable_area": [{"token": "d", "polygon_tokens": ["p"]}],
    }
    extract = folder / "map.osm"
    extract.write_text(
        osm_xml(
            {1: (200, 500), 2: (1200, 500), 3: (300, 520), 4: (330, 520), 5: (330, 540), 6: (300, 540)},
            '<way id="1" version="1"><nd ref="1"/><nd ref="2"/><tag k="highway" v="residential"/></way>\n'
            '<way id="2" version="1"><nd ref="3"/><nd ref="4"/><nd ref="5"/><nd ref="6"/><nd ref="3"/>'
            '<tag k="building" v="yes"/></way>',
        )
    )
    tiny = TinyRoot(root, extract, tables, drivable)
    tiny.write()
    return tiny


@pytest.fixture
def tiny(tmp_path: Path) -> TinyRoot:
    """Three scenes of two frames."""
    return make_root(tmp_path)


@pytest.fixture
def make_tiny(tmp_path: Path) -> Callable[..., TinyRoot]:
    """`make_tiny(frames_per_scene=..., image_size=...)`."""

    def make(**options: Any) -> TinyRoot:
        return make_root(tmp_path, **options)

    return make


@pytest.fixture
def write_osm(tmp_path: Path) -> Callable[..., Path]:
    """`write_osm(nodes, body)`: an extract with nodes at map positions of singapore-onenorth."""

    def write(nodes: dict[int, tuple[float, float]], body: str, name: str = "test.osm") -> Path:
        path = tmp_path / name
        path.write_text(osm_xml(nodes, body))
        return path

    return write
