"""Images in two lists, and images with two labels, are counted."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from openood_dream.config.schema import validated
from openood_dream.datasets.imglist import write_imglist
from openood_dream.datasets.loaders import Data
from openood_dream.datasets.overlaps import overlaps
from openood_dream.datasets.settings import DatasetSettings, OODDatasetSettings, PreprocessorSettings

LISTS = {
    "train": [("a.png", 0), ("b.png", 1)],
    "val": [("c.png", 0)],
    "test": [("d.png", 0)],
    "ood": [("e.png", -1)],
    "val_ood": [("f.png", -1)],
}


@pytest.fixture
def data(tmp_path):
    """Makes the data of lists that differ from LISTS in some; g.png is a copy of a.png."""
    for number, name in enumerate("abcdef"):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "g.png").write_bytes((tmp_path / "a.png").read_bytes())

    def make(**changed) -> Data:
        for name, rows in (LISTS | changed).items():
            write_imglist(tmp_path / f"{name}.txt", rows)
        split = {name: {"imglist_pth": str(tmp_path / f"{name}.txt"), "data_dir": str(tmp_path)} for name in LISTS}
        dataset = {"name": "x", "num_classes": 2, "pre_size": 4, "image_size": 4}
        dataset |= {name: split[name] for name in ("train", "val", "test")}
        ood = {"val": split["val_ood"], "nearood": {"datasets": ["ood"], "ood": split["ood"]}}
        return Data(
            validated(DatasetSettings, dataset), PreprocessorSettings(), validated(OODDatasetSettings, ood), tmp_path
        )

    return make


def test_nothing_is_said_of_lists_without_overlap(data):
    assert overlaps(data()) == []


@pytest.mark.parametrize(
    "changed, line",
    [
        ({"test": [("a.png", 0), ("d.png", 1)]}, "dataset.test: 1 images are also in dataset.train"),
        ({"ood": [("g.png", -1)]}, "ood_dataset.nearood.ood: 1 images are also in dataset.train"),
        ({"val_ood": [("./b.png", -1)]}, "ood_dataset.val: 1 images are also in dataset.train"),
        ({"train": [("a.png", 0), ("a.png", 1)]}, "dataset.train: 1 images stand in "),
        ({"train": [("a.png", 0), ("g.png", 1)]}, "dataset.train: 1 images stand in "),
    ],
)
def test_overlaps_are_counted(data, changed, line):
    (found,) = overlaps(data(**changed))
    assert found.startswith(line)
