"""A transformer over the groups of a point set; every block is told again where the groups are."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from placerec_jax.modules.sharding import constrain_batch
from placerec_jax.modules.vit import EncodedTokens, PreNormBlock, last_block_saliency, prepend


class PointTransformer(nn.Module):
    """(B, G, C) tokens, (B, G, 3) centres (m), (B, G) mask → tokens (B, 1 + G, C), CLS first.

    The embedding of the positions is added to the input of every block, so it also stays in the residual
    stream (as in Point-BERT and Point-MAE). Positions are absolute: a shift of the cloud changes the result.
    Masked tokens are attended to by none.
    """

    width: int = 384
    depth: int = 12
    heads: int = 3
    position_width: int = 128
    position_std: float = (
        0.02  # of the initial weights of the embedding; larger: positions count from the start
    )
    dtype: Any = jnp.float32
    remat: bool = False  # compute every block again in the backward pass

    def setup(self) -> None:
        init = nn.initializers.normal(self.position_std)
        self.position1 = nn.Dense(self.position_width, kernel_init=init, precision=jax.lax.Precision.HIGHEST)
        self.position2 = nn.Dense(self.width, kernel_init=init)
        init = nn.initializers.normal(1e-6)
        self.cls_token = self.param("cls_token", init, (1, 1, self.width))
        self.cls_position = self.param("cls_position", init, (1, 1, self.width))
        block = nn.remat(PreNormBlock) if self.remat else PreNormBlock
        self.blocks = [
            block(
                self.width,
                self.heads,
                epsilon=1e-5,
                qkv_bias=False,
                dtype=self.dtype,
                remat_attention=not self.remat,
            )
            for _ in range(self.depth)
        ]
        self.norm = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)

    def __call__(self, tokens: jax.Array, centres: jax.Array, mask: jax.Array) -> EncodedTokens:
        # In float32, and multiplied as such: coordinates of tens of metres keep their centimetres.
        position = self.position2(nn.gelu(self.position1(centres), approximate=False))
        position = constrain_batch(prepend(self.cls_position, position).astype(self.dtype))
        x = constrain_batch(prepend(self.cls_token, tokens.astype(self.dtype)))
        mask = jnp.concatenate([jnp.ones((len(mask), 1), bool), mask], axis=1)
        for block in self.blocks[:-1]:
            x = block(x + position, mask)
        attention_input = self.blocks[-1].attention_input(x + position)
        x = self.norm(self.blocks[-1](x + position, mask))
        return EncodedTokens(x, mask, attention_input)

    def saliency(
        self, encoded: EncodedTokens, source: str = "recomputed_cls", stop_gradient: bool = True
    ) -> jax.Array:
        """(B, 1 + G) float32, see `vit.last_block_saliency`."""
        return last_block_saliency(self.blocks[-1], encoded, source, stop_gradient=stop_gradient)
