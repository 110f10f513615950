"""A small network that was really trained, so that its logits are large enough to compare."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tinyvgg.inference.trained import Preprocessing, TrainedNetwork
from tinyvgg.model.vgg import build_network, initialize_he

MEAN, STD = (0.48, 0.45, 0.4), (0.28, 0.27, 0.29)


def draw_images(num_images: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return uint8 [n, H, W, 3]: noise around a color that tells the image's class of three."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 96, (num_images, height, width, 3))
    colors = np.array([[150, 0, 0], [0, 150, 0], [0, 0, 150]])
    images: NDArray[np.int64] = noise + colors[np.arange(num_images) % 3][:, None, None]
    return images.astype(np.uint8)


@pytest.fixture(scope="session")
def trained() -> TrainedNetwork:
    """vgg11 on images of 32 x 32, which it tells apart; three classes, one without words."""
    torch.manual_seed(0)
    model = build_network("vgg11", 3)
    initialize_he(model)
    preprocessing = Preprocessing(MEAN, STD, 32, stored_size=(32, 32))
    words = ["red things", "", "blue, azure"]
    network = TrainedNetwork(model, ["class0", "class1", "class2"], words, preprocessing, "vgg11")
    images = normalize(draw_images(12, 32, 32))
    labels = torch.arange(12) % 3
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    with torch.no_grad():
        logits = network.eval()(images)
    assert (logits.argmax(1) == labels).all()
    assert logits.max() >= 5
    return network


def normalize(images: NDArray[np.uint8]) -> torch.Tensor:
    """Return float32 [n, 3, H, W] of uint8 [n, H, W, 3]; the obvious way."""
    pixels = images.astype(np.float64) / 255
    return torch.from_numpy(((pixels - MEAN) / STD).astype(np.float32)).permute(0, 3, 1, 2)
