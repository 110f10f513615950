"""Plots of benchmarks/records, and what they show in numbers; called by `render_records`."""

import re
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from matplotlib.figure import Figure

GROWTH = {  # in record `scaling`: what grows, which arms show it, the option that says how far
    "images in the data set": (r"^[\d,]+ images", "num_images"),
    "images in a batch": ("^batch ", "batch_size"),
    "pixels a side": ("pixels", "packed"),
    "threads": ("^threads:", "num_threads"),
    "ranks, a thread each": ("^ranks:", "world_size"),
    "memory": ("^memory:", None),
}


def group_growth(record: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the arms of record `scaling` by what grows."""
    groups = {
        title: [arm for arm in record["arms"] if re.search(pattern, arm["name"])]
        for title, (pattern, _) in GROWTH.items()
    }
    return {title: arms for title, arms in groups.items() if arms}


def fit_slopes(record: dict[str, Any]) -> dict[str, float]:
    """Return by what the cost of an image grows, as a power of each thing that grows.

    Least squares of the logarithms: 0 if an image costs the same however far it grows, -1 if N
    times as many threads take a N-th of the time.
    """
    slopes = {}
    for title, arms in group_growth(record).items():
        option = GROWTH[title][1]
        if option is not None and len(arms) > 1:
            sizes = np.log([float(arm["options"][option]) for arm in arms])
            costs = np.log([1 / arm["images_per_sec"] for arm in arms])
            slopes[title] = float(np.polyfit(sizes, costs, 1)[0])
    return slopes


def plot_curves(record: dict[str, Any], path: Path) -> None:
    """Draw validation top-1 of every run against the operations spent."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    draw_curves(figure.add_subplot(), record)
    figure.savefig(path, dpi=110)


def draw_curves(axes: Any, record: dict[str, Any]) -> None:
    """Draw the curves of a record into axes of a figure."""
    for color, arm in enumerate(record["arms"]):
        for number, run in enumerate(arm["runs"]):
            axes.plot(
                [point["pflop"] for point in run["curve"]],
                [100 * point["val_top1"] for point in run["curve"]],
                color=f"C{color}",
                marker="o",
                markersize=3,
                label=arm["name"] if number == 0 else None,
            )
    if len(record["arms"]) > 1:
        axes.set_xscale("log")
    axes.set_xlabel("PFLOP spent")
    axes.set_ylabel("validation top-1, %")
    axes.grid(alpha=0.3)
    axes.legend()


def plot_overview(records: dict[str, dict[str, Any]], path: Path) -> None:
    """Draw the README's picture: rates of loaders, and accuracy by operations."""
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(5, 6))
    arms = {arm["name"]: arm["images_per_sec"] for arm in records["loaders"]["arms"]}
    folders = max((arms[name], name) for name in arms if name.startswith("ImageFolder"))
    bars = [
        ("ImageFolder and DataLoader,\nbest number of workers", folders[0], "0.6"),
        ("tinyvgg, torch, float32", arms["torch, crop + flip + normalize, float32"], "C0"),
        ("tinyvgg, resident, float32", arms["resident, crop + flip + normalize, float32"], "C0"),
        ("tinyvgg, torch, bfloat16", arms["torch, crop + flip + normalize, bfloat16"], "C0"),
    ]
    names, rates, colors = zip(*reversed(bars), strict=True)
    drawn = left.barh(names, rates, color=colors)
    left.bar_label(drawn, [f" {rate:,.0f}" for rate in rates])
    left.set_xlim(right=1.25 * max(rates))
    left.set_xticks([])
    left.set_title("images/sec, 2 CPU cores", fontsize=10)
    left.spines[["top", "right", "bottom"]].set_visible(False)
    draw_curves(right, records["accuracy"])
    right.set_title("accuracy by operations, 20 classes of TinyImageNet", fontsize=10)
    right.set_ylim(top=85)
    right.legend(loc="upper right", fontsize=8)
    figure.savefig(path, dpi=110)


def plot_scaling(record: dict[str, Any], path: Path) -> None:
    """Draw microseconds per image against each thing that grows, by the names of the arms."""
    panels = group_growth(record)
    num_rows = (len(panels) + 2) // 3
    figure = Figure(figsize=(11, 2.9 * num_rows), layout="constrained")
    for position, (title, arms) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(num_rows, 3, position)
        costs = [1e6 / arm["images_per_sec"] for arm in arms]
        option = GROWTH[title][1]
        if option is None:
            labels = [arm["name"].partition(": ")[2] for arm in arms]
            drawn = axes.barh([fill(label, 22) for label in labels], costs, log=True)
            axes.bar_label(drawn, [f" {cost:,.0f}" for cost in costs], fontsize=7)
            axes.set_xlim(left=1, right=5 * max(costs))
            axes.invert_yaxis()
            axes.tick_params(labelsize=7)
            axes.set_xlabel(f"µs per image, by {title}")
        else:
            sizes = [int(arm["options"][option]) for arm in arms]
            axes.plot(sizes, costs, marker="o")
            if max(sizes) > 10:
                axes.set_xscale("log")
            axes.set_xticks(sizes, [f"{size:,}" for size in sizes], fontsize=7)
            axes.minorticks_off()
            axes.set_ylim(bottom=0)
            axes.set_xlabel(title)
            axes.set_ylabel("µs per image")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
