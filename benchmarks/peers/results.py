"""Results: benchmarks/RESULTS.md and its picture, from the newest record named `peers`."""

import json
from typing import Any

from matplotlib.figure import Figure

from benchmarks.measure import RECORDS, REPOSITORY

TITLES = {
    "stored": "uint8 as stored",
    "flip": "flip + normalize, float32",
    "crop": "crop + flip + normalize, float32",
    "photographs": "JPEG photographs to 224 pixels",
    "convert": "conversion of the set, whole command",
}
DEVICE_RATES = (10_000, 100_000)  # images/sec of ideal accelerators, whose waiting is stated


def split_name(name: str) -> tuple[str, str]:
    """Return contest and title of an arm."""
    contest, _, title = name.partition(": ")
    return contest, title


def wait_share(rate: float, device_rate: float) -> float:
    """Return the share of its time that an accelerator of `device_rate` waits for this loader."""
    return max(0.0, 1 - rate / device_rate)


def render(record: dict[str, Any]) -> str:
    """Return the page."""
    machine = record["machine"]
    ratios = {bar["measured"] + bar["baseline"]: bar for bar in record["bars"]}
    by_baseline = {bar["baseline"]: bar for bar in ratios.values()}
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    lines = [
        "# Beside what you would pick instead",
        "",
        f"{record['claim']}. {machine['num_cores']} cores of {machine['cpu']}, torch "
        f"{machine['torch']}, {machine['date'][:10]}, commit {machine['commit'][:8]}"
        f"{'; the machine was busy' if machine['is_busy'] else ''}.",
        "",
        "![images/sec by contest](records/peers.png)",
        "",
        "| contest | arm | images/sec | of the ceiling | tinyvgg is x times faster | "
        + " | ".join(f"waiting at {rate:,}/s" for rate in DEVICE_RATES)
        + " |",
        "| --- | --- | ---: | ---: | ---: | " + " | ".join("---:" for _ in DEVICE_RATES) + " |",
    ]
    order = sorted(rates, key=lambda name: (list(TITLES).index(split_name(name)[0]), -rates[name]))
    for name in order:
        contest, title = split_name(name)
        bar = by_baseline.get(name)
        ratio = f"{bar['ratio']:.2f} [{bar['low']:.2f} to {bar['high']:.2f}]" if bar else ""
        ceiling = rates.get(f"{contest}: ceiling")
        share = f"{rates[name] / ceiling:.2f}" if ceiling else ""
        waits = [
            "" if contest == "convert" else f"{100 * wait_share(rates[name], rate):.0f} %"
            for rate in DEVICE_RATES
        ]
        cells = [TITLES[contest], title, f"{rates[name]:,.0f}", share, ratio, *waits]
        lines.append(f"| {' | '.join(cells)} |")
    worse = [bar for bar in record["bars"] if bar["ratio"] < 1]
    lines += ["", "## What we are worse at", ""]
    lines += [f"* {bar['what']}: {bar['ratio']:.2f}" for bar in worse] or ["Nothing of the above."]
    lines += ["", "## Not measured", ""]
    lines += [f"* {m['contest']}, {m['peer']}: {m['reason']}" for m in machine["missing"]]
    lines += [
        "",
        "## Again",
        "",
        "    make peers && .venv/bin/python -m benchmarks.peers SOURCE",
        "",
        "A peer is one file of `peers/`; its authors are invited to mend it. A ratio of one repeat "
        "has an interval of one point. An accelerator that takes the given images/sec without end "
        "waits the given share of its time; a ceiling that is exceeded is no limit of the machine.",
        "",
    ]
    return "\n".join(lines)


def draw(record: dict[str, Any]) -> Figure:
    """Return the picture: a panel for each contest."""
    contests = [c for c in TITLES if any(split_name(a["name"])[0] == c for a in record["arms"])]
    figure = Figure(figsize=(11, 3.2 * ((len(contests) + 1) // 2)), layout="constrained")
    for place, contest in enumerate(contests, start=1):
        axes = figure.add_subplot((len(contests) + 1) // 2, 2, place)
        rows = sorted(
            (arm["images_per_sec"], split_name(arm["name"])[1])
            for arm in record["arms"]
            if split_name(arm["name"])[0] == contest
        )
        colors = ["0.85" if t == "ceiling" else "C0" if "tinyvgg" in t else "0.6" for _, t in rows]
        axes.barh([title for _, title in rows], [rate for rate, _ in rows], color=colors)
        axes.set_xscale("log")
        axes.set_title(f"{TITLES[contest]}, images/sec", fontsize=10)
        axes.tick_params(labelsize=7)
    return figure


def write_page() -> None:
    """Write page and picture of the newest record."""
    paths = sorted(RECORDS.glob("*-peers-*.json"), key=lambda p: p.stat().st_mtime)
    record = json.loads(paths[-1].read_text())
    (REPOSITORY / "benchmarks" / "RESULTS.md").write_text(render(record))
    draw(record).savefig(RECORDS / "peers.png", dpi=110)
