"""What the evaluate command says about where its figures come from, and what it refuses."""

import json
import types

import pytest

from configs.maplocnet import get_config
from placerec_jax import evaluate
from placerec_jax.evaluation.provenance import notices, provenance, summary_line
from placerec_jax.training.checkpoint import About, CheckpointError, config_as_json
from tests.toy.prepared import write_prepared

SCORES = {"queries": 300}


def make_prepared(built_in_city=True, fingerprint="f" * 64):
    manifest = {
        "source": {"built_in_city": built_in_city, "version": "v1.0-trainval"},
        "tables": {"frames": {"records": 900}},
    }
    return types.SimpleNamespace(root="data/somewhere", fingerprint=fingerprint, manifest=manifest)


def make_about(cfg, fingerprint="f" * 64):
    return About(step=1500, config=config_as_json(cfg), fingerprint=fingerprint, scores={"median": 1.0})


def facts_of(cfg, about_cfg=None):
    return provenance(cfg, make_about(about_cfg or cfg), make_prepared(), "test", SCORES, "runs/x", "best")


def test_provenance_is_json_and_complete():
    facts = json.loads(json.dumps(facts_of(get_config("tiny")), allow_nan=False))
    assert facts["checkpoint"]["step"] == 1500
    assert facts["dataset"]["queries"] == 300
    assert facts["dataset"]["database"] == {"frames": 900}
    assert facts["config"]["eval"]["thresholds"] == [1.0, 2.0, 5.0, 10.0]
    assert {"python", "jax", "flax", "numpy"} <= set(facts["versions"])
    assert facts["command"].startswith("python -m placerec_jax.evaluate")
    line = summary_line(facts)
    for expected in ("300 queries", "step 1500", "f" * 12, facts["config_hash"][:12], "seed 1000"):
        assert expected in line


def test_config_hash_follows_the_config():
    cfg, other = get_config("tiny"), get_config("tiny")
    assert facts_of(cfg)["config_hash"] == facts_of(other)["config_hash"]
    other.eval.seed += 1
    assert facts_of(cfg)["config_hash"] != facts_of(other)["config_hash"]


def test_settings_changed_since_training_are_listed():
    cfg, trained = get_config("tiny"), get_config("tiny")
    cfg.data.noise_xy = 30.0
    assert facts_of(cfg, trained)["changed_since_training"] == ["data.noise_xy: 10.0 → 30.0"]


def test_synthetic_data_is_said_to_be():
    cfg = get_config("tiny")
    (line,) = notices(make_about(cfg), make_prepared(built_in_city=True))
    assert "built-in city" in line
    assert notices(make_about(cfg), make_prepared(built_in_city=False)) == []


def test_another_dataset_than_trained_on_is_said():
    cfg = get_config("tiny")
    (line,) = notices(make_about(cfg, fingerprint="other"), make_prepared(built_in_city=False))
    assert "fingerprint other" in line


def test_without_a_checkpoint_it_says_so_and_leaves_nothing(tmp_path):
    cfg = get_config("tiny")
    cfg.data.root = str(write_prepared(tmp_path / "data"))
    cfg.mesh.data = 8
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        evaluate.run(cfg, tmp_path / "runs" / "x")
    assert not (tmp_path / "runs").exists()
