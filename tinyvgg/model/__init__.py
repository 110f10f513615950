"""The networks: what turns normalized images into logits."""

from tinyvgg.model.vgg import VGG_Net, build_network

__all__ = ["VGG_Net", "build_network"]
