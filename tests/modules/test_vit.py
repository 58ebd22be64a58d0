"""The vision transformer against transformers' ViT and DINOv2, by way of their weight files."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from placerec_jax.errors import ConfigError
from placerec_jax.methods import Pretrained
from placerec_jax.modules import torch_names_i2ploc, vit
from placerec_jax.modules.torch_names_vit import position_table, timm_names, vit_layouts
from placerec_jax.modules.vit import VARIANTS, Variant, ViT
from placerec_jax.training.pretrained import load_pretrained
from placerec_jax.training.sharding import leaf_name
from placerec_jax.training.torch_files import WeightsError

COMMON = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "layer_norm_eps": 1e-6}
SIZES = {"vit_test": 64, "dinov2_test": 56, "dinov2_plain": 56}


@pytest.fixture(autouse=True)
def _small_dinov2_without_registers(monkeypatch):
    plain = Variant(14, 16, 2, 2, layer_scale=True)
    monkeypatch.setattr(vit, "VARIANTS", VARIANTS | {"dinov2_plain": plain})


def torch_network(variant: str) -> torch.nn.Module:
    """Of random weights, for square images of `SIZES`."""
    torch.manual_seed(0)
    size = SIZES[variant]
    if variant == "vit_test":
        network = ViTModel(ViTConfig(**COMMON, intermediate_size=64, image_size=size))
    elif variant == "dinov2_plain":
        network = Dinov2Model(Dinov2Config(**COMMON, image_size=size, patch_size=14))
    else:
        network = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**COMMON, image_size=size, patch_size=14, num_register_tokens=2)
        )
    for parameter in network.parameters():  # nothing at 0 or 1, so that no term is idle
        torch.nn.init.normal_(parameter, 0.1, 0.3)
    return network.eval()


def images(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, height, width, 3)).astype(np.float32)


def loaded(path: Path, variant: str, size: tuple[int, int]) -> tuple[dict, str]:
    """Variables of the network from a file, with what was said."""
    shapes = jax.eval_shape(ViT(variant, size).init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.5, leaf.dtype), shapes)
    wanted = Pretrained("config.model.image_encoder_weights", str(path), vit_layouts(variant, size))
    found = load_pretrained({"params": {"vit": variables["params"]}}, {"vit": wanted})
    return {"params": found.variables["params"]["vit"]}, "\n".join(found.lines)


def published_hf(network: torch.nn.Module, folder: Path) -> Path:
    """The file that transformers itself writes; `state_dict()` has the names of the running version."""
    network.save_pretrained(folder)
    return folder / "model.safetensors"


def as_timm(network: torch.nn.Module, variant: str, registers: str = "reg_token") -> dict:
    """The network's parameters under timm's names."""
    state, renamed = network.state_dict(), {}
    layouts = {layout.library: layout for layout in vit_layouts(variant, (SIZES[variant],) * 2)}
    hf = layouts["transformers 5"]
    for ours, theirs in timm_names(variant, registers).items():
        renamed[theirs] = torch.cat([state[name] for name in hf.theirs(ours)])
    return renamed


@pytest.mark.parametrize("variant", SIZES)
@pytest.mark.parametrize("written", ["save_pretrained", "state_dict", "timm"])
def test_tokens_are_those_of_transformers(variant, written, tmp_path):
    network, size = torch_network(variant), SIZES[variant]
    path = tmp_path / "weights.safetensors"
    if written == "save_pretrained":
        path = published_hf(network, tmp_path)
    else:
        state = network.state_dict() if written == "state_dict" else as_timm(network, variant)
        safetensors.torch.save_file(state, path)
    variables, said = loaded(path, variant, (size, size))
    assert "no match" not in said
    image = images(size, size)
    with torch.no_grad():
        expected = network(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).last_hidden_state.numpy()
    registers = VARIANTS["dinov2_test"].registers if variant == "dinov2_test" else 0
    expected = np.delete(expected, range(1, 1 + registers), axis=1)
    assert np.abs(expected).mean() > 0.1
    tokens = ViT(variant, (size, size)).apply(variables, image).tokens
    np.testing.assert_allclose(tokens, expected, atol=2e-4)


def test_remat_and_bfloat16_compute_the_same():
    image = images(32, 64)
    plain = ViT("vit_test", (32, 64))
    variables = plain.init(jax.random.key(0), image)

    def tokens_and_gradient(module):
        return jax.jit(jax.value_and_grad(lambda v: jnp.sum(module.apply(v, image).tokens[..., 0] ** 3)))(
            variables
        )

    expected = tokens_and_gradient(plain)
    again = tokens_and_gradient(ViT("vit_test", (32, 64), remat=True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), again, expected)
    low = ViT("vit_test", (32, 64), jnp.bfloat16).apply(variables, image).tokens
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), plain.apply(variables, image).tokens, atol=0.1)


# --- Position tables


@pytest.mark.parametrize("grid", [(32, 64), (23, 77), (7, 20), (14, 14)])
def test_position_tables_are_resampled_as_torch_does(grid):
    table = np.random.default_rng(0).normal(size=(1, 197, 5)).astype(np.float32)
    square = torch.from_numpy(table[:, 1:].reshape(1, 14, 14, 5).transpose(0, 3, 1, 2).copy())
    resized = torch.nn.functional.interpolate(square, grid, mode="bicubic", antialias=True)
    found = position_table(table, grid)
    np.testing.assert_array_equal(found[:, 0], table[:, 0])
    np.testing.assert_allclose(
        found[:, 1:].reshape(1, *grid, 5), resized.numpy().transpose(0, 2, 3, 1), atol=1e-5
    )


def test_tables_without_cls_or_of_another_grid():
    table = np.random.default_rng(0).normal(size=(1, 16, 5)).astype(np.float32)  # timm, with registers
    np.testing.assert_array_equal(position_table(table, (4, 4)), np.pad(table, ((0, 0), (1, 0), (0, 0))))
    own = np.zeros((1, 1 + 2 * 4, 5), np.float32)[:, :8]  # of 7 patches: no square
    assert position_table(own, (2, 4)) is own
    lucky = np.zeros((1, 1 + 23 * 88, 5), np.float32)  # 45², and not a table without CLS
    assert position_table(lucky, (23, 88)) is lucky
    for shape in ((1, 1, 5), (1, 0, 5), (2, 17, 5), (17, 5)):  # no tables at all
        table = np.zeros(shape, np.float32)
        assert position_table(table, (2, 3)) is table


def test_weights_for_another_image_size(tmp_path):
    """4 × 4 patches in the file, 2 × 6 wanted; DINOv2's own names."""
    network = torch_network("dinov2_test")
    state = as_timm(network, "dinov2_test", "register_tokens") | {"mask_token": torch.zeros(1, 16)}
    torch.save(state, tmp_path / "weights.pth")
    variables, said = loaded(tmp_path / "weights.pth", "dinov2_test", (28, 84))
    assert "DINOv2's own" in said
    assert "resampled to 2 × 6 patches" in said
    assert "not needed, the token of masked training: mask_token" in said
    assert "no match" not in said
    table = position_table(state["pos_embed"].numpy(), (2, 6))
    np.testing.assert_array_equal(variables["params"]["position"], table)


