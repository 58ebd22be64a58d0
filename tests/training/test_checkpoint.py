"""Checkpoints: what is kept, what is refused, what damage says, and other meshes."""

import jax
import numpy as np
import pytest

from placerec_jax.training.checkpoint import Checkpointer, CheckpointError, config_differences
from placerec_jax.training.sharding import make_mesh
from placerec_jax.training.state import abstract_state, abstract_variables, init_state
from tests.toy.fixtures import Setup


@pytest.fixture(scope="module")
def setup():
    return Setup()


def mesh_of(data, fsdp):
    cfg = Setup().config.mesh
    cfg.data, cfg.fsdp = data, fsdp
    return make_mesh(cfg, jax.devices()[: data * fsdp])


@pytest.fixture(scope="module")
def state(setup):
    return init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh_of(1, 1))


def at(state, step):
    return state.replace(step=jax.numpy.int32(step))


def checkpointer(workdir, setup, fingerprint="data", **options):
    return Checkpointer(workdir, setup.config, fingerprint, **({"writable": True} | options))


def abstract(setup, data=1, fsdp=1):
    return abstract_state(setup.method, setup.cfg, setup.model, setup.tx, mesh_of(data, fsdp))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_the_state_comes_back_bit_for_bit(tmp_path, setup, state):
    checkpointer(tmp_path, setup).save(at(state, 7), {})
    restored = checkpointer(tmp_path, setup).restore(abstract(setup))
    assert_same(restored, at(state, 7))
    assert jax.random.bits(restored.rng) == jax.random.bits(state.rng)


def test_restores_onto_another_mesh(tmp_path, setup, state):
    checkpointer(tmp_path, setup).save(at(state, 7), {})
    restored = checkpointer(tmp_path, setup).restore(abstract(setup, 2, 4))
    assert_same(restored, at(state, 7))
    kernel = restored.opt_state[1][0].mu["hidden"]["kernel"]
    assert {s.data.shape for s in kernel.addressable_shards} == {(128, 64)}
    # And back from eight devices to one.
    checkpointer(tmp_path / "again", setup).save(restored, {})
    assert_same(checkpointer(tmp_path / "again", setup).restore(abstract(setup)), at(state, 7))


def test_groups_and_frozen_parameters_come_back(tmp_path):
    """Trees with holes: moments of what is trained alone."""
    groups = (("conv|norm", "frozen"), ("output", (("learning_rate", 1e-4),)))
    setup = Setup({"optimizer.groups": groups})
    state = init_state(setup.method, setup.cfg, setup.model, setup.tx, mesh_of(1, 1))
    checkpointer(tmp_path, setup).save(at(state, 7), {})
    assert_same(checkpointer(tmp_path, setup).restore(abstract(setup, 2, 4)), at(state, 7))
    with pytest.raises(CheckpointError, match=r"optimizer.groups: .*frozen.* → \[\]"):
        checkpointer(tmp_path, Setup()).restore(abstract(Setup()))


def test_a_checkpoint_from_before_a_setting_existed(tmp_path, setup, state):
    old = Setup()
    with old.config.unlocked():
        del old.config.train.gradients, old.config.train.accumulate, old.config.optimizer.groups
    checkpointer(tmp_path, old).save(state, {})
    assert_same(checkpointer(tmp_path, setup).restore(abstract(setup)), state)
    changed = checkpointer(tmp_path, Setup({"train.gradients": "cached", "train.accumulate": 2}))
    with pytest.raises(
        CheckpointError, match=r"\n  train.accumulate: 1 → 2\n  train.gradients: whole → cached\n"
    ):
        changed.restore(abstract(setup))


def test_the_newest_two_and_the_best_are_kept(tmp_path, setup, state):
    saved = checkpointer(tmp_path, setup)
    scores = {1: 5.0, 2: 3.0, 3: None, 4: 4.0, 5: float("nan"), 6: 6.0}
    for step, error in scores.items():
        saved.save(at(state, step), {} if error is None else {"error": error})
    assert saved.steps() == [2, 5, 6]
    assert saved.best_step() == 2
    assert checkpointer(tmp_path, setup).best_step() == 2  # also for the next process
    saved.save(at(state, 7), {"error": 1.0})
    assert saved.steps() == [6, 7]
    assert saved.about(7).scores == {"error": 1.0}


