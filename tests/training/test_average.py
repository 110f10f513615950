"""The moving average, beside torch's own."""

import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tinyvgg.model.vgg import build_network
from tinyvgg.training.average import AveragedNetwork


@pytest.mark.parametrize("arch", ["vgg11", "vgg11_bn"])
def test_the_average_is_torchs_bit_by_bit_and_goes_on_from_its_state(arch: str) -> None:
    torch.manual_seed(0)
    model = build_network(arch, 3)
    ours = AveragedNetwork(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    for step in range(4):
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                if value.is_floating_point():
                    value.add_(torch.randn_like(value))
        ours.update(model)
        theirs.update_parameters(model)
        if step == 1:  # a run of the version before is resumed
            ours = AveragedNetwork(build_network(arch, 3), 0.9)
            ours.load_state_dict(theirs.state_dict())

    found, expected = ours.state_dict(), theirs.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_average_is_a_network_of_its_own() -> None:
    model = build_network("vgg11", 3)
    average = AveragedNetwork(model, 0.5)

    average.update(model)
    with torch.no_grad():
        model.classifier.weight.add_(1.0)
    average.update(model)

    averaged = average.module.get_parameter("classifier.weight")
    difference = model.classifier.weight - averaged
    assert torch.allclose(difference, torch.full_like(difference, 0.5))
