"""Figures of what was imagined: what they show is what the artifacts hold."""

from __future__ import annotations

import io
import sys
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import Tiny
from PIL import Image

from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.outliers import load_outliers
from openood_dream.dream.space import load_space
from openood_dream.errors import InputError
from openood_dream.experiment import Experiment
from openood_dream.reports import gallery, plots

INLIERS = ["--dream.outliers.method", "inlier", "--dream.outliers.sigma", "0.02"]


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple]:
    """What the functions that draw are given, by their name."""
    given: dict[str, tuple] = {}

    def draw(name: str, *args: Any) -> bytes:
        given[name] = args
        return b"png"

    monkeypatch.setattr(gallery, "embedding_map", partial(draw, "embedding_map"))
    for name in ("image_grid", "image_lines"):
        monkeypatch.setattr(plots, name, partial(draw, name))
    return given


@pytest.fixture(scope="module")
def experiment(tiny: Tiny, dream) -> Experiment:
    """The tiny chain's, which is made."""
    return tiny.config()


@pytest.fixture(scope="module")
def both(tiny: Tiny, experiment: Experiment) -> dict[str, Experiment]:
    """The tiny chain's k-NN outliers, and inliers beside them."""
    return {"knn": experiment, "inlier": tiny.config(*INLIERS)}


# ---------------------------------------------------------------------------------------------------------- embeddings


def test_the_map_has_all_five_kinds_of_all_classes(dream, both, drawn):
    gallery.embeddings(both)
    z, labels, distances, names, stars, (ood, id_), others, method, _ = drawn["embedding_map"]
    space = load_space(dream.space)
    assert np.array_equal(z, space["embeddings"]) and np.array_equal(labels, space["labels"]) and len(others) == 0
    assert np.array_equal(stars, load_anchors(dream.anchors)) and names == dream.names
    table, rows = load_outliers(dream.outliers)
    assert np.array_equal(ood.embeddings, rows.all()) and (ood.name, ood.inliers) == ("k-NN outlier", False)
    assert np.array_equal(ood.boundary, space["embeddings"][table["boundary"].unique()])
    assert (id_.name, id_.inliers, method) == ("inlier", True, "pca") and len(distances) == len(z)
    assert np.median(distances) < 1 and np.median(id_.distances) < 1 < np.median(ood.distances)


def test_distances_are_over_the_99th_percentile_of_the_class(dream, experiment, drawn):
    gallery.embeddings({"": experiment}, ["two"])
    distances, found = drawn["embedding_map"][2], drawn["embedding_map"][5][0]
    space, k = load_space(dream.space), dream.settings.outliers.k
    z = space["embeddings"][space["labels"] == 2].double()
    every = torch.cdist(z, z).sort(dim=1).values[:, k - 1].numpy()
    assert np.allclose(distances, every / np.quantile(every, 0.99), atol=1e-5)
    table, _ = load_outliers(dream.outliers)
    mine = table["distance"][table["class"] == 2]
    assert np.allclose(found.distances, mine / np.quantile(every, 0.99), rtol=1e-5)


def test_with_k_1_distances_are_as_they_are(tiny, drawn):
    experiment = tiny.config("--dream.outliers.k", "1")  # each embedding finds itself
    gallery.embeddings({"": experiment})
    distances, (found,) = drawn["embedding_map"][2], drawn["embedding_map"][5]
    table, _ = load_outliers(experiment.imagination.outliers)
    assert (distances < 1e-3).all() and np.array_equal(found.distances, table["distance"])


def test_other_classes_are_the_background(dream, experiment, drawn):
    gallery.embeddings({"": experiment}, ["five", "two"])
    z, labels, _, names, stars, (found,), others, _, title = drawn["embedding_map"]
    space = load_space(dream.space)
    assert names == ["two", "five"] and len(z) + len(others) == len(space["labels"]) and "2 of 6 classes" in title
    assert np.array_equal(labels, [{2: 0, 5: 1}[x] for x in space["labels"].tolist() if x in (2, 5)])
    table, rows = load_outliers(dream.outliers)
    assert np.array_equal(found.embeddings, rows.all()[np.flatnonzero(table["class"].isin([2, 5]))])
    assert np.array_equal(stars, load_anchors(dream.anchors)[[2, 5]])


def test_samplers_are_told_apart_by_their_label(dream, both):
    dreams = {label: experiment.imagination for label, experiment in both.items()}
    assert list(gallery.by_kind(dreams)) == ["k-NN outlier", "inlier"]
    three = dreams | {"a.yml": dream}
    assert list(gallery.by_kind(three)) == ["k-NN outlier, knn", "inlier", "k-NN outlier, a.yml"]


def test_two_spaces_are_not_drawn_in_one_plane(tiny, experiment):
    other = tiny.config("--dream.space.epochs", "1")
    with pytest.raises(InputError, match="--outliers: other .* knn"):
        gallery.embeddings({"knn": experiment, "other": other})


