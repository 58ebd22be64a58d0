"""From nothing to a report by the commands a user types, on the tiny city, in a folder of its own."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from configs import maplocnet as config_module
from placerec_jax import methods
from placerec_jax.data.prepared import PreparedFolder

CHECKOUT = Path(__file__).resolve().parent.parent
CONFIG = f"--config={CHECKOUT / 'configs' / 'maplocnet.py'}:tiny"
STEPS = config_module.get_config("tiny").train.steps

# First on PYTHONPATH, it makes a Python in which TensorFlow is not installed.
WITHOUT_TENSORFLOW = """
import importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "tensorflow" else super().find_spec(name, path, target)

sys.meta_path[:] = [Finder if f is importlib.machinery.PathFinder else f for f in sys.meta_path]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: the configs' relative paths (data/, runs/) begin here."""
    return tmp_path_factory.mktemp("user")


@pytest.fixture(scope="module")
def trained(folder: Path, run_command: Callable) -> Path:
    """The working directory of one training, which had to prepare the city first."""
    done = run_command("-m", "placerec_jax.train", CONFIG, "--workdir=runs/demo", cwd=folder)
    assert "-m data_prep city" in done.stderr
    return folder / "runs" / "demo"


@pytest.fixture(scope="module")
def evaluated(trained: Path, folder: Path, run_command: Callable) -> dict:
    """The report of that training, as JSON."""
    run_command("-m", "placerec_jax.evaluate", CONFIG, "--workdir=runs/demo", cwd=folder)
    return json.loads((trained / "report" / "report.json").read_text())


def _tiny(folder: Path) -> ml_collections.ConfigDict:
    cfg = config_module.get_config("tiny")
    cfg.data.root = str(folder / cfg.data.root)
    return cfg


def test_training_logs_every_step_and_the_validation_figures(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == STEPS
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert any("position_median" in key for line in lines for key in line), lines[-1].keys()


def test_report_counts_every_held_out_frame_once(evaluated: dict, folder: Path) -> None:
    cfg = _tiny(folder)
    test_split = PreparedFolder(cfg.data.root).split(cfg.data.scheme, cfg.data.test_split)
    assert len(test_split) == len(set(test_split)) > 0
    assert evaluated["scores"]["queries"] == len(test_split)
    assert evaluated["dataset"]["built_in_city"] is True
    assert 0 < evaluated["checkpoint"]["step"] <= STEPS


def test_report_scores_doing_nothing_as_the_noise_itself(evaluated: dict, folder: Path) -> None:
    """Doing nothing errs by the offset that was drawn: at most noise_xy·√2 metres and noise_yaw degrees."""
    cfg = _tiny(folder)
    nothing = evaluated["scores"]["estimates"]["do_nothing"]
    assert 0 < nothing["position"]["median"] <= cfg.data.noise_xy * math.sqrt(2)
    assert 0 < nothing["orientation"]["median"] <= cfg.data.noise_yaw
    for estimate in evaluated["scores"]["estimates"].values():
        for error in estimate.values():
            assert error["recall"] == sorted(error["recall"])
            assert all(0 <= share <= 100 for share in error["recall"])


def test_page_is_self_contained_and_says_where_it_comes_from(evaluated: dict, trained: Path) -> None:
    page = (trained / "report" / "index.html").read_text()
    assert "built-in city" in page
    assert "data:image/" in page
    outside = re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)[^"']+""", page)
    assert not outside, outside
    assert evaluated["dataset"]["fingerprint"] in page


def test_finished_training_run_again_changes_nothing(
    trained: Path, folder: Path, run_command: Callable
) -> None:
    before = (trained / "metrics.jsonl").read_bytes()
    done = run_command("-m", "placerec_jax.train", CONFIG, "--workdir=runs/demo", cwd=folder)
    assert "data_prep" not in done.stderr, "the city was prepared twice"
    assert (trained / "metrics.jsonl").read_bytes() == before


def test_evaluation_run_again_gives_the_same_scores(
    evaluated: dict, trained: Path, folder: Path, run_command: Callable
) -> None:
    run_command("-m", "placerec_jax.evaluate", CONFIG, "--workdir=runs/demo", cwd=folder)
    again = json.loads((trained / "report" / "report.json").read_text())
    assert again["scores"] == evaluated["scores"]


def test_training_and_evaluation_run_without_tensorflow(
    trained: Path, folder: Path, run_command: Callable, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WITHOUT_TENSORFLOW)
    env = {"PYTHONPATH": f"{tmp_path}:{CHECKOUT}"}
    absent = run_command("-c", "import tensorflow", env=env, expect=1)
    assert "No module named 'tensorflow'" in absent.stderr
    arguments = (CONFIG, f"--workdir={tmp_path / 'run'}")
    run_command("-m", "placerec_jax.train", *arguments, cwd=folder, env=env)
    run_command("-m", "placerec_jax.evaluate", *arguments, cwd=folder, env=env)
    assert (tmp_path / "run" / "report" / "report.json").is_file()


@pytest.mark.parametrize("training", [False, True])
def test_examples_are_what_features_say(trained: Path, folder: Path, training: bool) -> None:
    """`features(cfg)` is a promise about every example: names, shapes, dtypes; the rng decides all else."""
    cfg = _tiny(folder)
    method = methods.load(cfg.method)
    split = cfg.data.train_split if training else cfg.data.test_split
    source = method.source(cfg, PreparedFolder(cfg.data.root), split, training=training)
    features = method.features(cfg, training=training)
    assert len(source) > 0
    for index in range(len(source)):
        example = source.example(index, np.random.default_rng([0, index]))
        found = {name: (np.shape(value), np.asarray(value).dtype) for name, value in example.items()}
        assert found == {name: (feature.shape, feature.dtype) for name, feature in features.items()}
    again = source.example(index, np.random.default_rng([0, index]))
    other = source.example(index, np.random.default_rng([1, index]))
    for name in features:
        np.testing.assert_array_equal(again[name], example[name], err_msg=name)
    assert not np.array_equal(other["true_pose"], example["true_pose"])


def test_wrong_workdir_is_an_error_that_says_what_to_do(
    trained: Path, folder: Path, run_command: Callable
) -> None:
    done = run_command("-m", "placerec_jax.evaluate", CONFIG, "--workdir=runs/none", cwd=folder, expect=None)
    assert done.returncode not in (0, None)
    assert "runs/none" in done.stderr
    assert "Traceback" not in done.stderr


def test_absent_data_is_an_error_that_says_what_to_do(
    folder: Path, run_command: Callable, tmp_path: Path
) -> None:
    config = CONFIG.replace(":tiny", ":nuscenes")
    done = run_command(
        "-m", "placerec_jax.train", config, f"--workdir={tmp_path}/run", cwd=tmp_path, expect=None
    )
    assert done.returncode not in (0, None)
    assert "python -m data_prep" in done.stderr
    assert "Traceback" not in done.stderr
