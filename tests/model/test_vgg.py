import json
import math
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from tests.closeness import relative_error
from tinyvgg.model.vgg import ARCHS, VGG_Net, build_network, check_image_size, initialize_he

GOLDEN = json.loads((Path(__file__).parent / "vgg_net_golden.json").read_text())


def golden_network() -> VGG_Net:
    model = VGG_Net(100).double().eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            j = torch.arange(parameter.numel(), dtype=torch.float64)
            fan_in = parameter[0].numel()
            amplitude = math.sqrt(6 / fan_in) if parameter.dim() > 1 else 0.05
            values = torch.sin(j * (0.37 + 0.01 * i) + GOLDEN["golden"]["phase"]) * amplitude
            parameter.copy_(values.view(parameter.shape))
    return model


def golden_images() -> torch.Tensor:
    j = torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)
    images = torch.cos(0.011 * j + GOLDEN["golden"]["phase"]).view(2, 3, 64, 64)
    return images.contiguous(memory_format=torch.channels_last)


def test_parameters_are_the_reference_networks_by_name_shape_and_order() -> None:
    model = VGG_Net(100)

    found = [[name, list(parameter.shape)] for name, parameter in model.named_parameters()]

    assert found == GOLDEN["parameters"]
    assert sum(p.numel() for p in model.parameters()) == GOLDEN["total_parameters"]


def test_logits_features_and_gradients_equal_the_golden_values_in_float64() -> None:
    golden = GOLDEN["golden"]
    model = golden_network()

    logits, features = model(golden_images())
    loss = nn.functional.cross_entropy(logits, torch.tensor([3, 97]))
    torch.autograd.backward(loss)

    expected = torch.tensor(golden["logits"], dtype=torch.float64)
    assert relative_error(logits, expected) < 1e-10
    assert list(features.shape) == golden["features_shape"]
    assert features.sum().item() == pytest.approx(golden["features_sum"], rel=1e-10)
    assert features.abs().sum().item() == pytest.approx(golden["features_abs_sum"], rel=1e-10)
    assert loss.item() == pytest.approx(golden["loss"], rel=1e-10)
    norms = golden["grad_norms"]
    norms = list(norms.values()) if isinstance(norms, dict) else norms
    for parameter, norm in zip(model.parameters(), norms, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-8)


@pytest.mark.parametrize("pixels", [48, 64, 95])
def test_legal_sizes_give_logits_and_features(pixels: int) -> None:
    logits, features = VGG_Net(7).eval()(torch.zeros(1, 3, pixels, pixels))

    assert logits.shape == (1, 7)
    assert features.shape == (1, 512, pixels // 16, pixels // 16)


@pytest.mark.parametrize("pixels", [47, 96])
def test_other_sizes_are_refused_with_the_remedy(pixels: int) -> None:
    with pytest.raises(ValueError, match="48 to 95; see --size, --sizes and --arch"):
        check_image_size("vgg_net", pixels, pixels)


def test_he_initialization_keeps_the_signal_through_ten_layers() -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 48, 48)
    default, he = VGG_Net(10).eval(), VGG_Net(10).eval()
    initialize_he(he)

    sizes = [model(images)[1].square().mean().sqrt().item() for model in (default, he)]

    assert sizes[0] < 0.05  # 0.4 times a layer
    assert 0.3 < sizes[1] < 3
    assert he.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.bfloat16, 3e-2)])
def test_channels_last_forward_equals_contiguous_float32(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    model = VGG_Net(10).eval()
    initialize_he(model)
    plain = VGG_Net(10).eval().to(memory_format=torch.contiguous_format)
    plain.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 64, 64)

    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        found, _ = model(images.contiguous(memory_format=torch.channels_last))
    with torch.no_grad():
        expected, _ = plain(images)

    assert relative_error(found.float(), expected) < bound


@pytest.mark.parametrize(
    ("height", "width"), [(48, 48), (63, 63), (64, 64), (80, 80), (95, 95), (64, 80), (80, 48)]
)
def test_logits_without_features_equal_the_reference_forward_and_its_gradients(
    height: int, width: int
) -> None:
    torch.manual_seed(height)
    model = VGG_Net(10, dropout=0.0).double()
    initialize_he(model)
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    images = images.contiguous(memory_format=torch.channels_last)
    results = []
    for compute in (lambda: model(images)[0], lambda: model.compute_logits(images)):
        model.zero_grad()
        logits = compute()
        nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
        results.append([logits.detach(), *(p.grad for p in model.parameters())])

    assert all(relative_error(b, a) < 1e-12 for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("arch", [name for name in ARCHS if not name.startswith("vgg_net")])
def test_configurations_compute_what_torchvisions_do(arch: str) -> None:
    torch.manual_seed(0)
    letter = {"vgg11": "A", "vgg13": "B", "vgg16": "D", "vgg19": "E"}[arch.removesuffix("_bn")]
    layers = torchvision.models.vgg.cfgs[letter]  # without its classifier of 120 million weights
    theirs = torchvision.models.vgg.make_layers(layers, batch_norm=arch.endswith("_bn")).eval()
    ours = build_network(arch, 10).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # BatchNorm that does more than nothing
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.abs().mean())
    kinds = nn.Conv2d | nn.BatchNorm2d
    pairs = zip(
        (layer for layer in theirs if isinstance(layer, kinds)),
        (layer for layer in ours.conv if isinstance(layer, kinds)),
        strict=True,
    )
    for layer, own in pairs:
        values = layer.state_dict()
        if isinstance(layer, nn.Conv2d) and own.bias is None:  # theirs keeps a bias; BatchNorm
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)  # takes any off again
            del values["bias"]
        own.load_state_dict(values)
    images = torch.randn(2, 3, 64, 64)

    with torch.no_grad():
        logits, features = ours(images)
        expected = theirs(images)

    assert logits.shape == (2, 10)
    assert relative_error(features, expected) < 1e-5


@pytest.mark.parametrize("arch", ARCHS)
def test_every_network_takes_the_sizes_it_names_and_no_others(arch: str) -> None:
    limits = ARCHS[arch]
    model = build_network(arch, 3).eval()

    for pixels in (limits.min_pixels, limits.max_pixels):
        check_image_size(arch, pixels, pixels)
        with torch.no_grad():
            assert model.compute_logits(torch.zeros(1, 3, pixels, pixels)).shape == (1, 3)

    with pytest.raises(ValueError, match=f"{arch} takes {limits.min_pixels} to"):
        check_image_size(arch, limits.min_pixels - 1, 64)
