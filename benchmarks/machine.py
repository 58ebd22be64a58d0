"""What the device can do at most, measured in the same run as what is held against it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import time_calls

# bfloat16 FLOP/s and bytes/s of the makers' data sheets, by a part of `device_kind`.
DATASHEETS = {"H200": (989e12, 4.8e12), "TPU v5 lite": (197e12, 819e9)}

# Side of the square matrices and bytes of the array that are large enough to be at the peak.
_SIZES = {"cpu": (2048, 2**27)}
_ACCELERATOR_SIZES = (8192, 2**30)


@dataclasses.dataclass(frozen=True)
class Machine:
    """One device: FLOP/s by dtype, of a matrix product, and bytes/s read and written, of x + 1 in place."""

    device: str
    platform: str
    flops: dict[str, float]
    bandwidth: float
    datasheet: tuple[float, float] | None  # (FLOP/s, bytes/s)

    def peak(self, dtype: str) -> float:
        """FLOP/s for a network of `dtype`, which may always be computed in float32."""
        return max(self.flops[dtype], self.flops["float32"])

    def floor(self, macs: float, moved_bytes: float, dtype: str) -> float:
        """Seconds that this work takes at least, arithmetic and memory traffic overlapping."""
        return max(2 * macs / self.peak(dtype), moved_bytes / self.bandwidth)


def measure(dtypes: set[str], seconds: float) -> Machine:
    """The first device, in about `seconds` for every dtype (float32 always) and for the bandwidth."""
    device = jax.devices()[0]
    side, size = _SIZES.get(device.platform, _ACCELERATOR_SIZES)
    flops = {}
    for dtype in sorted(dtypes | {"float32"}):
        matrix = jnp.ones((side, side), dtype)
        flops[dtype] = 2 * side**3 / time_calls(_product, matrix, matrix, seconds=seconds).best
    buffer = [jnp.zeros(size // 4, jnp.float32)]

    def pass_over() -> Any:
        buffer[0] = _increment(buffer[0])
        return buffer[0]

    bandwidth = 2 * size / time_calls(pass_over, seconds=seconds).best
    sheet = next((sheet for kind, sheet in DATASHEETS.items() if kind in device.device_kind), None)
    return Machine(device.device_kind, device.platform, flops, bandwidth, sheet)


@jax.jit
def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return a @ b


@functools.partial(jax.jit, donate_argnums=0)
def _increment(x: jax.Array) -> jax.Array:
    # In place: a copy into fresh memory would measure how fast the system hands out pages.
    return x + 1
