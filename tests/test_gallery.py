"""Figures of what was imagined: what they show is what the artifacts hold."""

from __future__ import annotations

import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from openood_dream import anchors, data, gallery, generator, imagine, outliers, pipelines, plots, space, store
from openood_dream.config import InputError, settings

INLIERS = ["--dream.outliers.method", "inlier", "--dream.outliers.sigma", "0.02"]


@pytest.fixture
def drawn(monkeypatch) -> dict[str, tuple]:
    """What the functions of plots.py are given, by their name."""
    given = {}
    for name in ("embedding_map", "image_grid", "image_lines"):
        monkeypatch.setattr(plots, name, lambda *args, name=name: given.update({name: args}) or b"png")
    return given


@pytest.fixture(scope="module")
def both(tiny, chain) -> dict:
    """The tiny chain's k-NN outliers, and inliers beside them."""
    return {"knn": chain.config, "inlier": tiny.config(*INLIERS)}


# ---------------------------------------------------------------------------------------------------------- embeddings


def test_the_map_has_all_five_kinds_of_all_classes(chain, both, drawn):
    gallery.embeddings(both)
    z, labels, distances, names, stars, (outside, inside), others, method, title = drawn["embedding_map"]
    known = space.load(chain.space)
    assert np.array_equal(z, known["embeddings"]) and np.array_equal(labels, known["labels"]) and len(others) == 0
    assert np.array_equal(stars, anchors.load(chain.anchors)) and names == data.class_names(chain.config)
    table, found = outliers.load(chain.outliers)
    assert np.array_equal(outside.embeddings, found) and (outside.name, outside.inliers) == ("k-NN outlier", False)
    assert np.array_equal(outside.boundary, known["embeddings"][table["boundary"].unique()])
    assert (inside.name, inside.inliers, method) == ("inlier", True, "pca") and len(distances) == len(z)
    assert np.median(inside.distances) < np.median(distances) < 1 < outside.distances.min()


def test_distances_are_over_the_99th_percentile_of_the_class(chain, drawn):
    gallery.embeddings({"": chain.config}, ["two"])
    distances, found = drawn["embedding_map"][2], drawn["embedding_map"][5][0]
    known, k = space.load(chain.space), chain.config.dream.outliers.k
    z = known["embeddings"][known["labels"] == 2].double()
    every = torch.cdist(z, z).sort(dim=1).values[:, k - 1].numpy()
    assert np.allclose(distances, every / np.quantile(every, 0.99), atol=1e-5)
    table, _ = outliers.load(chain.outliers)
    mine = table["distance"][table["class"] == 2]
    assert np.allclose(found.distances, mine / np.quantile(every, 0.99), rtol=1e-5)


def test_with_k_1_where_each_embedding_finds_itself_distances_are_as_they_are(tiny, drawn):
    config = tiny.config("--dream.outliers.k", "1")
    gallery.embeddings({"": config})
    distances, (found,) = drawn["embedding_map"][2], drawn["embedding_map"][5]
    table, _ = outliers.load(outliers.run(config))
    assert (distances < 1e-3).all() and np.array_equal(found.distances, table["distance"])


def test_classes_that_are_not_asked_for_are_the_background(chain, drawn):
    gallery.embeddings({"": chain.config}, ["five", "two"])
    z, labels, _, names, stars, (found,), others, _, title = drawn["embedding_map"]
    known = space.load(chain.space)
    assert names == ["two", "five"] and len(z) + len(others) == len(known["labels"]) and "2 of 6 classes" in title
    assert np.array_equal(labels, [{2: 0, 5: 1}[x] for x in known["labels"].tolist() if x in (2, 5)])
    table, every = outliers.load(chain.outliers)
    assert np.array_equal(found.embeddings, every[np.flatnonzero(table["class"].isin([2, 5]))])
    assert np.array_equal(stars, anchors.load(chain.anchors)[[2, 5]])


def test_ways_of_sampling_are_told_apart_by_their_label_where_need_be(chain, both):
    assert list(gallery.named(both)) == ["k-NN outlier", "inlier"]
    assert list(gallery.named(both | {"a.yml": chain.config})) == ["k-NN outlier, knn", "inlier", "k-NN outlier, a.yml"]