def test_best_by_the_largest(tmp_path, state):
    setup = Setup({"eval.best_mode": "max"})
    saved = checkpointer(tmp_path, setup)
    for step, value in ((1, 0.2), (2, 0.9), (3, 0.9), (4, 0.1)):
        saved.save(at(state, step), {"error": value})
    assert saved.best_step() == 3


def test_variables_for_evaluation(tmp_path, setup, state):
    saved = checkpointer(tmp_path, setup)
    for step, error in ((1, 1.0), (2, 2.0)):
        saved.save(at(state, step), {"error": error})
    # Other data, other settings of training and evaluation, other weights to begin with: all fine here.
    other = Setup(
        {
            "train.batch_size": 2,
            "eval.batch_size": 2,
            "data.eval_split": "test",
            "model.conv_weights": "w.pth",
        }
    )
    reader = Checkpointer(tmp_path, other.config, "other data")
    target = abstract_variables(setup.method, setup.cfg, setup.model, mesh_of(4, 2))
    for which, step in (("best", 1), ("last", 2), (2, 2)):
        variables, about = reader.restore_variables(target, which)
        assert about.step == step
        assert about.fingerprint == "data"
        assert about.config["train"]["batch_size"] == 8
        assert_same(variables, state.variables)


def test_another_model_is_refused_for_evaluation(tmp_path, setup, state):
    checkpointer(tmp_path, setup).save(state, {})
    wide = Setup({"model.width": 128})
    target = abstract_variables(wide.method, wide.cfg, wide.model, mesh_of(1, 1))
    with pytest.raises(CheckpointError, match=r"another model .*\n  model.width: 64 → 128\n"):
        Checkpointer(tmp_path, wide.config, "data").restore_variables(target)


def test_reading_leaves_the_folder_alone(tmp_path, setup, state):
    checkpointer(tmp_path, setup).save(at(state, 1), {})
    unfinished = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp-0"
    unfinished.mkdir()
    reader = Checkpointer(tmp_path, setup.config, "data")
    assert reader.steps() == [1]
    assert unfinished.exists()  # a training run may be writing it just now
    with pytest.raises(CheckpointError, match="not writable"):
        reader.save(at(state, 2), {})
    writer = checkpointer(tmp_path, setup)
    assert writer.steps() == [1]
    writer.save(at(state, 2), {})  # Orbax clears away in the background and waits for it before it saves
    assert not unfinished.exists()
    assert writer.steps() == [1, 2]
    nowhere = Checkpointer(tmp_path / "nowhere", setup.config, "data")
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        nowhere.restore(abstract(setup))
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"train.log_every": 3},
        {"train.eval_every": 3, "train.checkpoint_every": 3},
        {"data.root": "/elsewhere", "data.workers": 4},
        {"mesh.fsdp": 2},
        {"workdir": "moved"},
    ],
)
def test_changes_that_change_nothing_are_allowed(tmp_path, setup, state, change):
    checkpointer(tmp_path, setup).save(state, {})
    assert_same(checkpointer(tmp_path, Setup(change)).restore(abstract(setup)), state)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"train.steps": 41}, "train.steps: 40 → 41"),
        ({"optimizer.learning_rate": 0.5}, "optimizer.learning_rate: 0.001 → 0.5"),
        ({"loss.square": 2.0}, "loss.square: 1.0 → 2.0"),
        ({"seed": 1}, "seed: 0 → 1"),
        ({"data.scheme": "geographic"}, "data.scheme: official → geographic"),
    ],
)
def test_a_changed_config_is_refused_with_the_difference(tmp_path, setup, state, change, line):
    checkpointer(tmp_path, setup).save(state, {})
    with pytest.raises(CheckpointError) as caught:
        checkpointer(tmp_path, Setup(change)).restore(abstract(setup))
    assert [text.strip() for text in str(caught.value).splitlines()[1:-1]] == [line]
    assert "--init_from" in str(caught.value)


