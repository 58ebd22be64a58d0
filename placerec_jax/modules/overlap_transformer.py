"""Range images to one token a column (OverlapTransformer, Ma et al., RA-L 2022; CVTNet, arXiv 2302.01665).

Every kernel is one column wide and columns have no position, so that a turn of the sensor, which shifts the
columns, permutes the tokens and changes none. So does any other permutation of them.

A leg is the tower of convolutions that reduces the rows to one. Which rows reach its end depends on the
height it is given: `leg_for` counts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.netvlad import LoupeNetVLAD
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.transformer import TransformerEncoderLayer
from placerec_jax.ops.unit_norm import unit_norm


class RowConv(NamedTuple):
    """One convolution over rows alone."""

    kernel: int
    stride: int
    channels: int  # of the output


class Leg(NamedTuple):
    """The convolutions of a leg and the heights it is meant for."""

    layers: tuple[RowConv, ...]
    unread: dict[int, int]  # height of the image → how many of its rows never reach the output


_WIDTHS = (16, 16, 32, 32, 64, 64, 64, 128, 128, 128)  # of ten layers; of another number, stretched
_FEW_ROWS = 11  # from here on rows are removed two at a time instead of halved


def _layers(*layers: tuple[int, int, int]) -> tuple[RowConv, ...]:
    return tuple(RowConv(*layer) for layer in layers)


def built_leg(height: int) -> Leg:
    """A leg for `height` rows that reads them all: halving down to 11 rows, then three rows at a time to one.

    352 rows: (2, 2) five times, then (3, 1) five times.
    """
    steps, rows = [], height
    while rows > _FEW_ROWS:
        steps.append((2, 2) if rows % 2 == 0 else (3, 2))
        rows = (rows - steps[-1][0]) // 2 + 1
    while rows > 1:
        steps.append((3, 1) if rows % 2 else (2, 1))
        rows -= steps[-1][0] - 1
    widths = [_WIDTHS[-1 - (len(steps) - 1 - i) * len(_WIDTHS) // len(steps)] for i in range(len(steps))]
    return Leg(tuple(RowConv(*step, width) for step, width in zip(steps, widths, strict=True)), {height: 0})


LEGS = {
    "leg352": built_leg(352),
    # CVTNet's for 32 rows; the last two never reach its output.
    "ot32": Leg(
        _layers(
            (2, 2, 16),
            (5, 1, 16),
            (3, 1, 32),
            (3, 1, 64),
            (3, 1, 64),
            (3, 1, 128),
            (3, 1, 128),
            (1, 2, 128),
        ),
        {32: 2},
    ),
    # OverlapTransformer's, to the letter: it sees the first 27 rows of whatever it is given.
    "ot64": Leg(
        _layers(
            (5, 1, 16), (3, 2, 32), (3, 2, 64), (3, 2, 64), (2, 2, 128), *[(1, 2, 128) for _ in range(6)]
        ),
        {64: 37, 352: 325},
    ),
}
AUTO = {32: "ot32", 352: "leg352"}  # what "auto" takes; of other heights a leg is built


def leg_for(height: int, width: int, name: str = "auto") -> Leg:
    """The leg called `name` for range images of `height` x `width`.

    Raises ConfigError where the leg leaves more than one row, or does not read rows it is not known to
    leave out: such a network would be blind to them without a word.
    """
    if height < 2 or width < 1:
        raise ConfigError(f"a range image is {height} x {width}; expected at least 2 rows and 1 column")
    if name == "auto":
        leg = LEGS[AUTO[height]] if height in AUTO else built_leg(height)
    elif name in LEGS:
        leg = LEGS[name]
    else:
        raise ConfigError(f"the leg {name!r} is unknown; expected one of {['auto', *sorted(LEGS)]}")
    found = heights(leg.layers, height)
    unread = height - len(rows_read(leg.layers)) if found[-1] == 1 else None
    if unread is None or unread != leg.unread.get(height, 0):
        what = f"leaves {unread} of them unread" if unread else f"reduces them to {found[-1]} (expected 1)"
        raise ConfigError(
            f"the leg {name!r} is for {' or '.join(map(str, leg.unread))} rows; the range image has "
            f"{height}, and it {what}. Take the leg 'auto', which is built for the height, or another height."
        )
    return leg


def heights(layers: Sequence[RowConv], height: int) -> list[int]:
    """Rows after every layer, the input first; 0 or less where a kernel does not fit."""
    found = [height]
    for layer in layers:
        found.append((found[-1] - layer.kernel) // layer.stride + 1)
    return found


def rows_read(layers: Sequence[RowConv]) -> set[int]:
    """The rows of the image on which the first row of the output depends."""
    read = {0}
    for layer in reversed(layers):
        read = {row * layer.stride + tap for row in read for tap in range(layer.kernel)}
    return read


class RangeImageEncoder(nn.Module):
    """(B, H, W, C) range images → (B, W, width) tokens, one a column.

    The leg, a 1x1 convolution to `dim`, one post-norm transformer layer without positions, whose input and
    output together go through a 1x1 convolution to `width`. Convolutions have no bias and a ReLU.

    Attributes:
        leg: of LEGS, or "auto".
        dim: channels of the transformer.
        leg_width: channels that the leg ends with; its other layers have as many in proportion.
    """

    leg: str = "auto"
    dim: int = 128
    width: int = 256
    heads: int = 4
    mlp_dim: int = 1024
    leg_width: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        batch, height, columns, _ = image.shape
        leg = leg_for(height, columns, self.leg)
        x = image.astype(self.dtype)
        for i, layer in enumerate(leg.layers):
            features = max(1, layer.channels * self.leg_width // _WIDTHS[-1])
            x = nn.Conv(
                features,
                (layer.kernel, 1),
                (layer.stride, 1),
                padding="VALID",
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.he_normal(),  # nothing normalises between so many ReLUs
                name=f"leg{i}",
            )(x)
            x = nn.relu(x)
        x = constrain_batch(x.reshape(batch, columns, -1))
        x = self._pointwise(self.dim, "narrow")(x)
        layer = TransformerEncoderLayer(self.heads, self.mlp_dim, 0.0, self.dtype, name="transformer")
        asked = layer(x, train=False)  # without dropout training is no different
        x = jnp.concatenate([x, asked.astype(x.dtype)], axis=-1)
        return self._pointwise(self.width, "widen")(x)

    def _pointwise(self, features: int, name: str) -> nn.Module:
        dense = nn.Dense(
            features,
            use_bias=False,
            dtype=self.dtype,
            kernel_init=nn.initializers.he_normal(),
            name=name,
        )
        return lambda x: nn.relu(dense(x))


class OverlapTransformer(nn.Module):
    """(B, H, W, 1) range images → (B, descriptor) float32 of unit length: the whole network of that name.

    The published one has a leg of 64 rows and `dim` 256, `width` 1024; for a LiDAR of 32 beams the leg of 32
    rows takes its place.
    """

    leg: str = "auto"
    dim: int = 256
    width: int = 1024
    mlp_dim: int = 1024
    leg_width: int = 128
    clusters: int = 64
    descriptor: int = 256
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        tokens = RangeImageEncoder(
            self.leg,
            self.dim,
            self.width,
            mlp_dim=self.mlp_dim,
            leg_width=self.leg_width,
            dtype=self.dtype,
            name="encoder",
        )(image)
        return LoupeNetVLAD(self.clusters, self.descriptor, self.dtype, name="vlad")(unit_norm(tokens))
