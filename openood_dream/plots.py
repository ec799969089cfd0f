"""Figures: arrays in, PNG bytes out. Confidence is OpenOOD's: larger means more in-distribution (ID)."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from sklearn.decomposition import PCA
from sklearn.metrics import auc, roc_curve

# Okabe and Ito's palette: apart from each other for every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED, BLACK = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#222222"
PALETTE = (BLUE, ORANGE, GREEN, RED, "#CC79A7", "#56B4E9", BLACK)
DASHES = ("-", "--", ":", "-.")
STYLE = {
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
Row = tuple[str, list[np.ndarray], list[str] | None]  # label, images (H, W, 3) uint8, captions
MAX_POINTS = 3000  # of each kind in a scatter plot
MAX_NAMED = 20  # classes whose names and anchors are drawn large
ID, OTHER, EDGE, ANCHOR = (
    "ID image",
    "ID image of another class",
    "boundary point",
    "anchor T(y), joined to its class's mean",
)


def score_histograms(
    id_scores: np.ndarray, near: dict[str, np.ndarray], far: dict[str, np.ndarray], title: str
) -> bytes:
    """Densities of the confidence (N,) of the ID test set and of each near- and far-OOD set, as PNG.

    Scores beyond the shown range are counted in the outermost bins. Raises ValueError for a set without a finite score.
    """
    reference, sets = _in_finite_range(id_scores), {name: _in_finite_range(s) for name, s in (near | far).items()}
    tails = np.array([np.percentile(scores, (0.5, 99.5)) for scores in (reference, *sets.values())])
    low, high = tails[0]
    width = max(high - low, 1e-6 * max(1.0, abs(low), abs(high)))
    # One set of wild scores must not squeeze the ID set into a few bins: show at most two ID widths to each side.
    left, right = max(tails[:, 0].min(), low - 2 * width), min(tails[:, 1].max(), high + 2 * width)
    bins = np.linspace(left, right + width / 99, 61)

    def density(scores: np.ndarray) -> np.ndarray:
        return np.histogram(np.clip(scores, bins[0], bins[-1]), bins, density=True)[0]

    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(1, title, (7.6, 3.8))
        axes[0].stairs(density(reference), bins, fill=True, color=BLUE, alpha=0.35, label="ID test set")
        axes[0].stairs(density(reference), bins, color=BLUE, linewidth=1.5)
        for group, colour, prefix in ((near, RED, "near-OOD"), (far, GREEN, "far-OOD")):
            for index, name in enumerate(group):
                look = {"color": colour, "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.7}
                axes[0].stairs(density(sets[name]), bins, label=f"{prefix}: {name}", **look)
        axes[0].set(xlabel="confidence (larger: more in-distribution)", ylabel="density", xlim=(bins[0], bins[-1]))
        axes[0].set_ylim(bottom=0)
        _legend_outside(axes[0])
        return _png(fig)


def roc_curves(methods: dict[str, dict[str, np.ndarray]], title: str = "ROC curves") -> bytes:
    """ROC curves, one line per method, ID against near-OOD and ID against far-OOD, as PNG.

    `methods` maps a method to its confidences (N,) under "id", "near" and "far"; a method lacking one of the two OOD
    kinds is left out of that panel. ID is the positive class here; swapping the classes leaves the AUROC as it is.
    """
    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(2, title, (10.4, 4.9 + 0.22 * max(0, len(methods) - 6)))
        for ax, kind in zip(axes, ("near", "far")):
            for index, (method, scores) in enumerate(methods.items()):
                if kind not in scores:
                    continue
                # Infinite scores keep their rank as the largest finite numbers.
                inside, outside = (np.nan_to_num(_scores(scores[side])) for side in ("id", kind))
                truth = np.repeat([1, 0], [len(inside), len(outside)])
                fpr, tpr, _ = roc_curve(truth, np.concatenate([inside, outside]))
                label = f"{method}  {100 * auc(fpr, tpr):.2f}"
                ax.plot(100 * fpr, 100 * tpr, label=label, linewidth=1.7, **_line(index))
            ax.plot([0, 100], [0, 100], color="#bbbbbb", linewidth=1, zorder=1)
            # 95 % of OOD images are found here; of ID images, what a line lacks to 100 is lost: FPR@95 as OpenOOD has it.
            ax.axvline(5, color="#bbbbbb", linewidth=1, linestyle=":", zorder=1)
            ax.set(title=f"ID against {kind}-OOD", xlim=(-1, 101), ylim=(-1, 101), aspect="equal")
            ax.set(xlabel="OOD images taken for ID (%)", ylabel="ID images kept (%)")
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="lower right", title="AUROC (%)", alignment="left", frameon=True, edgecolor="none")
        return _png(fig)


def image_grid(rows: Sequence[Row], title: str, columns: Sequence[str] = ()) -> bytes:
    """Rows of thumbnails, each row (label, images (H, W, 3) uint8, captions or None), as PNG.

    A row without images is a heading of those below; `columns` are headings of the columns. Raises ValueError for a row
    that has not as many captions as images.
    """
    width = max(len(images) for _, images, _ in rows)
    heights = [0.5 if not images else 1.30 if captions else 1.08 for _, images, captions in rows]
    labels = ["\n".join(line for part in label.split("\n") for line in textwrap.wrap(part, 22)) for label, _, _ in rows]
    margin = 0.3 + 0.13 * max(len(line) for label, row in zip(labels, rows) for line in label.split("\n") if row[1])
    above = 0.25 * (1 + max(heading.count("\n") for heading in columns)) if columns else 0.0
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        fig, (ax,) = _panels(1, title, (0.85 * (width + margin), 0.85 * (sum(heights) + above) + 0.5))
        ax.axis("off")
        for column, heading in enumerate(columns):
            ax.text(column + 0.5, -0.05, heading, ha="center", va="bottom", fontsize=8)
        top = 0.0
        for (label, images, captions), text, height in zip(rows, labels, heights):
            if captions is not None and len(captions) != len(images):
                raise ValueError(f"row {label!r} has {len(images)} images and {len(captions)} captions")
            if images:
                ax.text(-0.12, top + 0.5, text, ha="right", va="center", fontsize=9.5)
            else:
                ax.text(-margin, top + 0.45, label, va="bottom", fontsize=10.5, fontweight="bold")
            for column, image in enumerate(images):
                rise, run = (np.array(image.shape[:2]) / max(image.shape[:2])) / 2
                centre = column + 0.5
                extent = (centre - 0.96 * run, centre + 0.96 * run, top + 0.5 + 0.96 * rise, top + 0.5 - 0.96 * rise)
                # Small images are shown as the pixels that they are; large ones are averaged down.
                ax.imshow(image, extent=extent, interpolation="nearest" if max(image.shape) <= 64 else "antialiased")
                if captions:
                    caption = _short(captions[column], 15)
                    ax.text(centre, top + 1.03, caption, ha="center", va="top", fontsize=7, color="#555555")
            top += height
        ax.set(xlim=(-margin, width), ylim=(top, -above), aspect="equal")
        return _png(fig)


def image_lines(rows: Sequence[Row], title: str, steps: Sequence[float]) -> bytes:
    """Rows of images as in image_grid, each the plain prompt's and then those along a line from anchor to outlier, at
    `steps` from 0 to 1, as PNG."""
    between = [f"{step:.2f}".rstrip("0") for step in steps[1:-1]]
    return image_grid(rows, title, ["plain\nprompt", "anchor\n0", *between, "outlier\n1"])


class Sampled(NamedTuple):
    """What one method found: `embeddings` (M, m), their `distances` (M,), the ID embeddings that they come from, as
    `boundary` (B, m), and whether they are `inliers`."""

    name: str
    embeddings: np.ndarray
    distances: np.ndarray
    boundary: np.ndarray
    inliers: bool


def embedding_map(
    id_embeddings: np.ndarray,
    labels: np.ndarray,
    id_distances: np.ndarray,
    class_names: Sequence[str],
    anchors: np.ndarray,
    sampled: Sequence[Sampled] = (),
    others: np.ndarray | None = None,
    method: str = "pca",
    title: str = "Text-conditioned latent space",
) -> bytes:
    """The unit-normalised ID embeddings (N, m), anchors (C, m) and what was `sampled` in a plane, beside the densities
    of their k-NN distances, as PNG.

    The plane is that of most variance of ID embeddings and anchors, or with `method` umap one that keeps neighbours
    together. `labels` (N,) index `class_names`; `others` (O, m) are ID embeddings of classes that are not named, for
    context. Distances are over the 99th percentile of the ID distances of their class. Raises ImportError for umap
    where umap-learn is not installed.
    """
    edges = [one.boundary for one in sampled if not one.inliers and len(one.boundary)]
    kinds = {OTHER: others, ID: id_embeddings} | {one.name: one.embeddings for one in sampled}
    kinds[EDGE] = np.unique(np.concatenate(edges), axis=0) if edges else None
    kinds = {kind: _unit(rows) for kind, rows in kinds.items() if rows is not None and len(rows)}
    means = np.stack([kinds[ID][np.asarray(labels) == label].mean(0) for label in range(len(class_names))])
    thinned = {kind: rows[_subsample(len(rows))] for kind, rows in kinds.items()}
    spots = _in_plane(thinned | {ANCHOR: _unit(anchors), "mean": means}, method)
    few = len(class_names) <= MAX_NAMED
    looks = _looks(sampled, few)
    with matplotlib.rc_context(STYLE):
        fig = Figure(figsize=(11, 6.4), layout="constrained")
        _title(fig, title)
        axes = fig.subplot_mosaic([["map", "side"], ["map", "words"]], width_ratios=(2, 1), height_ratios=(1.2, 1))
        for kind, look in looks.items():
            if kind in spots:
                count = f" ({len(kinds[kind]):,})" if kind in kinds else ""
                axes["map"].plot(*spots[kind].T, label=kind + count, **look)
        spokes = np.stack([spots[ANCHOR], spots["mean"]])
        axes["map"].plot(*spokes.transpose(2, 0, 1), color=BLACK, linewidth=0.8 if few else 0.4, zorder=3)
        axes["map"].set(xticks=[], yticks=[])
        axes["map"].margins(0.04)
        distances = {ID: id_distances} | {one.name: one.distances for one in sampled}
        _ridges(axes["side"], distances, [looks[kind]["color"] for kind in distances])
        axes["side"].set(title="k-NN distance", xlabel="times the 99th percentile of the class's ID images")
        axes["words"].axis("off")
        axes["words"].legend(*axes["map"].get_legend_handles_labels(), loc="upper left", borderaxespad=0)
        _write_names(axes["map"], spots[ANCHOR], class_names, 10 if few else 6.5)
        return _png(fig)


def _looks(sampled: Sequence[Sampled], few: bool) -> dict[str, dict[str, Any]]:
    """How each kind of point is drawn, in the order of drawing; with many classes there are more and smaller points."""

    def look(shape: str, colour: str, size: float, filled: bool = False) -> dict[str, Any]:
        face = {"markerfacecolor": colour, "markeredgewidth": 0} if filled else {"markerfacecolor": "none"}
        shrink = 1 if few else 0.6
        line = {"markeredgewidth": 0.9 * shrink, "markeredgecolor": colour, "linestyle": "none", "color": colour}
        return {"marker": shape, "markersize": size * shrink, "alpha": 0.7} | line | face

    shapes = itertools.cycle(zip("x^sDv", (RED, "#CC79A7", ORANGE, "#56B4E9", BLACK)))
    looks = {OTHER: look("o", "#d4d4d4", 3, True), ID: look("o", BLUE, 4, True)}
    looks |= {one.name: look("+", GREEN, 5) if one.inliers else look(*next(shapes), 4.5) for one in sampled}
    looks[EDGE] = look("o", BLACK, 6)
    looks[ANCHOR] = look("*", BLACK, 14) | {"markerfacecolor": "#F0E442", "alpha": 1, "zorder": 4}
    return looks


def _in_plane(kinds: dict[str, np.ndarray], method: str) -> dict[str, np.ndarray]:
    """Each kind's rows (N, m) as points (N, 2)."""
    rows = np.concatenate([*kinds.values()])
    if method == "umap":
        from umap import UMAP

        points = UMAP(metric="cosine", min_dist=0.3, random_state=0, n_jobs=1).fit_transform(rows)
    else:
        points = PCA(2, random_state=0).fit(np.concatenate([kinds[ID], kinds[ANCHOR]])).transform(rows)
    return dict(zip(kinds, np.split(points, np.cumsum([len(part) for part in kinds.values()])[:-1])))


