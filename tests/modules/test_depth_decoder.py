"""The depth decoder against torch layers with the same weights; depth of a disparity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from placerec_jax.modules.depth_decoder import DepthDecoder, depth_from_disparity
from tests.modules import from_torch

CHANNELS, ENCODER = (4, 5, 6, 7, 8), (3, 4, 5, 6, 7)


class TorchDecoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = (torch.nn.ModuleList() for _ in range(3))
        for i, channels in enumerate(CHANNELS):
            below = ENCODER[-1] if i == 4 else CHANNELS[i + 1]
            beside = ENCODER[i - 1] if i else 0
            self.first.append(torch.nn.Conv2d(below, channels, 3, padding=1, padding_mode="reflect"))
            self.second.append(
                torch.nn.Conv2d(channels + beside, channels, 3, padding=1, padding_mode="reflect")
            )
            self.head.append(torch.nn.Conv2d(channels, 1, 3, padding=1, padding_mode="reflect"))

    def forward(self, levels: list[torch.Tensor]) -> dict[int, torch.Tensor]:
        x, disparity = levels[-1], {}
        for i in (4, 3, 2, 1, 0):
            x = F.interpolate(F.elu(self.first[i](x)), scale_factor=2, mode="nearest")
            if i:
                x = torch.cat([x, levels[i - 1]], 1)
            x = F.elu(self.second[i](x))
            disparity[i] = torch.sigmoid(self.head[i](x))
        return disparity


def test_every_scale_equals_torch():
    torch.manual_seed(0)
    model = TorchDecoder().eval()
    rng = np.random.default_rng(0)
    levels = [
        rng.normal(size=(2, 64 >> i, 96 >> i, c)).astype(np.float32) for i, c in enumerate(ENCODER, start=1)
    ]
    params = {}
    for i in range(5):
        params[f"upconv{i}_0"] = {"conv": from_torch.conv(model.first[i])}
        params[f"upconv{i}_1"] = {"conv": from_torch.conv(model.second[i])}
        if i < 4:
            params[f"head{i}"] = from_torch.conv(model.head[i])
    with torch.no_grad():
        expected = model([from_torch.nchw(level) for level in levels])
    decoder = DepthDecoder(CHANNELS, (0, 1, 2, 3), remat=True)
    shapes = jax.eval_shape(lambda: decoder.init(jax.random.key(0), levels))
    from_torch.assert_same_structure({"params": params}, shapes)
    found = jax.jit(decoder.apply)({"params": params}, levels)
    assert set(found) == {0, 1, 2, 3}
    for scale, disparity in found.items():
        assert disparity.shape == (2, 64 >> scale, 96 >> scale)
        np.testing.assert_allclose(disparity, from_torch.nhwc(expected[scale])[..., 0], atol=1e-5)


def test_deepest_level_of_one_row_and_unknown_scales():
    levels = [jnp.zeros((1, 16 >> i, 32 >> i, 4)) for i in range(5)]
    decoder = DepthDecoder(CHANNELS)
    found, variables = jax.eval_shape(lambda: decoder.init_with_output(jax.random.key(0), levels))
    assert found[0].shape == (1, 32, 64)
    assert sorted(name for name in variables["params"] if name.startswith("head")) == ["head0"]
    with pytest.raises(ValueError, match=r"scales are \(4,\)"):
        jax.eval_shape(DepthDecoder(CHANNELS, (4,)).init, jax.random.key(0), levels)


def test_depth_by_hand():
    """σ of 0 and 1 are 80 m and 0.1 m at a focal length of 500 pixels and a width of 640; twice at 1000."""
    disparity = jnp.broadcast_to(jnp.array([0.0, 1.0, 0.5]), (1, 2, 1, 3))
    depth = depth_from_disparity(disparity, jnp.array([[500.0, 1000.0]]), 640)
    np.testing.assert_allclose(depth[0, 0, 0], [80.0, 0.1, 2 / (1 / 80 + 10)], rtol=1e-6)
    np.testing.assert_allclose(depth[0, 1], 2 * depth[0, 0], rtol=1e-6)
    # The same camera with images of a fifth of the width: a fifth of the focal length, the same depth.
    np.testing.assert_allclose(depth_from_disparity(disparity, jnp.array([[100.0, 200.0]]), 128), depth)
