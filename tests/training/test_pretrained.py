"""Published weights: files of torch networks with torchvision's and timm's names give their activations."""

import re
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from jax.sharding import NamedSharding, PartitionSpec

from configs import maplocnet as config_module
from placerec_jax.methods import Pretrained, maplocnet
from placerec_jax.modules import torch_names
from placerec_jax.modules.efficientnet import EfficientNetB0
from placerec_jax.modules.lcpr import LCPR
from placerec_jax.modules.resnet import RESNETS, ResNetLevels
from placerec_jax.modules.vgg import VGG16Trunk
from placerec_jax.training.pretrained import load_pretrained
from placerec_jax.training.sharding import leaf_name
from placerec_jax.training.torch_files import WeightsError
from tests.modules import from_torch, torch_backbones

SETTING = "config.model.image_weights"
IMAGES = np.random.default_rng(0).normal(size=(1, 64, 96, 3)).astype(np.float32)
# The last stage of each resolution, in reference order.
STAGE_TAPS = {"reduction_1": 0, "reduction_2": 1, "reduction_3": 2, "reduction_4": 4, "reduction_5": 6}
NARROW = (4, 6, 8, 10, 12)


def random(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    from_torch.randomize(network)
    return network.eval()


def fresh(module: nn.Module, *arguments: object) -> dict:
    """Variables, 0.5 all over, of a model whose only submodule is called `trunk`."""
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(1), IMAGES, *arguments))
    variables = jax.tree.map(lambda leaf: jax.device_put(np.full(leaf.shape, 0.5, leaf.dtype)), shapes)
    return {collection: {"trunk": tree} for collection, tree in variables.items()}


@pytest.fixture(scope="module")
def efficientnet() -> dict:
    return fresh(EfficientNetB0(), False)


@pytest.fixture(scope="module")
def vgg() -> dict:
    return fresh(VGG16Trunk(widths=NARROW))


def save(content: dict, path: Path) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def load(variables: dict, path: Path | str, layouts: tuple) -> tuple[dict, str, dict]:
    loaded = load_pretrained(variables, {"trunk": Pretrained(SETTING, str(path), layouts)})
    inside = {collection: tree["trunk"] for collection, tree in loaded.variables.items()}
    return inside, "\n".join(loaded.lines), loaded.record


def assert_levels_equal(levels: list, expected: list[torch.Tensor]) -> None:
    assert len(levels) == len(expected)
    for level, wanted in zip(levels, map(from_torch.nhwc, expected), strict=True):
        assert np.abs(wanted).mean() > 0.01  # the comparison is not one of zeros
        np.testing.assert_allclose(level, wanted, atol=1e-4, rtol=1e-4)


# --- The same activations


EFFICIENTNETS: dict[str, tuple[Callable[[], torch.nn.Module], str, str]] = {
    "timm tf_efficientnet_b0": (lambda: torch_backbones.TimmEfficientNet(same=True), "tensorflow", "timm"),
    "timm efficientnet_b0": (lambda: torch_backbones.TimmEfficientNet(same=False), "torch", "timm"),
    "torchvision": (torch_backbones.TorchvisionEfficientNet, "torch", "torchvision"),
}


@pytest.mark.parametrize("name", EFFICIENTNETS)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_efficientnet(name, suffix, efficientnet, tmp_path):
    build, convention, library = EFFICIENTNETS[name]
    network = random(build())
    path = save(network.state_dict(), tmp_path / f"weights{suffix}")

    variables, said, record = load(efficientnet, path, torch_names.efficientnet_b0_layouts(convention))

    with torch.no_grad():
        stages = network(from_torch.nchw(IMAGES))
    module = EfficientNetB0(convention=convention)
    taps = jax.jit(lambda v: module.apply(v, IMAGES, train=False))(variables)
    assert list(taps) == list(STAGE_TAPS)
    assert_levels_equal(list(taps.values()), [stages[stage] for stage in STAGE_TAPS.values()])
    total = len(jax.tree.leaves(variables))
    assert record["trunk"]["arrays"] == total
    assert f"trunk: {total} arrays from {path} ({library})" in said
    assert "no match" not in said  # what is left is known: the classifier and counters
    assert "not needed, the classifier:" in said
    assert "not needed, counters of torch's batch normalisation:" in said
    assert ("do not tell" in said) == (library == "timm")


