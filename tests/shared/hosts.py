"""What tests of OpenOOD as a host share."""

from __future__ import annotations

import csv
from pathlib import Path

QUICK = ["--optimizer.num_epochs", "8", "--optimizer.lr", "0.05", "--dataset.train.batch_size", "16"]
OF = "--postprocessor.postprocessor_"
ARGS = {  # numbers that fit the small data
    "vim": [f"{OF}args.dim", "8", f"{OF}sweep.dim_list", "[4, 8, 256]"],
    "knn": [f"{OF}args.K", "10"],
    "nnguide": [f"{OF}args.K", "5", f"{OF}args.alpha", "1"],  # all images: OpenOOD's pipelines take a random part
    "residual": [f"{OF}args.dim", "8"],
}


def scores(folder: Path) -> dict[str, list[float]]:
    """The rows of ood.csv: data set -> FPR@95, AUROC, AUPR_IN, AUPR_OUT, ACC."""
    with open(folder / "ood.csv", newline="") as file:
        return {row[0]: [float(value.replace("-", "nan")) for value in row[1:]] for row in list(csv.reader(file))[1:]}


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)
