"""What users rely on in the figures. Most of it is seen by eye; these are the facts that numbers can settle."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from openood_dream import evaluate, plots

RNG = np.random.default_rng(0)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def amount(png: bytes, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels(png) == wanted).all(-1).sum())


def space(n: int = 300, classes: int = 3, m: int = 16):
    """ID embeddings, their labels and distances, class names, and anchors."""
    anchors = 0.4 * np.eye(m)[:classes]
    labels = np.arange(n) % classes
    embeddings = anchors[labels] / 0.4 + 0.1 * RNG.normal(size=(n, m))
    return embeddings, labels, RNG.uniform(size=n), [f"c{i}" for i in range(classes)], anchors


def sampled(n: int = 9, m: int = 16, name: str = "outlier", inliers: bool = False) -> plots.Sampled:
    return plots.Sampled(name, RNG.normal(size=(n, m)), 2 * RNG.uniform(size=n), RNG.normal(size=(n // 2, m)), inliers)


FIGURES = {
    "histograms": lambda: plots.score_histograms(RNG.normal(size=50), {"a": RNG.normal(size=9)}, {"b": [0.0]}, "t"),
    "roc": lambda: plots.roc_curves({"m": {"id": RNG.normal(size=50), "near": RNG.normal(size=9), "far": [0.0]}}),
    "grid": lambda: plots.image_grid([("row", [np.zeros((8, 6, 3), np.uint8)], ["one"])], "t"),
    "lines": lambda: plots.image_lines([("row", [np.zeros((8, 8, 3), np.uint8)] * 4, None)], "t", [0, 0.5, 1]),
    "map": lambda: plots.embedding_map(*space()),
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
    data = (*space(4000), [sampled(4000)], RNG.normal(size=(40, 16)))
    assert plots.embedding_map(*data) == plots.embedding_map(*data)


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


def test_what_a_roc_curve_lacks_at_the_dotted_line_is_the_fpr_of_the_table(monkeypatch):
    inside, outside = np.random.default_rng().normal(1, 1, 4000), np.random.default_rng().normal(0, 1, 4000)
    near, _ = axes_of(monkeypatch, lambda: plots.roc_curves({"m": {"id": inside, "near": outside}}))
    curve, dotted = near.lines[0], next(line for line in near.lines if line.get_linestyle() == ":")
    (x,) = set(dotted.get_xdata())
    conf, label = np.concatenate([inside, outside]), np.repeat([0, -1], 4000)
    expected = 100 * evaluate.compute_metrics(conf, label, np.zeros(8000, int))[0]
    assert 100 - np.interp(x, curve.get_xdata(), curve.get_ydata()) == pytest.approx(expected, abs=0.5)


def test_the_grid_shows_every_image_in_its_own_colours():
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    png = plots.image_grid([("reds", [red, red], ["a", "b"]), ("a blue one", [blue], None)], "t")
    assert amount(png, "#FF0000") == pytest.approx(2 * amount(png, "#0000FF"), rel=0.05)


def test_captions_that_do_not_match_the_images_are_refused():
    with pytest.raises(ValueError, match="'row' has 1 images and 2 captions"):
        plots.image_grid([("row", [np.zeros((8, 8, 3), np.uint8)], ["a", "b"])], "t")


def test_a_row_without_images_is_a_heading(monkeypatch):
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    rows = [("above", [], None), ("a", images, None), ("below", [], None), ("b", images, ["1", "2"])]
    (axes,) = axes_of(monkeypatch, lambda: plots.image_grid(rows, "t"))
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places["above"] < places["a"] < places["below"] < places["b"] < places["1"] and len(axes.images) == 4


def test_lines_are_marked_from_the_plain_prompt_to_the_outlier(monkeypatch):
    rows = [("row", [np.zeros((8, 8, 3), np.uint8)] * 6, None)]
    (axes,) = axes_of(monkeypatch, lambda: plots.image_lines(rows, "t", [0, 0.25, 0.5, 0.75, 1]))
    headings = sorted((text.get_position()[0], text.get_text()) for text in axes.texts if text.get_text() != "row")
    assert [" ".join(text.split()) for _, text in headings] == "plain prompt/anchor 0/0.25/0.5/0.75/outlier 1".split(
        "/"
    )


def points_of(axes) -> dict[str, np.ndarray]:
    """The points of each kind in an embedding map, by their label in the legend, which counts them."""
    return {line.get_label(): np.stack(line.get_data(), 1) for line in axes[0].lines if line.get_marker() != "None"}


def test_the_map_shows_and_counts_every_kind_of_point(monkeypatch):
    kinds = [sampled(9, name="outlier"), sampled(7, name="inlier", inliers=True)]
    axes = axes_of(monkeypatch, lambda: plots.embedding_map(*space(30), kinds, RNG.normal(size=(5, 16))))
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


def test_a_boundary_point_of_two_methods_is_drawn_once(monkeypatch):
    one, other = sampled(9), sampled(7, name="other")
    axes = axes_of(monkeypatch, lambda: plots.embedding_map(*space(30), [one, other._replace(boundary=one.boundary)]))
    assert "boundary point (4)" in points_of(axes)


def test_the_map_is_the_plane_of_most_variance_of_directions(monkeypatch):
    embeddings, labels, distances, names, anchors = space(60)
    unit = np.concatenate([embeddings, anchors])
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    axes = axes_of(monkeypatch, lambda: plots.embedding_map(3 * embeddings, labels, distances, names, anchors))
    drawn = np.concatenate([*points_of(axes).values()])
    variances = np.linalg.eigvalsh(np.cov(unit.T))[-2:]
    assert np.allclose(np.linalg.eigvalsh(np.cov(drawn.T)), variances)


def test_each_anchor_is_joined_to_the_mean_of_its_class(monkeypatch):
    axes = axes_of(monkeypatch, lambda: plots.embedding_map(*space(3000)))
    points = points_of(axes)
    lines = [np.stack(line.get_data(), 1) for line in axes[0].lines if line.get_marker() == "None"]
    shown = points["ID image (3,000)"][np.argsort(plots._subsample(3000))]
    for label, (start, end) in enumerate(lines):
        assert np.allclose(start, points["anchor T(y), joined to its class's mean"][label])
        assert np.allclose(end, shown[label::3].mean(0))


def test_distances_beyond_the_range_are_counted_at_its_end(monkeypatch):
    far = sampled(2000)._replace(distances=np.append(np.ones(1999), 1e9))
    axes = axes_of(monkeypatch, lambda: plots.embedding_map(*space(30), [far]))
    assert axes[1].get_xlim()[1] < 2


@pytest.mark.parametrize("classes", [1, 3, 60])
def test_names_of_classes_do_not_overlap(monkeypatch, classes):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    axes = axes_of(monkeypatch, lambda: plots.embedding_map(*space(400, classes, 64)))
    renderer = FigureCanvasAgg(axes[0].figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes[0].texts]
    assert classes * 0.8 <= len(boxes) <= classes
    assert not any(box.count_overlaps(boxes[:index]) for index, box in enumerate(boxes))


@pytest.mark.slow
def test_umap_keeps_classes_apart(monkeypatch):
    pytest.importorskip("umap", reason="umap-learn is not installed")
    axes = axes_of(monkeypatch, lambda: plots.embedding_map(*space(60), [sampled()], method="umap"))
    points = points_of(axes)["ID image (60)"][np.argsort(plots._subsample(60))]
    means = np.stack([points[label::3].mean(0) for label in range(3)])
    nearest = np.linalg.norm(points[:, None] - means, axis=-1).argmin(1)
    assert (nearest == np.arange(60) % 3).mean() > 0.9


def test_big_sets_are_thinned():
    assert len(plots._subsample(10**5)) == plots.MAX_POINTS
    assert sorted(plots._subsample(10)) == list(range(10))


def test_names_with_dollar_signs_are_plain_text():
    plots.roc_curves({"$\\frac{": {"id": [1.0], "near": [0.0], "far": [0.0]}}, title="$x")


@pytest.mark.parametrize("places", [[0.1, 1.0, 30.0], [0, 5, 20], ["base", "oe", "dream_ood"]])
def test_a_comparison_has_a_panel_for_each_metric(places):
    series = {name: [(90.0, 1.0), (92.5, 0.5), (91.0, 0.0)] for name in ("near-OOD AUROC", "ID accuracy")}
    png = plots.comparison(places, series, "trainer.beta", "Comparison")
    assert all(amount(png, colour) > 50 for colour in plots.PALETTE[:2])