@pytest.mark.parametrize("convention", ["tensorflow", "torch"])
def test_the_other_convention_computes_something_else(convention, efficientnet, tmp_path):
    """So the switch has a point, and the test above could fail."""
    network = random(torch_backbones.TimmEfficientNet(same=convention == "torch"))
    path = save(network.state_dict(), tmp_path / "weights.pth")
    variables, _, _ = load(efficientnet, path, torch_names.efficientnet_b0_layouts(convention))
    with torch.no_grad():
        expected = from_torch.nhwc(network(from_torch.nchw(IMAGES))[1])
    module = EfficientNetB0(convention=convention)
    found = jax.jit(lambda v: module.apply(v, IMAGES, train=False))(variables)["reduction_2"]
    assert np.abs(found - expected).max() > 0.01


@pytest.mark.parametrize("variant", ["resnet18", "resnet34"])
def test_resnet(variant, tmp_path):
    network = random(torch_backbones.TorchResNet(RESNETS[variant].blocks))
    path = save(network.state_dict(), tmp_path / "weights.pth")
    module = ResNetLevels(variant)

    variables, said, record = load(fresh(module, False), path, torch_names.resnet_layouts(variant))

    levels = jax.jit(lambda v: module.apply(v, IMAGES, train=False))(variables)
    with torch.no_grad():
        assert_levels_equal(levels, network(from_torch.nchw(IMAGES)))
    assert record["trunk"]["arrays"] == len(jax.tree.leaves(variables))
    assert "no match" not in said


def test_lcpr_starts_both_its_branches_from_one_resnet(tmp_path):
    network = random(torch_backbones.TorchResNet(RESNETS["resnet18"].blocks))
    path = save(network.state_dict(), tmp_path / "weights.pth")
    shapes = jax.eval_shape(
        lambda: LCPR().init(
            jax.random.key(0),
            np.zeros((2, 6, 32, 32, 3), np.float32),
            np.ones((2, 6), bool),
            np.zeros((2, 32, 64, 1), np.float32),
            False,
        )
    )
    variables = jax.tree.map(lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)), shapes)
    variables = {collection: {"trunk": tree} for collection, tree in variables.items()}

    found, said, _ = load(variables, path, torch_names.lcpr_layouts())

    params, stats = found["params"], found["batch_stats"]
    kernel = from_torch.conv(network.layer3[0].downsample[0])["kernel"]
    for branch in ("layer3", "range_layer3"):
        np.testing.assert_array_equal(params[branch]["block0"]["shortcut_conv"]["kernel"], kernel)
        mean = from_torch.array(network.layer3[1].bn2.running_mean)
        np.testing.assert_array_equal(stats[branch]["block1"]["bn2"]["mean"], mean)
    np.testing.assert_array_equal(params["stem"]["conv1"]["kernel"], from_torch.conv(network.conv1)["kernel"])
    assert not np.asarray(params["range_stem"]["kernel"]).any()  # it has no counterpart
    unmatched = [line for line in said.splitlines() if "no match" in line]
    assert not [
        line for line in unmatched if re.search(r"(stem|layer\d)/", line) and "range_stem" not in line
    ]


