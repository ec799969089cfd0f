"""The figure of the latent space: what is drawn where, and how often."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg

from openood_dream.reports import embedding_map as module
from openood_dream.reports.embedding_map import Sampled, embedding_map

RNG = np.random.default_rng(0)


def space(n: int = 300, classes: int = 3, m: int = 16):
    """ID embeddings, their labels and distances, class names, and anchors."""
    anchors = 0.4 * np.eye(m)[:classes]
    labels = np.arange(n) % classes
    embeddings = anchors[labels] / 0.4 + 0.1 * RNG.normal(size=(n, m))
    return embeddings, labels, RNG.uniform(size=n), [f"c{i}" for i in range(classes)], anchors


def sampled(n: int = 9, m: int = 16, name: str = "outlier", inliers: bool = False) -> Sampled:
    return Sampled(name, RNG.normal(size=(n, m)), 2 * RNG.uniform(size=n), RNG.normal(size=(n // 2, m)), inliers)


def axes_of(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], bytes]) -> list[Axes]:
    """The axes of the figure that `draw` makes."""
    kept: list[Axes] = []
    monkeypatch.setattr(module, "png", lambda fig: kept.extend(fig.axes))
    draw()
    return kept


def points_of(axes: list[Axes]) -> dict[str, np.ndarray]:
    """The points of each kind, by their label in the legend, which counts them."""
    return {line.get_label(): np.stack(line.get_data(), 1) for line in axes[0].lines if line.get_marker() != "None"}


def test_the_same_data_give_the_same_png():
    data = (*space(4000), [sampled(4000)], RNG.normal(size=(40, 16)))
    png = embedding_map(*data)
    assert png.startswith(b"\x89PNG") and png == embedding_map(*data)


def test_every_kind_of_point_is_shown_and_counted(monkeypatch):
    kinds = [sampled(9, name="outlier"), sampled(7, name="inlier", inliers=True)]
    axes = axes_of(monkeypatch, lambda: embedding_map(*space(30), kinds, RNG.normal(size=(5, 16))))
    counts = {label: len(points) for label, points in points_of(axes).items()}
    assert counts == {
        "ID image (30)": 30,
        "ID image of another class (5)": 5,
        "outlier (9)": 9,
        "inlier (7)": 7,
        "boundary point (4)": 4,  # those of outliers: an inlier's lie in the midst of the class
        "anchor T(y), joined to its class's mean": 3,
    }
    assert {text.get_text() for text in axes[2].get_legend().get_texts()} == set(counts)
    assert [tick.get_text() for tick in axes[1].get_yticklabels()] == ["ID image", "outlier", "inlier"]


def test_boundary_point_of_two_samplers_is_drawn_once(monkeypatch):
    one, other = sampled(9), sampled(7, name="other")
    axes = axes_of(monkeypatch, lambda: embedding_map(*space(30), [one, other._replace(boundary=one.boundary)]))
    assert "boundary point (4)" in points_of(axes)


def test_plane_of_most_variance_of_directions(monkeypatch):
    embeddings, labels, distances, names, anchors = space(60)
    unit = np.concatenate([embeddings, anchors])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    axes = axes_of(monkeypatch, lambda: embedding_map(3 * embeddings, labels, distances, names, anchors))
    drawn = np.concatenate([*points_of(axes).values()])
    assert np.allclose(np.linalg.eigvalsh(np.cov(drawn.T)), np.linalg.eigvalsh(np.cov(unit.T))[-2:])


def test_anchors_are_joined_to_the_means_of_their_classes(monkeypatch):
    axes = axes_of(monkeypatch, lambda: embedding_map(*space(3000)))
    points = points_of(axes)
    lines = [np.stack(line.get_data(), 1) for line in axes[0].lines if line.get_marker() == "None"]
    shown = points["ID image (3,000)"][np.argsort(module._subsample(3000))]
    for label, (start, end) in enumerate(lines):
        assert np.allclose(start, points["anchor T(y), joined to its class's mean"][label])
        assert np.allclose(end, shown[label::3].mean(0))


def test_distances_beyond_the_range_are_counted_at_its_end(monkeypatch):
    far = sampled(2000)._replace(distances=np.append(np.ones(1999), 1e9))
    axes = axes_of(monkeypatch, lambda: embedding_map(*space(30), [far]))
    assert axes[1].get_xlim()[1] < 2


@pytest.mark.parametrize("classes", [1, 3, 60])
def test_names_do_not_overlap(monkeypatch, classes):
    axes = axes_of(monkeypatch, lambda: embedding_map(*space(400, classes, 64)))
    renderer = FigureCanvasAgg(axes[0].figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes[0].texts]
    assert classes * 0.8 <= len(boxes) <= classes
    assert not any(box.count_overlaps(boxes[:index]) for index, box in enumerate(boxes))


@pytest.mark.slow
def test_umap_keeps_classes_apart(monkeypatch):
    pytest.importorskip("umap", reason="umap-learn is not installed")
    axes = axes_of(monkeypatch, lambda: embedding_map(*space(60), [sampled()], method="umap"))
    points = points_of(axes)["ID image (60)"][np.argsort(module._subsample(60))]
    means = np.stack([points[label::3].mean(0) for label in range(3)])
    nearest = np.linalg.norm(points[:, None] - means, axis=-1).argmin(1)
    assert (nearest == np.arange(60) % 3).mean() > 0.9


def test_big_sets_are_thinned():
    assert len(module._subsample(10**5)) == module.MAX_POINTS
    assert sorted(module._subsample(10)) == list(range(10))
