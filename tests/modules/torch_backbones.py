"""EfficientNet-B0, VGG-16 and ResNets in torch, whose state dicts have the names of torchvision's and timm's.

Written from the papers and the libraries' names of parameters; each forward pass returns feature maps.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

# Expansion, kernel, stride, inputs, outputs, blocks.
STAGES = (
    (1, 3, 1, 32, 16, 1),
    (6, 3, 2, 16, 24, 2),
    (6, 5, 2, 24, 40, 2),
    (6, 3, 2, 40, 80, 3),
    (6, 5, 1, 80, 112, 3),
    (6, 5, 2, 112, 192, 4),
    (6, 3, 1, 192, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """As TensorFlow pads: ceil(size / stride) outputs, the odd zero on the far side."""

    def forward(self, x):
        pads = []
        for size, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max(0, (math.ceil(size / stride) - 1) * stride + kernel - size)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Gate(nn.Module):
    """Squeeze-and-excitation whose two layers have the given names."""

    def __init__(self, channels, squeezed, reduce, expand):
        super().__init__()
        self.layers = (reduce, expand)
        setattr(self, reduce, nn.Conv2d(channels, squeezed, 1))
        setattr(self, expand, nn.Conv2d(squeezed, channels, 1))

    def forward(self, x):
        reduce, expand = (getattr(self, name) for name in self.layers)
        return x * torch.sigmoid(expand(F.silu(reduce(x.mean((2, 3), keepdim=True)))))


# --- torchvision: everything in Sequentials, zeros alike on all sides, torch's epsilon


def _conv_norm(inputs, outputs, kernel, stride=1, groups=1, activation=True):
    layers = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if activation else []))


class TorchvisionBlock(nn.Module):
    def __init__(self, expansion, kernel, stride, inputs, outputs):
        super().__init__()
        hidden = inputs * expansion
        layers = [] if expansion == 1 else [_conv_norm(inputs, hidden, 1)]
        layers += [
            _conv_norm(hidden, hidden, kernel, stride, groups=hidden),
            Gate(hidden, inputs // 4, "fc1", "fc2"),
            _conv_norm(hidden, outputs, 1, activation=False),
        ]
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        return x + self.block(x) if self.residual else self.block(x)


class TorchvisionEfficientNet(nn.Module):
    def __init__(self):
        super().__init__()
        stages = [
            nn.Sequential(*(TorchvisionBlock(e, k, *((s, i) if n == 0 else (1, o)), o) for n in range(count)))
            for e, k, s, i, o, count in STAGES
        ]
        self.features = nn.Sequential(_conv_norm(3, 32, 3, 2), *stages, _conv_norm(320, 16, 1))
        self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(16, 10))

    def forward(self, x):
        outputs = []
        for layer in list(self.features)[:-1]:
            x = layer(x)
            outputs.append(x)
        return outputs[1:]


# --- timm: named layers; `same` is tf_efficientnet_b0


class TimmBlock(nn.Module):
    def __init__(self, expansion, kernel, stride, inputs, outputs, conv, norm):
        super().__init__()
        hidden = inputs * expansion
        if expansion == 1:
            self.steps = ("conv_dw", "bn1", "act", "se", "conv_pw", "bn2")
        else:
            self.steps = ("conv_pw", "bn1", "act", "conv_dw", "bn2", "act", "se", "conv_pwl", "bn3")
            self.conv_pw = conv(inputs, hidden, 1)
            self.bn1 = norm(hidden)
        depthwise = conv(hidden, hidden, kernel, stride, groups=hidden)
        project = conv(hidden, outputs, 1)
        self.se = Gate(hidden, inputs // 4, "conv_reduce", "conv_expand")
        self.conv_dw = depthwise
        if expansion == 1:
            self.bn1, self.conv_pw, self.bn2 = norm(hidden), project, norm(outputs)
        else:
            self.bn2, self.conv_pwl, self.bn3 = norm(hidden), project, norm(outputs)
        self.act = nn.SiLU()
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x):
        y = x
        for step in self.steps:
            y = getattr(self, step)(y)
        return x + y if self.residual else y


class TimmEfficientNet(nn.Module):
    def __init__(self, same):
        super().__init__()

        def conv(inputs, outputs, kernel, stride=1, groups=1):
            if same:
                return SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
            return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)

        def norm(channels):
            return nn.BatchNorm2d(channels, eps=1e-3 if same else 1e-5)

        self.conv_stem, self.bn1 = conv(3, 32, 3, 2), norm(32)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    *(TimmBlock(e, k, *((s, i) if n == 0 else (1, o)), o, conv, norm) for n in range(count))
                )
                for e, k, s, i, o, count in STAGES
            )
        )
        self.conv_head, self.bn2 = conv(320, 16, 1), norm(16)
        self.classifier = nn.Linear(16, 10)

    def forward(self, x):
        outputs = [F.silu(self.bn1(self.conv_stem(x)))]
        for stage in self.blocks:
            outputs.append(stage(outputs[-1]))
        return outputs[1:]


# --- VGG-16: convolutions, ReLUs and pooling numbered through


class TorchVgg(nn.Module):
    def __init__(self, widths=(64, 128, 256, 512, 512), normalised=False, head="classifier"):
        super().__init__()
        layers, inputs = [], 3
        for width, count in zip(widths, (2, 2, 3, 3, 3), strict=True):
            for _ in range(count):
                layers.append(nn.Conv2d(inputs, width, 3, padding=1))
                layers += [nn.BatchNorm2d(width)] if normalised else []
                layers.append(nn.ReLU())
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        setattr(self, head, nn.Sequential(nn.Linear(inputs, 4)))

    def forward(self, x):
        levels = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                levels.append(x)
            x = layer(x)
        return levels


# --- ResNet of basic blocks: torchvision's and timm's names


class TorchBasicBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    def __init__(self, blocks, widths=(64, 128, 256, 512)):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, (count, width) in enumerate(zip(blocks, widths, strict=True), start=1):
            layers = []
            for i in range(count):
                layers.append(TorchBasicBlock(inputs, width, 2 if stage > 1 and i == 0 else 1))
                inputs = width
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.fc = nn.Linear(inputs, 10)

    def forward(self, x):
        levels = [F.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(levels[0], 3, 2, 1)
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
            levels.append(x)
        return levels
