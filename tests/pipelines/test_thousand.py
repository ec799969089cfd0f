"""A thousand classes go through all of it: the imagination, trainings, scores and the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import TINY
from PIL import Image

CLASSES, IMAGES = 1000, 6


def images(folder: Path, count: int, rng: np.random.Generator) -> None:
    """Images of classes, each a colour of its own with a little noise."""
    colours = rng.integers(0, 256, (CLASSES, 3))
    lists = {"train": [], "val": [], "test": []}
    for label in range(CLASSES):
        for number in range(count + 2):
            pixels = (colours[label] + rng.normal(0, 8, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            path = folder / f"{label:04d}" / f"{number}.png"
            path.parent.mkdir(exist_ok=True, parents=True)
            Image.fromarray(pixels).save(path)
            part = "train" if number < count else "val" if number == count else "test"
            lists[part].append(f"{path.relative_to(folder)} {label}\n")
    for name in ("val_ood", "squares", "noise"):
        lists[name] = []
        for number in range(20):
            path = folder / name / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(path)
            lists[name].append(f"{path.relative_to(folder)} -1\n")
    for name, rows in lists.items():
        (folder / f"{name}.txt").write_text("".join(rows))


@pytest.mark.slow
def test_thousand_classes(command, tmp_path):
    data, root, config = tmp_path / "data", tmp_path / "out", tmp_path / "thousand.yml"
    images(data, IMAGES, np.random.default_rng(0))
    names = [f"colour {''.join('abcdefghij'[int(digit)] for digit in f'{label:03d}')}" for label in range(CLASSES)]
    (data / "names.txt").write_text("".join(f"{name}\n" for name in names))
    paths = {
        name: json.dumps(str(path)) for name, path in (("root", root), ("data", data), ("train", data / "train.txt"))
    }
    (tmp_path / "empty.yml").write_text("{dream: {}, network: {}}")
    (tmp_path / "tiny.yml").write_text(
        TINY.replace("datasets/digits/digits.yml, datasets/digits/digits_ood.yml, ", "").format(**paths)
    )

    def split(name: str) -> str:
        place = f"data_dir: {data}, imglist_pth: {data / name}.txt"
        return f"{{dataset_class: ImglistDataset, {place}, batch_size: 100, shuffle: {name == 'train'}}}"

    config.write_text(f"""
include: [tiny.yml]
dataset:
  name: colours
  num_classes: {CLASSES}
  normalization_type: imagenet
  interpolation: bilinear
  num_workers: 0
  train: {split("train")}
  val: {split("val")}
  test: {split("test")}
ood_dataset:
  name: colours
  num_classes: {CLASSES}
  num_workers: 0
  batch_size: 100
  shuffle: false
  dataset_class: ImglistDataset
  split_names: [val, nearood, farood]
  val: {{data_dir: {data}, imglist_pth: {data / "val_ood.txt"}}}
  nearood: {{datasets: [squares], squares: {{data_dir: {data}, imglist_pth: {data / "squares.txt"}}}}}
  farood: {{datasets: [noise], noise: {{data_dir: {data}, imglist_pth: {data / "noise.txt"}}}}}
dream:
  class_names: {data / "names.txt"}
  outliers: {{k: 3, sigma: 0.15, select: 3, n_boundary: 2, n_draws: 8, keep: 1}}
  space: {{epochs: 3, per_class: {IMAGES}, batch_size: 100}}
  synthesis: {{per_class: 1, shard_size: 200, batch_size: 100}}
benchmark:
  seeds: [0]
  postprocessors: [msp, knn]
""")
    done = command("benchmark", "--config", config, "--methods", "base,dream_ood", "--jobs", "1")
    assert done.code == 0, done
    table = pd.read_csv(root / "leaderboard.csv")
    assert sorted(zip(table["method"], table["postprocessor"])) == [
        (method, score) for method in ("base", "dream_ood") for score in ("knn", "msp")
    ]
    (listed,) = root.glob("dream/images-*/imglist.txt")
    assert len(listed.read_text().splitlines()) == CLASSES
    assert (root / "report.html").stat().st_size < 10_000_000
