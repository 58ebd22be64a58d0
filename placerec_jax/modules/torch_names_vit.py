"""What timm, transformers and DINOv2 call the parameters of `ViT`; position tables of other grids."""

import math

import jax
import numpy as np

from placerec_jax.modules.torch_names import TorchLayout
from placerec_jax.modules.vit import patch_grid, variant_sizes

_LEFTOVERS = (
    ("the classifier", r"^(head|fc_norm|pre_logits|pooler|classifier)\."),
    ("the token of masked training", r"^(embeddings\.)?mask_token$"),
)


def vit_layouts(variant: str, image_size: tuple[int, int]) -> tuple[TorchLayout, ...]:
    """Layouts of `ViT(variant, image_size)`; square position tables are resampled to the image's grid."""
    sizes = variant_sizes(variant)
    rows, columns = patch_grid(image_size, sizes.patch)

    def layout(library: str, names: dict[str, str | tuple[str, ...]]) -> TorchLayout:
        return TorchLayout(
            library,
            names,
            arranged={"params/position": lambda value, _: position_table(value, (rows, columns))},
            leftovers=_LEFTOVERS,
            note=f"a position table of another grid is resampled to {rows} × {columns} patches, bicubic",
        )

    return (
        layout("timm", timm_names(variant)),
        *([layout("DINOv2's own", timm_names(variant, "register_tokens"))] if sizes.registers else []),
        layout("transformers", _transformers_names(variant, published=True)),
        layout("transformers 5", _transformers_names(variant, published=False)),
    )


def timm_names(variant: str, registers: str = "reg_token") -> dict[str, str | tuple[str, ...]]:
    """Ours → timm's."""
    sizes = variant_sizes(variant)
    names: dict[str, str | tuple[str, ...]] = {
        **_weights("patch_embed", "patch_embed.proj"),
        "params/cls_token": "cls_token",
        "params/position": "pos_embed",
    }
    if sizes.registers:
        names["params/registers"] = registers
    for i in range(sizes.depth):
        names |= block_names(f"blocks_{i}", f"blocks.{i}")
        if sizes.layer_scale:
            names[f"params/blocks_{i}/scale1"] = f"blocks.{i}.ls1.gamma"
            names[f"params/blocks_{i}/scale2"] = f"blocks.{i}.ls2.gamma"
    return names | _norm("norm", "norm")


def block_names(ours: str, theirs: str, qkv_bias: bool = True) -> dict[str, str | tuple[str, ...]]:
    """Ours → timm's, of one `PreNormBlock` without layer scale."""
    qkv = _weights(f"{ours}/qkv", f"{theirs}.attn.qkv")
    if not qkv_bias:
        del qkv[f"params/{ours}/qkv/bias"]
    return {
        **_norm(f"{ours}/norm1", f"{theirs}.norm1"),
        **qkv,
        **_weights(f"{ours}/proj", f"{theirs}.attn.proj"),
        **_norm(f"{ours}/norm2", f"{theirs}.norm2"),
        **_weights(f"{ours}/fc1", f"{theirs}.mlp.fc1"),
        **_weights(f"{ours}/fc2", f"{theirs}.mlp.fc2"),
    }


def _transformers_names(variant: str, published: bool) -> dict[str, str | tuple[str, ...]]:
    """Ours → Hugging Face's: of the files on its hub (`published`), or as version 5 names the parameters."""
    sizes = variant_sizes(variant)
    names: dict[str, str | tuple[str, ...]] = {
        **_weights("patch_embed", "embeddings.patch_embeddings.projection"),
        "params/cls_token": "embeddings.cls_token",
        "params/position": "embeddings.position_embeddings",
    }
    if sizes.registers:
        names["params/registers"] = "embeddings.register_tokens"
    dino = sizes.layer_scale
    for i in range(sizes.depth):
        ours = f"blocks_{i}"
        theirs = f"encoder.layer.{i}" if dino or published else f"layers.{i}"
        parts = ("attention.query", "attention.key", "attention.value", "output.dense")
        query, key, value, proj = (
            f"{theirs}.attention.{part}"
            for part in (parts if published else ("q_proj", "k_proj", "v_proj", "o_proj"))
        )
        for kind, ending in (("kernel", "weight"), ("bias", "bias")):
            names[f"params/{ours}/qkv/{kind}"] = tuple(f"{part}.{ending}" for part in (query, key, value))
        mlp = ("intermediate.dense", "output.dense") if published and not dino else ("mlp.fc1", "mlp.fc2")
        norms = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
        names |= {
            **_norm(f"{ours}/norm1", f"{theirs}.{norms[0]}"),
            **_weights(f"{ours}/proj", proj),
            **_norm(f"{ours}/norm2", f"{theirs}.{norms[1]}"),
            **_weights(f"{ours}/fc1", f"{theirs}.{mlp[0]}"),
            **_weights(f"{ours}/fc2", f"{theirs}.{mlp[1]}"),
        }
        if dino:
            names[f"params/{ours}/scale1"] = f"{theirs}.layer_scale1.lambda1"
            names[f"params/{ours}/scale2"] = f"{theirs}.layer_scale2.lambda1"
    return names | _norm("norm", "layernorm")


def _weights(ours: str, theirs: str) -> dict[str, str]:
    return {f"params/{ours}/kernel": f"{theirs}.weight", f"params/{ours}/bias": f"{theirs}.bias"}


def _norm(ours: str, theirs: str) -> dict[str, str]:
    return {f"params/{ours}/scale": f"{theirs}.weight", f"params/{ours}/bias": f"{theirs}.bias"}


def position_table(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(1, [1 +] n², C), of a square grid with or without an entry of CLS → (1, 1 + rows · columns, C).

    Resampled by antialiased bicubic interpolation, the entry of CLS kept (0 where there is none, as timm
    stores the networks with registers). A table of a grid that is not square is taken as it is: also where
    its length happens to be a square, as of 1 + 23 · 88 entries.
    """
    if table.ndim != 3 or len(table) != 1 or table.shape[1] < 2:
        return table  # of another shape than ours, which is reported as such
    count, (rows, columns) = table.shape[1], grid
    with_cls = math.isqrt(count - 1) ** 2 == count - 1
    if not with_cls and (count == 1 + rows * columns or math.isqrt(count) ** 2 != count):
        return table
    table = np.asarray(table, np.float32)
    cls = table[:, :1] if with_cls else np.zeros_like(table[:, :1])
    patches = table[:, 1:] if with_cls else table
    side = math.isqrt(patches.shape[1])
    if (side, side) != tuple(grid):
        square = patches.reshape(side, side, -1)
        resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
        patches = np.asarray(resized).reshape(1, -1, square.shape[-1])
    return np.concatenate([cls, patches], axis=1)
