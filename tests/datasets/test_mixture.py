"""Auxiliary images may be resized in several ways and go through JPEG, each in its own way and always in that one."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tvf

from openood_dream.config.schema import validated
from openood_dream.datasets import images
from openood_dream.datasets.images import ImageList, Transform, loader
from openood_dream.datasets.imglist import write_imglist
from openood_dream.datasets.loaders import Data
from openood_dream.datasets.mixture import Mixture
from openood_dream.datasets.settings import DatasetSettings, PreprocessorSettings
from openood_dream.errors import InputError
from openood_dream.pipelines.identity import run_inputs

COUNT = 12
BOTH = ("nearest", "bilinear")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder of noisy images of 40 pixels, and its list."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    write_imglist(folder / "list.txt", [(f"{i}.png", -1) for i in range(COUNT)])
    return folder


def data(folder: Path, **oe: Any) -> Data:
    split = {"imglist_pth": str(folder / "list.txt"), "data_dir": str(folder), "batch_size": 5}
    dataset = {"name": "photos", "num_classes": 2, "pre_size": 16, "image_size": 16, "oe": split | oe}
    return Data(validated(DatasetSettings, dataset), validated(PreprocessorSettings, {"horizontal_flip": False}))


def pixels(opened: ImageList) -> torch.Tensor:
    return opened.pixels(torch.arange(len(opened)))


def resized(folder: Path, index: int, way: str, quality: int | None = None) -> torch.Tensor:
    """The definition, by a JPEG file of its own."""
    image = Image.open(folder / f"{index}.png")
    if quality is not None:
        stored = io.BytesIO()
        image.save(stored, format="JPEG", quality=quality)
        image = Image.open(stored)
    return torch.from_numpy(np.array(tvf.resize(image, 16, InterpolationMode(way)))).permute(2, 0, 1)


def test_each_image_is_resized_in_one_of_the_ways(photos):
    found = pixels(data(photos, interpolation=[*BOTH]).images("dataset", "oe"))
    used = Counter()
    for i, image in enumerate(found):
        matching = [way for way in BOTH if torch.equal(image, resized(photos, i, way))]
        assert len(matching) == 1
        used[matching[0]] += 1
    assert min(used[way] for way in BOTH) >= 2


def test_one_way_is_that_of_all(photos):
    found = pixels(data(photos, interpolation="nearest").images("dataset", "oe"))
    assert torch.equal(found, torch.stack([resized(photos, i, "nearest") for i in range(COUNT)]))


@pytest.mark.parametrize("jpeg", [30, [20, 40]])
def test_images_go_through_jpeg_before_they_are_resized(photos, jpeg):
    found = pixels(data(photos, jpeg=jpeg).images("dataset", "oe"))
    low, high = jpeg if isinstance(jpeg, list) else (jpeg, jpeg)
    seen = set()
    for i, image in enumerate(found):
        matching = [q for q in range(low, high + 1) if torch.equal(image, resized(photos, i, "bilinear", q))]
        assert matching
        seen.add(matching[0])
    assert len(seen) > 3 or low == high


def test_an_image_looks_the_same_whoever_reads_it(photos, monkeypatch):
    opened = data(photos, interpolation=[*BOTH], jpeg=[20, 90]).images("dataset", "oe")
    first = pixels(opened)
    monkeypatch.setattr(images, "CACHE_BYTES", 0)
    uncached = data(photos, interpolation=[*BOTH], jpeg=[20, 90]).images("dataset", "oe")
    assert not uncached.cached and torch.equal(uncached.pixels(torch.arange(COUNT).flip(0)), first.flip(0))
    parts = [batch["data"] for batch in loader(uncached, 5, shuffle=False, workers=1)]
    assert torch.equal(torch.cat(parts), opened.transform.normalize(first))
    assert torch.equal(pixels(opened.augmented()), first)


def test_lists_that_stand_for_oe_are_prepared_as_it_is(photos):
    of = data(photos, interpolation=[*BOTH])
    assert torch.equal(pixels(of.open_auxiliary(photos / "list.txt", photos)), pixels(of.images("dataset", "oe")))
    plain = torch.stack([resized(photos, i, "bilinear") for i in range(COUNT)])
    assert torch.equal(pixels(of.open(photos / "list.txt", photos, "key")), plain)


def test_random_resized_crops_are_resized_in_the_way_of_their_image(photos):
    ways = [Mixture(BOTH).way(i).interpolation for i in range(COUNT)]
    mixed, plain = (
        ImageList(photos / "list.txt", photos, Transform(16, 16, **keys), augment=True)
        for keys in ({"resized_crop": True, "mixture": Mixture(BOTH)}, {"resized_crop": True})
    )
    for i, way in enumerate(ways):
        torch.manual_seed(i)
        one = mixed.pixels(torch.tensor([i]))
        torch.manual_seed(i)
        assert torch.equal(one, plain.pixels(torch.tensor([i]))) == (way == "bilinear")


def test_what_changes_nothing_leaves_the_transform_as_it_is(photos):
    for keys in ({}, {"interpolation": "bilinear"}, {"interpolation": ["bilinear"]}, {"interpolation": None}):
        assert data(photos, **keys).auxiliary_transform == data(photos).transform
    one, other = (data(photos, interpolation=way).auxiliary_transform for way in (["nearest"], [*BOTH]))
    assert one.test_identity != other.test_identity != data(photos).transform.test_identity


def test_a_run_with_other_ways_is_another_run(tiny):
    def inputs(*words: str) -> dict[str, Any]:
        return run_inputs(tiny.method("oe", *words))

    assert inputs("--dataset.oe.interpolation", "bilinear") == inputs()
    changed = [inputs("--dataset.oe.jpeg", "75"), inputs("--dataset.oe.interpolation", "[nearest, bilinear]")]
    assert inputs() not in changed and changed[0] != changed[1]
    assert [json.loads(json.dumps(one["dataset"])) for one in changed] == [one["dataset"] for one in changed]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"interpolation": ["nearest", "nearest"]}, "interpolation: expected each entry once"),
        ({"interpolation": ["bilinea"]}, r"interpolation\[0\]: expected 'nearest'"),
        ({"jpeg": 0}, "jpeg: expected a quality from 1 to 100"),
        ({"jpeg": [80, 60]}, "jpeg: expected a quality from 1 to 100, or .lowest, highest., got .80, 60."),
        ({"jpeg": [70]}, "jpeg: expected a quality"),
        ({"jpeg": "75"}, "jpeg: expected a quality"),
    ],
)
def test_what_is_no_way_is_refused(photos, keys, words):
    with pytest.raises(InputError, match=f"dataset.oe.{words}"):
        data(photos, **keys)
