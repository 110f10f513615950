"""Results: benchmarks/RESULTS.md and its picture, from the newest record named `peers`."""

import importlib
import json
from typing import Any

from matplotlib.figure import Figure

from benchmarks.measure import RECORDS, REPOSITORY
from benchmarks.peers.contract import MODULES, Peer

TITLES = {
    "stored": "uint8 as stored",
    "flip": "flip + normalize, float32",
    "crop": "crop + flip + normalize, float32",
    "photographs": "JPEG photographs to 224 pixels",
    "convert": "conversion of the set, whole command",
}
DEVICE_RATES = {  # images/sec of ideal accelerators, whose waiting is stated
    "stored": (100_000, 500_000),
    "flip": (20_000, 100_000),
    "crop": (20_000, 100_000),
    "photographs": (1_000, 5_000),
}


def split_name(name: str) -> tuple[str, str]:
    """Return contest and title of an arm."""
    contest, _, title = name.partition(": ")
    return contest, title


def wait_share(rate: float, device_rate: float) -> float:
    """Return the share of its time that an accelerator of `device_rate` waits for this loader."""
    return max(0.0, 1 - rate / device_rate)


def shorten(rate: float) -> str:
    """Return a rate as people say it."""
    return f"{rate / 1000:,.0f} k" if rate >= 10_000 else f"{rate / 1000:.1f} k"


def find_best_peer(rates: dict[str, float], contest: str) -> str | None:
    """Return the fastest arm of a contest that is not tinyvgg's; None if there is none."""
    peers = [
        name
        for name in rates
        if split_name(name)[0] == contest and not is_of_us(split_name(name)[1])
    ]
    return max(peers, key=lambda name: rates[name], default=None)


def is_of_us(title: str) -> bool:
    """Return whether an arm is tinyvgg's, or the ceiling."""
    return "tinyvgg" in title or title == "ceiling"


def name_pivot(contest: str) -> str:
    """Return the name of the arm that all others of a contest are compared with."""
    return f"{contest}: tinyvgg, torch{', JPEG' if contest == 'photographs' else ''}"


def tabulate(record: dict[str, Any]) -> list[str]:
    """Return a row for each arm, a column for each contest."""
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    ratios = {bar["baseline"]: bar for bar in record["bars"]}
    titles = dict.fromkeys(split_name(name)[1] for name in rates)
    order = sorted(
        titles,
        key=lambda title: (
            title != "ceiling",
            "tinyvgg" not in title,
            -max(rates.get(f"{contest}: {title}", 0) for contest in ("flip", "stored", "convert")),
        ),
    )
    lines = [f"| images/sec | {' | '.join(TITLES.values())} |", "| --- |" + " ---: |" * len(TITLES)]
    for title in order:
        cells = []
        for contest in TITLES:
            name = f"{contest}: {title}"
            cell = shorten(rates[name]) if name in rates else ""
            if name in ratios:
                cell += f" ({ratios[name]['ratio']:.1f} x)"
            elif name == name_pivot(contest) and name in rates:
                cell = (
                    f"**{cell}**, {rates[name] / rates[f'{contest}: ceiling']:.2f} of the ceiling"
                )
            cells.append(cell)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def tell_waits(record: dict[str, Any]) -> list[str]:
    """Return how long accelerators would wait for tinyvgg, and for the best peer."""
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    lines = []
    for contest, title in TITLES.items():
        best, ours = find_best_peer(rates, contest), rates.get(name_pivot(contest))
        if contest == "convert" or best is None or ours is None:
            continue
        shares = [
            f"{rate:,} images/sec: {100 * wait_share(ours, rate):.0f} %, with "
            f"{split_name(best)[1]} {100 * wait_share(rates[best], rate):.0f} %"
            for rate in DEVICE_RATES[contest]
        ]
        lines.append(f"* {title}: {'; '.join(shares)}")
    return lines


def tell_commits(machine: dict[str, Any]) -> str:
    """Return at which other commits peers were measured, in brackets; nothing if at none."""
    others = [commit[:8] for commit in machine.get("commits", ()) if commit != machine["commit"]]
    return f" (some peers before, at {', '.join(others)})" if others else ""


def tell_unlike(name: str) -> str:
    """Return what differs in the work of the peer that an arm is of, in brackets."""
    title = split_name(name)[1]
    for module in MODULES:
        peer: Peer = importlib.import_module(f"benchmarks.peers.{module}").PEER
        if peer.unlike and title in {variant.name for variant in peer.variants}:
            return f" ({peer.unlike})"
    return ""