def _ridges(ax, sets: dict[str, np.ndarray], colours: Sequence[str]) -> None:
    """Histograms one below the other, all of the same height; values beyond the range are counted at its ends."""
    bins = np.linspace(*np.percentile(np.concatenate([*sets.values()]), (0.1, 99.9)), 81)
    for row, values, colour in zip(range(len(sets))[::-1], sets.values(), colours):
        counts = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0]
        heights, look = row + 0.85 * counts / max(1, counts.max()), {"baseline": row, "color": colour}
        ax.stairs(heights, bins, fill=True, alpha=0.35, **look)
        ax.stairs(heights, bins, linewidth=1.2, **look)
    ax.axvline(1, color="#888888", linewidth=1, linestyle=":")
    ax.set(yticks=np.arange(len(sets))[::-1] + 0.1, yticklabels=[*sets], ylim=(0, len(sets)))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def _write_names(ax, spots: np.ndarray, names: Sequence[str], size: float) -> None:
    """Writes each name as near to its spot as other names and spots leave room, or leaves it out."""
    renderer = FigureCanvasAgg(ax.figure).get_renderer()
    ax.figure.draw_without_rendering()
    look = {"ha": "center", "va": "center", "fontsize": size, "zorder": 5, "in_layout": False}
    look["path_effects"] = [patheffects.withStroke(linewidth=2, foreground="white")]
    frame, pixels = ax.get_window_extent(renderer), ax.figure.dpi / 72
    taken = [Bbox([spot - 0.5 * size * pixels, spot + 0.5 * size * pixels]) for spot in ax.transData.transform(spots)]
    for spot, name in zip(spots, names):
        text = ax.annotate(_short(name, 24), spot, (0, 0), textcoords="offset points", **look)
        box = text.get_window_extent(renderer)
        for gap, turn in itertools.product((0.7, 1.6, 2.8, 4.2), (90, 270, 0, 180, 45, 135, 225, 315)):
            reach = np.array([box.width, box.height]) / 2 + gap * size * pixels
            shift = reach * (np.cos(np.radians(turn)), np.sin(np.radians(turn)))
            place = box.translated(*shift)
            if frame.count_contains(place.get_points()) == 2 and not place.count_overlaps(taken):
                text.set_position(shift / pixels)
                taken.append(place)
                break
        else:
            text.remove()


