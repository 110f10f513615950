"""Scale: the section of benchmarks/SCALE.md that records hold; called by `render_records`."""

from typing import Any

from benchmarks.measure import PEAK_FLOP_PER_SEC

TRAIN_FLOP = 6.836e9  # an image of 64 x 64 through VGG_Net, forward and backward; `train --summary`
GPU_SHARE = 0.5  # of the dense bf16 peak, which no one has measured here: an upper estimate
GPUS = ("A100", "H100")
SETS = (("TinyImageNet", 110_000), ("ImageNet-1k", 1_281_167), ("ImageNet-21k", 14_197_122))
CORES = (1, 2, 8, 16, 64, 256)


def render_scale(records: list[dict[str, Any]]) -> str:
    """Return the tables of SCALE.md, as Markdown; a table whose record is missing is left out."""
    by_name = {record["name"]: record for record in records}
    lines: list[str] = []
    if "hosts" in by_name:
        lines += render_packing(by_name["hosts"])
    if "ranks" in by_name:
        lines += render_ranks(by_name["ranks"])
    if "peers" in by_name:
        lines += render_loading(by_name["peers"])
    return "\n".join(lines).rstrip()


def render_packing(record: dict[str, Any]) -> list[str]:
    """Return what packing costs, the model's error and what the model says of larger sets."""
    sec = {arm["name"]: 1 / arm["images_per_sec"] for arm in record["arms"]}
    part, again = sec["one part, one core"], sec["one part again, nothing left to do"]
    done, two = sec["--finish"], sec["two parts at once, a core each"]
    bars = {bar["what"]: bar for bar in record["bars"]}
    model = bars["two parts over the model of two"]
    lines = [
        "## Packing",
        "",
        "| measured, one core, µs an image | |",
        "| --- | ---: |",
        f"| a part of one: start, listing, read, decode, hash, write | {1e6 * part:.1f} |",
        f"| of it, what every part repeats: start, listing, looking at the journal | "
        f"{1e6 * again:.1f} |",
        f"| `--finish`, once | {1e6 * done:.1f} |",
        f"| two parts at once, a core each | {1e6 * two:.1f} |",
        "",
        f"Two parts reached {model['ratio']:.2f} of what the model says of two "
        f"[{model['low']:.2f} to {model['high']:.2f}]: so wrong it is here.",
        "",
    ]
    if "Ray over threads" in bars:
        ray = bars["Ray over threads"]
        lines += [
            f"Two Ray workers over two threads of one process: {ray['ratio']:.2f} "
            f"[{ray['low']:.2f} to {ray['high']:.2f}].",
            "",
        ]
    lines += [
        "| computed: minutes to pack | " + " | ".join(f"{n} cores" for n in CORES) + " |",
        "| --- |" + " ---: |" * len(CORES),
    ]
    for name, count in SETS:
        minutes = [count * (again + (part - again) / cores + done) / 60 for cores in CORES]
        cells = " | ".join(f"{m:.1f}" if m < 100 else f"{m:,.0f}" for m in minutes)
        lines.append(f"| {name}, {count:,} files of 64 x 64 | {cells} |")
    return [*lines, ""]


def render_ranks(record: dict[str, Any]) -> list[str]:
    """Return what exchanging gradients costs."""
    lines = ["## Training", "", "| measured, images/sec | |", "| --- | ---: |"]
    lines += [f"| {arm['name']} | {arm['images_per_sec']:.1f} |" for arm in record["arms"]]
    lines.append("")
    lines += [
        f"* {bar['what']}: {bar['ratio']:.2f} [{bar['low']:.2f} to {bar['high']:.2f}]"
        for bar in record["bars"]
    ]
    return [*lines, ""]


def render_loading(record: dict[str, Any]) -> list[str]:
    """Return the cores that an accelerator asks for, of each kind of shards."""
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    num_cores = record["machine"]["num_cores"]
    kinds = (
        ("uint8 as stored, normalized on the GPU", "stored: tinyvgg, torch"),
        ("float32, cropped, flipped, normalized on the host", "crop: tinyvgg, torch"),
        ("JPEG shards, 64 x 64, decoded on the host", "flip: tinyvgg, torch, JPEG"),
    )
    lines = [
        "## Loading",
        "",
        f"Images/sec of a core: measured on {num_cores} cores, divided. What a GPU takes: "
        f"computed, VGG_Net at 64 x 64, {TRAIN_FLOP / 1e9:.2f} GFLOP an image, {GPU_SHARE:.0%} of "
        "the dense bf16 peak; nobody has measured that yet.",
        "",
        "| batches | images/sec of a core | "
        + " | ".join(f"cores for an {name}" for name in GPUS) + " |",
        "| --- | ---: |" + " ---: |" * len(GPUS),
    ]  # fmt: skip
    for title, name in kinds:
        if name in rates:
            rate = rates[name] / num_cores
            needed = [GPU_SHARE * PEAK_FLOP_PER_SEC[gpu] / TRAIN_FLOP / rate for gpu in GPUS]
            cells = " | ".join(f"{cores:.1f}" for cores in needed)
            lines.append(f"| {title} | {rate:,.0f} | {cells} |")
    return [*lines, ""]