def test_embeddings_of_two_spaces_are_not_drawn_in_one_plane(tiny, chain):
    other = tiny.config("--dream.space.epochs", "1")
    with pytest.raises(InputError, match="--outliers: other has another latent space than knn"):
        gallery.embeddings({"knn": chain.config, "other": other})


def test_umap_without_umap_is_refused_before_anything_is_made(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    monkeypatch.setattr(gallery.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(outliers, "run", None)
    with pytest.raises(InputError, match="umap-learn is not installed; pip install umap-learn, or choose pca"):
        gallery.embeddings({"": tiny.config()}, method="umap")


@pytest.mark.parametrize("name, hint", [("twoo", "did you mean 'two'"), ("zzz", "expected one of dream.class_names")])
def test_an_unknown_class_is_named(chain, name, hint):
    for draw in (gallery.embeddings, gallery.grid):
        with pytest.raises(InputError, match=f"--class: unknown {name!r}; {hint}"):
            draw({"": chain.config}, [name])
    with pytest.raises(InputError, match=f"--class: unknown {name!r}; {hint}"):
        gallery.line(chain.config, [name])


# ---------------------------------------------------------------------------------------------------------------- grid


def test_images_stand_from_near_to_far_below_images_of_their_class(chain, drawn):
    gallery.grid({"": chain.config})
    rows, _ = drawn["image_grid"]
    table, train = pd.read_parquet(chain.images.path / "images.parquet"), data.id_loader(chain.config, "train").dataset
    for label, name in enumerate(data.class_names(chain.config)):
        (known, real, none), (about, images, captions) = rows[2 * label : 2 * label + 2]
        assert known == f"{name}: ID image" and none is None
        assert np.array_equal(real[0], train.image(int((train.labels == label).nonzero()[0])))
        mine = table[table["class"] == label].sort_values("distance")
        assert captions == [f"{distance:.3f}" for distance in mine["distance"]] and len(captions) == 4
        end = chain.outliers.manifest["classes"][label]["id_distance"]["p99"]
        assert about == f"{name}: k-NN outlier\n99 % of ID < {end:.3f}"
        for file, image in zip(mine["file"], images):
            assert np.array_equal(image, np.asarray(Image.open(chain.images.path / file).convert("RGB")))


def test_several_ways_of_sampling_have_a_block_each(both, drawn):
    gallery.grid(both, ["one", "four"])
    rows, title = drawn["image_grid"]
    headings = [(row, label) for row, (label, images, _) in enumerate(rows) if not images]
    assert headings == [(0, "ID image"), (3, "k-NN outlier, from near to far"), (6, "inlier, from near to far")]
    assert [label.split("\n")[0] for label, images, _ in rows if images] == ["one", "four"] * 3
    near, far = (np.array(rows[row][2], float) for row in (7, 4))
    assert near.max() < far.min() and "2 of 6 classes" in title


def test_of_many_classes_some_are_shown_unless_asked_for(monkeypatch):
    monkeypatch.setattr(gallery, "CLASSES", 4)
    assert gallery.few(range(100), []) == [0, 33, 66, 99] and gallery.few(range(3), []) == [0, 1, 2]
    assert gallery.few(range(100), ["all of them"]) == list(range(100))


# ---------------------------------------------------------------------------------------------------------------- line


def test_a_line_leads_from_the_plain_prompt_to_the_farthest_outlier(chain):
    artifact = gallery.draw_lines(chain.config, [1, 4], 2)
    found = store.read_tensors(artifact.path / "line.safetensors")
    given, (table, embeddings) = anchors.load(chain.anchors), outliers.load(chain.outliers)
    assert found["images"].shape == (2, 2, 1 + gallery.STEPS, 3, 16, 16)
    for label, tokens, images in zip((1, 4), found["tokens"], found["images"]):
        farthest = table[table["class"] == label].sort_values("distance").index[-1]
        assert torch.equal(tokens[0], given[label]) and torch.equal(tokens[-1], embeddings[farthest])
        assert torch.equal(images[:, 0], images[:, 1])  # the anchor's image is the plain prompt's, bit for bit
        assert not torch.equal(images[0], images[1])  # another noise
        apart = (images[:, 1:].float() - images[:, 1:2].float()).abs().mean((0, 2, 3, 4))
        assert apart[-1] > 0  # the embedding is used


def test_an_image_of_a_line_is_drawn_as_any_other(chain):
    config = chain.config
    artifact = gallery.draw_lines(config, [3], 1)
    found = store.read_tensors(artifact.path / "line.safetensors")
    synthesis = settings(config, "dream").synthesis
    pipeline = imagine.load_pipeline(generator.run(config), config)
    imaginer = imagine.Imaginer(pipeline, data.class_names(config), synthesis)
    seed = imagine.image_seed(synthesis.seed, 0)
    alone = imaginer(torch.tensor([3]), found["tokens"][0, [5]], [seed])[0]
    assert (found["images"][0, 0, 6].int() - alone.int()).abs().max() <= 1  # alone or in a batch


@pytest.mark.parametrize("ends", [(1.0, 1.0), (0.4, 3.0)])
def test_steps_lie_on_the_line_and_have_the_length_of_its_ends(ends):
    start, end = (length * F.normalize(torch.randn(8), dim=0) for length in ends)
    line = gallery.between(start, end, 5)
    assert torch.allclose(line.norm(dim=1), torch.linspace(*ends, 5))
    for share, point in zip((0.25, 0.5, 0.75), line[1:-1]):
        assert F.cosine_similarity(point, (1 - share) * start + share * end, dim=0) == pytest.approx(1, abs=1e-6)


def test_lines_of_a_class_differ_in_noise_and_show_their_distances(chain, drawn):
    gallery.line(chain.config, ["three"])
    rows, title, steps = drawn["image_lines"]
    assert [label for label, *_ in rows] == [f"noise {n}" for n in range(1, 1 + gallery.NOISES)] and ": three" in title
    table, _ = outliers.load(chain.outliers)
    assert rows[0][2][0] == "" and rows[0][2][-1] == f"{table['distance'][table['class'] == 3].max():.3f}"
    gallery.line(chain.config)
    assert [label for label, *_ in drawn["image_lines"][0]] == data.class_names(chain.config)


# ------------------------------------------------------------------------------------------------------------- plotting


def test_every_figure_is_written_where_it_should_be(tiny, chain, tmp_path):
    for kind, options in (("embeddings", {"method": "pca"}), ("grid", {}), ("line", {})):
        cache = ["--root", str(tmp_path), "--dream.cache_dir", str(tiny.root / "dream")]
        path = pipelines.plot(kind, [tiny.file], cache, ["two"], None, **options)
        assert path == tmp_path / f"{kind}-two.png" and Image.open(path).size[0] > 100
    assert sorted(file.name for file in tmp_path.iterdir()) == ["embeddings-two.png", "grid-two.png", "line-two.png"]


def test_ways_of_sampling_are_methods_or_files_laid_over_the_config(tiny, tmp_path, monkeypatch):
    (tmp_path / "near.yml").write_text("dream: {outliers: {method: inlier, sigma: 0.02}}")
    given = []
    monkeypatch.setattr(gallery, "embeddings", lambda *args, **options: given.append((args, options)) or b"png")
    ways, out = ["boundary", str(tmp_path / "near.yml"), "knn"], tmp_path / "a.png"
    pipelines.plot("embeddings", [tiny.file], ["--dream.outliers.k", "4"], [], out, ways, method="pca")
    ((configs, classes), options), *_ = given
    assert list(configs) == ways and classes == [] and options == {"method": "pca"} and out.read_bytes() == b"png"
    found = [settings(config, "dream.outliers") for config in configs.values()]
    assert [(s.method, s.sigma, s.k) for s in found] == [("boundary", 0.15, 4), ("inlier", 0.02, 4), ("knn", 0.15, 4)]


def test_a_figure_must_be_a_png(tiny, tmp_path):
    with pytest.raises(InputError, match="--out: expected a file name that ends in .png, got '.*a.pdf'"):
        pipelines.plot("grid", [tiny.file], [], [], tmp_path / "a.pdf")
    assert not list(tmp_path.iterdir())


def test_a_figure_that_fails_leaves_the_old_one(tiny, tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")
    monkeypatch.setattr(gallery, "grid", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pipelines.plot("grid", [tiny.file], [], [], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_pictures_are_those_of_the_file(tmp_path):
    image = np.random.default_rng().integers(0, 256, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    assert np.array_equal(gallery.picture(tmp_path / "a.png"), image)
