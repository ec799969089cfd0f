"""Figures of scores, images and training: arrays in, PNG bytes out.

Confidence is OpenOOD's: larger means more in-distribution (ID).
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
from sklearn.metrics import auc, roc_curve

from openood_dream.extras import check_installed

with suppress(ImportError):  # of the extra "report", of which `styled` tells
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: apart from each other for every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222"
PURPLE, SKY, YELLOW = "#CC79A7", "#56B4E9", "#F0E442"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK)
GROUPS = (RED, GREEN, PURPLE, ORANGE)  # of OOD sets, beside the blue of the ID set
DASHES = ("-", "--", ":", "-.")
STYLE: Any = {  # Any, since matplotlib names all its keys in a type
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # names come from users: a dollar sign is a dollar sign
}
Row = tuple[str, Sequence[np.ndarray], Sequence[str] | None]  # label, images (H, W, 3) uint8, captions

# ------------------------------------------------------------------------------------------------------------- scores


def score_histograms(id_scores: np.ndarray, groups: Mapping[str, Mapping[str, np.ndarray]], title: str) -> bytes:
    """Densities of the confidence on the ID test set and on each OOD set, as PNG.

    Scores beyond the shown range are counted in the outermost bins.

    Args:
        id_scores: confidences (N,) of the ID test set.
        groups: confidences (M,) of OOD sets by the title of their group, such as near-OOD, and name.
        title: of the figure.

    Raises:
        ValueError: a set has no finite score.
    """
    reference = _in_finite_range(id_scores)
    sets = {group: {name: _in_finite_range(scores) for name, scores in of.items()} for group, of in groups.items()}
    bins = _bins(reference, [scores for of in sets.values() for scores in of.values()])

    def density(scores: np.ndarray) -> np.ndarray:
        return np.histogram(np.clip(scores, bins[0], bins[-1]), bins, density=True)[0]

    with styled():
        fig, (ax,) = _panels(1, title, (7.6, 3.8))
        ax.stairs(density(reference), bins, fill=True, color=BLUE, alpha=0.35, label="ID test set")
        ax.stairs(density(reference), bins, color=BLUE, linewidth=1.5)
        for number, (group, of) in enumerate(sets.items()):
            for index, (name, scores) in enumerate(of.items()):
                colour, dash = GROUPS[number % len(GROUPS)], DASHES[index % len(DASHES)]
                label = f"{group}: {name}"
                ax.stairs(density(scores), bins, label=label, color=colour, linestyle=dash, linewidth=1.7)
        ax.set(xlabel="confidence (larger: more in-distribution)", ylabel="density", xlim=(bins[0], bins[-1]))
        ax.set_ylim(bottom=0)
        _legend_outside(ax)
        return png(fig)


def _bins(reference: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """Edges (61,) of bins that show the ID scores, and of the OOD scores what is not too far from them."""
    tails = np.array([np.percentile(scores, (0.5, 99.5)) for scores in (reference, *sets)])
    low, high = tails[0]
    width = max(high - low, 1e-6 * max(1.0, abs(low), abs(high)))
    # One set of wild scores must not squeeze the ID set into a few bins: show at most two ID widths to each side.
    left, right = max(tails[:, 0].min(), low - 2 * width), min(tails[:, 1].max(), high + 2 * width)
    return np.linspace(left, right + width / 99, 61)


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
        fig, axes = _panels(len(kinds), title, (5.2 * len(kinds), 4.9 + 0.22 * max(0, len(methods) - 6)))
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
            ax.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1, zorder=1)
            # 95 % of OOD images are found here; of ID images, what a line lacks to 100 is lost: FPR@95 as OpenOOD has it.
            ax.axvline(5, color="#bbbbbb", linewidth=1, linestyle=":", zorder=1)
            ax.set(title=f"ID against {kind}", xlim=(-1, 101), ylim=(-1, 101), aspect="equal")
            ax.set(xlabel="OOD images taken for ID (%)", ylabel="ID images kept (%)")
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="lower right", title="AUROC (%)", alignment="left", frameon=True, edgecolor="none")
        return png(fig)


def _scores(scores: np.ndarray) -> np.ndarray:
    """Scores as float64 without NaN."""
    scores = np.asarray(scores, dtype=np.float64)[~np.isnan(scores)]
    if not np.isfinite(scores).any():
        raise ValueError("expected at least one finite score in each set")
    return scores


def _in_finite_range(scores: np.ndarray) -> np.ndarray:
    """Scores as float64 with infinite ones moved to the finite extremes, so that they are counted at the edge."""
    scores = _scores(scores)
    finite = scores[np.isfinite(scores)]
    return np.clip(scores, finite.min(), finite.max())


# ------------------------------------------------------------------------------------------------------------- images


def image_grid(rows: Sequence[Row], title: str, columns: Sequence[str] = ()) -> bytes:
    """Rows of thumbnails, as PNG.

    Args:
        rows: for each row its label, images (H, W, 3) uint8 and captions or None; a row without images is a heading of
            those below.
        title: of the figure.
        columns: headings of the columns.

    Raises:
        ValueError: a row has not as many captions as images.
    """
    for label, images, captions in rows:
        if captions is not None and len(captions) != len(images):
            raise ValueError(f"row {label!r} has {len(images)} images and {len(captions)} captions")
    width = max(len(images) for _, images, _ in rows)
    heights = [0.5 if not images else 1.30 if captions else 1.08 for _, images, captions in rows]
    labels = ["\n".join(line for part in label.split("\n") for line in textwrap.wrap(part, 22)) for label, _, _ in rows]
    margin = 0.3 + 0.13 * max(len(line) for label, row in zip(labels, rows) for line in label.split("\n") if row[1])
    above = 0.25 * (1 + max(heading.count("\n") for heading in columns)) if columns else 0.0
    with styled({"axes.grid": False}):
        fig, (ax,) = _panels(1, title, (0.85 * (width + margin), 0.85 * (sum(heights) + above) + 0.5))
        ax.axis("off")
        for column, heading in enumerate(columns):
            ax.text(column + 0.5, -0.05, heading, ha="center", va="bottom", fontsize=8)
        top = 0.0
        for (label, images, captions), wrapped, height in zip(rows, labels, heights):
            if images:
                ax.text(-0.12, top + 0.5, wrapped, ha="right", va="center", fontsize=9.5)
            else:
                ax.text(-margin, top + 0.45, label, va="bottom", fontsize=10.5, fontweight="bold")
            for column, image in enumerate(images):
                _thumbnail(ax, image, column + 0.5, top, captions[column] if captions else "")
            top += height
        ax.set(xlim=(-margin, width), ylim=(top, -above), aspect="equal")
        return png(fig)


def _thumbnail(ax: Axes, image: np.ndarray, centre: float, top: float, caption: str) -> None:
    """Draws an image with its caption into a cell one unit wide and high."""
    rise, run = (np.array(image.shape[:2]) / max(image.shape[:2])) / 2
    extent = (centre - 0.96 * run, centre + 0.96 * run, top + 0.5 + 0.96 * rise, top + 0.5 - 0.96 * rise)
    # Small images are shown as the pixels that they are; large ones are averaged down.
    ax.imshow(image, extent=extent, interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
    if caption:
        ax.text(centre, top + 1.03, shorten(caption, 15), ha="center", va="top", fontsize=7, color="#555555")


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
        fig, axes = _panels(len(series), title, (3.6 * len(series), height))
        for index, (ax, (metric, points)) in enumerate(zip(axes, series.items())):
            mean, deviation = np.array(points, dtype=float).T
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
                ax.errorbar(at, mean[order], deviation[order], **look)
                ax.set(xlabel=xlabel, ylabel=f"{metric} (%)")
                if at.min() > 0 and at.max() > 10 * at.min():
                    ax.set_xscale("log")
                    ax.set_xticks(at, [f"{value:g}" for value in at])
                    ax.minorticks_off()
            else:
                rows = np.arange(len(places))[::-1]
                ax.errorbar(mean, rows, xerr=deviation, **look | {"linestyle": "none"})
                ax.set_yticks(rows, [shorten(str(place), 24) for place in places] if index == 0 else [""] * len(places))
                ax.set(xlabel=f"{metric} (%)", ylim=(-0.6, len(places) - 0.4))
        return png(fig)


def training_curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], title: str = "Training") -> bytes:
    """Loss and validation accuracy per epoch, one line per method, as PNG.

    Args:
        histories: for each method the `epochs` of its train.json.
        title: of the figure.
    """
    with styled():
        fig, axes = _panels(2, title, (10.4, 3.8))
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


def styled(more: Mapping[str, Any] | None = None) -> AbstractContextManager:
    """The look that all figures have, within the block.

    Args:
        more: keys of matplotlib's, over STYLE.

    Raises:
        InputError: matplotlib is not installed.
    """
    check_installed("figures", "matplotlib")
    return matplotlib.rc_context(STYLE | (more or {}))


def png(fig: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def write_title(fig: Figure, title: str) -> None:
    """Writes the title of a figure at its left.

    Args:
        fig: the figure.
        title: its title.
    """
    fig.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")


def shorten(text: str, width: int) -> str:
    """A text cut to a number of characters.

    Args:
        text: any text.
        width: the most characters, an ellipsis included.
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def _panels(count: int, title: str, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure with its own canvas, so that no window system and no global state of pyplot is involved."""
    fig = Figure(figsize=size, layout="constrained")
    axes = list(fig.subplots(1, count, squeeze=False)[0])
    write_title(fig, title)
    return fig, axes


def _line(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def _legend_outside(ax: Axes) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))
