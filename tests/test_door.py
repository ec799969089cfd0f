"""The package's door: its lines work in a script."""

from __future__ import annotations

import shutil

import torch
from helpers import stamps

from openood_dream import Detector, Dream, Imaginer, load_config, sample_outliers
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.imaginer import load_pipeline
from openood_dream.dream.space import load_space


def test_ten_lines(tiny, dream, benchmarked, digits, tmp_path):
    shutil.copytree(benchmarked.root / "runs" / "base" / "s0", tmp_path / "s0")
    before = stamps(tiny.root / "dream")

    mine = Dream.from_config(tiny.file)
    images, quality = mine.images, mine.quality
    space, anchors = load_space(mine.space), load_anchors(mine.anchors)
    fives = space["embeddings"][space["labels"] == 5]
    found = sample_outliers(fives, k=3, sigma=0.15, select=5, n_boundary=4, n_draws=20, keep=1, rounds=1)
    settings = mine.settings.synthesis
    imaginer = Imaginer(load_pipeline(mine.source, settings, "cpu"), mine.names, settings)
    drawn = imaginer(torch.full((4,), 5), found["embeddings"] * anchors[5].norm(), seeds=range(4))
    verdicts = Detector.load(tmp_path / "s0", postprocessor="knn", keep=0.9)(drawn)

    assert images.hash == dream.images.hash and images._repr_png_() and quality._repr_html_()
    assert drawn.shape == (4, 3, 16, 16) and drawn.dtype == torch.uint8
    assert len(verdicts) == 4 and verdicts._repr_html_()
    assert mine.names == load_config(tiny.file).imagination.names
    after = stamps(tiny.root / "dream")
    assert {name: after[name] for name in before} == before, "what was made is reused"
