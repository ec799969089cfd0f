"""The figures of `openood-dream plot`: where they are written, and of what."""

from __future__ import annotations

import pytest
from PIL import Image

from openood_dream.pipelines.stages import plot
from openood_dream.reports import gallery


def test_figures_are_written_where_they_should_be(tiny, dream, tmp_path):
    for kind, options in (("embeddings", {"method": "pca"}), ("grid", {}), ("line", {})):
        cache = ["--root", str(tmp_path), "--dream.cache_dir", str(tiny.root / "dream")]
        path = plot(kind, [tiny.file], cache, ["two"], None, **options)
        assert path == tmp_path / f"{kind}-two.png" and Image.open(path).size[0] > 100
    assert sorted(file.name for file in tmp_path.iterdir()) == ["embeddings-two.png", "grid-two.png", "line-two.png"]


def test_samplers_are_methods_or_files_laid_over_the_config(tiny, tmp_path, monkeypatch):
    (tmp_path / "near.yml").write_text("dream: {outliers: {method: inlier, sigma: 0.02}}")
    given = []
    monkeypatch.setattr(gallery, "embeddings", lambda *args, **options: given.append((args, options)) or b"png")
    ways, out = ["boundary", str(tmp_path / "near.yml"), "knn"], tmp_path / "a.png"
    plot("embeddings", [tiny.file], ["--dream.outliers.k", "4"], [], out, ways, method="pca")
    (((experiments, classes), options),) = given
    assert list(experiments) == ways and not classes and options == {"method": "pca"} and out.read_bytes() == b"png"
    found = [experiment.dream.outliers for experiment in experiments.values()]
    assert [(s.method, s.k) for s in found] == [("boundary", 4), ("inlier", 4), ("knn", 4)]
    assert [s.sigma for s in found[1:]] == [0.02, 0.15]


def test_a_figure_that_fails_leaves_the_old_one(tiny, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(gallery, "grid", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plot("grid", [tiny.file], [], [], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1
