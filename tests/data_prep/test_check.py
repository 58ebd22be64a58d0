"""`python -m data_prep check`: what is there, what is missing."""

import pytest

from data_prep import check
from data_prep.raw import nuscenes

from .conftest import VERSION, TinyRoot


def findings(tiny: TinyRoot) -> dict[bool, str]:
    """Good and bad lines, each joined."""
    _, lines = check.check_nuscenes(tiny.root, VERSION, workers=2, image_width=48)
    lines = list(lines)
    return {good: "\n".join(line for g, line in lines if g == good) for good in (True, False)}


def test_whole(make_tiny):
    # The tiny root shares one file a sensor between its frames; one frame a scene and one scene's worth of
    # files.
    tiny = make_tiny(frames_per_scene=1)
    for channel in (*nuscenes.CAMERAS, nuscenes.LIDAR):
        (file,) = (tiny.root / "samples" / channel).iterdir()
        for copy in range(2):
            file.with_name(f"{copy}{file.name}").write_bytes(file.read_bytes())
    found = findings(tiny)
    assert found[False] == ""
    assert "tables: 7 of 7" in found[True]
    assert "3 scenes, 3 keyframes (singapore-onenorth 3)" in found[True]
    assert "samples/CAM_FRONT: 3 files for 3 keyframes" in found[True]
    assert "1 drivable polygons" in found[True]
    assert "`maploc` would take about" in found[True]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda t: t.table("log").unlink(), "tables: 6 of 7; log"),
        (
            lambda t: t.table("ego_pose").write_text(t.table("ego_pose").read_text()[:-9]),
            r"(truncated); ego_pose",
        ),
        (
            lambda t: next((t.root / "samples/CAM_BACK").iterdir()).unlink(),
            "samples/CAM_BACK: 0 files for 6 keyframes",
        ),
        (
            lambda t: next((t.root / "samples/LIDAR_TOP").iterdir()).unlink(),
            "6 are missing, the first samples/LIDAR_TOP/sweep.pcd.bin",
        ),
        (
            lambda t: nuscenes.map_expansion_file(t.root, "singapore-onenorth").unlink(),
            "expected the map expansion of singapore-onenorth",
        ),
        (lambda t: (t.record("scene", token="scene-0001").update(log_token="gone"), t.write()), "'gone'"),
    ],
)
def test_missing(tiny, damage, expected):
    damage(tiny)
    assert expected in findings(tiny)[False]


def test_exit_status(tiny, run_command):
    done = run_command("-m", "data_prep", "check", tiny.root, expect=1)
    assert "MISSING samples/CAM_FRONT: 1 files for 6 keyframes" in done.stdout
    assert "Not all is there" in done.stdout


@pytest.mark.real_data
def test_real_root(real_data, run_command):
    done = run_command("-m", "data_prep", "check", real_data / "nuscenes")
    assert "1 keyframes (singapore-onenorth 1)" in done.stdout
    assert "Everything is there" in done.stdout