def test_umap_that_is_missing_is_refused_first(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(gallery, "load_outliers", None)
    with pytest.raises(InputError, match="--method umap: umap is not installed; pip install .openood-dream.umap."):
        gallery.embeddings({"": tiny.config()}, method="umap")


@pytest.mark.parametrize(("name", "hint"), [("twoo", "'two'"), ("zzz", "dream.class_names")])
def test_an_unknown_class_is_named(experiment, name, hint):
    for draw in (gallery.embeddings, gallery.grid):
        with pytest.raises(InputError, match=f"--class: .*{name!r}.*{hint}"):
            draw({"": experiment}, [name])
    with pytest.raises(InputError, match=f"--class: .*{name!r}.*{hint}"):
        gallery.line(experiment, [name])


# ---------------------------------------------------------------------------------------------------------------- grid


def test_images_stand_from_near_to_far_below_their_class(dream, experiment, drawn):
    gallery.grid({"": experiment})
    rows, _ = drawn["image_grid"]
    table, train = pd.read_parquet(dream.images.path / "images.parquet"), experiment.data.images("dataset", "train")
    for label, name in enumerate(dream.names):
        (known, real, none, _), (about, images, captions, kept) = rows[2 * label : 2 * label + 2]
        assert known == f"{name}: ID image" and none is None and kept is None
        assert np.array_equal(real[0], train.image(int((train.labels == label).nonzero()[0])))
        mine = table[table["class"] == label].sort_values("distance")
        assert captions == [f"{distance:.3f}" for distance in mine["distance"]] and len(captions) == 4
        end = dream.outliers.manifest["classes"][label]["id_distance"]["p99"]
        assert about == f"{name}: k-NN outlier\n99 % of ID < {end:.3f}"
        for file, image in zip(mine["file"], images):
            assert np.array_equal(image, np.asarray(Image.open(dream.images.path / file).convert("RGB")))


def test_kept_images_come_first_and_are_marked(tiny, dream, drawn):
    middle = pd.read_parquet(dream.quality.path / "quality.parquet")["confidence"].median()
    experiment = tiny.config("--dream.filter.distance", "null", "--dream.filter.confidence", str(middle))
    gallery.grid({"": experiment})
    rows, title = drawn["image_grid"]
    folder, quality = dream.images.path, experiment.imagination.quality
    listed = [line.rpartition(" ")[0] for line in (quality.path / "imglist.txt").read_text().splitlines()]
    table = pd.read_parquet(folder / "images.parquet").sort_values("distance", kind="stable")
    for label, row in enumerate(rows[1::2]):
        mine = table[table["class"] == label]
        kept = [file for file in mine["file"] if file in listed]
        expected = kept + [file for file in mine["file"] if file not in listed]
        assert row.kept == [True] * len(kept) + [False] * (len(mine) - len(kept))
        assert f"kept {len(kept)} of {len(mine)}" in row.label
        assert all(np.array_equal(image, gallery.picture(folder / file)) for file, image in zip(expected, row.images))
    assert 0 < len(listed) < len(table) and "kept images first" in title


@pytest.mark.parametrize(
    ("kept", "dropped", "shown"),
    [(20, 20, (8, 4)), (2, 20, (2, 10)), (20, 1, (11, 1)), (0, 20, (0, 12)), (20, 0, (12, 0))],
)
def test_some_dropped_images_are_shown_beside_the_kept(kept, dropped, shown):
    found = gallery.kept_first(pd.DataFrame({"kept": [False] * dropped + [True] * kept}))["kept"].tolist()
    assert found == [True] * shown[0] + [False] * shown[1]


def test_several_samplers_have_a_block_each(both, drawn):
    gallery.grid(both, ["one", "four"])
    rows, title = drawn["image_grid"]
    headings = [(row, label) for row, (label, images, *_) in enumerate(rows) if not images]
    assert headings == [(0, "ID image"), (3, "k-NN outlier, from near to far"), (6, "inlier, from near to far")]
    assert [label.split("\n")[0] for label, images, *_ in rows if images] == ["one", "four"] * 3
    near, far = (np.array(rows[row][2], float) for row in (7, 4))
    assert near.max() < far.min() and "2 of 6 classes" in title


def test_of_many_classes_some_are_shown(monkeypatch):
    monkeypatch.setattr(gallery, "CLASSES", 4)
    assert gallery.few(range(100), []) == [0, 33, 66, 99] and gallery.few(range(3), []) == [0, 1, 2]
    assert gallery.few(range(100), ["all of them"]) == list(range(100))


def test_pictures_are_those_of_the_file(tmp_path):
    image = np.random.default_rng().integers(0, 256, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert np.array_equal(gallery.picture(tmp_path / "a.png"), image)


# ---------------------------------------------------------------------------------------------------------------- line


def test_lines_of_a_class_differ_in_noise_and_show_their_distances(dream, experiment, drawn):
    gallery.line(experiment, ["three"])
    rows, title, steps = drawn["image_lines"]
    assert [label for label, *_ in rows] == [f"noise {n}" for n in range(1, 1 + gallery.NOISES)] and ": three" in title
    table, _ = load_outliers(dream.outliers)
    assert rows[0][2][0] == "" and rows[0][2][-1] == f"{table['distance'][table['class'] == 3].max():.3f}"
    assert len(rows[0][1]) == len(rows[0][2]) == 1 + len(steps)


def test_lines_of_several_classes_have_a_row_each(dream, experiment, drawn):
    gallery.line(experiment)
    assert [label for label, *_ in drawn["image_lines"][0]] == dream.names
