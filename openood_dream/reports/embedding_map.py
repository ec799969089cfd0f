"""The figure of the latent space: ID embeddings, anchors and outliers in a plane, beside their k-NN distances."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from sklearn.decomposition import PCA

from openood_dream.reports.plots import shorten
from openood_dream.reports.style import (
    BLACK,
    BLUE,
    EDGE,
    GREEN,
    ORANGE,
    PALE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    WIDTH,
    YELLOW,
    png,
    styled,
    write_title,
)

with suppress(ImportError):  # of the extra "report", of which `styled` tells
    from matplotlib import patheffects
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

MAX_POINTS = 3000  # of each kind
MAX_NAMED = 20  # classes whose names and anchors are drawn large
ID, OTHER, BOUNDARY, ANCHOR = (
    "ID image",
    "ID image of another class",
    "boundary point",
    "anchor T(y), joined to its class's mean",
)
MEAN = "mean"  # of a class; not drawn as a point


class Sampled(NamedTuple):
    """What one sampler found.

    Args:
        name: what the legend calls it.
        embeddings: (M, m).
        distances: their k-NN distances (M,), over the 99th percentile of the ID distances of their class.
        boundary: the ID embeddings (B, m) that they come from.
        inliers: whether they lie within their class.
    """

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
    """Embeddings in a plane, beside the densities of their k-NN distances, as PNG.

    Vectors are normalised to length 1 first.

    Args:
        id_embeddings: ID embeddings (N, m).
        labels: their classes (N,), as indices of `class_names`.
        id_distances: their k-NN distances (N,), over the 99th percentile of their class.
        class_names: C names.
        anchors: (C, m).
        sampled: what samplers found.
        others: ID embeddings (O, m) of classes that are not named, for context.
        method: pca is the plane of most variance of ID embeddings and anchors; umap keeps neighbours together.
        title: of the figure.

    Raises:
        ImportError: umap, and umap-learn is not installed.
    """
    edges = [one.boundary for one in sampled if not one.inliers and len(one.boundary)]
    found = {OTHER: others, ID: id_embeddings} | {one.name: one.embeddings for one in sampled}
    found[BOUNDARY] = np.unique(np.concatenate(edges), axis=0) if edges else None
    kinds = {kind: _unit(rows) for kind, rows in found.items() if rows is not None and len(rows)}
    means = np.stack([kinds[ID][np.asarray(labels) == label].mean(0) for label in range(len(class_names))])
    thinned = {kind: rows[_subsample(len(rows))] for kind, rows in kinds.items()}
    spots = _in_plane(thinned | {ANCHOR: _unit(anchors), MEAN: means}, method)
    distances = {ID: id_distances} | {one.name: one.distances for one in sampled}
    few = len(class_names) <= MAX_NAMED
    looks = _looks(sampled, few)
    with styled():
        fig = Figure(figsize=(WIDTH, 6), layout="constrained")
        write_title(fig, title)
        axes = fig.subplot_mosaic([["map", "side"], ["map", "words"]], width_ratios=(2, 1), height_ratios=(1.2, 1))
        _scatter(axes["map"], spots, {kind: len(rows) for kind, rows in kinds.items()}, looks, few)
        _ridges(axes["side"], distances, [looks[kind]["color"] for kind in distances])
        axes["side"].set(title="k-NN distance", xlabel="times the 99th percentile\nof the class's ID images")
        axes["words"].axis("off")
        axes["words"].legend(*axes["map"].get_legend_handles_labels(), loc="upper left", borderaxespad=0)
        _write_names(fig, axes["map"], spots[ANCHOR], class_names, 10 if few else 6.5)
        return png(fig)


def _looks(sampled: Sequence[Sampled], few: bool) -> dict[str, dict[str, Any]]:
    """How each kind of point is drawn, in the order of drawing; with many classes there are more and smaller points."""

    def look(shape: str, colour: str, size: float, filled: bool = False) -> dict[str, Any]:
        face = {"markerfacecolor": colour, "markeredgewidth": 0} if filled else {"markerfacecolor": "none"}
        shrink = 1 if few else 0.6
        line = {"markeredgewidth": 0.9 * shrink, "markeredgecolor": colour, "linestyle": "none", "color": colour}
        return {"marker": shape, "markersize": size * shrink, "alpha": 0.7} | line | face

    shapes = itertools.cycle(zip("x^sDv", (RED, PURPLE, ORANGE, SKY, BLACK)))
    looks = {OTHER: look("o", PALE, 3, True), ID: look("o", BLUE, 4, True)}
    looks |= {one.name: look("+", GREEN, 5) if one.inliers else look(*next(shapes), 4.5) for one in sampled}
    looks[BOUNDARY] = look("o", BLACK, 6)
    looks[ANCHOR] = look("*", BLACK, 14) | {"markerfacecolor": YELLOW, "alpha": 1, "zorder": 4}
    return looks


def _in_plane(kinds: Mapping[str, np.ndarray], method: str) -> dict[str, np.ndarray]:
    """Each kind's rows (N, m) as points (N, 2)."""
    rows = np.concatenate([*kinds.values()])
    if method == "umap":
        from umap import UMAP  # an optional extra

        points = UMAP(metric="cosine", min_dist=0.3, random_state=0, n_jobs=1).fit_transform(rows)
    else:
        points = PCA(2, random_state=0).fit(np.concatenate([kinds[ID], kinds[ANCHOR]])).transform(rows)
    return dict(zip(kinds, np.split(points, np.cumsum([len(part) for part in kinds.values()])[:-1])))


