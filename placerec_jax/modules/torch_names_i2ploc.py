"""What the released checkpoints of SaliencyI2PLoc call the parameters of our modules."""

from typing import Any

import numpy as np

from placerec_jax.modules.torch_names import TorchLayout
from placerec_jax.modules.torch_names_vit import block_names, timm_names

# What the parts of the network are called; what is of other parts is no loss to the one that is read.
_PARTS = {
    "image encoder": r"^image_encoder\.",
    "point tokenizer": r"^pc_encoder\.(emb_encoder|reduce_dim)\.",
    "point transformer": r"^pc_encoder\.(cls_token|cls_pos|pos_embed|blocks|norm)\b",
    "image aggregator": r"^vision_proj\.",
    "point aggregator": r"^pc_proj\.",
}
_COUNTERS = ("counters of torch's batch normalisation", r"\.num_batches_tracked$")
_UNUSED = ("a norm that the released code never calls", r"^pc_encoder\.fc_norm\.")


def image_encoder_layout(variant: str) -> TorchLayout:
    """Of `ViT(variant)`; the position table is that of the checkpoint's own image size."""
    names = {ours: f"image_encoder.{theirs}" for ours, theirs in timm_names(variant).items()}
    return _layout("image encoder", names)


def point_tokenizer_layout() -> TorchLayout:
    """Of `PointTokenizer`."""
    names: dict[str, str] = {}
    for ours, theirs in (("first", "first_conv"), ("second", "second_conv")):
        root = f"pc_encoder.emb_encoder.{theirs}"
        names |= _linear(f"pointnet/{ours}1", f"{root}.0")
        names |= _batch_norm(f"pointnet/{ours}_bn", f"{root}.1")
        names |= _linear(f"pointnet/{ours}2", f"{root}.3")
    return _layout("point tokenizer", names | _linear("reduce", "pc_encoder.reduce_dim"))


def point_transformer_layout(depth: int) -> TorchLayout:
    """Of `PointTransformer` with `depth` blocks."""
    names: dict[str, str | tuple[str, ...]] = {
        "params/cls_token": "pc_encoder.cls_token",
        "params/cls_position": "pc_encoder.cls_pos",
        **_linear("position1", "pc_encoder.pos_embed.0"),
        **_linear("position2", "pc_encoder.pos_embed.2"),
        "params/norm/scale": "pc_encoder.norm.weight",
        "params/norm/bias": "pc_encoder.norm.bias",
    }
    for i in range(depth):
        names |= block_names(f"blocks_{i}", f"pc_encoder.blocks.blocks.{i}", qkv_bias=False)
    return _layout("point transformer", names)


def aggregator_layout(branch: str) -> TorchLayout:
    """Of `SaliencyNetVLAD`, of the "image" or the "point" branch."""
    root = {"image": "vision_proj", "point": "pc_proj"}[branch]
    names = {
        "params/assignment": f"{root}.cluster_weights",
        "params/centres": f"{root}.cluster_weights2",
        "params/projection": f"{root}.hidden1_weights",
        "params/gate": f"{root}.context_gating.gating_weights",
        **_batch_norm("assignment_bn", f"{root}.bn1"),
        **_batch_norm("descriptor_bn", f"{root}.bn2"),
        **_batch_norm("gate_bn", f"{root}.context_gating.bn1"),
    }
    factors = ("params/assignment", "params/centres", "params/projection", "params/gate")
    return _layout(f"{branch} aggregator", names, dict.fromkeys(factors, _as_multiplied))


def _layout(part: str, names: dict[str, Any], arranged: dict[str, Any] | None = None) -> TorchLayout:
    others = tuple((f"of the {other}", pattern) for other, pattern in _PARTS.items() if other != part)
    return TorchLayout(
        "SaliencyI2PLoc's checkpoint",
        names,
        arranged=arranged or {},
        leftovers=(_COUNTERS, _UNUSED, *others),
    )


def _as_multiplied(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Matrices that tokens are multiplied with from the left are stored as ours; [1, C, K] as (C, K)."""
    return value[0] if value.ndim == len(shape) + 1 and len(value) == 1 else value


def _linear(ours: str, theirs: str) -> dict[str, str]:
    return {f"params/{ours}/kernel": f"{theirs}.weight", f"params/{ours}/bias": f"{theirs}.bias"}


def _batch_norm(ours: str, theirs: str) -> dict[str, str]:
    return {
        f"params/{ours}/scale": f"{theirs}.weight",
        f"params/{ours}/bias": f"{theirs}.bias",
        f"batch_stats/{ours}/mean": f"{theirs}.running_mean",
        f"batch_stats/{ours}/var": f"{theirs}.running_var",
    }
