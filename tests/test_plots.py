"""What users rely on in the figures. Most of it is seen by eye; these are the facts that numbers can settle."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from openood_dream import plots

RNG = np.random.default_rng(0)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def amount(png: bytes, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels(png) == wanted).all(-1).sum())


def space(n: int = 300, classes: int = 3, m: int = 16):
    anchors = 0.4 * np.eye(m)[:classes]
    labels = RNG.integers(0, classes, n)
    return anchors[labels] / 0.4 + 0.1 * RNG.normal(size=(n, m)), labels, [f"c{i}" for i in range(classes)], anchors


FIGURES = {
    "histograms": lambda: plots.score_histograms(RNG.normal(size=50), {"a": RNG.normal(size=9)}, {"b": [0.0]}, "t"),
    "roc": lambda: plots.roc_curves({"m": {"id": RNG.normal(size=50), "near": RNG.normal(size=9), "far": [0.0]}}),
    "grid": lambda: plots.image_grid([("row", [np.zeros((8, 6, 3), np.uint8)], ["one"])], "t"),
    "pca": lambda: plots.embedding_pca(*space(), None, None, None),
    "training": lambda: plots.training_curves({"m": [{"epoch": 1, "loss": 1.0, "val_acc": None}], "none": []}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_png_that_can_be_read(name):
    png = FIGURES[name]()
    assert png.startswith(b"\x89PNG") and pixels(png).shape[0] > 100 and pixels(png).std() > 1


def test_figures_do_not_touch_the_users_matplotlib_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    FIGURES["histograms"]()
    assert dict(matplotlib.rcParams) == before


def test_the_same_data_give_the_same_bytes():
    data = (*space(4000), RNG.normal(size=(5, 16)), RNG.normal(size=(4000, 16)), RNG.integers(0, 3, 4000))
    assert plots.embedding_pca(*data) == plots.embedding_pca(*data)


def axes_of(monkeypatch, draw) -> list:
    """The axes of the figure that `draw` makes."""
    kept = []
    monkeypatch.setattr(plots, "_png", lambda fig: kept.extend(fig.axes))
    draw()
    return kept


@pytest.mark.parametrize("far", [{}, {"far": [-1e6] * 99}])
def test_wild_scores_do_not_flatten_the_histogram(monkeypatch, far):
    scores = np.append(RNG.normal(8, 2, 1000), [1e9, -np.inf, np.nan])
    axes = axes_of(monkeypatch, lambda: plots.score_histograms(scores, {"near": RNG.normal(3, 2, 1000)}, far, "t"))
    low, high = axes[0].get_xlim()
    assert low < 3 and high > 13 and high - low < 60


def test_scores_beyond_the_range_are_counted_at_its_end(monkeypatch):
    far = {"far": [-1e6] * 99}
    axes = axes_of(monkeypatch, lambda: plots.score_histograms(RNG.normal(8, 2, 1000), {}, far, "t"))
    values, edges, _ = axes[0].patches[-1].get_data()
    assert values[0] * np.diff(edges)[0] == pytest.approx(1) and not values[1:].any()


def test_constant_scores_can_be_drawn():
    plots.score_histograms([1.0] * 9, {"n": [1.0] * 9}, {"f": [1.0]}, "t")


def test_scores_without_a_number_are_refused():
    with pytest.raises(ValueError, match="finite"):
        plots.score_histograms([1.0, 2.0], {"n": [np.nan, np.inf]}, {}, "t")


def test_roc_curves_count_larger_confidence_as_id(monkeypatch):
    scores = {"right": {"id": [2.0, 3.0], "near": [0.0, 1.0]}, "even": {"id": [0.0], "near": [-np.inf, 5.0]}}
    near, far = axes_of(monkeypatch, lambda: plots.roc_curves(scores))
    assert [text.get_text() for text in near.get_legend().get_texts()] == ["right  100.00", "even  50.00"]
    assert far.get_legend() is None


def test_the_grid_shows_every_image_in_its_own_colours():
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    png = plots.image_grid([("reds", [red, red], ["a", "b"]), ("a blue one", [blue], None)], "t")
    assert amount(png, "#FF0000") == pytest.approx(2 * amount(png, "#0000FF"), rel=0.05)


def test_captions_that_do_not_match_the_images_are_refused():
    with pytest.raises(ValueError, match="'row' has 1 images and 2 captions"):
        plots.image_grid([("row", [np.zeros((8, 8, 3), np.uint8)], ["a", "b"])], "t")


def test_embeddings_are_compared_by_direction_alone():
    embeddings, labels, names, anchors = space()
    scaled = embeddings * RNG.uniform(0.1, 9, (len(embeddings), 1))
    one = pixels(plots.embedding_pca(embeddings, labels, names, anchors, None, None, None))
    other = pixels(plots.embedding_pca(scaled, labels, names, 7 * anchors, None, None, None))
    assert one.shape == other.shape and (one != other).any(-1).mean() < 1e-3


def test_big_sets_are_thinned():
    assert len(plots._subsample(10**5)) == plots.MAX_POINTS
    assert sorted(plots._subsample(10)) == list(range(10))


def test_names_with_dollar_signs_are_plain_text():
    plots.roc_curves({"$\\frac{": {"id": [1.0], "near": [0.0], "far": [0.0]}}, title="$x")


def test_more_classes_than_colours_can_be_drawn():
    plots.embedding_pca(*space(400, 40, 64), None, RNG.normal(size=(9, 64)), None)