@pytest.mark.parametrize("depth", ["conv4_3", "conv5_3"])
@pytest.mark.parametrize(("head", "suffix"), [("classifier", ".pth"), ("pre_logits", ".safetensors")])
def test_vgg(depth, head, suffix, tmp_path):
    network = random(torch_backbones.TorchVgg(NARROW, head=head))
    path = save(network.state_dict(), tmp_path / f"weights{suffix}")
    module = VGG16Trunk(depth, NARROW)

    variables, said, _ = load(fresh(module), path, torch_names.vgg16_layouts(depth))

    levels = jax.jit(module.apply)(variables, IMAGES)
    with torch.no_grad():
        assert_levels_equal(levels, network(from_torch.nchw(IMAGES))[: len(levels)])
    assert "no match" not in said
    unused = dict(re.findall(r"not needed, (.*): (.*)", said))
    deeper = [f"features.{i}.{kind}" for i in (24, 26, 28) for kind in ("bias", "weight")]
    assert sorted(unused.pop("the classifier").split(", ")) == [f"{head}.0.bias", f"{head}.0.weight"]
    if depth == "conv4_3":
        assert sorted(unused.pop("convolutions beyond conv4_3").split(", ")) == deeper
    assert not unused


# --- Wrapped, prefixed, half and double precision


@pytest.mark.parametrize("wrapper", ["state_dict", "model"])
@pytest.mark.parametrize("prefix", ["module.", "backbone.", "model.encoder."])
def test_wrappers_and_prefixes(wrapper, prefix, vgg, tmp_path):
    state = random(torch_backbones.TorchVgg(NARROW)).state_dict()
    plain, _, _ = load(vgg, save(state, tmp_path / "plain.pth"), torch_names.vgg16_layouts("conv4_3"))
    wrapped = {"epoch": 3, "best": 0.5, wrapper: {prefix + name: value for name, value in state.items()}}
    path = save(wrapped, tmp_path / "wrapped.pth")
    found, said, _ = load(vgg, path, torch_names.vgg16_layouts("conv4_3"))
    jax.tree.map(np.testing.assert_array_equal, found, plain)
    assert f"below {prefix!r}" in said
    assert "no match" not in said


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_precisions_become_the_parameters_float32(dtype, suffix, vgg, tmp_path):
    state = {k: v.to(dtype) for k, v in random(torch_backbones.TorchVgg(NARROW)).state_dict().items()}
    path = save(state, tmp_path / f"weights{suffix}")
    found, _, _ = load(vgg, path, torch_names.vgg16_layouts("conv4_3"))
    kernel = found["params"]["conv3_2"]["kernel"]
    assert kernel.dtype == np.float32
    expected = state["features.12.weight"].float().numpy().transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


# --- What does not match


def test_unmatched_names_of_both_sides_are_listed(vgg, tmp_path):
    state = random(torch_backbones.TorchVgg(NARROW)).state_dict()
    del state["features.7.bias"]
    state["extra.weight"] = torch.zeros(2)
    path = save(state, tmp_path / "weights.pth")
    found, said, record = load(vgg, path, torch_names.vgg16_layouts("conv4_3"))
    assert "no match: params/conv2_2/bias: features.7.bias is not in the file, stays as initialised" in said
    assert "no match: extra.weight: only in the file" in said
    assert record["trunk"]["arrays"] == len(jax.tree.leaves(vgg)) - 1
    before = vgg["params"]["trunk"]["conv2_2"]["bias"]
    np.testing.assert_array_equal(found["params"]["conv2_2"]["bias"], before)


def test_other_shapes_are_refused_with_both(vgg, tmp_path):
    network = random(torch_backbones.TorchVgg((4, 6, 8, 11, 12)))
    path = save(network.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError) as error:
        load(vgg, path, torch_names.vgg16_layouts("conv4_3"))
    message = str(error.value)
    assert str(path) in message
    assert "features.17.weight is [3, 3, 8, 11] in our order of axes, " in message
    assert "params/conv4_1/kernel is [3, 3, 8, 10]" in message
    assert "features.14.weight" not in message


def test_weights_of_another_network_are_refused(vgg, tmp_path):
    path = save(random(torch_backbones.TimmEfficientNet(True)).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"none of its \d+ arrays .* features\.0\.weight .* conv_stem"):
        load(vgg, path, torch_names.vgg16_layouts("conv4_3"))


