"""What torchvision and timm call the parameters of our backbones: for reading their published weights."""

import dataclasses
import re
from collections.abc import Callable, Mapping

import numpy as np

from placerec_jax.modules.efficientnet import STAGES
from placerec_jax.modules.resnet import resnet_variant
from placerec_jax.modules.vgg import CONVOLUTIONS, DEPTHS

_COUNTERS = ("counters of torch's batch normalisation", r"\.num_batches_tracked$")


@dataclasses.dataclass(frozen=True)
class TorchLayout:
    """The names of one library's state dict.

    Attributes:
        library: as the user is told.
        names: ours below the submodule ("params/stem_conv/kernel") → theirs ("conv_stem.weight"); of several,
            the arrays are joined along their first axis.
        leftovers: (what it is, pattern of the names) of what the state dict has beyond `names` by design.
        note: what the names do not tell and the user should know, or "".
        refusal: why these weights would not compute what they were trained for, and what to do; or "".
        arranged: ours → (their array, our shape) → our array, where more is to be done than to put the axes
            in Flax's order.
    """

    library: str
    names: Mapping[str, str | tuple[str, ...]]
    leftovers: tuple[tuple[str, str], ...] = ()
    note: str = ""
    refusal: str = ""
    arranged: Mapping[str, Callable[[np.ndarray, tuple[int, ...]], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )

    def theirs(self, ours: str) -> tuple[str, ...]:
        """Their names of one array of ours; () of one that they lack."""
        names = self.names.get(ours, ())
        return (names,) if isinstance(names, str) else names


def efficientnet_b0_layouts(convention: str) -> tuple[TorchLayout, ...]:
    """Layouts of `EfficientNetB0` with this `convention`."""
    setting = "config.model.image_trunk.convention"
    other = "" if convention == "torch" else f"; set --{setting}=torch"
    return (
        TorchLayout(
            "timm",
            _efficientnet_names("conv_stem", "bn1", _timm_block),
            leftovers=(("the classifier", r"^(conv_head|bn2|classifier)\."), _COUNTERS),
            note=(
                f"timm's names do not tell tf_efficientnet_b0 ({setting}=tensorflow) from efficientnet_b0 "
                f"(torch); computed as {convention!r}"
            ),
        ),
        TorchLayout(
            "torchvision",
            _efficientnet_names("features.0.0", "features.0.1", _torchvision_block),
            leftovers=(("the classifier", r"^(features\.8|classifier)\."), _COUNTERS),
            refusal=f"torchvision's EfficientNet pads alike on all sides and has an epsilon of 1e-5{other}"
            if other
            else "",
        ),
    )


def vgg16_layouts(depth: str) -> tuple[TorchLayout, ...]:
    """Layouts of `VGG16Trunk` down to `depth`; torchvision and timm agree on them."""
    plain, normalised = _vgg_names(depth, per_convolution=2), _vgg_names(depth, per_convolution=3)
    return (
        TorchLayout(
            "torchvision or timm, vgg16",
            plain,
            leftovers=(
                ("the classifier", r"^(classifier|pre_logits|head)\."),
                (f"convolutions beyond {depth}", r"^features\."),
            ),
        ),
        TorchLayout(
            "torchvision or timm, vgg16_bn",
            normalised,
            refusal="this VGG-16 has batch normalisation, ours has none; give the weights of plain vgg16",
        ),
    )


def resnet_layouts(variant: str) -> tuple[TorchLayout, ...]:
    """Layouts of `ResNetLevels` of a published `variant`; torchvision and timm agree on them."""
    note = "computed on (x - 0.45) / 0.225 as SurroundDepth does, not with ImageNet's own statistics"
    return (_resnet_layout(variant, _resnet_layers(variant), note),)


def lcpr_layouts() -> tuple[TorchLayout, ...]:
    """Layouts of `LCPR`: the images' ResNet-18, from whose last three stages the range image starts, too."""
    layers = _resnet_layers("resnet18")
    copies = {f"range_{ours}": theirs for ours, theirs in layers.items() if re.match(r"layer[234]/", ours)}
    return (_resnet_layout("resnet18", layers | copies),)


def _resnet_layout(variant: str, layers: dict[str, str], note: str = "") -> TorchLayout:
    leftovers = (("the classifier", r"^fc\."), _COUNTERS)
    return TorchLayout(f"torchvision or timm, {variant}", _parameters(layers), leftovers, note)


def _resnet_layers(variant: str) -> dict[str, str]:
    layers = {"stem/conv1": "conv1", "stem/bn1": "bn1"}
    sizes = resnet_variant(variant)
    inputs = sizes.stem
    for stage, (width, blocks) in enumerate(zip(sizes.widths, sizes.blocks, strict=True), start=1):
        for i in range(blocks):
            ours, theirs = f"layer{stage}/block{i}", f"layer{stage}.{i}"
            layers |= {f"{ours}/{name}": f"{theirs}.{name}" for name in ("conv1", "bn1", "conv2", "bn2")}
            if i == 0 and (stage > 1 or inputs != width):
                layers |= {f"{ours}/shortcut_conv": f"{theirs}.downsample.0"}
                layers |= {f"{ours}/shortcut_bn": f"{theirs}.downsample.1"}
        inputs = width
    return layers


def _efficientnet_names(
    stem_conv: str, stem_bn: str, block: Callable[[int, int, bool], dict[str, str]]
) -> dict[str, str]:
    layers = {"stem_conv": stem_conv, "stem_bn": stem_bn}
    index = 0
    for number, stage in enumerate(STAGES):
        for i in range(stage.blocks):
            theirs = block(number, i, stage.expansion != 1)
            layers |= {f"block{index}/{layer}": name for layer, name in theirs.items()}
            index += 1
    return _parameters(layers)


def _timm_block(stage: int, i: int, expanded: bool) -> dict[str, str]:
    block = f"blocks.{stage}.{i}"
    squeeze = {"se/reduce": f"{block}.se.conv_reduce", "se/expand": f"{block}.se.conv_expand"}
    if not expanded:
        return squeeze | {
            "depthwise_conv": f"{block}.conv_dw",
            "depthwise_bn": f"{block}.bn1",
            "project_conv": f"{block}.conv_pw",
            "project_bn": f"{block}.bn2",
        }
    return squeeze | {
        "expand_conv": f"{block}.conv_pw",
        "expand_bn": f"{block}.bn1",
        "depthwise_conv": f"{block}.conv_dw",
        "depthwise_bn": f"{block}.bn2",
        "project_conv": f"{block}.conv_pwl",
        "project_bn": f"{block}.bn3",
    }


def _torchvision_block(stage: int, i: int, expanded: bool) -> dict[str, str]:
    block = f"features.{stage + 1}.{i}.block"
    first = 1 if expanded else 0
    expansion = {"expand_conv": f"{block}.0.0", "expand_bn": f"{block}.0.1"} if expanded else {}
    return expansion | {
        "depthwise_conv": f"{block}.{first}.0",
        "depthwise_bn": f"{block}.{first}.1",
        "se/reduce": f"{block}.{first + 1}.fc1",
        "se/expand": f"{block}.{first + 1}.fc2",
        "project_conv": f"{block}.{first + 2}.0",
        "project_bn": f"{block}.{first + 2}.1",
    }


def _vgg_names(depth: str, per_convolution: int) -> dict[str, str]:
    """`per_convolution`: places that one takes in the Sequential, with its ReLU and normalisation."""
    names, place = {}, 0
    for block, count in enumerate(CONVOLUTIONS[: DEPTHS[depth]], start=1):
        for i in range(1, count + 1):
            for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
                names[f"params/conv{block}_{i}/{ours}"] = f"features.{place}.{theirs}"
            place += per_convolution
        place += 1  # max-pooling
    return names


def _parameters(layers: dict[str, str]) -> dict[str, str]:
    """Names of layers (ours, by whose ending their kind is known → theirs) to names of their arrays."""
    names = {}
    for ours, theirs in layers.items():
        if re.search(r"bn\d?$", ours):
            names[f"params/{ours}/scale"] = f"{theirs}.weight"
            names[f"params/{ours}/bias"] = f"{theirs}.bias"
            names[f"batch_stats/{ours}/mean"] = f"{theirs}.running_mean"
            names[f"batch_stats/{ours}/var"] = f"{theirs}.running_var"
        else:
            names[f"params/{ours}/kernel"] = f"{theirs}.weight"
            if not re.search(r"(_|/)conv\d?$", ours):  # convolutions before a normalisation have no bias
                names[f"params/{ours}/bias"] = f"{theirs}.bias"
    return names
