"""A folder of images in, a config and a leaderboard out."""

from __future__ import annotations

import csv
import shutil

import pytest
from helpers import stamps

from openood_dream.experiment import load_config
from openood_dream.pipelines.own import prepare

SMALL = """
backend: standalone
device: cpu
precision: float32
network: {name: 'timm:resnet10t', args: {channels: [8, 8, 16, 16]}}
dataset: {pre_size: 16, image_size: 16}
optimizer: {num_epochs: 1}
dream:
  generator: {steps: 10, vae_steps: 5, batch_size: 16, text_dim: 16, vae_channels: [32, 32], unet_channels: [32]}
  space: {network: 'timm:resnet10t', network_args: {channels: [8, 8, 16, 16]}, epochs: 2}
  outliers: {sigma: 0.15, n_draws: 20, rounds: 1}
  synthesis: {per_class: 4, steps: 2, size: 16, save_size: 16}
  filter: {distance: null}
"""


@pytest.fixture
def photos(tmp_path, digits, monkeypatch):
    """Twenty digits of each of four classes in folders, and the working directory that they lie in."""
    monkeypatch.chdir(tmp_path)
    for name in ("zero", "one", "two", "three"):
        files = sorted((digits / "images_classic/digits/train" / name).iterdir())[:20]
        (tmp_path / "photos" / name).mkdir(parents=True)
        for file in files:
            shutil.copy(file, tmp_path / "photos" / name)
    (tmp_path / "small.yml").write_text(SMALL)
    return tmp_path / "photos"


def test_a_benchmark_of_a_folder(command, photos, tmp_path):
    words = ["benchmark", "--data", "photos/", "--seeds", "1", "--config", "small.yml"]
    done = command(*words)
    assert done.code == 0, done.err
    rows = list(csv.DictReader(open("results/photos/leaderboard.csv")))
    assert {row["method"] for row in rows} == {"base", "dream_ood"} and all(row["near_auroc"] for row in rows)
    before = stamps(tmp_path / "results/photos/lists") | stamps(tmp_path / "results/photos/runs")
    assert command("benchmark", "--config", "results/photos/photos.yml", "small.yml", "--seeds", "1").code == 0
    assert command("imagine", "--data", "photos", "--config", "small.yml").code == 0
    assert stamps(tmp_path / "results/photos/lists") | stamps(tmp_path / "results/photos/runs") == before


def test_init_prints_the_config_that_runs(command, photos, tmp_path):
    done = command("init", "--data", "photos")
    assert done.out == (tmp_path / "results/photos/photos.yml").read_text() and done.code == 0
    (tmp_path / "my.yml").write_text(done.out)
    config = load_config("my.yml")
    assert config.dataset.num_classes == len(config.dream.class_names) == 3  # one of four is held out
    assert config.dataset.image_size == 32 and config.ood_dataset.nearood.datasets == ["held_out"]
    assert config.imagination.data.images("dataset", "train").labels.max() == 2
    edited = tmp_path / "results/photos/photos.yml"
    edited.write_text("# mine\n" + done.out)
    assert command("init", "--data", "photos").out.startswith("# mine\n")


def test_other_images_are_a_group_of_their_own(photos, digits):
    made = prepare(photos, digits / "images_classic/digits/test_flower")
    config = load_config(made.config)
    assert config.dataset.num_classes == 4 and list(config.ood_dataset.groups) == ["ood"]
    assert len(config.data.images("ood_dataset", "ood", "other")) == 320
    both = load_config(
        prepare(photos, digits / "images_classic/digits/test_flower", 0.3, photos.parent / "both").config
    )
    assert list(both.ood_dataset.groups) == ["nearood", "ood"] and both.dataset.num_classes == 3


@pytest.mark.parametrize("change, words", [("new", "is new"), ("gone", "is gone"), ("other", "has changed")])
def test_changed_images_are_refused(command, photos, digits, change, words):
    prepare(photos)
    one, other = sorted((photos / "one").iterdir())[:2]
    if change == "new":
        shutil.copy(next((digits / "images_classic/digits/test/one").iterdir()), photos / "one" / "z.png")
    elif change == "gone":
        one.unlink()
    else:
        shutil.copy(next((digits / "images_classic/digits/test/one").iterdir()), one)
    done = command("imagine", "--data", "photos", "--dry-run", "--config", "small.yml")
    name = "one/z.png" if change == "new" else f"one/{one.name}"
    assert done.code == 2 and name in done.err[-1] and words in done.err[-1]
    assert command("init", "--data", "photos", "--root", "elsewhere").code == 0


@pytest.mark.parametrize(
    "words, key",
    [
        (["init"], "--data"),
        (["init", "--data", "nowhere"], "nowhere"),
        (["init", "--data", "photos", "--hold-out", "1"], "--hold-out"),
        (["init", "--data", "photos", "--seed", "1"], "--seed"),
        (["imagine", "--ood", "photos", "--config", "small.yml"], "--ood"),
    ],
)
def test_bad_words_write_nothing(command, photos, tmp_path, words, key):
    done = command(*words)
    assert done.code == 2 and key in done.err[-1] and not (tmp_path / "results").exists()


def test_the_same_words_as_before(command, photos):
    prepare(photos)
    done = command("init", "--data", "photos", "--hold-out", "0")
    assert done.code == 2 and "--hold-out 0.2" in done.err[-1]


def test_two_classes_imagine_and_do_not_evaluate(command, photos):
    for name in ("two", "three"):
        shutil.rmtree(photos / name)
    assert command("imagine", "--data", "photos", "--dry-run", "--config", "small.yml").code == 0
    done = command("benchmark", "--data", "photos", "--config", "small.yml")
    assert done.code == 2 and "ood" in done.err[-1]
