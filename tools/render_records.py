"""Draw the tables and plots of benchmarks/records: `python tools/render_records.py`.

All of them go into benchmarks/RECORDS.md, the ratios into the README. With --check, change nothing
and fail if one of the two says something else than the records.
"""

import json
import sys
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

REPOSITORY = Path(__file__).parents[1]
RECORDS = REPOSITORY / "benchmarks" / "records"
BEGIN, END = "<!-- records: tools/render_records.py -->", "<!-- end of records -->"


def read_records() -> list[dict[str, Any]]:
    """Return the newest record of each benchmark, by name."""
    newest: dict[str, dict[str, Any]] = {}
    for path in sorted(RECORDS.glob("*.json")):
        record = json.loads(path.read_text())
        record["path"] = path.relative_to(RECORDS.parent).as_posix()
        if (
            record["name"] not in newest
            or record["machine"]["date"] > newest[record["name"]]["machine"]["date"]
        ):
            newest[record["name"]] = record
    return [newest[name] for name in sorted(newest)]


def render_tables(records: list[dict[str, Any]]) -> str:
    """Return every record's arms and bars, as Markdown."""
    lines = []
    for record in records:
        machine = record["machine"]
        flags = ", ".join(machine["cpu_flags"])
        busy = "; the machine was busy" if machine["is_busy"] else ""
        lines += [
            f"**{record['name']}**: {record['claim']}. {machine['num_cores']} cores of "
            f"{machine['cpu']} (family/model {machine['cpu_family_model']}; {flags}), torch "
            f"{machine['torch']}, {machine['date'][:10]}, commit {machine['commit'][:8]}{busy}. "
            f"[Record]({record['path']})",
            "",
            *render_arms(record),
        ]
    return "\n".join(lines).rstrip()


def render_arms(record: dict[str, Any]) -> list[str]:
    """Return the lines of a record's arms, by what they hold."""
    if is_of_accuracy(record):
        return render_curves(record)
    return render_rows(record) if "rows" in record["arms"][0] else render_rates(record)


def is_of_accuracy(record: dict[str, Any]) -> bool:
    """Return whether a record holds training curves and no rates."""
    return "runs" in record["arms"][0]


def render_rates(record: dict[str, Any]) -> list[str]:
    """Return the lines of a record of images/sec: its arms, then its ratios."""
    has_flops, has_mfu = (
        any(field in arm for arm in record["arms"]) for field in ("flop_per_sec", "mfu")
    )
    lines = [
        "| arm | images/sec, median | quartiles | processes | share of its ceiling |"
        + (" GFLOP/s |" if has_flops else "")
        + (" MFU |" if has_mfu else ""),
        "| --- | ---: | ---: | ---: | ---: |"
        + (" ---: |" if has_flops else "")
        + (" ---: |" if has_mfu else ""),
    ]
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    for arm in record["arms"]:
        low, high = arm["quartiles"]
        ceiling = arm["ceiling"]
        share = "" if ceiling is None else f"{100 * rates[arm['name']] / rates[ceiling]:.0f} %"
        lines.append(
            f"| {arm['name']} | {_number(arm['images_per_sec'])} | "
            f"{_number(low)} to {_number(high)} | {len(arm['windows'])} | {share} |"
            + (f" {_number(arm.get('flop_per_sec', 0) / 1e9)} |" if has_flops else "")
            + (f" {100 * arm['mfu']:.0f} % |" if "mfu" in arm else " |" if has_mfu else "")
        )
    return [*lines, "", *render_bars(record)]


def render_ratios(records: list[dict[str, Any]]) -> str:
    """Return the ratios of all records of images/sec, as one Markdown table."""
    lines = [
        "| benchmark | ratio | median | 95 % interval | bar |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for record in records:
        if not is_of_accuracy(record):
            lines += [f"| {record['name']} {line}" for line in render_bars(record)[2:-1]]
    return "\n".join(lines)


def render_bars(record: dict[str, Any]) -> list[str]:
    """Return the lines of a record's ratios, none if it has none."""
    if not record["bars"]:
        return []
    return [
        "| ratio | median | 95 % interval | bar |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {bar['what']} | {bar['ratio']:.2f} | {bar['low']:.2f} to "
            f"{bar['high']:.2f} | {bar['at_least']}: {_verdict(bar)} |"
            for bar in record["bars"]
        ),
        "",
    ]


RATE_COLUMNS = {  # of a record of the GPU benchmark: heading by field
    "images_per_sec": "images/sec, median",
    "ms_per_step": "ms a step",
    "host_ms_per_step": "of the host",
    "mfu": "MFU, %",
    "mfu_done": "of what is done, %",
    "share_of_step": "over its step",
    "data_wait_share": "data wait, %",
    "peak_memory_gb": "peak GB",
    "ready_sec": "ready after s",
}
NOT_DRAWN = ("name", "windows", "step_windows", "groups", "group", "val_top1_by_epoch")


