"""From six cameras of nuScenes to seven of Argoverse by `--init_from`, with the commands a user types."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorstore

from data_prep.raw.argoverse import RING_CAMERAS

pytestmark = pytest.mark.slow

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIG = f"--config={CHECKOUT / 'configs' / 'maplocnet.py'}:tiny"
SHORT = (
    "--config.train.steps=2",
    "--config.train.eval_every=2",
    "--config.train.checkpoint_every=2",
    "--config.optimizer.warmup_steps=0",
)
ARGOVERSE = (
    "--config.data.root=data/argoverse",
    "--config.data.prepare=()",
    f"--config.data.cameras={RING_CAMERAS!r}",
    f"--config.model.num_cameras={len(RING_CAMERAS)}",
)


def weights(workdir: Path) -> dict[str, np.ndarray]:
    """Every parameter of a run's last checkpoint by name, read with TensorStore alone."""
    (checkpoint,) = (workdir / "checkpoints").glob("2")
    store = {"driver": "ocdbt", "base": f"file://{checkpoint / 'variables'}"}
    keys = tensorstore.KvStore.open(store).result().list().result()
    names = sorted({key.decode().rpartition("/")[0] for key in keys if key.startswith(b"params")})
    specs = ({"driver": "zarr", "kvstore": {**store, "path": f"{name}/"}} for name in names)
    return {n: tensorstore.open(s).result().read().result() for n, s in zip(names, specs, strict=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_command: Callable) -> Path:
    """Where the commands run: a short training on nuScenes, and Argoverse prepared, both of the city."""
    folder = tmp_path_factory.mktemp("user")
    raw = folder / "data" / "raw"
    run_command("-m", "data_prep", "city", "--out", raw, "--size", "tiny", "--formats", "argoverse")
    source = ("--raw", raw / "argoverse", "--osm", raw / "argoverse" / "osm")
    run_command(
        *("-m", "data_prep", "maploc", "--dataset", "argoverse"),
        *source,
        "--out",
        "data/argoverse",
        cwd=folder,
    )
    run_command("-m", "placerec_jax.train", CONFIG, *SHORT, "--workdir=runs/nuscenes", cwd=folder)
    return folder


def test_weights_carry_over_to_another_number_of_cameras(folder: Path, run_command: Callable) -> None:
    """All of them: at a tiny learning rate the new run trains, and ends beside the weights of the old one."""
    tuned = ("--config.optimizer.learning_rate=1e-6", "--init_from=runs/nuscenes", "--workdir=runs/argoverse")
    done = run_command("-m", "placerec_jax.train", CONFIG, *SHORT, *ARGOVERSE, *tuned, cwd=folder)
    assert "arrays match" in done.stderr
    assert "no match" not in done.stderr
    old, new = weights(folder / "runs" / "nuscenes"), weights(folder / "runs" / "argoverse")
    assert old.keys() == new.keys()
    assert len(old) > 50
    for name, value in old.items():
        np.testing.assert_allclose(new[name], value, rtol=0, atol=1e-5, err_msg=name)
    assert any(not np.array_equal(new[name], value) for name, value in old.items())

    same = [argument for argument in tuned if not argument.startswith("--init_from")]
    run_command("-m", "placerec_jax.evaluate", CONFIG, *SHORT, *ARGOVERSE, *same, cwd=folder)
    report = json.loads((folder / "runs" / "argoverse" / "report" / "report.json").read_text())
    assert report["scores"]["queries"] == 6  # the test district of the tiny city
    assert report["dataset"]["built_in_city"] is True
