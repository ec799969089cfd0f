"""What figures share: their width, their dark twin, and tick labels that do not touch."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from openood_dream.reports import plots, style
from openood_dream.reports.plots import Row, Scores
from openood_dream.reports.style import DARK, DPI, PAPER, WIDTH, styled, tick_labels

RNG = np.random.default_rng(0)
GREY = np.full((8, 8, 3), 130, np.uint8)
LONG = {f"a method of a rather long name {n}": [(90.0 + n, 1.0), (92.5, 0.5)] for n in range(6)}
FIGURES = {
    "histograms": lambda: plots.score_histograms(
        {name: Scores(RNG.normal(size=50), {"near": {"a": RNG.normal(size=9)}}) for name in ("base", "oe")}, "t"
    ),
    "roc": lambda: plots.roc_curves({"m": {"id": RNG.normal(size=50), "near-OOD": [0.0], "far-OOD": [0.0]}}),
    "one row of one image": lambda: plots.image_grid([Row("row", [GREY], ["one"])], "t"),
    "many images": lambda: plots.image_grid([Row("row", [GREY] * 30)] * 3, "t"),
    "lines": lambda: plots.image_lines([Row("row", [GREY] * 4)], "t", [0, 0.5, 1]),
    "training": lambda: plots.training_curves({"m": [{"epoch": 1, "loss": 1.0, "val_acc": 1.0}]}),
    "close numbers": lambda: plots.comparison([0.1, 0.11, 0.12, 5.0, 30.0], {"a": [(1.0, 0.1)] * 5}, "k", "t"),
    "many metrics": lambda: plots.comparison(["one", "two"], LONG, "", "t"),
}


def colours(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.mark.parametrize("name", FIGURES)
def test_all_figures_are_of_one_width(name):
    assert colours(FIGURES[name]()).shape[1] == WIDTH * DPI


@pytest.mark.parametrize("name", FIGURES)
def test_each_has_a_dark_twin_of_the_same_size(name):
    light = FIGURES[name]()
    one, other = colours(light), colours(light.dark)
    assert one.shape == other.shape and one[0, 0].tolist() == [255, 255, 255]
    paper = [int(DARK[PAPER][i : i + 2], 16) for i in (1, 3, 5)]
    assert other[0, 0].tolist() == paper and (other < 40).all(-1).mean() > 0.3
    assert (other == 255).all(-1).sum() == 0 and (other > 200).all(-1).sum() > 50  # its words are light


def test_images_are_the_same_on_both_pages():
    light = plots.image_grid([Row("row", [GREY] * 3)], "t")
    greys = [(colours(one) == 130).all(-1).sum() for one in (light, light.dark)]
    assert greys[0] == pytest.approx(greys[1], rel=0.01) and greys[0] > 1000


@pytest.mark.parametrize("name", ["close numbers", "many metrics", "histograms", "training", "roc"])
def test_no_tick_label_touches_another(name, monkeypatch):
    kept: list[Figure] = []
    png = style.png
    monkeypatch.setattr(plots, "png", lambda fig: (kept.append(fig), png(fig))[1])
    FIGURES[name]()
    boxes = [label.get_window_extent() for label in tick_labels(kept[0])]
    assert len(boxes) > 3
    assert [box for n, box in enumerate(boxes) if box.count_overlaps(boxes[:n])] == []


def test_labels_that_would_touch_are_left_out():
    with styled():
        fig = Figure((2, 2), layout="constrained")
        ax: Axes = fig.subplots()
        ax.set_xticks([0.5, 0.51, 1], ["half", "more", "one"])
        ax.set_yticks([])
        style.thin_ticks(fig)
        assert [label.get_text() for label in tick_labels(fig)] == ["half", "one"]