def test_not_a_number_is_refused(vgg, tmp_path):
    state = random(torch_backbones.TorchVgg(NARROW)).state_dict()
    state["features.5.weight"][0, 0, 0, 0] = float("nan")
    path = save(state, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"features\.5\.weight holds NaN or infinity"):
        load(vgg, path, torch_names.vgg16_layouts("conv4_3"))


def test_normalised_vgg_is_named(vgg, tmp_path):
    path = save(random(torch_backbones.TorchVgg(NARROW, normalised=True)).state_dict(), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="has batch normalisation, ours has none"):
        load(vgg, path, torch_names.vgg16_layouts("conv4_3"))


def test_torchvision_wants_its_own_convention(efficientnet, tmp_path):
    path = save(random(torch_backbones.TorchvisionEfficientNet()).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"--config\.model\.image_trunk\.convention=torch"):
        load(efficientnet, path, torch_names.efficientnet_b0_layouts("tensorflow"))


def test_a_network_without_published_weights_is_refused(vgg):
    with pytest.raises(WeightsError, match=rf"{SETTING}=w\.pth: no published weights are known"):
        load(vgg, "w.pth", ())


def test_no_file_means_from_scratch_and_is_said(vgg):
    found, said, record = load(vgg, "", torch_names.vgg16_layouts("conv4_3"))
    assert said == f"trunk: trained from scratch ({SETTING} is empty)"
    assert record == {}
    jax.tree.map(np.testing.assert_array_equal, found, {c: tree["trunk"] for c, tree in vgg.items()})


# --- Eight devices


def test_arrays_take_the_places_of_those_they_replace(tmp_path):
    network = random(torch_backbones.TorchVgg(NARROW))
    path = save(network.state_dict(), tmp_path / "weights.pth")
    layouts = torch_names.vgg16_layouts("conv4_3")
    variables = fresh(VGG16Trunk(widths=NARROW))
    plain, _, record = load(variables, path, layouts)
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"))

    def split(leaf: jax.Array) -> jax.Array:
        divides = leaf.ndim > 1 and leaf.shape[-1] % 4 == 0
        spec = PartitionSpec(*(None,) * (leaf.ndim - 1), "fsdp") if divides else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    sharded = jax.tree.map(split, variables)
    found, _, again = load(sharded, path, layouts)
    assert again == record
    places = {leaf.sharding.spec for leaf in jax.tree.leaves(found)}
    assert PartitionSpec(None, None, None, "fsdp") in places
    for new, old, expected in zip(*map(jax.tree.leaves, (found, sharded, plain)), strict=True):
        assert new.sharding == old.sharding
        np.testing.assert_array_equal(new, expected)


# --- MapLocNet's own settings


def test_maplocnet_names_every_array_of_its_backbones():
    cfg = config_module.get_config("nuscenes")
    wanted = maplocnet.pretrained(cfg)
    batch = {
        name: jax.ShapeDtypeStruct((1, *feature.shape), feature.dtype)
        for name, feature in maplocnet.features(cfg).items()
    }
    model = maplocnet.model(cfg)
    variables = jax.eval_shape(lambda b: model.init(jax.random.key(0), b, train=False), batch)
    assert {source.setting for source in wanted.values()} == {SETTING, "config.model.map_weights"}
    for submodule, source in wanted.items():
        assert cfg.model[source.setting.removeprefix("config.model.")] == source.path == ""
        part = {collection: tree[submodule] for collection, tree in variables.items() if submodule in tree}
        ours = {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(part)}
        assert source.layouts
        for layout in source.layouts:
            assert set(layout.names) == ours
            assert len(set(layout.names.values())) == len(ours)


def test_maplocnets_small_trunk_has_no_published_weights():
    wanted = maplocnet.pretrained(config_module.get_config("cpu"))
    assert wanted["image_trunk"].layouts == ()
    assert wanted["map_trunk"].layouts
