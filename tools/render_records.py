"""Draw the tables and plots of benchmarks/records: `python tools/render_records.py`.

All of them go into benchmarks/RECORDS.md, the headlines into the README, what is computed of many
hosts into benchmarks/SCALE.md. With --check, change nothing and fail if one of them says something
else than the records.
"""

import json
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

# run as a script: tools is no package
from tools.plot_records import fit_slopes, plot_curves, plot_overview, plot_scaling  # noqa: E402
from tools.render_scale import render_scale  # noqa: E402

RECORDS = REPOSITORY / "benchmarks" / "records"
# the README's table: benchmark, its bar, what it says, under what condition
HEADLINES = (
    ("loaders", "torch fp32 over the best ImageFolder", "loading, over ImageFolder and DataLoader",
     "batch 256, float32; the best number of workers"),
    ("end_to_end", "loop over the reference loop", "training, over the reference loop",
     "VGG_Net, 64 x 64 pixels, bf16"),
    ("end_to_end", "loop over its step alone", "training, over its step alone: what data costs",
     "the same run; 1 means that it costs nothing"),
    ("pack", "pack over the Pillow loop", "packing, over decoding with Pillow in a loop",
     "the whole command, checksums included"),
    ("accuracy", "fast-bn: PFLOP until top-1 51.4 %, mean of 3 seeds",
     "operations to the reference's accuracy, recipe `fast-bn`", "20 classes, 3 seeds"),
)  # fmt: skip
# columns of what only some records hold: title, field of an arm, factor, unit
EXTRA_COLUMNS = (
    ("bytes an image", "bytes_per_image", 1, ""),
    ("CPU µs an image", "cpu_sec_per_image", 1e6, ""),
    ("GFLOP/s", "flop_per_sec", 1e-9, ""),
    ("MFU", "mfu", 100, " %"),
)
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
    extra = [
        column for column in EXTRA_COLUMNS if any(arm.get(column[1]) for arm in record["arms"])
    ]
    titles = "".join(f" {title} |" for title, *_ in extra)
    lines = [
        "| arm | images/sec, median | quartiles | processes | share of its ceiling |" + titles,
        "| --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(extra),
    ]
    rates = {arm["name"]: arm["images_per_sec"] for arm in record["arms"]}
    exceeded = {  # what an arm goes beyond is no physical limit
        arm["ceiling"]
        for arm in record["arms"]
        if arm["ceiling"] and rates[arm["name"]] > rates[arm["ceiling"]]
    }
    for arm in record["arms"]:
        low, high = arm["quartiles"]
        ceiling, name = arm["ceiling"], arm["name"]
        share = ""
        if ceiling is not None and ceiling not in exceeded:
            share = f"{100 * rates[name] / rates[ceiling]:.0f} %"
        shown = name.removeprefix("ceiling: ") if name in exceeded else name
        lines.append(
            f"| {shown} | {_number(arm['images_per_sec'])} | "
            f"{_number(low)} to {_number(high)} | {len(arm['windows'])} | "
            f"{share} |"
            + "".join(
                f" {_number(arm[key] * factor)}{unit} |" if arm.get(key) else " |"
                for _, key, factor, unit in extra
            )
        )
    return [*lines, "", *render_bars(record), *render_slopes(record), *render_crossings(record)]


def render_slopes(record: dict[str, Any]) -> list[str]:
    """Return the lines of what record `scaling` grows with, none for others."""
    if record["name"] != "scaling":
        return []
    slopes = "; ".join(f"{title}: {slope:+.2f}" for title, slope in fit_slopes(record).items())
    return [
        f"The cost of an image grows with a power of each (0: not at all; pixels a side: 2 is that "
        f"of their number; threads and ranks: -1 is a fair share): {slopes}.",
        "",
    ]


def render_crossings(record: dict[str, Any]) -> list[str]:
    """Return where raw and JPEG shards of record `jpeg` are equally fast, none for others."""
    if record["name"] != "jpeg":
        return []
    arms = {arm["name"]: arm for arm in record["arms"]}
    crossings = (
        f"{arms[jpeg]['images_per_sec'] * arms[raw]['bytes_per_image'] / 1e9:.2f} GB/s ({pixels})"
        for pixels, jpeg, raw in (
            ("64 pixels", "torch, JPEG, 64", "torch, raw, 64"),
            ("224, stored at 256", "torch, JPEG, 224", "torch, raw at 256, 224"),
        )
    )
    return [
        "Raw shards deliver more images from storage that gives more than "
        f"{' and '.join(crossings)}; JPEG shards from a slower one (computed: images/sec of JPEG x "
        "bytes of a raw image).",
        "",
    ]


def render_headlines(records: list[dict[str, Any]]) -> str:
    """Return the README's figures as a Markdown table, each with its condition and its record."""
    by_name = {record["name"]: record for record in records}
    lines = ["| what | figure | condition |", "| --- | ---: | --- |"]
    for name, what, title, condition in HEADLINES:
        record = by_name[name]
        (bar,) = (bar for bar in record["bars"] if bar["what"] == what)
        figure = (
            f"1/{1 / bar['share_of_reference']:.0f}"
            if "share_of_reference" in bar
            else f"{_ratio(bar['ratio'])} x [{_ratio(bar['low'])} to {_ratio(bar['high'])}]"
        )
        machine = record["machine"]
        where = f"{machine['num_cores']} cores, {machine['date'][:10]}"
        link = f"[record](benchmarks/{record['path']})"
        lines.append(f"| {title} | {figure} | {condition}; {where}, {link} |")
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


def _ratio(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2f}"


def _verdict(bar: dict[str, Any]) -> str:
    return "met" if bar["is_met"] else "**not met**"


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:,.1f}"


def main() -> int:
    """Write or check the sections of both files."""
    records = read_records()
    is_check = "--check" in sys.argv[1:]
    stale = []
    for path, section in (
        (REPOSITORY / "benchmarks" / "RECORDS.md", render_tables(records)),
        (REPOSITORY / "README.md", render_headlines(records)),
        (REPOSITORY / "benchmarks" / "SCALE.md", render_scale(records)),
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
    plot_overview({record["name"]: record for record in records}, RECORDS / "overview.png")
    for record in records:
        if record["name"] == "scaling":
            plot_scaling(record, RECORDS / "scaling.png")
        if is_of_accuracy(record):
            plot_curves(record, RECORDS / f"{record['name']}.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