def comparison(
    places: Sequence[str] | Sequence[float], series: dict[str, list[tuple[float, float]]], xlabel: str, title: str
) -> bytes:
    """Metrics in percent, a panel each, at every place: a line with error bars over numbers, or a row for each name.

    `series` maps a metric to its (mean, standard deviation) at each place. Numbers more than a decade apart are laid
    out logarithmically.
    """
    numbers = all(isinstance(place, (int, float)) for place in places)
    with matplotlib.rc_context(STYLE):
        height = 3.6 if numbers else 1.2 + 0.27 * len(places)
        fig, axes = _panels(len(series), title, (3.6 * len(series), height))
        for index, (ax, (metric, points)) in enumerate(zip(axes, series.items())):
            mean, deviation = np.array(points, dtype=float).T
            look = {"color": PALETTE[index], "marker": "o", "markersize": 4, "capsize": 3, "linewidth": 1.5}
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
                ax.set_yticks(rows, [_short(str(place), 24) for place in places] if index == 0 else [""] * len(places))
                ax.set(xlabel=f"{metric} (%)", ylim=(-0.6, len(places) - 0.4))
        return _png(fig)


def training_curves(histories: dict[str, list[dict]], title: str = "Training") -> bytes:
    """Loss and validation accuracy per epoch, one line per method, as PNG; `histories` holds train.json's `epochs`."""
    with matplotlib.rc_context(STYLE):
        fig, axes = _panels(2, title, (10.4, 3.8))
        for ax, key in zip(axes, ("loss", "val_acc")):
            for index, (method, history) in enumerate(histories.items()):
                points = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
                # With markers, a single epoch is visible too.
                ax.plot(*np.reshape(points, (-1, 2)).T, label=method, marker="o", markersize=2.5, **_line(index))
            ax.set(xlabel="epoch", ylabel={"loss": "training loss", "val_acc": "validation accuracy"}[key])
            ax.xaxis.get_major_locator().set_params(integer=True)
        _legend_outside(axes[1])
        return _png(fig)


def _panels(count: int, title: str, size: tuple[float, float]) -> tuple[Figure, list]:
    """A figure with its own canvas, so that no window system and no global state of pyplot is involved."""
    fig = Figure(figsize=size, layout="constrained")
    axes = list(fig.subplots(1, count, squeeze=False)[0])
    _title(fig, title)
    return fig, axes


def _title(fig: Figure, title: str) -> None:
    fig.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=150, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


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


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _subsample(count: int) -> np.ndarray:
    """Indices of at most MAX_POINTS of `count` points, the same ones every time."""
    return np.random.default_rng(0).permutation(count)[:MAX_POINTS]


def _line(index: int) -> dict[str, str]:
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def _legend_outside(ax, **handles) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), **handles)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