def _scatter(
    ax: Axes,
    spots: Mapping[str, np.ndarray],
    counts: Mapping[str, int],
    looks: Mapping[str, dict[str, Any]],
    few: bool,
) -> None:
    """Draws the points of each kind, whose label counts them all, and joins anchors to the means of their classes."""
    for kind, look in looks.items():
        if kind in spots:
            count = f" ({counts[kind]:,})" if kind in counts else ""
            ax.plot(*spots[kind].T, label=kind + count, **look)
    spokes = np.stack([spots[ANCHOR], spots[MEAN]])
    ax.plot(*spokes.transpose(2, 0, 1), color=BLACK, linewidth=0.8 if few else 0.4, zorder=3)
    ax.set(xticks=[], yticks=[])
    ax.margins(0.04)


def _ridges(ax: Axes, sets: Mapping[str, np.ndarray], colours: Sequence[str]) -> None:
    """Histograms one below the other, all of the same height; values beyond the range are counted at its ends."""
    low, high = np.percentile(np.concatenate([*sets.values()]), (0.1, 99.9))
    bins = np.linspace(low, high, 81)
    for row, values, colour in zip(range(len(sets))[::-1], sets.values(), colours):
        counts = np.histogram(np.clip(values, bins[0], bins[-1]), bins)[0]
        heights = row + 0.85 * counts / max(1, counts.max())
        ax.stairs(heights, bins, fill=True, alpha=0.35, baseline=row, color=colour)
        ax.stairs(heights, bins, linewidth=1.2, baseline=row, color=colour)
    ax.axvline(1, color=EDGE, linewidth=1, linestyle=":")
    ax.set(yticks=np.arange(len(sets))[::-1] + 0.1, yticklabels=[*sets], ylim=(0, len(sets)))
    ax.tick_params(axis="y", length=0)
    ax.grid(False, axis="y")


def _write_names(fig: Figure, ax: Axes, spots: np.ndarray, names: Sequence[str], size: float) -> None:
    """Writes each name as near to its spot as other names and spots leave room, or leaves it out.

    Of 100 names adjustText takes half a minute and leaves some that overlap.
    """
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw_without_rendering()
    look: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": size, "zorder": 5, "in_layout": False}
    look["path_effects"] = [patheffects.withStroke(linewidth=2, foreground=PAPER)]
    frame, pixels = ax.get_window_extent(renderer), fig.dpi / 72
    taken = [Bbox([spot - 0.5 * size * pixels, spot + 0.5 * size * pixels]) for spot in ax.transData.transform(spots)]
    for spot, name in zip(spots, names):
        text = ax.annotate(shorten(name, 24), spot, (0, 0), textcoords="offset points", **look)
        box = text.get_window_extent(renderer)
        for gap, turn in itertools.product((0.7, 1.6, 2.8, 4.2), (90, 270, 0, 180, 45, 135, 225, 315)):
            reach = np.array([box.width, box.height]) / 2 + gap * size * pixels
            shift = reach * (np.cos(np.radians(turn)), np.sin(np.radians(turn)))
            place = box.translated(*shift)
            if frame.count_contains(place.get_points()) == 2 and not place.count_overlaps(taken):
                text.set_position(tuple(shift / pixels))
                taken.append(place)
                break
        else:
            text.remove()


def _unit(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, dtype=np.float64)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _subsample(count: int) -> np.ndarray:
    """Indices of at most MAX_POINTS of `count` points, the same ones every time."""
    return np.random.default_rng(0).permutation(count)[:MAX_POINTS]
