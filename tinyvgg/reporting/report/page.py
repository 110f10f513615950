"""Page: run folders to one HTML file that needs nothing else.

From: `read` and `charts`.
To:   RUN/report.html, opened from disk, by any browser, without a network.

All markup is in the templates, where jinja2 escapes whatever comes from a file; what the script
reads is JSON, in which `<`, `>` and `&` are escaped. The page names no other file and no address,
and its own Content-Security-Policy forbids it to load any.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from tinyvgg import __version__
from tinyvgg.durable import replace_file
from tinyvgg.errors import printable
from tinyvgg.inference.confusion import find_confused_pairs, order_by_similarity
from tinyvgg.reporting.report.charts import draw_all
from tinyvgg.reporting.report.read import ReportedRun, read_run
from tinyvgg.runs.scored import Scored

NOTHING = "\u2013"
NUM_PAIRS, IMAGES_PER_PAIR, NUM_WORST = 20, 4, 60


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of one run or of several, and return its path.

    Args:
        folders: of runs.
        out: the file; None: report.html in the only folder.

    Raises:
        CheckpointError: a folder holds no run.
        OSError: the file cannot be written.
    """
    runs = [read_run(folder) for folder in folders]
    path = folders[0] / "report.html" if out is None else out
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, render_page(runs).encode("utf-8", "backslashreplace"))
    return path


def render_page(runs: Sequence[ReportedRun]) -> str:
    """Return the HTML of a page."""
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("tinyvgg.reporting.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            printable(value) if isinstance(value, str) and "\n" not in value else value
        ),
    )
    headlines = [_describe_headline(run) for run in runs]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    scored = runs[0].scored if len(runs) == 1 else None
    return templates.get_template("page.html").render(
        title=title,
        version=__version__,
        runs=runs,
        charts=draw_all(runs),
        headlines=headlines,
        pairs_of_runs=list(zip(runs, headlines, strict=True)),
        columns=list(dict.fromkeys(name for headline in headlines for name in headline)),
        differences=_list_differences(runs) if len(runs) > 1 else [],
        settings=_list_settings(runs[0]) if len(runs) == 1 else {},
        scored=None if scored is None else describe_classes(scored),
    )


def _describe_headline(run: ReportedRun) -> dict[str, str]:
    """Return what is said first of a run, name to text."""
    best = run.best
    if best is None:
        return {"Epochs scored": f"0 of {run.num_epochs or '?'}"}
    last = run.history[-1]
    rate = float(np.median([record.images_per_sec for record in run.history]))
    return {
        "Best top-1": f"{100 * best.val_top1:.2f} %",
        "in epoch": f"{best.epoch + 1} of {run.num_epochs or len(run.history)}",
        "its top-5": f"{100 * best.val_top5:.2f} %",
        "its loss": f"{best.val_loss:.4f}",
        "Last top-1": f"{100 * last.val_top1:.2f} %",
        "Median rate": f"{rate:,.0f} images/sec",
        "Training time": _tell_time(last.elapsed_sec),
    }


def _tell_time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{seconds:.1f} s"
    )


def _list_settings(run: ReportedRun) -> dict[str, list[tuple[str, str]]]:
    """Return the parts of config.json by their title, each as names and values."""
    titles = {
        "recipe": "Recipe",
        "options": "Options",
        "resolved": "Resolved here",
        "versions": "Environment",
    }
    parts = {
        title: [(name, _tell(value)) for name, value in run.section(part).items()]
        for part, title in titles.items()
    }
    return {title: lines for title, lines in parts.items() if lines}


def _tell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_tell, value)) or "none"
    return NOTHING if value is None else str(value)


def _list_differences(runs: Sequence[ReportedRun]) -> list[tuple[str, list[str]]]:
    """Return the settings in which runs differ: a name, and the value in each run."""
    told: list[dict[str, str]] = [
        {
            f"{part}.{name}": _tell(value)
            for part in ("recipe", "options", "resolved", "versions")
            for name, value in run.section(part).items()
        }
        for run in runs
    ]
    names = dict.fromkeys(name for settings in told for name in settings)
    rows = [(name, [settings.get(name, NOTHING) for settings in told]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def describe_classes(scored: Scored) -> dict[str, Any]:
    """Return classes, pairs and images of an evaluation, as the template shows them."""
    confusion = scored.confusion
    counts = confusion.sum(axis=1)
    names = [
        printable(words or folder)
        for words, folder in zip(scored.class_words, scored.class_folders, strict=True)
    ]
    folders = list(map(printable, scored.class_folders))
    mistakes = confusion.copy()
    np.fill_diagonal(mistakes, 0)
    classes = [
        {
            "name": names[label],
            "folder": folders[label],
            "num_images": int(counts[label]),
            "percent": 100 * confusion[label, label] / counts[label],
            "taken_for": names[int(mistakes[label].argmax())] if mistakes[label].any() else "",
            "num_taken": int(mistakes[label].max()),
        }
        for label in range(len(names))
        if counts[label]
    ]
    pairs = []
    for pair in find_confused_pairs(confusion, NUM_PAIRS):
        images = [
            asdict_image(image)
            for image in scored.images
            if (image.label, image.prediction) == (pair.label, pair.prediction)
        ]
        pairs.append(
            {
                "label": names[pair.label],
                "prediction": names[pair.prediction],
                "num_images": pair.num_images,
                "percent": 100 * pair.share,
                "images": images[:IMAGES_PER_PAIR],
            }
        )
    worst = sorted(scored.images, key=lambda image: -image.loss)[:NUM_WORST]
    return {
        "epoch": scored.epoch + 1,
        "num_images": int(counts.sum()),
        "num_classes": len(names),
        "classes": sorted(classes, key=lambda record: record["percent"]),
        "pairs": pairs,
        "worst": [
            asdict_image(image)
            | {"label": names[image.label], "prediction": names[image.prediction]}
            for image in worst
        ],
        "matrix": {
            "names": names,
            "order": order_by_similarity(confusion),
            "cells": [value for cell in scored.cells for value in cell],
        },
    }


def asdict_image(image: Any) -> dict[str, Any]:
    """Return what the page shows of an image."""
    return {
        "jpeg": image.jpeg,
        "row": image.row,
        "percent": 100 * image.confidence,
        "loss": image.loss,
    }
