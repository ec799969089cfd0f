"""Figures of scores, images and training: arrays in, PNG bytes out, all of one width and look.

Confidence is OpenOOD's: larger means more in-distribution (ID).
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import auc, roc_curve

from openood_dream.reports.style import (
    BLACK,
    BLUE,
    FAINT,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    SOFT,
    WIDTH,
    png,
    styled,
    write_title,
)

with suppress(ImportError):  # of the extra "report", of which `styled` tells
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
GROUPS = (RED, GREEN, PURPLE, ORANGE)  # of OOD sets, beside the blue of the ID set
DASHES = ("-", "--", ":", "-.")
PANELS = 4  # side by side
CELL = 0.85  # inches of a thumbnail with its margins, at most

# ------------------------------------------------------------------------------------------------------------- scores


class Scores(NamedTuple):
    """A method's confidences on its test sets.

    Args:
        known: (N,), on the ID test set.
        groups: (M,), on OOD sets, by the title of their group, such as near-OOD, and name.
    """

    known: np.ndarray | Sequence[float]
    groups: Mapping[str, Mapping[str, np.ndarray | Sequence[float]]]

    def finite(self) -> Scores:
        """The same, with infinite confidences at the finite extremes; ValueError where a set has no finite one."""
        groups = {
            group: {name: _in_finite_range(scores) for name, scores in of.items()} for group, of in self.groups.items()
        }
        return Scores(_in_finite_range(self.known), groups)

    @property
    def sets(self) -> list[Any]:
        """The confidences on each OOD set."""
        return [scores for of in self.groups.values() for scores in of.values()]


def score_histograms(methods: Mapping[str, Scores], title: str) -> bytes:
    """Densities of the confidence on the ID test set and on each OOD set, a panel per method, as PNG.

    All panels have the same range. Scores beyond it are counted in the outermost bins.

    Args:
        methods: confidences of one detector by method.
        title: of the figure.

    Raises:
        ValueError: a set has no finite score.
    """
    finite = {method: scores.finite() for method, scores in methods.items()}
    ranges = [_range(scores.known, scores.sets) for scores in finite.values()]
    bins = np.linspace(min(low for low, _ in ranges), max(high for _, high in ranges), 61)

    def density(scores: np.ndarray | Sequence[float]) -> np.ndarray:
        return np.histogram(np.clip(scores, bins[0], bins[-1]), bins, density=True)[0]

    with styled():
        fig = Figure(figsize=(WIDTH, 1.2 + 1.9 * len(finite)), layout="constrained")
        write_title(fig, title)
        axes = fig.subplots(len(finite), 1, squeeze=False, sharex=True, sharey=True)[:, 0]
        for ax, (method, scores) in zip(axes, finite.items()):
            ax.stairs(density(scores.known), bins, fill=True, color=BLUE, alpha=0.35, label="ID test set")
            ax.stairs(density(scores.known), bins, color=BLUE, linewidth=1.5)
            for number, (group, of) in enumerate(scores.groups.items()):
                for index, (name, found) in enumerate(of.items()):
                    colour, dash = GROUPS[number % len(GROUPS)], DASHES[index % len(DASHES)]
                    label = f"{group}: {name}"
                    ax.stairs(density(found), bins, label=label, color=colour, linestyle=dash, linewidth=1.7)
            ax.set(ylabel="density", xlim=(bins[0], bins[-1]))
            ax.set_title(method, loc="left")
        axes[-1].set_ylim(bottom=0)  # of all, once all are drawn
        axes[-1].set_xlabel("confidence (larger: more in-distribution)")
        _legend_outside(axes[0])
        return png(fig)


def _range(reference: Any, sets: Sequence[Any]) -> tuple[float, float]:
    """Where the ID scores lie, and of the OOD scores what is not too far from them."""
    tails = np.array([np.percentile(scores, (0.5, 99.5)) for scores in (reference, *sets)])
    low, high = tails[0]
    width = max(high - low, 1e-6 * max(1.0, abs(low), abs(high)))
    # One set of wild scores must not squeeze the ID set into a few bins: show at most two ID widths to each side.
    left, right = max(tails[:, 0].min(), low - 2 * width), min(tails[:, 1].max(), high + 2 * width)
    return float(left), float(right + width / 99)


def roc_curves(methods: Mapping[str, Mapping[str, np.ndarray]], title: str = "ROC curves") -> bytes:
    """ROC curves, one line per method and a panel for each group of OOD sets, as PNG.

    ID is the positive class here; swapping the classes leaves the AUROC as it is.

    Args:
        methods: for each method its confidences (N,) under "id" and the titles of groups, such as near-OOD; one that
            lacks a group is left out of that panel.
        title: of the figure.

    Raises:
        ValueError: a set has no finite score.
    """
    kinds = list(dict.fromkeys(kind for scores in methods.values() for kind in scores if kind != "id"))
    with styled():
        fig, axes = _panels(len(kinds), title, 4.9 + 0.22 * max(0, len(methods) - 6))
        for ax, kind in zip(axes, kinds):
            for index, (method, scores) in enumerate(methods.items()):
                if kind not in scores:
                    continue
                # Infinite scores keep their rank as the largest finite numbers.
                id_scores, ood_scores = (np.nan_to_num(_scores(scores[side])) for side in ("id", kind))
                truth = np.repeat([1, 0], [len(id_scores), len(ood_scores)])
                fpr, tpr, _ = roc_curve(truth, np.concatenate([id_scores, ood_scores]))
                label = f"{method}  {100 * auc(fpr, tpr):.2f}"
                ax.plot(100 * fpr, 100 * tpr, label=label, linewidth=1.7, **_line(index))
            ax.plot([0, 100], [0, 100], color=FAINT, linewidth=1, zorder=1)
            # 95 % of OOD images are found here; of ID images, what a line lacks to 100 is lost: FPR@95 as OpenOOD has it.
            ax.axvline(5, color=FAINT, linewidth=1, linestyle=":", zorder=1)
            ax.set(title=f"ID against {kind}", xlim=(-1, 101), ylim=(-1, 101), aspect="equal")
            ax.set(xlabel="OOD images taken for ID (%)", ylabel="ID images kept (%)")
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="lower right", title="AUROC (%)", alignment="left", frameon=True, edgecolor="none")
        return png(fig)


def _scores(given: np.ndarray | Sequence[float]) -> np.ndarray:
    """Scores as float64 without NaN."""
    scores = np.asarray(given, dtype=np.float64)
    scores = scores[~np.isnan(scores)]
    if not np.isfinite(scores).any():
        raise ValueError("expected at least one finite score in each set")
    return scores


def _in_finite_range(scores: np.ndarray | Sequence[float]) -> np.ndarray:
    """Scores as float64 with infinite ones moved to the finite extremes, so that they are counted at the edge."""
    scores = _scores(scores)
    finite = scores[np.isfinite(scores)]
    return np.clip(scores, finite.min(), finite.max())


# ------------------------------------------------------------------------------------------------------------- images


class Row(NamedTuple):
    """A row of thumbnails.

    Args:
        label: at its left.
        images: (H, W, 3) uint8 each; without any, the label is a heading of the rows below.
        captions: below the images.
        kept: for each image whether it was kept, which frames it in green, or dropped, which frames it in red and
            crosses it out; None where nobody chose.
    """

    label: str
    images: Sequence[np.ndarray]
    captions: Sequence[str] | None = None
    kept: Sequence[bool] | None = None


def image_grid(rows: Sequence[Row], title: str, columns: Sequence[str] = ()) -> bytes:
    """Rows of thumbnails, as PNG.

    Args:
        rows: the rows.
        title: of the figure.
        columns: headings of the columns.

    Raises:
        ValueError: a row has not as many captions as images.
    """
    for label, images, captions, _ in rows:
        if captions is not None and len(captions) != len(images):
            raise ValueError(f"row {label!r} has {len(images)} images and {len(captions)} captions")
    most = max(len(row.images) for row in rows)
    heights = [0.5 if not row.images else 1.30 if row.captions else 1.08 for row in rows]
    labels = ["\n".join(line for part in row.label.split("\n") for line in textwrap.wrap(part, 22)) for row in rows]
    margin = 0.3 + 0.13 * max(len(line) for label, row in zip(labels, rows) for line in label.split("\n") if row.images)
    above = 0.25 * (1 + max(heading.count("\n") for heading in columns)) if columns else 0.0
    cell = min(CELL, WIDTH / (most + margin))
    with styled({"axes.grid": False}):
        fig, (ax,) = _panels(1, title, cell * (sum(heights) + above) + 0.5)
        ax.axis("off")
        for column, heading in enumerate(columns):
            ax.text(column + 0.5, -0.05, heading, ha="center", va="bottom", fontsize=8)
        top = 0.0
        for (label, images, captions, kept), wrapped, height in zip(rows, labels, heights):
            if images:
                ax.text(-0.12, top + 0.5, wrapped, ha="right", va="center", fontsize=9.5)
            else:
                ax.text(-margin, top + 0.45, label, va="bottom", fontsize=10.5, fontweight="bold")
            for column, image in enumerate(images):
                extent = _thumbnail(ax, image, column + 0.5, top, captions[column] if captions else "")
                if kept is not None:
                    _mark(ax, extent, kept[column])
            top += height
        ax.set(xlim=(-margin, WIDTH / cell - margin), ylim=(top, -above), aspect="equal")
        return png(fig)


Extent = tuple[float, float, float, float]  # left, right, bottom, top


def _thumbnail(ax: Axes, image: np.ndarray, centre: float, top: float, caption: str) -> Extent:
    """Draws an image with its caption into a cell one unit wide and high; returns where the image lies."""
    rise, run = (np.array(image.shape[:2]) / max(image.shape[:2])) / 2
    extent = (centre - 0.96 * run, centre + 0.96 * run, top + 0.5 + 0.96 * rise, top + 0.5 - 0.96 * rise)
    # Small images are shown as the pixels that they are; large ones are averaged down.
    ax.imshow(image, extent=extent, interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
    if caption:
        ax.text(centre, top + 1.03, shorten(caption, 15), ha="center", va="top", fontsize=7, color=SOFT)
    return extent


def _mark(ax: Axes, extent: Extent, kept: bool) -> None:
    """Frames an image as kept, or crosses it out as dropped."""
    left, right, bottom, top = extent
    colour = GREEN if kept else RED
    frame = Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.8, zorder=3)
    ax.add_patch(frame)
    if not kept:
        ax.plot([left, right], [bottom, top], color=colour, linewidth=1.2, zorder=3)


def image_lines(rows: Sequence[Row], title: str, steps: Sequence[float] | np.ndarray) -> bytes:
    """Rows of images along lines from anchors to outliers, as PNG.

    Args:
        rows: as those of image_grid; the first image of each is the plain prompt's, the others lie along the line.
        title: of the figure.
        steps: where on the line the images lie, from 0, the anchor, to 1, the outlier.
    """
    between = [f"{step:.2f}".rstrip("0") for step in steps[1:-1]]
    return image_grid(rows, title, ["plain\nprompt", "anchor\n0", *between, "outlier\n1"])


# ----------------------------------------------------------------------------------------------- methods and training


def comparison(
    places: Sequence[str] | Sequence[float],
    series: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    title: str,
) -> bytes:
    """Metrics at every place, a panel each: a line with error bars over numbers, or a row for each name, as PNG.

    Args:
        places: methods, or values of a key; numbers more than a decade apart are laid out logarithmically.
        series: for each metric its mean and standard deviation at each place, in percent.
        xlabel: the key whose values the places are.
        title: of the figure.
    """
    numbers = all(isinstance(place, (int, float)) for place in places)
    with styled():
        height = 3.6 if numbers else 1.2 + 0.27 * len(places)
        fig, axes = _panels(len(series), title, height)
        for index, (ax, (metric, points)) in enumerate(zip(axes, series.items())):
            mean, deviation = np.array(points, dtype=float).T
            bars = np.stack([np.minimum(deviation, mean), np.minimum(deviation, 100 - mean)])  # no percentage is beyond
            look: dict[str, Any] = {
                "color": PALETTE[index],
                "marker": "o",
                "markersize": 4,
                "capsize": 3,
                "linewidth": 1.5,
            }
            if numbers:
                order = np.argsort(places)
                at = np.array(places, dtype=float)[order]
                ax.errorbar(at, mean[order], bars[:, order], **look)
                ax.set(xlabel=xlabel, ylabel=f"{metric} (%)")
                if at.min() > 0 and at.max() > 10 * at.min():
                    ax.set_xscale("log")
                    ax.set_xticks(at, [f"{value:g}" for value in at])
                    ax.minorticks_off()
            else:
                rows = np.arange(len(places))[::-1]
                ax.errorbar(mean, rows, xerr=bars, **look | {"linestyle": "none"})
                first = index % PANELS == 0
                ax.set_yticks(rows, [shorten(str(place), 24) for place in places] if first else [""] * len(places))
                ax.set(xlabel=f"{metric} (%)", ylim=(-0.6, len(places) - 0.4))
        _share_range([ax for ax, metric in zip(axes, series) if metric.endswith("AUROC")], "y" if numbers else "x")
        return png(fig)


def _share_range(axes: Sequence[Axes], which: str) -> None:
    """Gives panels of one kind of number the same range, so that lengths in them can be compared."""
    limits = [getattr(ax, f"get_{which}lim")() for ax in axes]
    for ax in axes:
        ax.set(**{f"{which}lim": (min(low for low, _ in limits), max(high for _, high in limits))})


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "Training") -> bytes:
    """Loss and validation accuracy per epoch, one line per method, as PNG.

    Args:
        histories: for each method the `epochs` of its train.json.
        title: of the figure.
    """
    with styled():
        fig, axes = _panels(2, title, 3.8)
        for ax, key in zip(axes, ("loss", "val_acc")):
            for index, (method, history) in enumerate(histories.items()):
                points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
                # With markers, a single epoch is visible too.
                ax.plot(*np.reshape(points, (-1, 2)).T, label=method, marker="o", markersize=2.5, **_line(index))
            ax.set(xlabel="epoch", ylabel={"loss": "training loss", "val_acc": "validation accuracy"}[key])
            ax.locator_params(axis="x", integer=True)
        _legend_outside(axes[1])
        return png(fig)


# ------------------------------------------------------------------------------------------- what all figures share


def shorten(text: str, width: int) -> str:
    """A text cut to a number of characters.

    Args:
        text: any text.
        width: the most characters, an ellipsis included.
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def _panels(count: int, title: str, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with its own canvas, so that no window system and no global state of pyplot is involved.

    Args:
        count: how many panels; PANELS at most are side by side.
        title: of the figure.
        height: inches of a row of panels.
    """
    lines = -(-count // PANELS)
    fig = Figure(figsize=(WIDTH, height * lines), layout="constrained")
    axes = list(fig.subplots(lines, min(count, PANELS), squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    write_title(fig, title)
    return fig, axes[:count]


def _line(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def _legend_outside(ax: Axes) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
