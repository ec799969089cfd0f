"""Verdicts on images: class, score, and whether they are in-distribution at a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from openood_dream.errors import printable

ID, OOD = "ID", "OOD"
COLUMNS = ("image", "class", "label", "score", "threshold", "verdict")
SHOWN = 60  # rows of the table in a notebook


def find_threshold(scores: np.ndarray, keep: float) -> float:
    """The largest threshold that at least a share of some scores reach.

    Args:
        scores: confidences (N,), larger for in-distribution images.
        keep: the share, above 0 and below 1.

    Raises:
        ValueError: the threshold is not finite.
    """
    count = math.ceil(keep * len(scores) - 1e-9)  # 0.55 * 100 is a little more than 55
    found = float(np.sort(scores)[-max(1, count)])
    if not math.isfinite(found):
        raise ValueError(f"{keep:g} of the {len(scores)} scores reach no finite threshold, but {found:g}")
    return found


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What a detector says of N images; notebooks show it as a table.

    Attributes:
        images: what each is called: its path, or its number among those that were given.
        labels: predicted classes (N,); -1 where the network knows no classes.
        classes: their names; "" where the network knows no classes.
        scores: confidences (N,), larger for in-distribution images.
        threshold: the score from which on an image is taken for in-distribution.
        keep: the share of the ID validation images that reach the threshold.
        detector: the name of the detector.
        settings: its hyperparameters.
    """

    images: tuple[str, ...]
    labels: np.ndarray
    classes: tuple[str, ...]
    scores: np.ndarray
    threshold: float
    keep: float
    detector: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_id(self) -> np.ndarray:
        """Whether each image is taken for in-distribution, (N,) bool."""
        return self.scores >= self.threshold

    def __len__(self) -> int:
        return len(self.images)

    def to_records(self) -> list[dict[str, Any]]:
        """A dict for each image: image, class, label, score, threshold and verdict, "ID" or "OOD"."""
        columns = zip(self.images, self.classes, self.labels.tolist(), self.scores.tolist(), self.is_id.tolist())
        return [
            dict(zip(COLUMNS, (image, name, label, score, self.threshold, ID if is_id else OOD)))
            for image, name, label, score, is_id in columns
        ]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each image, as `to_records`; bytes in the name of a file that are no UTF-8 are written out."""
        rows = [row | {"image": row["image"].encode("utf-8", "backslashreplace").decode()} for row in self.to_records()]
        return pd.DataFrame(rows, columns=COLUMNS)

    def summary(self) -> str:
        """In words: how many are in-distribution, and where the threshold comes from."""
        settings = ", ".join(f"{name} {value:g}" for name, value in self.settings.items() if _is_number(value))
        return (
            f"{int(self.is_id.sum())} of {len(self)} ID: {self.detector}{f' ({settings})' if settings else ''} from "
            f"{self.threshold:.4g} on, which {100 * self.keep:g} % of the validation images reach"
        )

    def _repr_html_(self) -> str:
        shown = self.to_pandas().drop(columns="threshold")
        shown["image"] = shown["image"].map(printable)
        with pd.option_context("display.max_colwidth", None):
            table = shown.to_html(index=False, float_format="{:.4g}".format, max_rows=SHOWN)
        return f"{table}<p>{self.summary()}</p>"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
