"""The networks: `VGG_Net`, the reference tensor for tensor, and `VGG`, which takes other sizes.

From: `loading`, which gives normalized images [B, 3, H, W], channels-last.
To:   `training` and `inference`, which get logits [B, K], and features if they ask for them.

B images, K classes, H and W pixels: `ARCHS` says how many of them each network takes.

`VGG_Net` is ten 3 x 3 convolutions with bias and ReLU, 64, 64 | 128, 128 | 256 x 3 | 512 x 3, a
max-pool and a dropout after each group, all in one `nn.Sequential` named `conv`, so that a
checkpoint of the reference loads as it is; then AvgPool2d(3), three hidden layers, the classifier.

The same logits for less work, exactly, when no features are asked for (`compute_logits`):
  * `AvgPool2d(3)` on the 4 x 4 map of a 64-pixel image keeps the top-left 3 x 3 and drops a row
    and a column. What only feeds the dropped part is not computed: 36 of 64 positions of the
    last convolution, 49 of 64 of the one before; 8.9 % of all operations.
  * ReLU and max-pool commute. After the pool, ReLU has a quarter of the values to go through.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tinyvgg.model.dropout import Dropout
from tinyvgg.model.pooling import max_pool_relu

STAGE_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))


@dataclass(frozen=True)
class Arch:
    """A network by name.

    Attributes:
        stages: channels of each convolution, stage by stage; a max-pool ends a stage.
        batch_norm: whether each convolution is followed by BatchNorm instead of having a bias.
        min_pixels, max_pixels: sides of an image that it takes.
    """

    stages: tuple[tuple[int, ...], ...]
    batch_norm: bool = False
    min_pixels: int = 32  # five halvings leave 1
    max_pixels: int = 512


# Simonyan and Zisserman, "Very deep convolutional networks", 2015, table 1: A, B, D, E
CONFIGURATIONS = {
    "vgg11": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg13": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "vgg16": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "vgg19": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
ARCHS = {
    # four halvings must leave 3 to 5, so that one 3 x 3 mean fits
    "vgg_net": Arch(STAGE_CHANNELS, min_pixels=48, max_pixels=95),
    "vgg_net_bn": Arch(STAGE_CHANNELS, batch_norm=True),
    **{name: Arch(stages) for name, stages in CONFIGURATIONS.items()},
    **{f"{name}_bn": Arch(stages, batch_norm=True) for name, stages in CONFIGURATIONS.items()},
}


class VGG_Net(nn.Module):  # noqa: N801 - the published name
    """The reference VGG network; 9,798,588 parameters for 100 classes.

    Args:
        num_classes: K.
        dropout: probability after each of the four groups; no parameter depends on it.
    """

    def __init__(self, num_classes: int = 100, dropout: float = 0.4) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for stage in STAGE_CHANNELS:
            for channels in stage:
                layers += [nn.Conv2d(in_channels, channels, 3, padding=1), nn.ReLU(inplace=True)]
                in_channels = channels
            layers += [nn.MaxPool2d(2, 2), Dropout(dropout)]
        self.conv = nn.Sequential(*layers)
        self.avg_pool = nn.AvgPool2d(3)
        self.fc1 = nn.Linear(512, 1028)
        self.fc2 = nn.Linear(1028, 1028)
        self.fc3 = nn.Linear(1028, 512)
        self.classifier = nn.Linear(512, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the network makes of a batch.

        Args:
            images: floating [B, 3, H, W], normalized, channels-last; H and W 48 to 95.

        Returns:
            logits [B, K] and features [B, 512, H // 16, W // 16], the output of `conv`.
        """
        features = self.conv(images)
        return self._classify(features), features

    def compute_logits(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of `forward`, without what only features would need."""
        hidden = images
        convolutions = [layer for layer in self.conv if isinstance(layer, nn.Conv2d)]
        dropout = self.conv[-1]
        for stage in STAGE_CHANNELS:
            layers, convolutions = convolutions[: len(stage)], convolutions[len(stage) :]
            if convolutions:
                for layer in layers[:-1]:
                    hidden = functional.relu(layer(hidden), inplace=True)
                hidden = layers[-1](hidden)
            else:
                hidden = _convolve_needed_part(layers, hidden)
            hidden = dropout(max_pool_relu(hidden))
        return self._classify(hidden)

    def _classify(self, features: Tensor) -> Tensor:
        hidden = self.avg_pool(features).flatten(1)
        for layer in (self.fc1, self.fc2, self.fc3):
            hidden = functional.relu(layer(hidden))
        logits: Tensor = self.classifier(hidden)
        return logits


def _convolve_needed_part(layers: list[nn.Conv2d], images: Tensor) -> Tensor:
    """Convolve the last stage, for the top-left 6 x 6 outputs that reach the 3 x 3 mean.

    A 3 x 3 convolution needs one more row and column of input than it has outputs; on the top
    and left it has its padding. ReLU follows every layer but the last.
    """
    for position, layer in enumerate(layers):
        needed = 6 + len(layers) - 1 - position
        height, width = (min(needed, size) for size in images.shape[2:])
        if (height, width) == tuple(images.shape[2:]):
            images = layer(images)
        else:
            # a side that is not cut keeps its padding
            right, bottom = width == images.shape[3], height == images.shape[2]
            part = images[:, :, : height + 1, : width + 1]
            part = functional.pad(part, (1, int(right), 1, int(bottom)))
            images = functional.conv2d(part, layer.weight, layer.bias)
        if position + 1 < len(layers):
            images = functional.relu(images, inplace=True)
    return images


class VGG(nn.Module):
    """3 x 3 convolutions in stages, global average pooling, one linear layer.

    The mean over whatever the last pool leaves makes every size legal from which a pixel is left.
    Pooling comes before ReLU, with which it commutes: a quarter of the values to go through.

    Args:
        arch: stages, and whether convolutions are followed by BatchNorm.
        num_classes: K.
        dropout: probability before the classifier.
    """

    def __init__(self, arch: Arch, num_classes: int = 100, dropout: float = 0.0) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for stage in arch.stages:
            for position, channels in enumerate(stage, 1):
                has_bias = not arch.batch_norm  # BatchNorm's own shift takes its place
                layers.append(nn.Conv2d(in_channels, channels, 3, padding=1, bias=has_bias))
                if arch.batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                is_last = position == len(stage)
                layers.append(MaxPoolReLU() if is_last else nn.ReLU(inplace=True))
                in_channels = channels
        self.conv = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(in_channels, num_classes)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [B, K], and features [B, C, h, w], the output of `conv`.

        Args:
            images: floating [B, 3, H, W], normalized, channels-last; H and W 32 to 96.
        """
        features = self.conv(images)
        logits: Tensor = self.classifier(self.dropout(features.mean((2, 3))))
        return logits, features

    def compute_logits(self, images: Tensor) -> Tensor:
        """Return the logits [B, K] of `forward`."""
        return self(images)[0]  # type: ignore[no-any-return]


class MaxPoolReLU(nn.Module):
    """`max_pool_relu` as a layer."""

    def forward(self, images: Tensor) -> Tensor:
        """Return ReLU of the maximum of every 2 x 2 window."""
        return max_pool_relu(images)


Network = VGG_Net | VGG


def compute_logits(network: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of any network.

    Args:
        network: one of `ARCHS`, or a module that gives logits, or a tuple that begins with them.
        images: floating [B, 3, H, W], normalized.

    Returns:
        [B, K].
    """
    if isinstance(network, Network):
        return network.compute_logits(images)
    output = network(images)
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


def build_network(arch: str, num_classes: int, dropout: float = 0.0) -> Network:
    """Return a network by its name in `ARCHS`, with PyTorch's default weights.

    Args:
        arch: a key of `ARCHS`.
        num_classes: K.
        dropout: probability; no parameter depends on it.
    """
    if arch == "vgg_net":
        return VGG_Net(num_classes, dropout)
    return VGG(ARCHS[arch], num_classes, dropout)


def initialize_he(model: nn.Module) -> None:
    """Give every layer He's initialization, in place; the classifier starts near zero.

    PyTorch's default shrinks the signal about 0.4 times a layer here, so the reference spends
    its first epochs undoing that. He et al., "Delving Deep into Rectifiers", 2015: standard
    deviation sqrt(2 / fan_in) keeps its size through ReLU. The classifier gets 0.01: all
    classes start equally likely.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name == "classifier":
                nn.init.normal_(module.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_image_size(arch: str, height: int, width: int) -> None:
    """Refuse images that a network cannot take.

    Raises:
        ValueError: a side is outside its limits.
    """
    limits = ARCHS[arch]
    if min(height, width) < limits.min_pixels or max(height, width) > limits.max_pixels:
        raise ValueError(
            f"images are {width}x{height} pixels, {arch} takes {limits.min_pixels} to "
            f"{limits.max_pixels}; see --size, --sizes and --arch"
        )
