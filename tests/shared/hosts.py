"""What tests of OpenOOD as a host share."""

from __future__ import annotations

import csv
from pathlib import Path

QUICK = ["--optimizer.num_epochs", "8", "--optimizer.lr", "0.05", "--dataset.train.batch_size", "16"]
ARGS = {"vim": ["--postprocessor.postprocessor_args.dim", "8"], "knn": ["--postprocessor.postprocessor_args.K", "10"]}


def scores(folder: Path) -> dict[str, list[float]]:
    """The rows of ood.csv: data set -> FPR@95, AUROC, AUPR_IN, AUPR_OUT, ACC."""
    with open(folder / "ood.csv", newline="") as file:
        return {row[0]: [float(value.replace("-", "nan")) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)
