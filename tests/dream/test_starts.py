"""Images that start from ID images, and pairs of them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from openood_dream.datasets.imglist import read_imglist
from openood_dream.dream.anchors import load_anchors
from openood_dream.dream.generator.training import unit_range
from openood_dream.dream.image_set import read_images, shard_table, verify
from openood_dream.dream.imaginer import Imaginer, load_pipeline
from openood_dream.dream.residuals import load_residuals, lost, make_residuals, residuals_of
from openood_dream.dream.space import load_space
from openood_dream.errors import InputError
from openood_dream.store.artifacts import MANIFEST

PAIRS = ["--dream.synthesis.init", "id", "--dream.synthesis.pair", "true", "--dream.synthesis.shard_size", "5"]


@pytest.fixture(scope="module")
def starts(tiny):
    return tiny.config(*PAIRS).imagination._starts()


@pytest.fixture(scope="module")
def drawn(tiny) -> Path:
    """A set of pairs."""
    return tiny.config(*PAIRS).imagination.images.path


@pytest.fixture(scope="module")
def table(drawn) -> pd.DataFrame:
    return read_images(drawn)


def imaginer(dream, **settings: object) -> Imaginer:
    changed = dream.settings.synthesis.model_copy(update={"init": "id", **settings})
    return Imaginer(load_pipeline(dream.source, changed, "cpu"), dream.names, changed)


def test_start_is_of_the_class_and_depends_on_the_seed_alone(starts):
    labels, seeds = torch.arange(6).repeat(20), list(range(120))
    picked = starts.pick(labels, seeds)
    assert (starts.labels[picked] == labels).all() and len(set(picked)) > 60
    assert starts.pick(labels[7:9], seeds[7:9]).tolist() == picked[7:9].tolist()
    for name, image in zip(starts.names(picked[:3]), starts.pixels(picked[:3], 16), strict=True):
        pixels = Image.open(starts.images.data_dir / name).resize((16, 16), Image.Resampling.BILINEAR)
        slow = torch.from_numpy(np.array(pixels)).permute(2, 0, 1) / 127.5 - 1
        assert (image - slow).abs().max() < 0.02


def test_class_without_images(starts):
    with pytest.raises(ValueError, match="no ID training image of class 9"):
        starts.pick(torch.tensor([9]), [0])


def test_own_token_is_the_embedding_as_long_as_the_anchor(dream, starts):
    picked = starts.pick(torch.tensor([2, 4]), [1, 2])
    norms = load_anchors(dream.anchors).norm(dim=1)[[2, 4]]
    own = load_space(dream.space)["embeddings"].float()[picked]
    assert torch.allclose(starts.tokens(picked), own / own.norm(dim=1, keepdim=True) * norms[:, None])


def test_little_strength_leaves_the_start_and_full_strength_does_not(dream, starts):
    """As near to it as the autoencoder's image of it: that of these few steps loses much."""
    labels, seeds = torch.tensor([0, 3]), [5, 6]
    begin = starts.pixels(starts.pick(labels, seeds), 16)
    tokens = load_anchors(dream.anchors)[labels]
    pipe = load_pipeline(dream.source, dream.settings.synthesis, "cpu")
    again = ((begin - 2 * lost(pipe, begin)) + 1) / 2
    gaps = []
    for strength in (0.05, 1.0):
        images = imaginer(dream, strength=strength, steps=20)(labels, tokens, seeds, starts=begin).float() / 255
        gaps.append((images - again).abs().mean().item())
    assert gaps[0] < gaps[1] / 2


def test_image_does_not_depend_on_its_batch(dream, starts):
    labels, seeds = torch.tensor([0, 3, 1]), [5, 6, 7]
    begin, tokens = starts.pixels(starts.pick(labels, seeds), 16), load_anchors(dream.anchors)[labels]
    draw = imaginer(dream, strength=0.6, steps=4)
    together = draw(labels, tokens, seeds, starts=begin)
    for i in range(3):
        alone = draw(labels[i : i + 1], tokens[i : i + 1], seeds[i : i + 1], starts=begin[i : i + 1])
        assert (alone[0].int() - together[i].int()).abs().max() <= 1
    assert (draw(labels, tokens.roll(1, 0), seeds, starts=begin) != together).any()


def test_pairs_are_in_the_table_and_outliers_alone_in_the_list(drawn, table, starts):
    assert len(table) == 48 and (table.groupby("seed").size() == 2).all()
    outliers, inliers = table[table["label"] < 0], table[table["label"] >= 0]
    assert (inliers["label"] == inliers["class"]).all()
    assert dict(zip(outliers["partner"], outliers["file"])) == dict(zip(inliers["file"], inliers["partner"]))
    assert (outliers.set_index("seed")["start"] == inliers.set_index("seed")["start"]).all()
    assert read_imglist(drawn / "imglist.txt") == [(file, -1) for file in outliers["file"]]
    assert verify(drawn) == (48, {}, [drawn / MANIFEST])
    same = [(drawn / row.file).read_bytes() == (drawn / row.partner).read_bytes() for row in outliers.itertuples()]
    assert not all(same)  # so small a generator hardly hears its text


