"""`benchmarks.loop_closure`: the stages are the deployed ones, counted by hand, beside the paper's times."""

import json

import jax
import ml_collections
import numpy as np
import pytest

from benchmarks import loop_closure as benchmark
from benchmarks import machine as machines
from benchmarks.timing import summary
from configs import cross_fusion_lcd as configs
from placerec_jax.data import scans
from placerec_jax.errors import ConfigError
from placerec_jax.methods import cross_fusion_lcd as lcd
from placerec_jax.training.cost import Cost

DATABASE = 300
MACHINE = machines.Machine("test", "cpu", {"float32": 100e9}, 10e9, None)


def config() -> ml_collections.FrozenConfigDict:
    cfg = configs.get_config("tiny")
    cfg.model.bev.extent, cfg.model.bev.cell = (-16.0, 16.0, -16.0, 16.0), 0.5
    return ml_collections.FrozenConfigDict(cfg)


@pytest.fixture(scope="module")
def stages() -> dict[str, benchmark.Stage]:
    return {s.name: s for s in benchmark.measure_stages(config(), DATABASE, MACHINE, seconds=0.01)}


def report(stages: list[benchmark.Stage]) -> benchmark.Report:
    about = dict.fromkeys(("config", "command", "created", "jax", "cores", "dtype", "keypoints"), "?")
    return benchmark.Report(about | {"points": 9, "database": 9, "hypotheses": 9}, MACHINE, stages)


def test_the_published_times_are_those_of_the_paper():
    assert [benchmark.PUBLISHED[f"{stage}_ms"] for stage in benchmark.STAGES] == [42.50, 0.89, 3.05]
    assert sum((42.50, 0.89, 3.05)) == pytest.approx(benchmark.PUBLISHED["total_ms"])


def test_every_stage_is_timed_and_counted(stages):
    assert list(stages) == ["extraction", "BEV", "network", "retrieval", "verification"]
    for stage in stages.values():
        assert 0 < stage.timing.lower <= stage.timing.median <= stage.timing.upper < 60
    shapes = described_shapes()
    width = shapes["descriptor"][-1]
    assert stages["retrieval"].cost.macs == DATABASE * width
    assert stages["retrieval"].floor == 4 * DATABASE * width / 10e9
    _, points, channels = shapes["keypoint_feature"]
    assert stages["verification"].cost.macs >= points**2 * channels  # all pairs of key points are compared
    assert stages["extraction"].cost == stages["network"].cost
    assert stages["BEV"].ratio is None


def described_shapes() -> dict[str, tuple[int, ...]]:
    cfg = config()
    batch = {name: np.zeros((1, *f.shape), f.dtype) for name, f in lcd.features(cfg).items()}
    model = lcd.model(cfg)

    def run(batch: dict) -> dict:
        variables = model.init(jax.random.key(0), batch, train=False)
        return lcd.predict(cfg, model.apply(variables, batch, train=False), batch)

    return {name: x.shape for name, x in jax.eval_shape(run, batch).items()}


def test_a_filled_database_is_asked_about_all_of_it():
    """The last scan has every other one as a candidate, and they are told apart."""
    cfg = config()
    batch = {name: np.zeros((1, *f.shape), f.dtype) for name, f in lcd.features(cfg).items()}
    variables = jax.jit(lambda b: lcd.model(cfg).init(jax.random.key(0), b, train=False))(batch)
    database = benchmark.filled_database(cfg, variables, benchmark.simulated_scan(16, 400), DATABASE)
    found = database.query(DATABASE, count=DATABASE + 5)
    assert sorted(number for number, _ in found) == list(range(DATABASE))
    assert len({distance for _, distance in found}) > DATABASE / 2


def test_the_simulated_scan_is_as_large_as_a_real_one_and_fills_the_view():
    scan = benchmark.simulated_scan()
    assert scan.shape == (120_000, 4)
    assert np.isfinite(scan).all()
    assert scan[:, 2].min() == pytest.approx(-1.73, abs=0.1)  # the ground
    assert 0 <= scan[:, 3].min() <= scan[:, 3].max() <= 1
    cfg = configs.get_config("kitti")
    bev = scans.encode_bev(
        scan[:, :3],
        scan[:, 3],
        lcd.bev_grid(cfg),
        tuple(cfg.model.bev.z_range),
        cfg.model.bev.encoding,
    )
    assert 0.05 < scans.occupied_cells(bev).mean() < 0.5


def test_the_table_puts_the_papers_times_beside_ours():
    def stage(name: str, seconds: float, floor: float | None) -> benchmark.Stage:
        return benchmark.Stage(name, summary([seconds] * 3), Cost(macs=2 * 10**9) if floor else None, floor)

    stages = [
        stage("extraction", 0.080, 0.040),
        stage("BEV", 0.020, None),
        stage("retrieval", 0.010, 0.002),
        stage("verification", 0.005, 0.005),
    ]
    lines = benchmark.as_markdown(report(stages)).splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == [
        "| extraction | 2.000 | 80 | 80 – 80 | 40 | 2.0 | 42.50 |",
        "| – BEV |  | 20 | 20 – 20 |  |  |  |",
        "| retrieval | 2.000 | 10 | 10 – 10 | 2 | **5.0** | 0.89 |",
        "| verification | 2.000 | 5 | 5 – 5 | 5 | 1.0 | 3.05 |",
        "| together | | 95 | | | | 46.44 |",  # the BEV is a part of extraction
    ]


def test_json_holds_the_same(stages):
    values = benchmark.as_json(report(list(stages.values())))
    assert json.loads(json.dumps(values)) == values
    assert [row["name"] for row in values["stages"]] == list(stages)
    assert values["stages"][0]["published_seconds"] == pytest.approx(0.0425)


def test_pictures_are_refused():
    """The deployed path begins with points."""
    cfg = ml_collections.FrozenConfigDict(configs.get_config("kitti_bev"))
    with pytest.raises(ConfigError, match="input points"):
        benchmark.measure(cfg, 1, seconds=0.01)