def test_other_data_is_refused(tmp_path, setup, state):
    checkpointer(tmp_path, setup).save(state, {})
    with pytest.raises(CheckpointError, match="dataset fingerprint: data → other"):
        checkpointer(tmp_path, setup, "other").restore(abstract(setup))


def test_differences_of_nested_configs():
    old = {"a": 1, "b": {"c": [1, 2], "d": "x"}, "gone": True}
    new = {"a": 1, "b": {"c": [1, 3], "d": "x", "e": None}}
    assert config_differences(old, new) == [
        "b.c: [1, 2] → [1, 3]",
        "b.e: absent → None",
        "gone: True → absent",
    ]


@pytest.mark.parametrize("damage", ["truncated", "absent", "about"])
def test_a_damaged_checkpoint_names_itself_and_the_way_out(tmp_path, setup, state, damage):
    saved = checkpointer(tmp_path, setup)
    for step in (1, 2):
        saved.save(at(state, step), {})
    folder = saved.folder / "2"
    largest = max(
        (f for f in (folder / "variables").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size
    )
    content = largest.read_bytes()
    if damage == "truncated":
        largest.write_bytes(content[: len(content) // 2])
    if damage == "absent":
        largest.unlink()
    if damage == "about":
        (folder / "about" / "metadata").write_text('{"config": ')
    again = checkpointer(tmp_path, setup)
    with pytest.raises(CheckpointError, match=r"checkpoints/2: damaged .* --restore_step=1"):
        again.restore(abstract(setup))
    assert_same(again.restore(abstract(setup), step=1), at(state, 1))


def test_missing_steps(tmp_path, setup, state):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        checkpointer(tmp_path / "empty", setup).restore(abstract(setup))
    saved = checkpointer(tmp_path, setup)
    saved.save(at(state, 3), {})
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 9; there are \[3\]"):
        saved.restore(abstract(setup), step=9)


def test_saving_a_step_again_replaces_it(tmp_path, setup, state):
    saved = checkpointer(tmp_path, setup)
    saved.save(at(state, 3), {})
    saved.save(at(state, 3), {"error": 2.0})
    assert saved.steps() == [3]
    assert saved.about(3).scores == {"error": 2.0}


def test_going_on_from_an_older_step_discards_the_newer(tmp_path, setup, state):
    saved = checkpointer(tmp_path, setup)
    for step in (1, 2):
        saved.save(at(state, step), {})
    saved.discard_after(1)
    assert saved.steps() == [1]
    saved.save(at(state, 2), {})
    assert saved.steps() == [1, 2]


def test_initial_weights_from_another_run(tmp_path, setup, state):
    trained = state.replace(params=jax.tree.map(lambda x: x + 1, state.params))
    checkpointer(tmp_path, setup).save(trained, {})
    wide = Setup({"model.width": 128, "seed": 5})
    fresh = init_state(wide.method, wide.cfg, wide.model, wide.tx, mesh_of(4, 2))
    reader = Checkpointer(tmp_path, wide.config, "other data")
    variables, matched, unmatched = reader.initial_variables(fresh.variables)
    assert "params/conv/kernel" in matched
    assert "params/hidden/kernel: [512, 64] in the checkpoint, [512, 128] in the model" in unmatched
    assert len(matched) + len(unmatched) == len(jax.tree.leaves(fresh.variables))
    np.testing.assert_array_equal(variables["params"]["conv"]["kernel"], trained.params["conv"]["kernel"])
    np.testing.assert_array_equal(variables["params"]["hidden"]["kernel"], fresh.params["hidden"]["kernel"])
    kernel = variables["params"]["hidden"]["kernel"]
    assert kernel.sharding == fresh.params["hidden"]["kernel"].sharding


def test_initial_weights_that_match_nowhere(tmp_path, setup, state):
    checkpointer(tmp_path, setup).save(state, {})
    fresh = {"params": {"other": {"kernel": jax.device_put(np.zeros(3), jax.tree.leaves(state)[0].sharding)}}}
    with pytest.raises(CheckpointError, match=r"none of its .* arrays"):
        Checkpointer(tmp_path, setup.config, "data").initial_variables(fresh)