def render_rows(record: dict[str, Any]) -> list[str]:
    """Return the lines of a record of the GPU benchmark: rates, other figures, what is missing."""
    rows = [(arm, row) for arm in record["arms"] for row in arm["rows"]]
    lines = [
        f"| arm | {' | '.join(RATE_COLUMNS.values())} |",
        f"| --- |{' ---: |' * len(RATE_COLUMNS)}",
        *(
            f"| {arm['what']} | {' | '.join(_figure(row, key) for key in RATE_COLUMNS)} |"
            for arm, row in rows
            if "images_per_sec" in row
        ),
        "",
        "| what | figures |",
        "| --- | --- |",
    ]
    for _, row in rows:
        if "images_per_sec" not in row and not row["name"].startswith("kernel "):
            figures = [f"{key} {_figure(row, key)}" for key in row if key not in NOT_DRAWN]
            lines.append(f"| {row['name']} | {', '.join(figures)} |")
    lines += [
        "",
        "| kernel | µs a step | calls a step | share, % |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| `{row['name'].removeprefix('kernel ').replace('|', '/')}` | "
        f"{row['us_per_step']:,.1f} | {row['calls_per_step']:.1f} | {_figure(row, 'share')} |"
        for _, row in rows
        if row["name"].startswith("kernel ")
    ]
    lines += ["", "| not measured | why |", "| --- | --- |"]
    lines += [
        f"| {arm['name']} | {arm['status']}: {arm['reason'].replace('|', '/')} |"
        for arm in record["arms"]
        if arm["status"] != "measured"
    ]
    return [*lines, "", *render_bars(record)]


def _figure(row: dict[str, Any], key: str) -> str:
    """Return a figure of a row; empty where there is none."""
    value = row.get(key)
    if value is None:
        return ""
    if key == "share_of_step":
        median, low, high = value
        return f"{median:.3f} [{low:.3f} to {high:.3f}]"
    if key in ("mfu", "mfu_done", "data_wait_share", "share"):
        return f"{100 * value:.1f}"
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return str(value)


def render_curves(record: dict[str, Any]) -> list[str]:
    """Return the lines of a record of training runs: plot, arms, then bars."""
    name = record["name"]
    lines = [
        f"![validation top-1 by operations spent, {name}](records/{name}.png)",
        "",
        "| recipe | flags | seeds | best validation top-1, % | epochs | PFLOP |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for arm in record["arms"]:
        best, epochs, pflop = (
            ", ".join(words)
            for words in zip(
                *(
                    (
                        f"{100 * run['best_top1']:.1f}",
                        str(len(run["curve"])),
                        f"{run['curve'][-1]['pflop']:.3f}",
                    )
                    for run in arm["runs"]
                ),
                strict=True,
            )
        )
        lines.append(
            f"| {arm['name']} | `{' '.join(arm['flags'])}` | {len(arm['runs'])} | {best} | "
            f"{epochs} | {pflop} |"
        )
    lines += ["", "| what | found | bar |", "| --- | ---: | ---: |"]
    for bar in record["bars"]:
        if "top1" in bar:
            found, needed = f"{100 * bar['top1']:.2f} %", f"at least {100 * bar['at_least']:.0f} %"
        else:
            mean = bar["mean_pflop"]
            share = "" if mean is None else f", 1/{1 / bar['share_of_reference']:.1f}"
            found = "not reached by all" if mean is None else f"{mean:.4f}{share}"
            needed = f"at most {bar['at_most']:.4f}"
        lines.append(f"| {bar['what']} | {found} | {needed}: {_verdict(bar)} |")
    return [*lines, ""]


def plot_curves(record: dict[str, Any], path: Path) -> None:
    """Draw validation top-1 of every run against the operations spent."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
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
    figure.savefig(path, dpi=110)


def _verdict(bar: dict[str, Any]) -> str:
    return "met" if bar["is_met"] else "**not met**"


def plot_scaling(record: dict[str, Any], path: Path) -> None:
    """Draw microseconds per image against the number of images and against the batch size."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    for position, (option, title) in enumerate(
        (("num_images", "images in the data set"), ("batch_size", "images in a batch")), start=1
    ):
        axes = figure.add_subplot(1, 2, position)
        arms = record["arms"][:4] if option == "num_images" else record["arms"][4:]
        sizes = [arm["options"][option] for arm in arms]
        axes.semilogx(sizes, [1e6 / arm["images_per_sec"] for arm in arms], marker="o")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(title)
        axes.set_ylabel("µs per image")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:,.1f}"


def main() -> int:
    """Write or check the sections of both files."""
    records = read_records()
    is_check = "--check" in sys.argv[1:]
    stale = []
    for path, section in (
        (REPOSITORY / "benchmarks" / "RECORDS.md", render_tables(records)),
        (REPOSITORY / "README.md", render_ratios(records)),
    ):
        text = path.read_text()
        before, rest = text.split(BEGIN)
        rendered = f"{before}{BEGIN}\n\n{section}\n\n{END}{rest.split(END)[1]}"
        if rendered != text:
            stale.append(path.name)
            if not is_check:
                path.write_text(rendered)
    if is_check:
        for name in stale:
            print(f"{name}: it does not say what the records say; run tools/render_records.py")
        return int(bool(stale))
    for record in records:
        if record["name"] == "scaling":
            plot_scaling(record, RECORDS / "scaling.png")
        if is_of_accuracy(record):
            plot_curves(record, RECORDS / f"{record['name']}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
