"""OpenOOD's metrics, and the tables of them that an evaluation writes."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.metrics import auc, precision_recall_curve, roc_curve

from openood_dream.store import files

METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")

Row = tuple[str, np.ndarray]  # a data set, or a group of them, and its METRICS as fractions


class Scores(NamedTuple):
    """What a detector says of N images.

    Attributes:
        pred: predicted classes (N,); all -1 where the network knows no classes.
        conf: confidences (N,), larger for in-distribution images.
        label: classes (N,); -1 for OOD images.
    """

    pred: np.ndarray
    conf: np.ndarray
    label: np.ndarray


def together(sets: Iterable[Scores]) -> Scores:
    """The images of several sets as one."""
    return Scores(*(np.concatenate(column) for column in zip(*sets)))


def compute_metrics(conf: np.ndarray, label: np.ndarray, pred: np.ndarray) -> np.ndarray:
    """METRICS as OpenOOD v1.5 computes them.

    FPR@95 is the share of ID images taken for OOD at the first threshold that finds 95 % of the OOD images; the AUPRs
    are areas by trapezoids. All depend on the order of the confidences alone, so infinite ones, where OpenOOD ends in
    an error, have their place in it.

    Args:
        conf: confidences (N,), larger for in-distribution images.
        label: classes (N,); -1 for OOD images.
        pred: predicted classes (N,).

    Returns:
        FPR@95, AUROC, AUPR_IN, AUPR_OUT and ACC as fractions, (5,).
    """
    ood = (label == -1).astype(int)
    conf = np.unique(conf, return_inverse=True)[1]
    fpr, tpr, _ = roc_curve(ood, -conf)
    precision_in, recall_in, _ = precision_recall_curve(1 - ood, conf)
    precision_out, recall_out, _ = precision_recall_curve(ood, -conf)
    accuracy = np.mean(pred[ood == 0] == label[ood == 0])
    fpr95 = fpr[np.argmax(tpr >= 0.95)]
    return np.array([fpr95, auc(fpr, tpr), auc(recall_in, precision_in), auc(recall_out, precision_out), accuracy])


def metric_rows(id_scores: Scores, groups: Mapping[str, Mapping[str, Scores]]) -> list[Row]:
    """The rows of ood.csv.

    Args:
        id_scores: scores of the ID test images.
        groups: scores of OOD sets by group and name.

    Returns:
        METRICS of each OOD set against the ID images, and after each group's sets their mean. The accuracy of a network
        that knows no classes is NaN.
    """
    rows: list[Row] = []
    for group, sets in groups.items():
        found = []
        for ood_scores in sets.values():
            both = together([id_scores, ood_scores])
            found.append(compute_metrics(both.conf, both.label, both.pred))
            if (id_scores.pred == -1).all():
                found[-1][-1] = np.nan
        rows += [*zip(sets, found), (group, np.mean(found, axis=0))]
    return rows


def accuracy_rows(shifted: Mapping[str, Scores]) -> list[Row]:
    """The rows of csid.csv: the accuracy on each covariate-shifted set, and their mean; the other METRICS are NaN."""
    found = [np.nan if (one.pred == -1).all() else np.mean(one.pred == one.label) for one in shifted.values()]
    return [
        (name, np.array([np.nan] * 4 + [accuracy]))
        for name, accuracy in zip([*shifted, "csid"], [*found, np.mean(found)])
    ]


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes METRICS in percent, with two decimals, as OpenOOD does; a dash where there is no number.

    Args:
        path: the CSV file.
        rows: names and METRICS as fractions.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["dataset", *METRICS])
    for name, values in rows:
        writer.writerow([name, *("-" if np.isnan(value) else f"{100 * value:.2f}" for value in values)])
    files.write_text(path, text.getvalue())
