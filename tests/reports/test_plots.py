"""What users rely on in the figures. Most of it is seen by eye; these are the facts that numbers can settle."""

from __future__ import annotations

import io
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from openood_dream.evaluators.metrics import compute_metrics
from openood_dream.reports import plots
from openood_dream.reports.plots import Row, Scores
from openood_dream.reports.style import GREEN, RED

RNG = np.random.default_rng(0)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def amount(png: bytes, colour: str) -> int:
    """How many pixels have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((pixels(png) == wanted).all(-1).sum())


FIGURES: dict[str, Callable[[], bytes]] = {
    "histograms": lambda: plots.score_histograms(
        {"m": Scores(RNG.normal(size=50), {"near": {"a": RNG.normal(size=9)}, "far": {"b": [0.0]}})}, "t"
    ),
    "roc": lambda: plots.roc_curves(
        {"m": {"id": RNG.normal(size=50), "near-OOD": RNG.normal(size=9), "far-OOD": [0.0]}}
    ),
    "grid": lambda: plots.image_grid([Row("row", [np.zeros((8, 6, 3), np.uint8)], ["one"])], "t"),
    "lines": lambda: plots.image_lines([Row("row", [np.zeros((8, 8, 3), np.uint8)] * 4)], "t", [0, 0.5, 1]),
    "training": lambda: plots.training_curves({"m": [{"epoch": 1, "loss": 1.0, "val_acc": None}], "none": []}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_png(name):
    png = FIGURES[name]()
    assert png.startswith(b"\x89PNG") and pixels(png).shape[0] > 100 and pixels(png).std() > 1


def test_figures_leave_matplotlibs_state_alone():
    before = dict(matplotlib.rcParams)
    FIGURES["histograms"]()
    assert dict(matplotlib.rcParams) == before


def axes_of(monkeypatch: pytest.MonkeyPatch, draw: Callable[[], bytes]) -> list[Axes]:
    """The axes of the figure that `draw` makes."""
    kept: list[Axes] = []
    monkeypatch.setattr(plots, "png", lambda fig: kept.extend(fig.axes))
    draw()
    return kept


# ------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("far", [{}, {"far-OOD": {"far": [-1e6] * 99}}])
def test_wild_scores_do_not_flatten_the_histogram(monkeypatch, far):
    scores = np.append(RNG.normal(8, 2, 1000), [1e9, -np.inf, np.nan])
    near = {"near-OOD": {"near": RNG.normal(3, 2, 1000)}}
    axes = axes_of(monkeypatch, lambda: plots.score_histograms({"m": Scores(scores, near | far)}, "t"))
    low, high = axes[0].get_xlim()
    assert low < 3 and high > 13 and high - low < 60


def test_scores_beyond_the_range_are_counted_at_its_end(monkeypatch):
    far = {"far-OOD": {"far": [-1e6] * 99}}
    axes = axes_of(monkeypatch, lambda: plots.score_histograms({"m": Scores(RNG.normal(8, 2, 1000), far)}, "t"))
    values, edges, _ = axes[0].patches[-1].get_data()
    assert values[0] * np.diff(edges)[0] == pytest.approx(1) and not values[1:].any()


def test_histograms_of_all_methods_have_one_range(monkeypatch):
    methods = {f"m{n}": Scores(RNG.normal(n, 1, 99), {"near-OOD": {"a": RNG.normal(-n, 1, 99)}}) for n in range(3)}
    axes = axes_of(monkeypatch, lambda: plots.score_histograms(methods, "t"))
    assert [ax.get_title("left") for ax in axes] == list(methods)
    assert len({ax.get_xlim() for ax in axes}) == len({ax.get_ylim() for ax in axes}) == 1


def test_constant_scores_can_be_drawn():
    plots.score_histograms({"m": Scores([1.0] * 9, {"near": {"n": [1.0] * 9}, "far": {"f": [1.0]}})}, "t")


def test_scores_without_a_number_are_refused():
    with pytest.raises(ValueError, match="finite"):
        plots.score_histograms({"m": Scores([1.0, 2.0], {"near": {"n": [np.nan, np.inf]}})}, "t")


def test_roc_curves_count_larger_confidence_as_id(monkeypatch):
    scores = {"right": {"id": [2.0, 3.0], "near-OOD": [0.0, 1.0]}, "even": {"id": [0.0], "near-OOD": [-np.inf, 5.0]}}
    (near,) = axes_of(monkeypatch, lambda: plots.roc_curves(scores))
    assert [text.get_text() for text in near.get_legend().get_texts()] == ["right  100.00", "even  50.00"]


def test_dotted_line_marks_fpr95(monkeypatch):
    id_, ood = np.random.default_rng().normal(1, 1, 4000), np.random.default_rng().normal(0, 1, 4000)
    (near,) = axes_of(monkeypatch, lambda: plots.roc_curves({"m": {"id": id_, "near-OOD": ood}}))
    curve, dotted = near.lines[0], next(line for line in near.lines if line.get_linestyle() == ":")
    (x,) = set(dotted.get_xdata())
    conf, label = np.concatenate([id_, ood]), np.repeat([0, -1], 4000)
    expected = 100 * compute_metrics(conf, label, np.zeros(8000, int))[0]
    assert 100 - np.interp(x, curve.get_xdata(), curve.get_ydata()) == pytest.approx(expected, abs=0.5)


def test_dollar_signs_are_plain_text():
    plots.roc_curves({"$\\frac{": {"id": [1.0], "near": [0.0], "far": [0.0]}}, title="$x")


# ------------------------------------------------------------------------------------------------------------- images


def test_grid_shows_images_in_their_own_colours():
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    png = plots.image_grid([Row("reds", [red, red], ["a", "b"]), Row("a blue one", [blue])], "t")
    assert amount(png, "#FF0000") == pytest.approx(2 * amount(png, "#0000FF"), rel=0.05)


def test_kept_images_are_framed_and_dropped_ones_crossed_out(monkeypatch):
    rows = [Row("row", [np.zeros((8, 8, 3), np.uint8)] * 3, None, [True, True, False])]
    (axes,) = axes_of(monkeypatch, lambda: plots.image_grid(rows, "t"))
    frames = sorted((frame.get_x(), matplotlib.colors.to_hex(frame.get_edgecolor()).upper()) for frame in axes.patches)
    assert [colour for _, colour in frames] == [GREEN, GREEN, RED] and len(axes.lines) == 1
    assert axes.lines[0].get_xdata()[0] == frames[2][0]


def test_captions_that_do_not_match_the_images():
    with pytest.raises(ValueError, match="'row' has 1 images and 2 captions"):
        plots.image_grid([Row("row", [np.zeros((8, 8, 3), np.uint8)], ["a", "b"])], "t")


def test_row_without_images_is_a_heading(monkeypatch):
    images = [np.zeros((8, 8, 3), np.uint8)] * 2
    rows = [Row("above", []), Row("a", images), Row("below", []), Row("b", images, ["1", "2"])]
    (axes,) = axes_of(monkeypatch, lambda: plots.image_grid(rows, "t"))
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert places["above"] < places["a"] < places["below"] < places["b"] < places["1"] and len(axes.images) == 4


def test_lines_are_marked_from_plain_prompt_to_outlier(monkeypatch):
    rows = [Row("row", [np.zeros((8, 8, 3), np.uint8)] * 6)]
    (axes,) = axes_of(monkeypatch, lambda: plots.image_lines(rows, "t", [0, 0.25, 0.5, 0.75, 1]))
    headings = sorted((text.get_position()[0], text.get_text()) for text in axes.texts if text.get_text() != "row")
    expected = ["plain prompt", "anchor 0", "0.25", "0.5", "0.75", "outlier 1"]
    assert [" ".join(text.split()) for _, text in headings] == expected


@pytest.mark.parametrize("places", [[0.1, 1.0, 30.0], [0, 5, 20], ["base", "oe", "dream_ood"]])
def test_comparison_has_a_panel_for_each_metric(places):
    series = {name: [(90.0, 1.0), (92.5, 0.5), (91.0, 0.0)] for name in ("near-OOD AUROC", "ID accuracy")}
    png = plots.comparison(places, series, "trainer.beta", "Comparison")
    assert all(amount(png, colour) > 50 for colour in plots.PALETTE[:2])


def test_aurocs_share_a_range_and_no_bar_leaves_the_percentages(monkeypatch):
    series = {
        "near-OOD AUROC": [(80.0, 1.0), (90.0, 2.0)],
        "far-OOD AUROC": [(10.0, 20.0), (95.0, 30.0)],
        "ID accuracy": [(97.0, 0.1)] * 2,
    }
    near, far, accuracy = axes_of(monkeypatch, lambda: plots.comparison(["base", "oe"], series, "", "t"))
    assert near.get_xlim() == far.get_xlim() != accuracy.get_xlim()
    (bars,) = far.containers[0].lines[2]
    assert [tuple(segment[:, 0]) for segment in bars.get_segments()] == [(0, 30), (65, 100)]
