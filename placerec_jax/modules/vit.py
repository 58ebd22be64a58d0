"""Vision transformers (Dosovitskiy et al., arXiv 2010.11929; DINOv2, arXiv 2304.07193) for any image size."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from placerec_jax.errors import ConfigError
from placerec_jax.modules.saliency import SOURCES, cls_saliency
from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.ops.unit_norm import unit_norm


class Variant(NamedTuple):
    """The sizes of one published network, or of a small one of ours."""

    patch: int
    width: int
    depth: int
    heads: int
    layer_scale: bool = False
    registers: int = 0


VARIANTS = {
    "vit_base": Variant(16, 768, 12, 12),
    "vit_small": Variant(16, 384, 12, 6),
    "vit_tiny": Variant(16, 192, 12, 3),
    "vit_mini": Variant(16, 96, 4, 3),
    "vit_micro": Variant(16, 64, 2, 2),
    "vit_test": Variant(16, 16, 2, 2),
    "dinov2_base": Variant(14, 768, 12, 12, layer_scale=True),
    "dinov2_base_registers": Variant(14, 768, 12, 12, layer_scale=True, registers=4),
    "dinov2_small": Variant(14, 384, 12, 6, layer_scale=True),
    "dinov2_small_registers": Variant(14, 384, 12, 6, layer_scale=True, registers=4),
    "dinov2_test": Variant(14, 16, 2, 2, layer_scale=True, registers=2),
}

# torch's trunc_normal_ cuts at ±2, a hundred standard deviations: a normal distribution.
token_init = nn.initializers.normal(0.02)


def normal_positions(rows: int, columns: int, width: int) -> nn.initializers.Initializer:
    """Small random numbers, as published: where a token is must be learned."""
    del rows, columns, width
    return token_init


def sincos_positions(rows: int, columns: int, width: int) -> nn.initializers.Initializer:
    """Sines and cosines, as large as the tokens: from scratch, positions are told apart from the first step.

    A quarter of the channels each for the sine and the cosine of the row, at wavelengths from 2π to 20,000π
    rows (Vaswani et al., arXiv 1706.03762), and of the column, at the harmonics of a circle: the left edge of
    a panorama is next to its right one. CLS starts at zero.
    """
    quarter = width // 4
    row_angle = np.arange(rows)[:, None] * 1e4 ** (-np.arange(quarter) / quarter)
    harmonic = 1 + np.arange(quarter) % max(1, columns // 2)
    column_angle = (np.arange(columns)[:, None] + 0.5) * harmonic * (2 * np.pi / columns)
    by_row = np.concatenate([np.sin(row_angle), np.cos(row_angle)], axis=-1)
    by_column = np.concatenate([np.sin(column_angle), np.cos(column_angle)], axis=-1)
    table = np.zeros((1, 1 + rows * columns, width), np.float32)
    table[0, 1:, : 2 * quarter] = np.repeat(by_row, columns, axis=0)
    table[0, 1:, 2 * quarter : 4 * quarter] = np.tile(by_column, (rows, 1))
    return lambda _, shape, dtype=jnp.float32: jnp.asarray(table, dtype)


# How the table of positions begins, by `config.model.image.position_init`.
POSITION_INITS = {"normal": normal_positions, "sincos": sincos_positions}


class EncodedTokens(NamedTuple):
    """What a transformer encoder makes of its tokens, CLS first."""

    tokens: jax.Array  # (B, 1 + T, C) after the last norm, of any length
    mask: jax.Array | None  # (B, 1 + T), or None: all are real
    attention_input: jax.Array  # (B, 1 + R + T, C) what the last block's attention saw; R registers


class PreNormBlock(nn.Module):
    """(B, T, C), mask (B, T) or None → (B, T, C): x + attention(norm(x)), then x + MLP(norm(x)).

    GELU is the exact one.
    """

    width: int
    heads: int
    epsilon: float = 1e-6
    qkv_bias: bool = True
    layer_scale: bool = False
    mlp_ratio: int = 4
    dtype: Any = jnp.float32
    remat_attention: bool = True  # not needed where the whole block is computed again

    def setup(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"PreNormBlock: {self.width} channels cannot be split among {self.heads} heads")
        dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=token_init)
        norm = functools.partial(nn.LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        self.norm1, self.norm2 = norm(), norm()
        self.qkv = dense(3 * self.width, use_bias=self.qkv_bias)
        self.proj = dense(self.width)
        self.fc1, self.fc2 = dense(self.mlp_ratio * self.width), dense(self.width)
        if self.layer_scale:
            init = nn.initializers.constant(1e-5)
            self.scale1 = self.param("scale1", init, (self.width,))
            self.scale2 = self.param("scale2", init, (self.width,))

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        attended = self._attention(self.norm1(x), mask)
        if self.layer_scale:
            attended = attended * self.scale1.astype(self.dtype)
        x = x + attended
        transformed = self.fc2(nn.gelu(self.fc1(self.norm2(x)), approximate=False))
        if self.layer_scale:
            transformed = transformed * self.scale2.astype(self.dtype)
        return constrain_batch(x + transformed)

    def attention_input(self, x: jax.Array) -> jax.Array:
        """(B, T, C) input of the block → (B, T, C): what its attention sees."""
        return self.norm1(x)

    def cls_saliency(
        self, tokens: jax.Array, mask: jax.Array | None, normalise: bool, stop_gradient: bool
    ) -> jax.Array:
        """(B, T, C) → (B, T): `modules.saliency.cls_saliency` with this block's projection."""
        projection = self.qkv.variables["params"]
        kernel, bias = projection["kernel"], projection.get("bias")
        return cls_saliency(tokens, kernel, bias, self.heads, mask, normalise, stop_gradient)

    def _attention(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        query, key, value = (
            part.reshape(*x.shape[:-1], self.heads, self.width // self.heads)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        attend = jax.nn.dot_product_attention
        if self.remat_attention:  # the (heads × T × T) weights are not kept for the backward pass
            attend = jax.checkpoint(attend)
        attended = attend(query, key, value, mask=None if mask is None else mask[:, None, None, :])
        return self.proj(attended.reshape(x.shape))


def last_block_saliency(
    block: PreNormBlock,
    encoded: EncodedTokens,
    source: str,
    registers: int = 0,
    stop_gradient: bool = True,
) -> jax.Array:
    """(B, 1 + T) float32: CLS's attention to every token, summed over the heads.

    "recomputed_cls" projects the finished tokens, at unit length, once more (as released; the forward pass
    attends otherwise); rows sum to the number of heads. "forward_block" is what the last block attended to;
    what went to registers is left out of it.
    """
    if source not in SOURCES:
        raise ValueError(f"saliency source is {source!r}; expected one of {SOURCES}")
    if source == "recomputed_cls":
        return block.cls_saliency(unit_norm(encoded.tokens), encoded.mask, True, stop_gradient)
    saliency = block.cls_saliency(encoded.attention_input, encoded.mask, False, stop_gradient)
    return jnp.delete(saliency, jnp.arange(1, 1 + registers), axis=1, assume_unique_indices=True)


class ViT(nn.Module):
    """(B, H, W, 3) normalised image → tokens (B, 1 + H/patch · W/patch, width), row by row, CLS first.

    Register tokens take part and are left out of the result. Nothing in it differs in training.
    """

    variant: str
    image_size: tuple[int, int]
    dtype: Any = jnp.float32
    remat: bool = False  # compute every block again in the backward pass
    position_init: str = "normal"  # of POSITION_INITS

    def setup(self) -> None:
        sizes = variant_sizes(self.variant)
        rows, columns = patch_grid(self.image_size, sizes.patch)
        self.patch_embed = nn.Conv(
            sizes.width,
            (sizes.patch, sizes.patch),
            (sizes.patch, sizes.patch),
            padding="VALID",
            kernel_init=token_init,
            dtype=self.dtype,
        )
        width = sizes.width
        self.cls_token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width))
        init = POSITION_INITS[self.position_init](rows, columns, width)
        self.position = self.param("position", init, (1, 1 + rows * columns, width))
        if sizes.registers:
            init = nn.initializers.normal(1e-6)
            self.registers = self.param("registers", init, (1, sizes.registers, width))
        block = nn.remat(PreNormBlock) if self.remat else PreNormBlock
        self.blocks = [
            block(
                width,
                sizes.heads,
                layer_scale=sizes.layer_scale,
                dtype=self.dtype,
                remat_attention=not self.remat,
            )
            for _ in range(sizes.depth)
        ]
        self.norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)

    def __call__(self, image: jax.Array) -> EncodedTokens:
        if image.shape[1:3] != tuple(self.image_size):
            raise ValueError(f"ViT: image is {image.shape[1:3]}; made for {tuple(self.image_size)}")
        x = self.patch_embed(image.astype(self.dtype))
        x = x.reshape(len(x), -1, x.shape[-1])
        x = prepend(self.cls_token, x) + self.position.astype(self.dtype)
        registers = variant_sizes(self.variant).registers
        if registers:
            x = jnp.concatenate([x[:, :1], prepend(self.registers, x[:, 1:])], axis=1)
        x = constrain_batch(x)
        for block in self.blocks[:-1]:
            x = block(x)
        attention_input = self.blocks[-1].attention_input(x)
        x = self.norm(self.blocks[-1](x))
        tokens = jnp.concatenate([x[:, :1], x[:, 1 + registers :]], axis=1) if registers else x
        return EncodedTokens(tokens, None, attention_input)

    def saliency(
        self, encoded: EncodedTokens, source: str = "recomputed_cls", stop_gradient: bool = True
    ) -> jax.Array:
        """(B, 1 + T) float32, see `last_block_saliency`."""
        registers = variant_sizes(self.variant).registers
        return last_block_saliency(self.blocks[-1], encoded, source, registers, stop_gradient)


def variant_sizes(variant: str) -> Variant:
    """The sizes of a variant by name.

    Raises:
        ConfigError: there is none of this name.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"config.model.image.variant is {variant!r}; expected one of {sorted(VARIANTS)}")
    return VARIANTS[variant]


def patch_grid(image_size: tuple[int, int], patch: int) -> tuple[int, int]:
    """(rows, columns) of patches in an image of (height, width) pixels.

    Raises:
        ConfigError: the patches do not fill the image.
    """
    height, width = image_size
    if min(height, width) < patch or height % patch or width % patch:
        nearest = tuple(max(patch, round(size / patch) * patch) for size in (height, width))
        raise ConfigError(
            f"config.model.image.size is {height} × {width}; expected multiples of the patch, {patch} "
            f"pixels. The nearest is {nearest[0]} × {nearest[1]}."
        )
    return height // patch, width // patch


def prepend(token: jax.Array, x: jax.Array) -> jax.Array:
    """(1, R, C) learned tokens, (B, T, C) → (B, R + T, C), in the dtype of x."""
    token = jnp.broadcast_to(token.astype(x.dtype), (len(x), *token.shape[1:]))
    return jnp.concatenate([token, x], axis=1)