def test_a_lost_shard_is_drawn_again_the_same(tiny, drawn, tmp_path):
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in drawn.rglob("*.png")}
    shutil.copytree(tiny.root / "dream", tmp_path / "dream", symlinks=True)
    copy = tmp_path / "dream" / drawn.name
    (copy / MANIFEST).unlink()
    shard_table(copy, 2).unlink()
    again = tiny.config(*PAIRS, "--dream.cache_dir", str(tmp_path / "dream")).imagination.images.path
    assert again == copy
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in copy.rglob("*.png")} == before


def test_trainer_gets_pairs(tiny, drawn, table):
    config = tiny.method("dream_ood", *PAIRS, "--trainer.pairs", "true", "--dream.filter.distance", "null")
    images = config.imagination.training_images()
    rows = read_imglist(images.imglist)
    assert len(rows) == 48 and [label < 0 for _, label in rows] == [True, False] * 24


@pytest.mark.parametrize("residual", ["true", "false"])
def test_inliers_through_the_autoencoder(tiny, dream, residual):
    """Each is a training image of its class as the autoencoder gives it back, with what its outlier got of residuals."""
    words = ["--dream.synthesis.pair", "autoencoder", "--dream.synthesis.residual", residual]
    config = tiny.config(*words).imagination
    found, plain = read_images(config.images.path), read_images(dream.images.path)
    outliers, inliers = found[found["label"] < 0], found[found["label"] >= 0]
    assert len(inliers) == len(outliers) == len(plain) and (inliers["label"] == inliers["class"]).all()
    if residual == "false":  # the outliers are those that are drawn without
        assert sorted(outliers["sha256"]) == sorted(plain["sha256"])
    draw, train = imaginer(dream, init="noise"), config._train
    names = [name for name, _ in train.rows]
    for row in inliers.head(3).itertuples():
        at = names.index(row.start)
        assert train.labels[at] == row.label
        x = unit_range(train.at_size(16).__getitems__([at])["data"], train.transform)
        vae = draw.pipeline.vae
        with torch.no_grad():
            again = (vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1) + 1) / 2
        if residual == "true":
            artifact = make_residuals(draw, config.source, train, draw.settings, config.cache_dir)
            again = again + residuals_of(load_residuals(artifact), [row.seed])
        pixels = np.array(Image.open(config.images.path / row.file)).transpose(2, 0, 1)
        assert np.abs(pixels - (again[0].clamp(0, 1) * 255).round().numpy()).max() <= 1
    method = tiny.method("dream_ood", *words, "--trainer.pairs", "true", "--dream.filter.distance", "null")
    labels = [label < 0 for _, label in read_imglist(method.imagination.training_images().imglist)]
    assert labels == [True, False] * len(outliers)


def test_latents_know_no_pairs(tiny):
    kept = [tiny.config(*words).imagination for words in ([], ["--dream.synthesis.pair", "autoencoder"])]
    assert kept[0].latents(6).hash == kept[1].latents(6).hash


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--dream.synthesis.guide.image", "0.3", "--dream.synthesis.guide.begin", "0.4"]
            + ["--dream.synthesis.guide.end", "0.45"],
            r"guide\.begin.*no step of 2 is between",
        ),
        (["--dream.space.inversion.lr", "1e20"], r"inversion\.lr.*100"),
        (["--dream.synthesis.pair", "both"], r"synthesis\.pair.*true, false or autoencoder"),
        (["--dream.synthesis.pair", "true"], r"synthesis\.pair.*init: id"),
        (
            ["--dream.synthesis.init", "id", "--dream.synthesis.steps", "2", "--dream.synthesis.strength", "0.3"],
            "steps \\* strength",
        ),
    ],
)
def test_settings_that_contradict(tiny, words, line):
    with pytest.raises(InputError, match=line):
        tiny.config(*words)


def test_pairs_that_are_not_drawn_are_missed_before_anything_is(tiny, dream, tmp_path):
    words = [
        "--trainer.pairs",
        "true",
        "--dream.cache_dir",
        str(tmp_path),
        "--dream.generator",
        str(dream.generator.path),
    ]
    with pytest.raises(InputError, match=r"synthesis\.pair: trainer\.pairs takes pairs; expected true or autoencoder"):
        tiny.method("dream_ood", *words).imagination.training_images()
    assert not list(tmp_path.iterdir())


def test_inliers_have_no_inliers(tiny):
    words = [*PAIRS, "--dream.outliers.method", "inlier"]
    with pytest.raises(InputError, match=r"synthesis\.pair: the images are inliers themselves"):
        tiny.config(*words).imagination.forecast()
    with pytest.raises(InputError, match=r"synthesis\.pair: the images are inliers themselves"):
        tiny.config(*PAIRS, "--dream.outliers.method", "inlier").imagination.images  # noqa: B018