def render(record: dict[str, Any]) -> str:
    """Return the page."""
    machine = record["machine"]
    peers = [bar for bar in record["bars"] if not is_of_us(split_name(bar["baseline"])[1])]
    worse = [bar for bar in peers if bar["ratio"] < 1]
    unmet = [bar for bar in peers if not bar["is_met"] and bar["ratio"] >= 1]
    missing: dict[str, list[str]] = {}
    for lack in machine["missing"]:
        missing.setdefault(f"{lack['peer']}: {lack['reason']}", []).append(lack["contest"])
    lines = [
        "# Beside what you would pick instead",
        "",
        "![images/sec by contest: tinyvgg, its peers, the ceiling](records/peers.png)",
        "",
        f"One run, {machine['num_cores']} cores of {machine['cpu']} "
        f"({', '.join(machine['cpu_flags'])}), torch {machine['torch']}, {machine['date'][:10]}, "
        f"commit {machine['commit'][:8]}{tell_commits(machine)}"
        f"{'; the machine was busy' if machine['is_busy'] else ''}: "
        f"{record['claim']}. The number of times that tinyvgg is faster is in brackets; its "
        "interval, and every bar, in [RECORDS.md](RECORDS.md). The ceiling is what the same "
        "threads do without a loader; where it is exceeded it is no limit.",
        "",
        *tabulate(record),
        "",
        "## What we are worse at, and what we did not reach",
        "",
        *[f"* {bar['what']}: {bar['ratio']:.2f}{tell_unlike(bar['baseline'])}" for bar in worse],
        *[f"* {bar['what']}: {bar['ratio']:.2f}, {bar['at_least']} wanted" for bar in unmet],
        *(["Nothing of the above."] if not worse + unmet else []),
        "",
        "## How long an accelerator would wait",
        "",
        "Share of its time that an ideal one of the given rate has no batch (MLPerf Storage passes "
        "10 % and less):",
        "",
        *tell_waits(record),
        "",
        "## Not measured",
        "",
        *[f"* {', '.join(contests)}: {what}" for what, contests in missing.items()],
        "",
        "## Again",
        "",
        "    make peers && .venv/bin/python -m benchmarks.peers SOURCE",
        "",
        "Each peer is one small file of [peers/](peers); its authors are invited to mend it. Its "
        "`unlike` says what differs from the others' work. "
        "What does under 50,000 images/sec, and has no bar, ran once.",
        "",
    ]
    return "\n".join(lines)


def draw(record: dict[str, Any]) -> Figure:
    """Return the picture: a line for each contest, a dot for each arm."""
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    contests = [c for c in TITLES if name_pivot(c) in rates]
    figure = Figure(figsize=(10, 0.9 + 0.75 * len(contests)), layout="constrained")
    axes = figure.add_subplot()
    for place, contest in enumerate(reversed(contests)):
        dots = {split_name(n)[1]: r for n, r in rates.items() if split_name(n)[0] == contest}
        ceiling, ours = dots.pop("ceiling"), rates[name_pivot(contest)]
        peers = {title: rate for title, rate in dots.items() if not is_of_us(title)}
        axes.plot([ceiling], [place], "|", color="black", markersize=16, markeredgewidth=2)
        axes.scatter(list(peers.values()), [place] * len(peers), color="0.6", s=28)
        axes.scatter([ours], [place], color="C0", s=70, zorder=3)
        text: dict[str, Any] = {"ha": "center", "fontsize": 8, "color": "C0", "weight": "bold"}
        axes.text(ours, place + 0.22, shorten(ours), **text)
        ordered = sorted(peers, key=lambda title: peers[title])
        for title, side in zip(ordered[:1] + ordered[-1:], ("right", "center"), strict=False):
            label = f"{title}, {shorten(peers[title])}"
            axes.text(peers[title], place - 0.4, label, ha=side, fontsize=8)
    axes.set_yticks(range(len(contests)), [TITLES[c] for c in reversed(contests)])
    axes.set_ylim(-0.7, len(contests) - 0.4)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(low / 4, high * 1.5)
    axes.set_title("images/sec: tinyvgg (blue), others (grey), ceiling (line)", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", alpha=0.3)
    return figure


def write_page() -> None:
    """Write page and picture of the newest record."""
    paths = sorted(RECORDS.glob("*-peers-*.json"), key=lambda p: p.stat().st_mtime)
    record = json.loads(paths[-1].read_text())
    (REPOSITORY / "benchmarks" / "RESULTS.md").write_text(render(record))
    draw(record).savefig(RECORDS / "peers.png", dpi=110)
