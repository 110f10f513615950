"""The network: `VGG_Net`, the reference network tensor for tensor.

From: `loading`, which gives normalized images [B, 3, H, W], channels-last.
To:   `training` and `inference`, which get logits [B, K] and features.

B images, K classes, H and W 48 to 95 pixels.

Ten 3 x 3 convolutions with bias and ReLU, 64, 64 | 128, 128 | 256 x 3 | 512 x 3, a max-pool and
a dropout after each group, all in one `nn.Sequential` named `conv`, so that a checkpoint of the
reference loads as it is; then AvgPool2d(3), three hidden layers and the classifier.
`AvgPool2d(3)` on the 4 x 4 map of a 64-pixel image keeps the top-left 3 x 3 and drops a row and
a column; that is the reference, kept.
"""

import torch
from torch import Tensor, nn

STAGE_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512))
MIN_PIXELS, MAX_PIXELS = 48, 95  # four halvings must leave 3 to 5, so that one 3 x 3 mean fits


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
            layers += [nn.MaxPool2d(2, 2), nn.Dropout(dropout)]
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
        hidden = self.avg_pool(features).flatten(1)
        hidden = torch.relu(self.fc1(hidden))
        hidden = torch.relu(self.fc2(hidden))
        hidden = torch.relu(self.fc3(hidden))
        return self.classifier(hidden), features


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


def check_image_size(height: int, width: int) -> None:
    """Refuse images that the network cannot take.

    Raises:
        ValueError: a side is outside 48 to 95 pixels.
    """
    if min(height, width) < MIN_PIXELS or max(height, width) > MAX_PIXELS:
        raise ValueError(
            f"images are {width}x{height} pixels, VGG_Net takes {MIN_PIXELS} to {MAX_PIXELS}; "
            "pack again with --resize 64"
        )
