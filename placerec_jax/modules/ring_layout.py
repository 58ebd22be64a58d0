"""How things lie about a LiDAR: a learned descriptor that does not change when the scan turns."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from placerec_jax.modules.netvlad import l2_normalize
from placerec_jax.ops.grid import Grid2D
from placerec_jax.ops.polar import polar_resample, ring_products
from placerec_jax.ops.smooth import gaussian_blur


class RingLayout(nn.Module):
    """(B, H, W, C) BEV on `grid` → (B, (rings − 1) · frequencies · channels · 2) float32 of unit length.

    Not of the paper. One channel of the BEV to a power, blurred and read on rings about the sensor, is the
    weight of what stands there. Convolutions around the rings find out what it is, and a gate for each of
    `channels` says how much it counts: parked cars and trees may tell less of a place than walls. What is
    left of every ring is compared with the next by `ring_products`, and every ring and frequency has a
    learned weight: lateral shifts disturb near rings and high frequencies first. At the start all gates and
    weights are nearly 1: a training-free descriptor, from which training departs.
    """

    grid: Grid2D
    channel: int = 1
    power: float = 2.0
    smoothing: float = 1.5  # m
    rings: int = 30
    azimuths: int = 120
    frequencies: int = 20
    channels: int = 4
    hidden: int = 16
    layers: int = 2
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, bev: jax.Array) -> jax.Array:
        seen = jnp.concatenate([bev, bev[..., self.channel, None] ** self.power], axis=-1)
        seen = gaussian_blur(seen.astype(jnp.float32), self.smoothing / self.grid.cell)
        reach = min(abs(edge) for edge in self.grid.extent)
        seen = polar_resample(seen, self.grid, self.rings, self.azimuths, reach)
        x = seen
        for layer in range(self.layers):
            x = jnp.concatenate([x[:, :, -1:], x, x[:, :, :1]], axis=2)  # azimuths close to a ring
            around = ((1, 1), (0, 0))
            x = nn.Conv(self.hidden, (3, 3), padding=around, dtype=self.dtype, name=f"conv{layer}")(x)
            x = nn.relu(nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=f"norm{layer}")(x))
        start = {
            "kernel_init": nn.initializers.normal(0.02),
            "bias_init": nn.initializers.constant(np.log(np.e - 1)),  # of softplus 1
        }
        gate = nn.softplus(nn.Dense(self.channels, dtype=self.dtype, name="gate", **start)(x))
        area = np.sqrt(np.arange(self.rings) + 0.5).astype(np.float32)[:, None, None]
        found = ring_products(seen[..., -1:] * gate.astype(jnp.float32) * area, self.frequencies)
        shape = (self.rings - 1, self.frequencies, self.channels)
        found *= jnp.exp(self.param("log_weight", nn.initializers.zeros, shape))[..., None]
        channels = jnp.moveaxis(found, 3, 1).reshape(len(bev), self.channels, -1)
        return l2_normalize(l2_normalize(channels).reshape(len(bev), -1))
