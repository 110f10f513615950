from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torchvision.transforms.v2
from torch import nn

from tests.closeness import relative_error
from tinyvgg.loading.batch import Batch, resize_images
from tinyvgg.loading.views import scaled_size
from tinyvgg.model.vgg import VGG_Net
from tinyvgg.training.build import build_model
from tinyvgg.training.config import Recipe
from tinyvgg.training.step import (
    Meter,
    TrainStep,
    build_optimizer,
    learning_rate_at,
    pixels_at,
)

CPU = torch.device("cpu")


def random_batch(num_images: int, num_classes: int = 100, pixels: int = 48) -> Batch:
    generator = torch.Generator().manual_seed(num_images)
    images = torch.randn(num_images, 3, pixels, pixels, generator=generator)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    return Batch(images, labels, torch.arange(num_images), num_images)


def flatten(model: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_learning_rate_rises_over_the_warmup_and_falls_to_zero(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(learning_rate=1.0, warmup=0.2, decay="linear")

    rates = [learning_rate_at(recipe, step, 10) for step in range(10)]

    assert rates == [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]


@pytest.mark.parametrize(
    ("epochs", "shares", "expected"),
    [(1, (0.65,), [64]), (2, (0.5,), [32, 64]), (2, (0.9,), [32, 64]), (2, (1.0,), [32, 32])],
)
def test_the_last_epoch_is_as_stored_unless_the_shares_say_otherwise(
    make_recipe: Callable[..., Recipe], epochs: int, shares: tuple[float], expected: list[int]
) -> None:
    recipe = make_recipe(epochs=epochs, sizes=(32,), size_shares=shares)

    assert [pixels_at(recipe, epoch, 64) for epoch in range(epochs)] == expected


def test_learning_rate_of_the_reference_is_constant(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(learning_rate=1e-4, warmup=0.0, decay="none")

    assert {learning_rate_at(recipe, step, 100) for step in range(100)} == {1e-4}


def test_images_grow_at_the_shares_of_all_epochs_and_never_beyond_what_is_stored(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(epochs=10, sizes=(32, 48), size_shares=(0.4, 0.3))

    assert [pixels_at(recipe, epoch, 64) for epoch in range(10)] == [32] * 4 + [48] * 3 + [64] * 3
    assert {pixels_at(recipe, epoch, 40) for epoch in range(4, 10)} == {40}


def test_adamw_decays_weights_and_not_biases(make_recipe: Callable[..., Recipe]) -> None:
    weights, biases = build_optimizer(
        VGG_Net(2), make_recipe(optimizer="adamw", weight_decay=0.05)
    ).param_groups

    assert weights["weight_decay"] == 0.05
    assert biases["weight_decay"] == 0.0
    assert {p.dim() for p in biases["params"]} == {1}
    assert len(weights["params"]) + len(biases["params"]) == 28


def test_meter_reads_the_mean_over_images_of_batches_of_different_size() -> None:
    meter = Meter.on(CPU)

    meter.add(torch.tensor(2.0), torch.tensor(3.0), 4)
    meter.add(torch.tensor(1.0), torch.tensor(0.0), 2)

    assert meter.read() == (10 / 6, 0.5)


@pytest.mark.slow
def test_ten_steps_of_recipe_seed_follow_a_plain_loop(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(
        optimizer="adam", learning_rate=1e-4, clip_norm=0.0, label_smoothing=0.0, dropout=0.4
    )
    batches = [random_batch(4) for _ in range(2)] * 5
    plain = build_model(recipe, 100)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-4, fused=True)
    torch.manual_seed(1)
    expected = []
    for batch in batches:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(plain(batch.images)[0], batch.labels)
        torch.autograd.backward(loss)
        optimizer.step()
        expected.append(loss.item())

    model = build_model(recipe, 100)
    take_step = TrainStep(model, build_optimizer(model, recipe), recipe, "off", CPU, False)
    torch.manual_seed(1)
    found = [take_step(batch, 1e-4)[0].item() for batch in batches]

    # trimmed convolutions add up in another order; ten steps of Adam keep the difference small
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_compiled_step_has_no_graph_break_and_the_loss_of_eager(
    make_recipe: Callable[..., Recipe],
) -> None:
    recipe = make_recipe(dropout=0.0)
    batch = random_batch(4, num_classes=10)
    losses = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # other tests compile too
    for compiled in (False, True):  # a graph break raises: the step is compiled with fullgraph
        model = build_model(recipe, 10)
        optimizer = build_optimizer(model, recipe)
        take_step = TrainStep(model, optimizer, recipe, "off", CPU, compiled)
        losses.append(torch.stack([take_step(batch, 1e-3)[0].detach() for _ in range(3)]))

    assert relative_error(losses[1], losses[0]) < 1e-4
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_channels_last_is_kept_by_weights_and_features(
    make_recipe: Callable[..., Recipe],
) -> None:
    model = build_model(make_recipe(), 10)

    _, features = model(random_batch(2).images)

    assert features.is_contiguous(memory_format=torch.channels_last)
    assert all(
        module.weight.is_contiguous(memory_format=torch.channels_last)
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    )


@pytest.mark.parametrize("arch", ["vgg_net", "vgg_net_bn"])
def test_capture_changes_neither_weights_nor_optimizer_nor_generator(
    make_recipe: Callable[..., Recipe], arch: str
) -> None:
    recipe = make_recipe(arch=arch)
    model = build_model(recipe, 10)
    step = TrainStep(model, build_optimizer(model, recipe), recipe, "off", CPU, False)
    batch = random_batch(2, 10)
    step(batch, 1e-4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in step.optimizer.state.values()]
    generator = torch.get_rng_state()

    step.capture(batch.images, batch.labels)

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in model.parameters())
    after = [state["exp_avg"] for state in step.optimizer.state.values()]
    assert all(torch.equal(one, other) for one, other in zip(moments, after, strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_batch_in_parts_has_the_loss_hits_and_update_of_a_whole_one(
    make_recipe: Callable[..., Recipe], optimizer: str
) -> None:
    fields = {"optimizer": optimizer, "dropout": 0.0}
    batch = random_batch(8, num_classes=10)
    results = []
    for parts in (1, 4):
        recipe = make_recipe(accumulate=parts, **fields)
        model = build_model(recipe, 10).double()
        doubled = replace(batch, images=batch.images.double())
        step = TrainStep(model, build_optimizer(model, recipe), recipe, "off", CPU, False)
        loss, hits = step(doubled, 1e-3)
        results.append((loss.item(), hits.item(), flatten(model)))

    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert results[0][1] == results[1][1]
    assert relative_error(results[1][2], results[0][2]) < 1e-6


def test_sgd_follows_a_plain_nesterov_loop(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(optimizer="sgd", weight_decay=5e-4, dropout=0.0, clip_norm=0.0)
    model, plain = build_model(recipe, 10).double(), build_model(recipe, 10).double()
    step = TrainStep(model, build_optimizer(model, recipe), recipe, "off", CPU, False)
    momenta = [torch.zeros_like(parameter) for parameter in plain.parameters()]
    batch = random_batch(4, num_classes=10)
    batch = replace(batch, images=batch.images.double())

    for _ in range(3):
        step(batch, 0.01)
        plain.zero_grad()
        loss = nn.functional.cross_entropy(
            plain.compute_logits(batch.images), batch.labels, label_smoothing=0.1
        )
        torch.autograd.backward(loss)
        with torch.no_grad():
            for parameter, momentum in zip(plain.parameters(), momenta, strict=True):
                decay = 5e-4 if parameter.dim() >= 2 else 0.0
                assert parameter.grad is not None
                gradient = parameter.grad + decay * parameter
                momentum.mul_(0.9).add_(gradient)
                parameter.sub_(0.01 * (gradient + 0.9 * momentum))

    found, expected = (flatten(network) for network in (model, plain))
    assert relative_error(found, expected) < 1e-6


@pytest.mark.parametrize(
    ("height", "width", "pixels"), [(64, 64, 48), (64, 64, 32), (80, 48, 40), (48, 95, 47)]
)
def test_images_are_reduced_as_torchvision_does(height: int, width: int, pixels: int) -> None:
    images = torch.randn(3, 3, height, width).contiguous(memory_format=torch.channels_last)
    size = scaled_size(height, width, pixels)

    resized = resize_images(images, pixels)

    expected = torchvision.transforms.v2.functional.resize(images, list(size), antialias=True)
    assert torch.allclose(resized, expected, atol=1e-6)
    assert resized.is_contiguous(memory_format=torch.channels_last)
    assert resize_images(images, min(height, width)) is images
    for dtype, unit in ((torch.bfloat16, 2**-8), (torch.float16, 2**-11)):
        half = resize_images(images.to(dtype), pixels)
        assert half.dtype == dtype
        rounded = images.to(dtype).float()
        exact = torchvision.transforms.v2.functional.resize(rounded, list(size), antialias=True)
        assert ((half.float() - exact).abs() <= unit * exact.abs().clamp(min=1)).all()