# --- What does not match


def test_weights_of_another_architecture_are_listed(tmp_path):
    state = as_timm(torch_network("vit_test"), "vit_test")
    del state["blocks.1.mlp.fc1.bias"]
    state = {f"module.{name}": value for name, value in state.items()}
    torch.save({"base_model": state | {"module.head.weight": torch.zeros(3, 16)}}, tmp_path / "weights.bin")
    _, said = loaded(tmp_path / "weights.bin", "vit_test", (32, 64))
    assert "no match: params/blocks_1/fc1/bias: module.blocks.1.mlp.fc1.bias is not in the file" in said
    assert "not needed, the classifier: module.head.weight" in said

    with pytest.raises(WeightsError, match="not of this network") as error:
        loaded(tmp_path / "weights.bin", "vit_mini", (32, 64))
    assert "module.blocks.0.attn.qkv.weight is [16, 48] in our order of axes" in str(error.value)
    assert "params/blocks_0/qkv/kernel is [96, 288]" in str(error.value)


def test_sincos_positions_tell_tokens_apart_and_close_the_circle():
    rows, columns = 3, 8
    network = ViT("vit_mini", (rows * 16, columns * 16), position_init="sincos")
    table = network.init(jax.random.key(0), images(rows * 16, columns * 16))["params"]["position"][0]
    np.testing.assert_array_equal(table[0], 0)  # CLS
    grid = np.asarray(table[1:]).reshape(rows, columns, -1)
    flat = grid.reshape(rows * columns, -1)
    apart = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    assert apart[~np.eye(len(flat), dtype=bool)].min() > 1

    across_the_seam = np.linalg.norm(grid[0, 0] - grid[0, -1])
    within = np.linalg.norm(np.diff(grid[0], axis=0), axis=-1)
    np.testing.assert_allclose(across_the_seam, within, rtol=1e-5)
    np.testing.assert_allclose(np.mean(flat**2), 0.5, rtol=1e-5)  # of a sine and a cosine, each


def test_patches_must_fill_the_image():
    with pytest.raises(ConfigError, match=r"is 100 × 64; expected multiples of the patch, 16 .* 96 × 64"):
        ViT("vit_test", (100, 64)).init(jax.random.key(0), images(100, 64))
    with pytest.raises(ConfigError, match=r"config\.model\.image\.variant is 'vit_huge'; expected one of"):
        vit_layouts("vit_huge", (32, 32))
    with pytest.raises(ValueError, match="made for"):
        ViT("vit_test", (32, 64)).init(jax.random.key(0), images(64, 32))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_of_every_variant_has_a_name(variant):
    size = (VARIANTS[variant].patch,) * 2
    shapes = jax.eval_shape(ViT(variant, size).init, jax.random.key(0), jnp.zeros((1, *size, 3)))
    ours = {leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
    for layout in (*vit_layouts(variant, size), torch_names_i2ploc.image_encoder_layout(variant)):
        assert set(layout.names) == ours
        names = [name for name in ours for name in layout.theirs(name)]
        assert len(set(names)) == len(names)
