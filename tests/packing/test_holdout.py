"""Hold-out: the share of each class, by an order that anybody can compute again."""

import hashlib

import pytest

from tinyvgg.packing.holdout import Holdout, hold_out


def make_classes(**counts: int) -> dict[str, list[str]]:
    return {name: [f"train/{name}/{k:03d}.png" for k in range(n)] for name, n in counts.items()}


@pytest.mark.parametrize(
    ("num_images", "share", "num_val"),
    [(10, 0.1, 1), (10, 0.25, 3), (3, 0.01, 1), (2, 0.99, 1), (1, 0.5, 0), (500, 0.1, 50)],
)
def test_the_share_is_that_of_each_class_and_one_image_stays_in_train(
    num_images: int, share: float, num_val: int
) -> None:
    splits = hold_out(make_classes(ant=num_images), Holdout(share), "train/")

    assert len(splits["val"]["ant"]) == num_val
    assert len(splits["train"]["ant"]) == num_images - num_val


def test_the_images_of_lowest_sha_256_are_held_out_and_the_order_stays() -> None:
    classes = make_classes(ant=20, bee=9)

    splits = hold_out(classes, Holdout(0.3, seed=7), "train/")

    for name, paths in classes.items():
        digests = {
            path: hashlib.sha256(f"7\0{name}\0{path[6:]}".encode()).digest() for path in paths
        }
        lowest = sorted(paths, key=digests.__getitem__)[: round(0.3 * len(paths))]
        assert splits["val"][name] == sorted(lowest)
        assert splits["train"][name] == sorted(set(paths) - set(lowest))


def test_another_seed_holds_out_others() -> None:
    classes = make_classes(ant=100)

    first, second = (hold_out(classes, Holdout(0.5, seed), "train/") for seed in (0, 1))

    assert first["val"] != second["val"]


def test_other_classes_do_not_change_what_is_held_out() -> None:
    alone = hold_out(make_classes(bee=50), Holdout(0.2), "train/")

    among = hold_out(make_classes(ant=9, bee=50, cat=70), Holdout(0.2), "train/")

    assert among["val"]["bee"] == alone["val"]["bee"]
