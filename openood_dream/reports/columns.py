"""The columns of a leaderboard: their names, order and headers, whatever groups of OOD sets there are."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

SHORT = {"nearood": "near", "farood": "far"}  # OpenOOD's groups in column names; others keep their own
WORDS = {"near": "Near-OOD", "far": "Far-OOD"}
SPECTRUM_WORDS = {"near": "Near-FSOOD", "far": "Far-FSOOD"}
# What a run has for each group, by the end of a column's name: the file, the column there, and the header.
KINDS = {
    "_auroc": ("ood.csv", "AUROC", "AUROC"),
    "_fpr95": ("ood.csv", "FPR@95", "FPR@95"),
    "_fs_auroc": ("fsood.csv", "AUROC", "AUROC"),
}
ACCURACIES = {"id_acc": "ID Accuracy", "csid_acc": "csID Accuracy"}
BEFORE = {"method": "Training", "postprocessor": "Postprocessor"}
AFTER = {
    "seeds": "Seeds",
    "outlier_data": "Outlier Data",
    "network": "Model Arch.",
    "notes": "Additional Description",
}


def short(group: str) -> str:
    """A group of test sets in the names of columns: near for nearood, far for farood."""
    return SHORT.get(group, group)


def title(group: str) -> str:
    """A group of test sets in figures: near-OOD for nearood, far-OOD for farood."""
    words = WORDS.get(short(group), group)
    return words[0].lower() + words[1:] if short(group) in WORDS else words


def groups_of(columns: Iterable[str]) -> list[str]:
    """The groups, in short, that have an AUROC among some columns: near and far first."""
    known = dict.fromkeys(
        key.removesuffix("_auroc").removesuffix("_fs")
        for key in columns
        if key.endswith("_auroc") and not key.startswith("auroc_")
    )
    return [*(group for group in WORDS if group in known), *(group for group in known if group not in WORDS)]


def metrics_of(frame: pd.DataFrame) -> list[str]:
    """The metrics that a frame has, in the order of the headers.

    Args:
        frame: runs of runs.collect, or rows of table.table.
    """
    groups = groups_of(frame.columns)
    keys = [*(f"{group}{kind}" for kind in KINDS for group in groups), *ACCURACIES]
    return [key for key in keys if key in frame]


def is_spectrum(metric: str) -> bool:
    """Whether a metric is there only where the data have a group csid."""
    return metric.endswith("_fs_auroc") or metric == "csid_acc"


def headers(frame: pd.DataFrame) -> dict[str, str]:
    """The columns that a reader sees, in their order, with their headers.

    Args:
        frame: rows of table.table.
    """
    words = BEFORE | {key: header(key) for key in metrics_of(frame)} | AFTER
    return {key: text for key, text in words.items() if key in frame}


def header(metric: str) -> str:
    """The header of a metric's column, such as Near-OOD AUROC."""
    if metric in ACCURACIES:
        return ACCURACIES[metric]
    kind = next(end for end in reversed(KINDS) if metric.endswith(end))
    group = metric.removesuffix(kind)
    known, plain = (SPECTRUM_WORDS, f"{group} FSOOD") if is_spectrum(metric) else (WORDS, group)
    return f"{known.get(group, plain)} {KINDS[kind][2]}"


def primary(frame: pd.DataFrame) -> str:
    """The metric that orders the rows and that tests of significance are about: the near-OOD AUROC, else the first group's."""
    return metrics_of(frame)[0]
