"""Run folders as a benchmark leaves them, written by hand, and what reports make of them."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from openood_dream.reports.page import report
from openood_dream.reports.runs import collect, read_scores
from openood_dream.reports.table import table
from openood_dream.store.files import write_json

HEADER = ["dataset", "FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC"]
NAMES = ["digits", "nearood", "flower", "noise", "farood"]


def scores(near: float = 90.0, far: float = 95.0, acc: float = 97.0) -> list[list[str]]:
    """The rows of an ood.csv."""
    auroc = dict(zip(NAMES, (near, near, far, far, far)))
    return [[name, f"{100 - auroc[name]:.2f}", f"{auroc[name]:.2f}", "80.00", "70.00", f"{acc:.2f}"] for name in NAMES]


def without(name: str) -> list[list[str]]:
    return [row for row in scores() if row[0] != name]


def write_csv(path: Path, rows: list[list[str]], header: list[str] = HEADER) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_run(
    root: Path,
    method: str = "base",
    seed: int = 0,
    postprocessor: str = "ebo",
    rows: list[list[str]] | None = None,
    header: list[str] = HEADER,
    outlier_data: str = "none",
    record: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Writes the folder of a run and returns that of its scores; `record` is added to its train.json, `changes` are
    keys of its config, with __ for a dot."""
    folder = root / "runs" / method.replace("/", "-") / f"s{seed}" / postprocessor
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "trainer": {"name": "base"},
        "network": {"name": "resnet18_32x32"},
        "dataset": {"name": "digits"},
        "optimizer": {"num_epochs": 15},
        "postprocessor": {"name": postprocessor},
    }
    for key, value in changes.items():
        *sections, name = key.split("__")
        section = config
        for part in sections:
            section = section.setdefault(part, {})
        section[name] = value
    (folder / "config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    write_json(
        folder.parent / "train.json", {"hash": f"{method}-{seed}", "outlier_data": outlier_data} | (record or {})
    )
    write_csv(folder / "ood.csv", scores() if rows is None else rows, header)
    return folder


def write_scores(folder: Path, shift: float, seed: int = 0) -> None:
    """Writes scores into a run's folder that tell near and far sets apart by `shift`; the same images for every run."""
    images, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    config = yaml.safe_load((folder / "config.yml").read_text())
    config["ood_dataset"] = {"nearood": {"datasets": ["six"]}, "farood": {"datasets": ["flower", "noise"]}}
    (folder / "config.yml").write_text(yaml.safe_dump(config))
    (folder / "scores").mkdir()
    for name, size in {"digits": 300, "six": 200, "flower": 100, "noise": 150}.items():
        conf = images.normal(0, 1, size) + 0.3 * own.normal(0, 1, size) + (shift if name == "digits" else 0)
        label = np.zeros(size, int) if name == "digits" else np.full(size, -1)
        np.savez(folder / "scores" / f"{name}.npz", pred=(own.random(size) > 0.9).astype(int), conf=conf, label=label)


def make_table(root: Path, **near_by_method: list[float]) -> pd.DataFrame:
    """The table of methods with these near-OOD AUROCs, one for each seed."""
    for method, values in near_by_method.items():
        for seed, near in enumerate(values):
            write_run(root, method, seed, rows=scores(near))
    return table(collect([root]))


def scored_table(root: Path, **shifts: float) -> pd.DataFrame:
    """The table of methods with two seeds each, whose ood.csv holds the AUROC of their scores."""
    for number, (method, shift) in enumerate(shifts.items()):
        for seed in (0, 1):
            folder = write_run(root, method, seed)
            write_scores(folder, shift, 2 * number + seed)
            known, unknown = (read_scores(folder / "scores" / f"{name}.npz")[1] for name in ("digits", "six"))
            near = 100 * np.mean([(known > one).mean() for one in unknown])
            write_csv(folder / "ood.csv", scores(round(near, 2)))
    return table(collect([root]))


def make_report(out: Path, runs: pd.DataFrame, **changes: Any) -> str:
    """The HTML of a report of runs."""
    return report(out, runs=runs, **{"table": table(runs)} | changes).read_text(encoding="utf-8")


class Page(HTMLParser):
    """The visible text of a page, and its tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data
