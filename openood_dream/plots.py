"""Figures: arrays in, PNG bytes out. Confidence is OpenOOD's: larger means more in-distribution (ID)."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import patheffects
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
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
MAX_POINTS = 3000  # of each kind in a scatter plot
MAX_NAMED = 20  # classes in a legend


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
            ax.axhline(95, color="#bbbbbb", linewidth=1, linestyle=":", zorder=1)
            ax.set(title=f"ID against {kind}-OOD", xlim=(-1, 101), ylim=(-1, 101), aspect="equal")
            ax.set(xlabel="OOD images taken for ID (FPR, %)", ylabel="ID images kept (TPR, %)")
            if ax.get_legend_handles_labels()[0]:
                ax.legend(loc="lower right", title="AUROC (%)", alignment="left", frameon=True, edgecolor="none")
        return _png(fig)


def image_grid(rows: list[tuple[str, list[np.ndarray], list[str] | None]], title: str) -> bytes:
    """Rows of thumbnails, each row (label, images (H, W, 3) uint8, captions or None), as PNG.

    Raises ValueError for a row that has not as many captions as images.
    """
    columns = max(len(images) for _, images, _ in rows)
    heights = [1.30 if captions else 1.08 for _, _, captions in rows]
    labels = ["\n".join(textwrap.wrap(label, 18)) for label, _, _ in rows]
    margin = 0.3 + 0.13 * max(len(line) for label in labels for line in label.split("\n"))
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        fig, (ax,) = _panels(1, title, (0.85 * (columns + margin), 0.85 * sum(heights) + 0.5))
        ax.axis("off")
        top = 0.0
        for (label, images, captions), text, height in zip(rows, labels, heights):
            if captions is not None and len(captions) != len(images):
                raise ValueError(f"row {label!r} has {len(images)} images and {len(captions)} captions")
            ax.text(-0.12, top + 0.5, text, ha="right", va="center", fontsize=9.5)
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
        ax.set(xlim=(-margin, columns), ylim=(top, 0), aspect="equal")
        return _png(fig)


def embedding_pca(
    id_embeddings: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    anchors: np.ndarray,
    boundary: np.ndarray | None,
    outliers: np.ndarray | None,
    outlier_labels: np.ndarray | None,
    title: str = "Text-conditioned latent space",
) -> bytes:
    """The plane of most variance of the unit-normalised ID embeddings (N, m) and anchors (C, m), with outliers, as PNG.

    `labels` (N,) and `outlier_labels` (O,) index `class_names`; `boundary` (B, m) and `outliers` (O, m) may be None.
    """
    inside, stars = _unit(id_embeddings), _unit(anchors)
    pca = PCA(2, random_state=0).fit(np.concatenate([inside, stars]))
    colours = _class_colours(len(class_names))
    kinds = [_marker("o", "#777777", "ID image"), _marker("*", "#777777", "anchor T(y)", size=13)]
    with matplotlib.rc_context(STYLE):
        fig, (ax,) = _panels(1, title, (8.4, 6.0))
        shown = _subsample(len(inside))
        ax.scatter(*pca.transform(inside[shown]).T, c=colours[np.asarray(labels)[shown]], s=11, alpha=0.55, lw=0)
        if boundary is not None and len(boundary):
            points = pca.transform(_unit(boundary)[_subsample(len(boundary))])
            ax.scatter(*points.T, s=42, facecolors="none", edgecolors=BLACK, linewidths=0.9)
            kinds.append(_marker("o", BLACK, "boundary point", hollow=True))
        if outliers is not None and len(outliers):
            shown = _subsample(len(outliers))
            paint = "#777777" if outlier_labels is None else colours[np.asarray(outlier_labels)[shown]]
            ax.scatter(*pca.transform(_unit(outliers)[shown]).T, c=paint, s=26, marker="x", linewidths=1.0)
            kinds.append(_marker("x", "#777777", "outlier embedding"))
        spots, few = pca.transform(stars), len(class_names) <= MAX_NAMED
        ax.scatter(*spots.T, c=colours, s=330 if few else 110, marker="*", edgecolors="white", linewidths=1, zorder=4)
        halo = [patheffects.withStroke(linewidth=2.5, foreground="white")]
        for spot, name in zip(spots, class_names):
            text = ax.annotate(_short(name, 24), spot, (0, 11 if few else 6), textcoords="offset points")
            text.set(ha="center", fontsize=10 if few else 5.5, zorder=5, path_effects=halo)
        share = 100 * pca.explained_variance_ratio_
        ax.set(xlabel=f"component 1 ({share[0]:.0f} % of the variance)", ylabel=f"component 2 ({share[1]:.0f} %)")
        ax.margins(0.08)
        if few:
            kinds += [_marker("s", colour, _short(name, 24)) for colour, name in zip(colours, class_names)]
        _legend_outside(ax, handles=kinds)
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
    fig.suptitle(title, x=0.01, ha="left", fontsize=12.5, fontweight="bold")
    return fig, axes


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


def _class_colours(count: int) -> np.ndarray:
    """Colours (count, 4): the palette while it lasts, then evenly spaced ones of a map made for colour blindness."""
    if count <= len(PALETTE):
        return matplotlib.colors.to_rgba_array(PALETTE[:count])
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.95, count))


def _line(index: int) -> dict[str, str]:
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def _marker(shape: str, colour, label: str, size: float = 7, hollow: bool = False) -> Line2D:
    face = {"markerfacecolor": "none" if hollow else colour, "markeredgecolor": colour}
    return Line2D([], [], linestyle="none", marker=shape, markersize=size, label=label, **face)


def _legend_outside(ax, **handles) -> None:
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), **handles)


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
