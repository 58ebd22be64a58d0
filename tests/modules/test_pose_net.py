"""PoseNet against torch convolutions with the same weights; it begins near the identity."""

import jax
import numpy as np
import torch
from scipy.linalg import expm

from placerec_jax.modules.pose_net import PoseNet
from tests.modules import from_torch

WIDTH, CHANNELS = 6, 5


def test_equals_torch_and_is_rigid():
    torch.manual_seed(0)
    squeeze = torch.nn.Conv2d(CHANNELS, WIDTH, 1)
    layers = [torch.nn.Conv2d(2 * WIDTH, WIDTH, 3, padding=1), torch.nn.Conv2d(WIDTH, WIDTH, 3, padding=1)]
    out = torch.nn.Conv2d(WIDTH, 6, 1)
    torch.nn.init.normal_(out.weight, std=30.0)
    rng = np.random.default_rng(0)
    query, other = (rng.normal(size=(2, 3, 4, 5, CHANNELS)).astype(np.float32) for _ in range(2))
    mask = np.array([[True, True, True], [True, False, True]])
    with torch.no_grad():
        frames = []
        for features, seen in ((query, np.ones((2, 3), bool)), (other, mask)):
            mean = np.stack([f[s].mean(0) for f, s in zip(features, seen, strict=True)])
            frames.append(torch.relu(squeeze(from_torch.nchw(mean))))
        x = torch.cat(frames, 1)
        for layer in layers:
            x = torch.relu(layer(x))
        vector = 0.01 * out(x).mean((2, 3)).double().numpy()
    params = {"squeeze": from_torch.conv(squeeze), "out": from_torch.conv(out)}
    params |= {f"conv{i + 1}": from_torch.conv(layer) for i, layer in enumerate(layers)}
    pose = jax.jit(PoseNet(WIDTH).apply)({"params": params}, query, np.ones((2, 3), bool), other, mask)
    assert np.abs(vector[:, :3]).max() > 0.03  # an angle worth comparing
    for found, (x, y, z, *translation) in zip(pose, vector, strict=True):
        np.testing.assert_allclose(
            found[:3, :3], expm(np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])), atol=1e-5
        )
        np.testing.assert_allclose(found[:3, 3], translation, atol=1e-5)
        np.testing.assert_array_equal(found[3], [0, 0, 0, 1])


def test_begins_near_the_identity_and_without_cameras_is_finite():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(1, 2, 3, 4, CHANNELS)).astype(np.float32)
    absent = np.zeros((1, 2), bool)
    net = PoseNet(WIDTH)
    variables = from_torch.drawn(net, features, ~absent, features, absent)
    pose = jax.jit(net.apply)(variables, features, ~absent, features, absent)
    np.testing.assert_allclose(pose, np.eye(4)[None], atol=0.1)
