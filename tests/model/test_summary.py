import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tinyvgg.model.summary import summarize_network, train_flop
from tinyvgg.model.vgg import ARCHS, build_network


@pytest.mark.parametrize(("arch", "pixels"), [(arch, 48) for arch in ARCHS] + [("vgg_net", 64)])
def test_operations_are_those_that_torch_counts(arch: str, pixels: int) -> None:
    model = build_network(arch, 10).train()
    images = torch.randn(2, 3, pixels, pixels)

    with FlopCounterMode(display=False) as forward:
        logits, _ = model(images)
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()

    layers = summarize_network(arch, 10, pixels, pixels)
    assert 2 * sum(layer.flop for layer in layers) == forward.get_total_flops()
    total = forward.get_total_flops() + backward.get_total_flops()
    assert 2 * train_flop(arch, 10, pixels, pixels) == total


def test_the_reference_has_its_published_figures() -> None:
    layers = summarize_network("vgg_net", 100, 64, 64)

    assert sum(layer.num_parameters for layer in layers) == 9_798_588
    assert sum(layer.flop for layer in layers) / 1e9 == pytest.approx(2.283, abs=5e-4)
    assert train_flop("vgg_net", 100, 64, 64) / 1e9 == pytest.approx(6.836, abs=5e-4)


def test_layers_are_named_as_in_the_state_dict_in_the_order_they_are_called() -> None:
    layers = summarize_network("vgg_net_bn", 10, 32, 32)

    assert [layer.name for layer in layers[:3]] == ["conv.0", "conv.1", "conv.3"]
    assert layers[0].shape == (64, 32, 32)
    assert layers[-1].name == "classifier"
    parameters = dict(build_network("vgg_net_bn", 10).named_parameters())
    assert sum(layer.num_parameters for layer in layers) == sum(
        parameter.numel() for parameter in parameters.values()
    )
