import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tinyvgg.model.summary import count_kept_bytes, summarize_network, train_flop
from tinyvgg.model.vgg import ARCHS, build_network, compute_logits


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


def test_what_the_backward_pass_keeps_is_counted_as_autograd_keeps_it() -> None:
    counted = count_kept_bytes("vgg11_bn", 7, 64, 96)

    model = build_network("vgg11_bn", 7).train()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute_logits(model, torch.zeros(8, 3, 64, 96))
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 8

    # on a CPU pooling keeps a byte a window; elsewhere, and here, torch's own eight
    assert 0.5 * counted < measured < 1.05 * counted
    assert count_kept_bytes("vgg11_bn", 7, 128, 192) == pytest.approx(4 * counted, rel=0.01)
